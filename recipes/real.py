"""What recipes/real.sh prints: expected hours, tables, a picture, and answers to read, all from the files of its runs.

    python -m recipes.real runs/real                              writes table.md and real.png there
    python -m recipes.real runs/real --read warm-0 rl-0           right, wrong, gained and lost answers, side by side
    python -m recipes.real runs/real --read warm-0 rl-0 --part held_nq_three --number 5

A run is named KIND-SEED. Seeds are treated like several answers to one question: an accuracy is their mean, and its
interval is over questions. A difference is paired: question by question, for the seeds that both kinds have.
"""

import argparse
import json
import math
import sys
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

from nanoqwenlong.analysis import tables
from nanoqwenlong.analysis.evaluate import SavedAnswers, score_answers
from nanoqwenlong.data import read as read_data
from nanoqwenlong.errors import DataError
from nanoqwenlong.ops.console import say, with_exit_code
from recipes.ablations import markdown, publish, spread, values
from tools import series
from tools.plot import REWARD, STYLE, Panel, draw_bars, draw_lines

KINDS = {"base": "as it came", "warm": "warm-up", "phase_one": "RL phase I", "rl": "RL phase II",
         "sft": "SFT instead of RL", "worked": "SFT on the questions of RL", "single": "RL in one stage, equal tokens",
         "no_retro": "RL, no retrospective sampling"}
PARTS = {"held_nq_one": "NQ short", "held_nq_three": "NQ three passages", "held_nq_long": "NQ long",
         "held_xquad_one": "XQuAD short", "held_xquad_three": "XQuAD three passages"}
MAIN = ("base", "warm", "sft", "rl")
RL = ("rl", "no_retro", "single")
COMPARED = (("rl", "warm"), ("sft", "warm"), ("rl", "sft"), ("rl", "worked"), ("rl", "phase_one"), ("rl", "single"),
            ("rl", "no_retro"))
DATA = ("sft", "rl_one", "rl_three")
CHUNK = 10                      # steps between two looks at the tokens that the run in one stage has used
# SmolLM2-135M in float32, on one core of a server processor with AVX2
SECONDS = {"warm-up step": 31, "step of phase I": 52, "step of phase II": 55, "answer": 1.3}


class Question(NamedTuple):
    """One held-out question, and what one model answered."""

    example: object             # records.Example
    answer: object              # evaluate.Answer
    score: object               # records.Score

    @property
    def earned(self) -> float:
        return 0.0 if math.isnan(self.score.reward) else self.score.reward


# 1. Before and between the runs

def expectation(data: Path, held: Path, steps: list[int], seeds: list[str], jobs: int) -> str:
    """The rows of each file and the expected hours, in one text. The held-out files are in `held`. Raises
    FileNotFoundError for a missing file."""
    rows = {name: len(read_data([data / f"{name}.jsonl"])) for name in DATA}
    rows |= {name: len(read_data([held / f"{name}.jsonl"])) for name in PARTS}
    warmup_steps, *phases = steps
    rl = phases[0] * SECONDS["step of phase I"] + sum(phases[1:]) * SECONDS["step of phase II"]
    answers = sum(rows[name] for name in PARTS) * SECONDS["answer"]
    num_seeds, controls = len(seeds), 3 if (data / "control.jsonl").exists() else 2
    stages = [(num_seeds, warmup_steps * SECONDS["warm-up step"]), (num_seeds, rl), (num_seeds, rl),
              (1 + 4 * num_seeds, answers), (controls, rl), (controls, answers)]
    hours = sum(math.ceil(runs / jobs) * seconds for runs, seconds in stages) / 3600
    counts = ", ".join(f"{name} {number:,}" for name, number in rows.items())
    return (f"rows: {counts}\nexpected: {hours:.1f} hours for SmolLM2-135M with {jobs} runs at a time, each on one "
            "core of a server processor\nthat does nothing else. A larger model takes longer in proportion to its "
            "parameters. The log of each run shows the time that it has left.")


def minutes_of(run: Path) -> float:
    """How long a run took, over all its starts."""
    return json.loads((last_checkpoint(run) / "state.json").read_text(encoding="utf-8"))["seconds"] / 60


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").glob("step_*[0-9]"))


