"""The tables and the picture of recipes/ablations.sh, from the files of its runs.

    python -m recipes.ablations runs/ablations                         writes table.md and ablations.png there
    python -m recipes.ablations runs/ablations --models lookups 0      prints the checkpoints of a study to evaluate

A run is named KIND-SEED. STUDIES says what is compared with what. A cell is the mean over the seeds and their standard
deviation. If a seed is there for one kind and missing for another, that is an error, not a smaller sample.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from statistics import mean, median, stdev

from nanoqwenlong.errors import DataError
from nanoqwenlong.ops.console import say, tell, with_exit_code
from tools import series
from tools.plot import COLOURS, REWARD, STYLE, Panel, draw_lines

# {study: {name of a row: (kind of run, which of its checkpoints)}}: the last checkpoint, or the one at which the run
# had used as many tokens or as much time as the phased run from the same model.
STUDIES = {
    "lookups": {"base": ("base", "last"), "short SFT": ("short", "last"), "long SFT": ("long", "last"),
                "RL from base": ("rl_base", "last"), "RL from short SFT": ("rl_short", "last"),
                "RL from long SFT": ("rl_long", "last"),
                "RL from short SFT, dynamic sampling": ("refills", "last")},
    "curriculum": {"base": ("base", "last"), "RL from base": ("rl_base", "last"),
                   "RL from base, no retrospective sampling": ("no_retro", "last"),
                   "RL from base in one stage, equal tokens": ("single", "million tokens"),
                   "RL from base in one stage, equal time": ("single", "minutes")},
    "judge": {"warm-up": ("other_words", "last"), "RL with the rule": ("rule", "last"),
              "RL with rule and judge": ("hybrid", "last")},
    "tasks": {"warm-up": ("three_tasks", "last"), "RL with GRPO": ("grpo", "last"),
              "RL with TMN-Reweight": ("tmn", "last")}}
STARTS = ("base", "short SFT", "long SFT")
LOOKUPS, CURRICULUM = "Look-ups: RL from three warm-ups", "Look-ups: what the curriculum does"
# {title: (study, {column: (evaluation, part, name, figure)})}
SHORT, LONG = ("by_length", "0-80", "accuracy"), ("by_length", "80-200", "accuracy")
TABLES = {
    LOOKUPS: ("lookups", {
        "short documents": ("lookups", *SHORT), "long documents": ("lookups", *LONG),
        "long, one of 8 right": ("lookups", "by_length", "80-200", "pass@8"),
        "closed book": ("closed_book", "all", "", "accuracy")}),
    CURRICULUM: ("curriculum", {
        "short documents": ("curriculum", *SHORT), "long documents": ("curriculum", *LONG),
        "long, one of 8 right": ("curriculum", "by_length", "80-200", "pass@8"),
        "closed book": ("curriculum_closed_book", "all", "", "accuracy")}),
    "Rule, or rule and judge": ("judge", {
        "short: by the rule": ("by_rule", *SHORT), "by rule and judge": ("by_judge", *SHORT),
        "either word": ("by_either", *SHORT), "long: by the rule": ("by_rule", *LONG),
        "by rule and judge ": ("by_judge", *LONG), "either word ": ("by_either", *LONG)}),
    "Three tasks": ("tasks", {
        "short documents": ("tasks", *SHORT), "long documents": ("tasks", *LONG),
        **{task: ("tasks", "by_task", task, "accuracy") for task in ("qa", "f1", "pairwise")}})}
DYNAMICS = {"RL from base": "rl_base", "RL from short SFT": "rl_short", "RL from long SFT": "rl_long",
            "RL from base, no retrospective sampling": "no_retro", "RL from base in one stage, equal tokens": "single"}


def models(directory: Path, study: str, seed: str) -> dict[str, Path]:
    """{name of a row: checkpoint} for one seed."""
    checkpoints = {}
    for name, (kind, which) in STUDIES[study].items():
        run = directory / f"{kind}-{seed}"
        by_step = {int(path.name[5:]): path for path in sorted((run / "checkpoints").glob("step_*[0-9]"))}
        if not by_step:
            raise FileNotFoundError(f"{run} has no checkpoint: let recipes/ablations.sh finish")
        step = max(by_step) if which == "last" else equal(directory, run, seed, which)
        nearest = min(by_step, key=lambda other: abs(other - step))
        checkpoints[name] = by_step[nearest]
    return checkpoints


def equal(directory: Path, run: Path, seed: str, unit: str) -> int:
    """The step at which a run had used as many units as the phased run from the same model used in all."""
    spent = series.cumulated(series.read_metrics(directory / f"rl_base-{seed}" / "metrics.jsonl"))[-1][unit]
    rows = series.cumulated(series.read_metrics(run / "metrics.jsonl"))
    if rows[-1][unit] < spent:
        raise DataError(f"{run} ended before it had used the {spent:.3g} {unit} of the phased run: give it more steps")
    return min(rows, key=lambda row: abs(row[unit] - spent))["step"]


def seeds_of(directory: Path, study: str) -> list[str]:
    """The seeds of a study: those of the kinds that no other study has. All its kinds must have them."""
    seeds = {}                                                         # {kind: its seeds}
    for path in directory.glob("*-*/metrics.jsonl"):
        kind, _, seed = path.parent.name.rpartition("-")
        seeds.setdefault(kind, set()).add(seed)
    kinds = {name: {kind for kind, _ in rows.values()} for name, rows in STUDIES.items()}
    shared = set().union(*(others for name, others in kinds.items() if name != study))
    all_seeds = set().union(*(seeds.get(kind, set()) for kind in kinds[study] - shared))
    for kind in sorted(kinds[study]):
        missing = sorted(all_seeds - seeds.get(kind, set()))
        if missing:
            raise FileNotFoundError(f"{directory}/{kind}-{missing[0]} is not there, though other runs of this seed "
                                    "are: let recipes/ablations.sh finish")
    return sorted(all_seeds, key=int)


def cell(directory: Path, seed: str, study: str, row: str, column: tuple[str, str, str, str]) -> float:
    """One figure of a model, in %."""
    evaluation, part, name, figure = column
    path = directory / f"eval_{evaluation}-{seed}" / "results.json"
    results = {Path(model["model"]): model for model in json.loads(path.read_text(encoding="utf-8"))["models"]}
    model = models(directory, study, seed)[row]
    if model not in results:
        raise DataError(f"{path} has no results for {model}: remove {path.parent} and evaluate again")
    figures_of = results[model][part]
    return 100 * (figures_of[name] if name else figures_of)[figure]


def spread(values: list[float], digits: int = 1) -> str:
    """Mean and standard deviation, or "" if a seed has no value.

    >>> spread([1.0, 2.0, 3.0])
    '2.0 ± 1.0'
    """
    if any(value is None or math.isnan(value) for value in values):
        return ""
    center = f"{mean(values):.{digits}f}"
    return f"{center} ± {stdev(values):.{digits}f}" if len(values) > 1 else center


def markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def tables(directory: Path, seeds_by_study: dict[str, list[str]]) -> str:
    """All tables as Markdown."""
    parts = ["Mean ± standard deviation over the seeds."]
    for title, (study, columns) in TABLES.items():
        rows, seeds = [], seeds_by_study[study]
        for name in STUDIES[study]:
            cells = [[cell(directory, seed, study, name, column) for seed in seeds] for column in columns.values()]
            rows.append([name, *map(spread, cells)])
        parts.append(f"### {title} ({len(seeds)} seeds)\n\n{markdown(['accuracy, %', *columns], rows)}")
    runs = {}
    for name, kind in DYNAMICS.items():
        study = "curriculum" if name in STUDIES["curriculum"] else "lookups"
        runs[name] = [trained(directory, kind, seed) for seed in seeds_by_study[study]]
    rows = []
    for name, (measure, digits) in WHILE_TRAINING.items():
        rows.append([name, *(spread([measure(run) for run in group], digits) for group in runs.values())])
    parts.append(f"### While training\n\n{markdown(['', *runs], rows)}")
    return "\n\n".join(parts) + "\n"


def trained(directory: Path, kind: str, seed: str) -> list[dict]:
    """The steps of a run. A run in one stage is cut where it has used as many tokens as the phased run."""
    run = directory / f"{kind}-{seed}"
    rows = series.cumulated(series.read_metrics(run / "metrics.jsonl"))
    return [row for row in rows if kind != "single" or row["step"] <= equal(directory, run, seed, "million tokens")]


def values(rows: list[dict], key: str) -> list[float]:
    """The measured values, or one NaN if there are none."""
    measured = [series.number(row, key) for row in rows]
    return [value for value in measured if value is not None] or [math.nan]


def beginning(rows: list[dict], key: str) -> float:
    """The mean over the first 50 steps of phase II. NaN without a phase II."""
    return mean(values([row for row in rows if row["phase"] == 2][:50], key))


def rolling_std(rows: list[dict], key: str, width: int = 10) -> float:
    """How much a metric moves from step to step: its standard deviation within `width` steps, averaged over all such
    windows. A window never crosses phases. If a phase is shorter than `width`, it is one window."""
    spreads = []
    for _, part in groupby(rows, key=lambda row: row.get("phase")):
        numbers = values(list(part), key)
        size = min(width, len(numbers))
        for start in range(len(numbers) - size + 1 if size > 1 else 0):
            spreads.append(stdev(numbers[start:start + size]))
    return mean(spreads) if spreads else math.nan


# {name: (figure from the rows of a run, digits)}
WHILE_TRAINING = {
    "steps": (lambda rows: rows[-1]["step"], 0),
    "minutes": (lambda rows: rows[-1]["minutes"], 2),
    "million tokens": (lambda rows: rows[-1]["million tokens"], 2),
    "reward, first 50 steps of phase II": (lambda rows: beginning(rows, "reward"), 3),
    "entropy, the same steps": (lambda rows: beginning(rows, "entropy"), 3),
    "reward of long documents, last 20 steps": (lambda rows: mean(values(rows[-20:], "reward_by_len/80-200")), 3),
    "entropy on long documents, last 20 steps": (lambda rows: mean(values(rows[-20:], "entropy_by_len/80-200")), 3),
    "KL to the start, last 20 steps": (lambda rows: mean(values(rows[-20:], "kl")), 3),
    "KL, std within 10 steps": (lambda rows: rolling_std(rows, "kl"), 4),
    "KL, largest": (lambda rows: max(values(rows, "kl")), 3),
    "answer length, std within 10 steps": (
        lambda rows: rolling_std(rows, "completions/mean_length"), 2),
    "gradient norm, median where it is not 0": (
        lambda rows: median(list(filter(None, values(rows, "grad_norm"))) or [0.0]), 2),
    "quotes per answer, first 20 steps": (lambda rows: mean(values(rows[:20], "patterns/grounding")), 2),
    "quotes per answer, last 20 steps": (lambda rows: mean(values(rows[-20:], "patterns/grounding")), 2)}


def picture(directory: Path, seeds_by_study: dict[str, list[str]], path: Path) -> Path:
    """What RL adds to each warm-up, what phases change, and what is forgotten meanwhile."""
    import matplotlib
    from matplotlib.figure import Figure
    matplotlib.rcParams.update(STYLE)
    figure = Figure(figsize=(12, 3.9), layout="constrained")
    before_after, by_tokens, facts = figure.subplots(1, 3)
    columns = TABLES[LOOKUPS][1]
    for axes, column, title in ((before_after, "long documents", "long documents: what RL adds"),
                                (facts, "closed book", "facts of the warm-up: what is left")):
        pairs(axes, {name: [cell(directory, seed, "lookups", name, columns[column])
                            for seed in seeds_by_study["lookups"]]
                     for start in STARTS for name in (start, f"RL from {start}")})
        axes.set(title=title, ylabel="held-out accuracy, %" if axes is before_after else "closed-book accuracy, %")
    seeds = seeds_by_study["curriculum"]
    kinds = {"phases": "RL from base", "one stage": "RL from base in one stage, equal tokens"}
    groups = {name: [series.cumulated(series.read_metrics(directory / f"{DYNAMICS[run]}-{seed}" / "metrics.jsonl"))
                     for seed in seeds] for name, run in kinds.items()}
    panel = Panel("RL from base: reward of long documents", REWARD, "reward_by_len/80-200", "share", "million tokens")
    draw_lines(by_tokens, panel, groups)
    by_tokens.legend(loc="lower right", title=f"mean and range of {len(seeds)} seeds", title_fontsize=8)
    figure.savefig(path, dpi=150)
    return path


def pairs(axes, rates: dict[str, list[float]]) -> None:
    """Two bars for each warm-up, before and after RL, and a dot for each seed."""
    for place, start in enumerate(STARTS):
        for side, name in enumerate((start, f"RL from {start}")):
            x = place + 0.36 * side - 0.18
            axes.bar(x, mean(rates[name]), 0.32, color=COLOURS[side], edgecolor="white",
                     label=("before RL", "after RL")[side] if not place else None)
            axes.plot([x] * len(rates[name]), rates[name], "o", color="black", markerfacecolor="white", markersize=4)
            axes.annotate(f"{mean(rates[name]):.0f}", (x, max(rates[name])), xytext=(0, 5), ha="center", fontsize=8,
                          textcoords="offset points")
    axes.set(ylim=(0, 112), yticks=range(0, 101, 20), xticks=range(len(STARTS)), xticklabels=STARTS)
    axes.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1))


@with_exit_code
def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.ablations", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="the directory with the runs of recipes/ablations.sh")
    parser.add_argument("--models", nargs=2, metavar=("STUDY", "SEED"), help="only print these checkpoints")
    args = parser.parse_args(argv)
    if args.models:
        say(" ".join(map(str, dict.fromkeys(models(args.directory, *args.models).values()))))
        return
    seeds = {study: seeds_of(args.directory, study) for study in STUDIES}
    publish(args.directory, tables(args.directory, seeds),
            lambda: picture(args.directory, seeds, args.directory / "ablations.png"))


def publish(directory: Path, text: str, draw: Callable[[], Path]) -> None:
    """Print the tables, write them to table.md, and draw the picture if matplotlib is installed."""
    (directory / "table.md").write_text(text, encoding="utf-8")
    say(text)
    try:
        say(f"wrote {draw()}")
    except ImportError:
        tell('no picture: matplotlib is not installed (pip install ".[plots]")', sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
