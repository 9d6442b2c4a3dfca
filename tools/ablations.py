"""The tables and the picture of recipes/ablations.sh, from the files that its runs left behind:

    python -m tools.ablations runs/ablations                 writes table.md and ablations.png there
    python -m tools.ablations runs/ablations --models lookups 0      the checkpoints of a study that are evaluated

A run is named KIND-SEED; what is compared with what stands in STUDIES. A cell is the mean over the seeds and their
standard deviation. A seed that a kind lacks while others have it is an error, not a smaller sample.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import mean, stdev

from tools import figures, series

# {study: {name of a row: (kind of run, which of its checkpoints)}}: the last, or the one at which the run had used as
# many tokens or seconds as the phased run beside it.
STUDIES = {
    "lookups": {"base": ("base", "last"), "short SFT": ("short", "last"), "long SFT": ("long", "last"),
                "RL from base": ("rl_base", "last"), "RL from short SFT": ("rl_short", "last"),
                "RL from long SFT": ("rl_long", "last"),
                "RL from base, no retrospective sampling": ("no_retro", "last"),
                "RL from base in one stage, equal tokens": ("single", "million tokens"),
                "RL from base in one stage, equal time": ("single", "minutes")},
    "judge": {"warm-up": ("other_words", "last"), "RL with the rule": ("rule", "last"),
              "RL with rule and judge": ("hybrid", "last")},
    "tasks": {"warm-up": ("three_tasks", "last"), "RL with GRPO": ("grpo", "last"),
              "RL with TMN-Reweight": ("tmn", "last")}}
# {title: (study, {column: (evaluation, part, name)})}
TABLES = {
    "Look-ups: the same from three warm-ups, and what the curriculum does": ("lookups", {
        "short documents": ("lookups", "by_length", "0-80"), "long documents": ("lookups", "by_length", "80-200"),
        "closed book": ("closed_book", "all", "")}),
    "Rule, or rule and judge": ("judge", {
        "short: rule": ("by_rule", "by_length", "0-80"), "and judge": ("by_judge", "by_length", "0-80"),
        "long: rule": ("by_rule", "by_length", "80-200"), "and judge ": ("by_judge", "by_length", "80-200")}),
    "Three tasks": ("tasks", {
        "short documents": ("tasks", "by_length", "0-80"), "long documents": ("tasks", "by_length", "80-200"),
        **{task: ("tasks", "by_task", task) for task in ("qa", "f1", "pairwise")}})}
DYNAMICS = {"RL from base": "rl_base", "RL from short SFT": "rl_short", "RL from long SFT": "rl_long",
            "RL from base, no retrospective sampling": "no_retro", "RL from base in one stage": "single"}


def models(directory: Path, study: str, seed: str) -> dict[str, Path]:
    """{name of a row: checkpoint} for one seed."""
    found = {}
    for name, (kind, which) in STUDIES[study].items():
        run = directory / f"{kind}-{seed}"
        saved = {int(path.name[5:]): path for path in sorted((run / "checkpoints").glob("step_*[0-9]"))}
        if not saved:
            raise FileNotFoundError(f"{run} has no checkpoint; let recipes/ablations.sh come to its end")
        step = max(saved) if which == "last" else equal(directory, run, seed, which)
        found[name] = saved[min(saved, key=lambda other: abs(other - step))]
    return found


def equal(directory: Path, run: Path, seed: str, unit: str) -> int:
    """The step at which a run had used as much as the phased run from the same model did in all."""
    spent = series.cumulated(series.read_metrics(directory / f"rl_base-{seed}" / "metrics.jsonl"))[-1][unit]
    rows = series.cumulated(series.read_metrics(run / "metrics.jsonl"))
    if rows[-1][unit] < spent:
        raise series.PlotError(f"{run} ended before it had used the {spent:.3g} {unit} of the phased run; give it more "
                               "steps")
    return min(rows, key=lambda row: abs(row[unit] - spent))["step"]


def seeds_of(directory: Path) -> list[str]:
    """Of all runs; the same for every kind."""
    found = {}
    for path in directory.glob("*-*/metrics.jsonl"):
        kind, _, seed = path.parent.name.rpartition("-")
        found.setdefault(kind, set()).add(seed)
    kinds = {kind for study in STUDIES.values() for kind, _ in study.values()}
    everywhere = set().union(*found.values())
    for kind in sorted(kinds):
        if missing := sorted(everywhere - found.get(kind, set())):
            raise FileNotFoundError(f"{directory}/{kind}-{missing[0]} is not there, though other runs of this seed "
                                    "are; let recipes/ablations.sh come to its end")
    return sorted(everywhere, key=int)


def cell(directory: Path, seed: str, study: str, row: str, column: tuple[str, str, str]) -> float:
    """The accuracy of one row's model in %."""
    evaluation, part, name = column
    path = directory / f"eval_{evaluation}-{seed}" / "results.json"
    results = {Path(model["model"]): model for model in series.read_results(path)}
    model = models(directory, study, seed)[row]
    if model not in results:
        raise series.PlotError(f"{path} knows nothing of {model}; remove {path.parent} and evaluate again")
    found = results[model][part] if not name else results[model][part][name]
    return 100 * found["accuracy"]