def last_checkpoint(run: Path) -> Path:
    if not checkpoints(run):
        raise FileNotFoundError(f"{run} has no checkpoint: let recipes/real.sh finish")
    return checkpoints(run)[-1]


def steps_to_equal_tokens(run: Path, other: Path) -> int | None:
    """To which step a run should continue before its tokens are compared again. None: it has used as many as `other`.

    Only steps before its last checkpoint count, so that a run that was killed gets the same plan."""
    if not checkpoints(run):
        return CHUNK
    done = int(last_checkpoint(run).name.removeprefix("step_"))
    used = series.cumulated(series.read_metrics(run / "metrics.jsonl"))[done - 1]["million tokens"]
    wanted = series.cumulated(series.read_metrics(other / "metrics.jsonl"))[-1]["million tokens"]
    return None if used >= wanted else done - done % CHUNK + CHUNK


# 2. Evaluations

@cache
def held_out(paths: tuple[str, ...]) -> tuple[list, list[str]]:
    """The questions of data files, in order, and the name of the file that each is from."""
    parts = []
    examples = read_data(paths, need_question=True,
                         see=lambda example, place: parts.append(Path(place.rpartition(":")[0]).stem))
    return examples, parts


def read_evaluation(out: Path) -> dict[str, list[Question]]:
    """{part: its questions} of one finished evaluation, scored again by the rule."""
    settings = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    examples, parts = held_out(tuple(settings["data"]))
    (model,) = settings["model"]
    answers = SavedAnswers(out / "answers.jsonl").read(model, [example.id for example in examples], 1)
    if answers is None:
        raise DataError(f"{out}/answers.jsonl is incomplete: start recipes/real.sh again")
    questions = {}
    for part, example, (answer,), (score,) in zip(parts, examples, answers, score_answers(examples, answers)):
        questions.setdefault(part, []).append(Question(example, answer, score))
    return questions


def read_evaluations(directory: Path) -> dict[str, dict[str, dict[str, list[Question]]]]:
    """{kind: {seed: {part: questions}}} of all finished evaluations, in the order of KINDS."""
    kinds = {kind: {} for kind in KINDS}
    for path in sorted((directory / "eval").glob("*/results.json")):
        kind, _, seed = path.parent.name.partition("-")
        kinds[kind][seed] = read_evaluation(path.parent)
    evaluated = {kind: seeds for kind, seeds in kinds.items() if seeds}
    if not evaluated:
        raise FileNotFoundError(f"{directory}/eval has no finished evaluation: let recipes/real.sh finish")
    return evaluated


def cell(seeds: dict[str, dict[str, list[Question]]], part: str) -> dict | None:
    """The results on one part, the seeds taken as several answers to each question. None without such questions."""
    by_question = zip(*(parts[part] for parts in seeds.values() if part in parts))
    rows = [(same[0].example, [each.answer for each in same], [each.score for each in same]) for same in by_question]
    return tables.cell(rows) if rows else None


def paired(ours: dict, theirs: dict, part: str) -> str:
    """The difference of two kinds on one part, in points, with its 95 % interval, and the answers gained and lost.

    The interval is 1.96 standard errors of the mean over questions."""
    differences = [[one.earned - other.earned for one, other in zip(ours[seed][part], theirs[seed][part], strict=True)]
                   for seed in sorted(ours.keys() & theirs.keys()) if part in ours[seed] and part in theirs[seed]]
    if not differences:
        return ""
    means = [100 * mean(each) for each in zip(*differences)]                   # one for each question
    error = 1.96 * stdev(means) / math.sqrt(len(means)) if len(means) > 1 else math.nan
    gained = sum(each > 0 for seed in differences for each in seed)
    lost = sum(each < 0 for seed in differences for each in seed)
    return f"{mean(means):+.1f} [{mean(means) - error:+.1f}, {mean(means) + error:+.1f}] (+{gained} -{lost})"


# 3. Tables and the picture

def accuracy_table(title: str, models: dict[str, dict]) -> str:
    """A row for each of {name: seeds of a kind}, and a column for each part."""
    columns = {}
    for part, name in PARTS.items():
        cells = [cell(seeds, part) for seeds in models.values()]
        if any(cells):
            columns[name] = cells
    return tables.table(title, [{"model": name} for name in models], columns)


