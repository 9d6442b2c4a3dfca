"""Read the files of runs, and turn metrics into series of numbers.

A run is a list of rows, the dictionaries of its metrics.jsonl. A group is a list of runs with different seeds.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from nanoqwenlong.errors import DataError

Group = Sequence[Sequence[dict]]
WINDOW = 10                     # steps that rolling_std looks at: the same for every run, so that runs compare
BY_LENGTH = "reward_by_len/"
PARTS = ("by_length", "by_task", "by_source")


class Line(NamedTuple):
    """A metric of a group. At each step: the mean, the lowest and the highest value of its runs."""

    steps: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]


# Files

def read_rows(path: Path, skip: Callable[[bytes], bool] = lambda line: False) -> Iterator[tuple[int, dict]]:
    """Yield (line number, row) of a JSONL file. If a run is still writing the last line, that line is left out."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if skip(line):
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                if not line.endswith(b"\n"):
                    return
                raise DataError(f"{path}:{number}: this line is not JSON; remove it") from None
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: not a JSON object but a {type(row).__name__}; remove this line")
            yield number, row


def read_metrics(path: Path) -> list[dict]:
    """Return the rows of a run. Raises DataError if there are none, or if one has no step."""
    rows = [row for _, row in read_rows(path)]
    for row in rows:
        if type(row.get("step")) is not int:
            raise DataError(f'{path}: a line has no "step": {str(row)[:80]}; it should be the metrics.jsonl of a run')
    if not rows:
        raise DataError(f"{path}: there is no step in it yet; wait for the first")
    return rows


class Evaluated(NamedTuple):
    """The results of one model. Rates are (accuracy, low, high) in percent. None: not measured."""

    name: str
    parts: dict[str, dict[str, tuple]]          # for each of PARTS, the rates of its length buckets, tasks or sources
    passes: dict[int, tuple]                    # the rates of pass@k for each k


def read_results(path: Path) -> list[Evaluated]:
    """Return the models of an evaluation's results.json. Raises DataError if the file cannot be drawn."""
    def rates(*values: float | None) -> tuple:
        if any(value is not None and not 0 <= value <= 1 for value in values):
            raise ValueError("an accuracy that is not between 0 and 1")
        return tuple(None if value is None else 100 * value for value in values)

    models = []
    try:
        for model in json.loads(path.read_text(encoding="utf-8"))["models"]:
            parts = {part: dict(model.get(part) or {}) for part in PARTS}
            if parts["by_source"] and model.get("average"):
                parts["by_source"]["average"] = model["average"]
            for cells in parts.values():
                for name, cell in cells.items():
                    cells[name] = rates(cell["accuracy"], cell["low"], cell["high"])
            passes = {int(key[5:]): rates(rate, None, None) for key, rate in model["all"].items()
                      if re.fullmatch(r"pass@[1-9]\d*", key) and rate is not None}
            models.append(Evaluated(label(Path(model["model"])), parts, dict(sorted(passes.items()))))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is not a results.json of eval.py --out ({type(error).__name__}: {error})") from None
    if not any(cells for model in models for cells in model.parts.values()):
        raise DataError(f"{path} holds no model with an accuracy")
    return models


def label(model: Path) -> str:
    """Return a short name for a model directory: its run and step, or its last part."""
    if model.parent.name != "checkpoints":
        return model.name
    return f"{model.parents[1].name} {re.sub('^step_0*', 'step ', model.name)}"


def seeds(runs: Sequence[Path]) -> dict[str, list[Path]]:
    """Return {name: runs}. Runs whose names differ only in a number at the end are seeds of one line."""
    paths = {run: run.resolve() for run in runs}
    above = os.path.commonpath([path.parent for path in paths.values()])
    names = {run: str(path.relative_to(above)) for run, path in paths.items()}
    groups = {}
    for run, name in names.items():
        stem = re.sub(r"[-_]\d+(?=/|$)", "", name)
        groups.setdefault((stem, stem == name), []).append(run)          # "a" itself is not a seed of "a-0" and "a-1"
    result = {}
    for (stem, _), members in groups.items():
        name = f"{stem}-*" if (stem, True) in groups else stem
        result[name if len(members) > 1 else names[members[0]]] = members
    return result