def spread(values: list[float], digits: int = 1) -> str:
    """Mean and standard deviation.

    >>> spread([1.0, 2.0, 3.0])
    '2.0 ± 1.0'
    """
    told = f"{mean(values):.{digits}f}"
    return f"{told} ± {stdev(values):.{digits}f}" if len(values) > 1 else told


def markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def tables(directory: Path, seeds: list[str]) -> str:
    """All of it as Markdown."""
    parts = []
    for title, (study, columns) in TABLES.items():
        rows = [[row, *(spread([cell(directory, seed, study, row, column) for seed in seeds])
                        for column in columns.values())] for row in STUDIES[study]]
        parts.append(f"### {title}\n\n{markdown(['accuracy, %', *columns], rows)}")
    columns = {"steps": lambda rows: rows[-1]["step"], "minutes": lambda rows: rows[-1]["minutes"],
               "million tokens": lambda rows: rows[-1]["million tokens"], **{
                   f"{name}, mean of the long documents' steps": of_long(key)
                   for name, key in (("reward", "reward_by_len/80-200"), ("entropy", "entropy_by_len/80-200"))},
               "gradient norm, median": lambda rows: middle([v for _, v in series.points(rows, "grad_norm") if v]),
               "KL to the start, last 20 steps": lambda rows: mean(v for _, v in series.points(rows, "kl")[-20:]),
               "its std within 10 steps": lambda rows: series.rolling_std([rows], "kl"),
               "largest over median KL": lambda rows: peak([v for _, v in series.points(rows, "kl")]),
               "entropy, last 20 steps": lambda rows: mean(v for _, v in series.points(rows, "entropy")[-20:])}
    runs = {name: [series.cumulated(series.read_metrics(directory / f"{kind}-{seed}" / "metrics.jsonl"))
                   for seed in seeds] for name, kind in DYNAMICS.items()}
    rows = [[column, *(spread([float(of(rows)) for rows in group], 3 if "steps" in column[1:] else 2)
                       for group in runs.values())] for column, of in columns.items()]
    parts.append(f"### While training\n\n{markdown(['', *runs], rows)}")
    return "\n\n".join(parts) + "\n"


def of_long(key: str) -> Callable:
    return lambda rows: mean(value for _, value in series.points(rows, key))


def middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0


def peak(values: list[float]) -> float:
    return max(values) / middle([v for v in values if v] or [1.0])


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.ablations", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="where the runs of recipes/ablations.sh are")
    parser.add_argument("--models", nargs=2, metavar=("STUDY", "SEED"), help="print these and do nothing else")
    args = parser.parse_args(argv)
    try:
        if args.models:
            print(*dict.fromkeys(models(args.directory, *args.models).values()))
            return 0
        seeds = seeds_of(args.directory)
        text = tables(args.directory, seeds)
        (args.directory / "table.md").write_text(text, encoding="utf-8")
        print(text)
    except FileNotFoundError as error:
        print(error.filename and f"{error.filename} is not there" or error, file=sys.stderr)
        return 66
    except series.PlotError as error:
        print(error, file=sys.stderr)
        return 65
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