def outcome_table(evaluated: dict) -> str:
    """What became of the answers of the main kinds: a row for each part and kind."""
    rows = []
    for part, name in PARTS.items():
        for kind in MAIN:
            if results := cell(evaluated.get(kind, {}), part):
                rows.append({"model": f"{name}: {KINDS[kind]}", "by_length": {"": results}})
    return tables.outcomes(rows)


def training_table(directory: Path) -> str:
    """How long each kind trained and what its steps measured: mean and standard deviation over the seeds."""
    columns = {}
    for kind in ("warm", *RL, "sft", "worked"):
        runs = [path.parent for path in sorted(directory.glob(f"{kind}-*/metrics.jsonl"))]
        runs = [run for run in runs if checkpoints(run)]
        if runs:
            steps = [series.cumulated(series.read_metrics(run / "metrics.jsonl")) for run in runs]
            columns[kind] = ([minutes_of(run) for run in runs], steps)
    rows = [["minutes", *(spread(minutes) for minutes, _ in columns.values())]]
    for name, (measure, digits) in WHILE_TRAINING.items():
        rows.append([name, *(spread([measure(run) for run in steps], digits) for _, steps in columns.values())])
    return markdown(["while training", *(KINDS[kind] for kind in columns)], rows)


def of_phase(rows: list[dict], phase: int, key: str, part: slice = slice(None)) -> float:
    """The mean of a metric over some steps of a phase. NaN if they did not measure it."""
    return mean(values([row for row in rows if row.get("phase") == phase][part], key))


FIRST, LAST = slice(10), slice(-10, None)
# {name: (figure from the rows of a run, digits)}
WHILE_TRAINING = {
    "steps": (lambda rows: rows[-1]["step"], 0),
    "million tokens, prompts and answers": (
        lambda rows: rows[-1]["million tokens"] if "reward" in rows[-1] else math.nan, 2),
    "reward, first 10 steps of phase I": (lambda rows: of_phase(rows, 1, "reward", FIRST), 3),
    "reward, last 10 steps of phase I": (lambda rows: of_phase(rows, 1, "reward", LAST), 3),
    "reward, first 10 steps of phase II": (lambda rows: of_phase(rows, 2, "reward", FIRST), 3),
    "reward, last 10 steps of phase II": (lambda rows: of_phase(rows, 2, "reward", LAST), 3),
    "hard examples of phase I, share of the batch in phase II": (lambda rows: of_phase(rows, 2, "retro/frac"), 2),
    "groups that agree, share": (lambda rows: mean(values(rows, "frac_reward_zero_std")), 2),
    "truncated answers, last 10 steps": (lambda rows: mean(values(rows[LAST], "completions/clipped_ratio")), 3),
    "tokens of an answer, last 10 steps": (lambda rows: mean(values(rows[LAST], "completions/mean_length")), 1),
    "entropy, last 10 steps": (lambda rows: mean(values(rows[LAST], "entropy")), 3)}


def report(directory: Path, evaluated: dict) -> str:
    """All tables as Markdown."""
    seeds = sorted(evaluated.get("rl", {}))
    kinds = {KINDS[kind]: seeds_of for kind, seeds_of in evaluated.items()}
    parts = ["Greedy answers, exact match by the rule. In brackets: 95 % intervals over questions (Wilson).",
             accuracy_table("accuracy, %", kinds)]
    if len(seeds) > 1:
        each = {f"{KINDS[kind]}, seed {seed}": {seed: questions} for kind, seeds_of in evaluated.items()
                for seed, questions in seeds_of.items() if seed}
        parts.append(accuracy_table("each seed, %", each))
    rows = []
    for one, other in COMPARED:
        if one in evaluated and other in evaluated:
            cells = [paired(evaluated[one], evaluated[other], part) for part in PARTS]
            rows.append([f"{KINDS[one]} - {KINDS[other]}", *cells])
    if rows:
        parts += ["Paired differences in points, with 95 % intervals. In parentheses: answers gained and lost.",
                  markdown(["difference", *PARTS.values()], rows)]
    return "\n\n".join([*parts, outcome_table(evaluated), training_table(directory)]) + "\n"


