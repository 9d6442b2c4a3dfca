"""What the files of runs hold, as series of numbers for pictures and for the terminal. Pure Python.

A run is its rows (dictionaries of metrics.jsonl); a group is the rows of several runs that differ in their seed.
"""

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

ROLL = 10                       # steps of the windows of `rolling_std`: the same for every run, to be compared
BY_LENGTH = "reward_by_len/"
PARTS = ("by_length", "by_task", "by_source")


class PlotError(ValueError):
    """A file that cannot be shown; the message names it and says what to do."""


class Line(NamedTuple):
    """A metric of a group: at each step the mean, the lowest and the highest of its runs."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


def read_lines(path: Path) -> Iterable[tuple[int, bytes, bool]]:
    """Number, bytes, and whether it is whole, of each line of a file that may still be written."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            yield number, line, line.endswith(b"\n")


def parse(path: Path, number: int, line: bytes, whole: bool) -> dict | None:
    """The JSON object of a line; None of half a last line, that a run is writing just now."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        if not whole:
            return None
        raise PlotError(f"{path}:{number}: this line is not JSON; take it out") from None
    if not isinstance(row, dict):
        raise PlotError(f"{path}:{number}: this line is no JSON object but a {type(row).__name__}; take it out")
    return row


def read_metrics(path: Path) -> list[dict]:
    """The steps of a run, one dictionary each; PlotError where there is none, or one is not a step's."""
    rows = [row for row in (parse(path, *line) for line in read_lines(path)) if row is not None]
    for row in rows:
        if type(row.get("step")) is not int:
            raise PlotError(f'{path} holds a line without a "step": {str(row)[:80]}; it should be the metrics.jsonl '
                            "of a run")
    if not rows:
        raise PlotError(f"{path}: there is no step in it yet; wait for the first")
    return rows


def read_results(path: Path) -> list[dict]:
    """The models of an evaluation's results.json, as they stand there, each with the parts that are drawn."""
    try:
        models = json.loads(path.read_text(encoding="utf-8"))["models"]
        for model in models:
            Path(model["model"])
            values = [value for _, value in passes(model)]
            for part in PARTS:
                for cell in cells(model, part).values():
                    values += [cell["accuracy"], cell["low"], cell["high"]]
            if any(value is not None and not 0 <= value <= 1 for value in values):
                raise ValueError("an accuracy that is not between 0 and 1")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise PlotError(f"{path} is not a results.json of eval.py --out ({type(error).__name__}: {error})") from None
    if not any(cells(model, part) for model in models for part in PARTS):
        raise PlotError(f"{path} holds no model with an accuracy")
    return models


def cells(model: dict, part: str) -> dict[str, dict]:
    """{name: CELL} of one of PARTS; of sources also their average."""
    found = dict(model.get(part) or {})
    if part == "by_source" and found and model.get("average"):
        found["average"] = model["average"]
    return found


def passes(model: dict) -> list[tuple[int, float]]:
    """(k, pass@k) of a model, over all questions."""
    return sorted((int(key[5:]), value) for key, value in model["all"].items()
                  if re.fullmatch(r"pass@[1-9]\d*", key) and value is not None)


def labels(runs: Sequence[Path]) -> dict[Path, str]:
    """A short name for each directory: its own, with those above it where two have the same.

    >>> labels([Path("runs/a"), Path("demo-0/rl"), Path("demo-1/rl")])[Path("demo-1/rl")]
    'demo-1/rl'
    """
    found = {}
    for run in dict.fromkeys(runs):
        parts = run.resolve().parts
        others = [other.resolve().parts for other in runs if other.resolve() != run.resolve()]
        count = next((n for n in range(1, len(parts)) if all(parts[-n:] != o[-n:] for o in others)), len(parts))
        found[run] = "/".join(parts[-count:])
    return found


def seeds(runs: Sequence[Path]) -> dict[str, list[Path]]:
    """{name: runs}: those whose names differ only in a number at the end are seeds of one line.

    >>> seeds([Path("runs/a-0"), Path("runs/b"), Path("runs/a-1"), Path("runs/c-7")])
    {'a': [PosixPath('runs/a-0'), PosixPath('runs/a-1')], 'b': [PosixPath('runs/b')], 'c-7': [PosixPath('runs/c-7')]}
    """
    names, found = labels(runs), {}
    for run, name in names.items():
        stem = re.sub(r"[-_]\d+(?=/|$)", "", name)
        found.setdefault((stem, stem == name), []).append(run)           # "a" itself is no seed of "a-0", "a-1"
    plain = {stem for stem, is_plain in found if is_plain}
    return {names[some[0]] if len(some) == 1 else f"{stem}-*" if stem in plain else stem: some
            for (stem, _), some in found.items()}