# Metrics

def number(row: dict, key: str) -> float | None:
    """Return the value of a metric: None if it was not measured, infinity if it is not finite."""
    value = row.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"step {row['step']}: {key} is {str(value)[:60]!r}, which is not a number")
    return float(value) if abs(value) < 1e308 else math.inf


def points(rows: Sequence[dict], key: str) -> list[tuple[int, float]]:
    """Return (step, value) where the value is finite."""
    values = [(row["step"], number(row, key)) for row in rows]
    return [(step, value) for step, value in values if value is not None and math.isfinite(value)]


def not_finite(group: Group, key: str) -> list[int]:
    """Return the steps where the value of some run is NaN or infinite."""
    return sorted({row["step"] for rows in group for row in rows if number(row, key) == math.inf})


def has(group: Group, key: str) -> bool:
    """Whether any run of a group measured this, at any step."""
    return any(number(row, key) is not None for rows in group for row in rows)


def by_phase(rows: Sequence[dict]) -> list[list[dict]]:
    """Return the rows of each phase."""
    return [list(part) for _, part in groupby(rows, key=lambda row: row.get("phase"))]


def borders(group: Group) -> dict[int, str]:
    """Return {first step of a later phase: its name}."""
    return {part[0]["step"]: f"phase {part[0].get('phase')}" for rows in group for part in by_phase(rows)[1:]}


def moving_average(values: Sequence[float], width: int) -> list[float]:
    """Return the mean of the last `width` values at each place. There are fewer at the start."""
    windows = [values[max(0, end - width):end] for end in range(1, len(values) + 1)]
    return [sum(window) / len(window) for window in windows]


def line(group: Group, key: str, smooth: bool = True) -> Line:
    """Return a metric of a group. After the end of a run, the others continue without it.

    smooth: average over a tenth of the run, at most 15 steps. The average starts again with each phase.
    """
    at_step: dict[int, list[float]] = {}
    for rows in group:
        width = max(1, min(15, len(rows) // 10)) if smooth else 1
        for part in by_phase(rows):
            measured = points(part, key)
            averages = moving_average([value for _, value in measured], width)
            for (step, _), value in zip(measured, averages):
                at_step.setdefault(step, []).append(value)
    steps = sorted(at_step)
    values = [at_step[step] for step in steps]
    return Line(steps, [sum(some) / len(some) for some in values], list(map(min, values)), list(map(max, values)))


def rolling_std(group: Group, key: str, width: int = WINDOW) -> float | None:
    """Return how much a metric moves from step to step, or None if no phase has two values.

    This is the standard deviation within `width` consecutive steps, averaged over all such windows of all runs. A
    window never crosses phases. If a phase is shorter than `width`, it is one window.
    """
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
    """Return the rows with two more keys: "minutes" and "million tokens" since the start."""
    seconds = tokens = 0.0
    result = []
    for row in rows:
        took = number(row, "step_time") or 0.0
        speed = number(row, "tokens_per_s") or 0.0
        if math.isfinite(took) and math.isfinite(speed):
            seconds += took
            tokens += took * speed
        result.append({**row, "minutes": seconds / 60, "million tokens": tokens / 1e6})
    return result


def buckets(rows: Iterable[dict]) -> dict[str, int | None]:
    """Return {length bucket: the phase in which it came first}, shortest bucket first."""
    first_phase: dict[str, int | None] = {}
    for row in rows:
        for key in row:
            if key.startswith(BY_LENGTH):
                first_phase.setdefault(key[len(BY_LENGTH):], row.get("phase"))
    return dict(sorted(first_phase.items(), key=lambda item: [int(n) for n in re.findall(r"\d+", item[0])]))