def picture(directory: Path, evaluated: dict) -> Path:
    """Accuracy by length of the document before and after RL, and the reward over the minutes of training."""
    import matplotlib
    from matplotlib.figure import Figure
    matplotlib.rcParams.update(STYLE)
    models = []
    for kind in MAIN:
        cells = {name: cell(evaluated.get(kind, {}), part) for part, name in list(PARTS.items())[:3]}
        rates = {name: [100 * each[rate] for rate in ("accuracy", "low", "high")]
                 for name, each in cells.items() if each}
        if rates:
            models.append((KINDS[kind], {"by_length": rates}))
    groups = {}
    for kind in RL:
        paths = sorted(directory.glob(f"{kind}-*/metrics.jsonl"))
        if paths:
            groups[KINDS[kind].replace("RL phase II", "RL in two phases")] = [
                series.cumulated(series.read_metrics(path)) for path in paths]
    figure = Figure(figsize=(12, 4.2), layout="constrained")
    bars, lines = figure.subplots(1, 2)
    draw_bars(bars, "by_length", models, 0)
    bars.set_title("held-out questions about Wikipedia passages")
    bars.legend(fontsize=8)
    if groups:
        draw_lines(lines, Panel("RL on real documents", REWARD, "reward", "share", "minutes"), groups)
        lines.legend(fontsize=8)
    path = directory / "real.png"
    figure.savefig(path, dpi=150)
    return path


# 4. Answers to read

def reading(before: list[Question], after: list[Question], number: int) -> str:
    """Some right, wrong, gained and lost answers, spread evenly over the questions, each before and after."""
    pairs = list(zip(before, after, strict=True))
    groups = {"right": [pair for pair in pairs if pair[1].earned == 1],
              "wrong": [pair for pair in pairs if pair[1].earned < 1],
              "gained": [pair for pair in pairs if pair[1].earned > pair[0].earned],
              "lost": [pair for pair in pairs if pair[1].earned < pair[0].earned]}
    lines = []
    for title, chosen in groups.items():
        shown = chosen[::max(1, len(chosen) // number)][:number]
        lines.append(f"== {title}: {len(shown)} of {len(chosen)}, of {len(pairs)} questions\n")
        for old, new in shown:
            lines.append(f"{new.example.id}: {new.example.question}\n  gold    {' | '.join(new.example.accepted)}\n"
                         f"  before  {old.earned:g}  {old.answer.text.strip()}\n"
                         f"  after   {new.earned:g}  {new.answer.text.strip()}\n")
    return "\n".join(lines)


@with_exit_code
def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m recipes.real", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="the directory with the runs of recipes/real.sh")
    parser.add_argument("--read", nargs=2, metavar=("BEFORE", "AFTER"), help="show answers of two evaluated models")
    parser.add_argument("--part", choices=PARTS, default="held_nq_one", help="the questions to show with --read")
    parser.add_argument("--number", type=int, default=20, help="how many of each kind to show with --read")
    for_recipe = parser.add_argument_group("for recipes/real.sh")
    for_recipe.add_argument("--expect", type=Path, nargs=2, metavar=("DATA", "HELD"),
                            help="print the rows and the expected hours")
    for_recipe.add_argument("--steps", type=int, nargs="+", help="of the warm-up, and of each phase")
    for_recipe.add_argument("--seeds", nargs="+")
    for_recipe.add_argument("--jobs", type=int, help="runs at a time")
    for_recipe.add_argument("--minutes", metavar="RUN", help="print how long a run took")
    for_recipe.add_argument("--equal-tokens", nargs=2, metavar=("RUN", "OTHER"),
                            help="print to which step RUN should continue, or nothing")
    args = parser.parse_args(argv)
    directory = args.directory
    if args.expect:
        say(expectation(*args.expect, args.steps, args.seeds, args.jobs))
    elif args.minutes:
        say(f"{minutes_of(directory / args.minutes):.2f}")
    elif args.equal_tokens:
        say(str(steps_to_equal_tokens(*(directory / name for name in args.equal_tokens)) or ""))
    elif args.read:
        before, after = (read_evaluation(directory / "eval" / name)[args.part] for name in args.read)
        say(reading(before, after, args.number))
    else:
        evaluated = read_evaluations(directory)
        publish(directory, report(directory, evaluated), lambda: picture(directory, evaluated))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