def number(row: dict, key: str) -> float | None:
    """The value of a metric in a row: None where it was not measured, infinity for all that is not finite."""
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PlotError(f"step {row['step']}: {key} is {str(value)[:60]!r}, which is no number")
    return float(value) if abs(value) < 1e308 else math.inf


def points(rows: Sequence[dict], key: str) -> list[tuple[int, float]]:
    """(step, value) where a value was measured and is finite."""
    return [(row["step"], value) for row in rows
            if (value := number(row, key)) is not None and math.isfinite(value)]


def not_finite(rows: Sequence[dict], key: str) -> list[int]:
    """The steps whose value is NaN or infinite."""
    return [row["step"] for row in rows if (value := number(row, key)) is not None and not math.isfinite(value)]


def has(group: Sequence[Sequence[dict]], key: str) -> bool:
    """Whether any run of a group measured this, at any step."""
    return any(number(row, key) is not None for rows in group for row in rows)


def by_phase(rows: Sequence[dict]) -> list[list[dict]]:
    """The rows cut where the phase changes."""
    parts: list[list[dict]] = []
    for row in rows:
        if not parts or parts[-1][-1].get("phase") != row.get("phase"):
            parts.append([])
        parts[-1].append(row)
    return parts


def borders(rows: Sequence[dict]) -> dict[int, str]:
    """{first step of a later phase: its name}."""
    return {part[0]["step"]: f"phase {part[0].get('phase')}" for part in by_phase(rows)[1:]}


def moving_average(values: Sequence[float], width: int) -> list[float]:
    """Mean of the last `width` values at each place (fewer at the start).

    >>> moving_average([1, 3, 5, 7], 2)
    [1.0, 2.0, 4.0, 6.0]
    """
    parts = [values[max(0, i - width + 1):i + 1] for i in range(len(values))]
    return [sum(part) / len(part) for part in parts]


def width_for(rows: Sequence[dict]) -> int:
    """Of the moving average: a tenth of the run, 15 steps at most."""
    return max(1, min(15, len(rows) // 10))


def line(group: Sequence[Sequence[dict]], key: str, smooth: bool = True) -> Line:
    """The mean over a group's runs, and how far they lie apart. smooth: of their moving averages, which begin anew with
    each phase. Where some runs have ended, the others go on alone."""
    at_step: dict[int, list[float]] = {}
    for rows in group:
        for part in by_phase(rows):
            found = points(part, key)
            values = [value for _, value in found]
            if smooth:
                values = moving_average(values, width_for(rows))
            for (step, _), value in zip(found, values):
                at_step.setdefault(step, []).append(value)
    steps = sorted(at_step)
    return Line(steps, [sum(at_step[s]) / len(at_step[s]) for s in steps], [min(at_step[s]) for s in steps],
                [max(at_step[s]) for s in steps])


def rolling_std(group: Sequence[Sequence[dict]], key: str, width: int = ROLL) -> float | None:
    """How much a metric moves from step to step: the standard deviation within `width` consecutive steps (a whole phase
    if that is shorter), averaged over all such windows of all runs. None where no phase has two values."""
    spreads = []
    for rows in group:
        for part in by_phase(rows):
            values = [value for _, value in points(part, key)]
            size = min(width, len(values))
            for start in range(len(values) - size + 1 if size > 1 else 0):
                window = values[start:start + size]
                mean = sum(window) / size
                spreads.append(math.hypot(*(value - mean for value in window)) / math.sqrt(size - 1))
    return sum(spreads) / len(spreads) if spreads else None


def cumulated(rows: Sequence[dict]) -> list[dict]:
    """The rows with the time since the start, "minutes", and the tokens since then, "million tokens"."""
    seconds = tokens = 0.0
    found = []
    for row in rows:
        took = number(row, "step_time") or 0.0
        speed = number(row, "tokens_per_s") or 0.0
        if math.isfinite(took) and math.isfinite(speed):
            seconds, tokens = seconds + took, tokens + took * speed
        found.append({**row, "minutes": seconds / 60, "million tokens": tokens / 1e6})
    return found


def buckets(rows: Iterable[dict]) -> dict[str, int | None]:
    """{length bucket: the phase in which it came first}, shortest first; what comes later is a retrospective one."""
    found: dict[str, int | None] = {}
    for row in rows:
        for key in row:
            if key.startswith(BY_LENGTH):
                found.setdefault(key[len(BY_LENGTH):], row.get("phase"))
    return dict(sorted(found.items(), key=lambda item: [int(n) for n in re.findall(r"\d+", item[0])]))
