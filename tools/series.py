"""Read the files of runs. A run is a list of rows of its metrics.jsonl, and a group a list of runs (seeds)."""

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from nanoqwenlong.errors import DataError

Group = Sequence[Sequence[dict]]
Evaluated = tuple[str, dict[str, dict[str, list]]]      # (model, {"by_length": {"0-80": [accuracy, low, high] in %}})
BY_LENGTH = "reward_by_len/"
EXACT = ("learning_rate", "elapsed", "eval/acc")


def read_rows(path: Path) -> Iterator[tuple[int, dict]]:
    """Yield (line number, row) of a JSONL file. If a run is still writing the last line, that line is left out."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                if not line.endswith(b"\n"):
                    return
                row = None
            if not isinstance(row, dict):
                raise DataError(f"{path}:{number}: this line is not a JSON object; remove it")
            yield number, row


def read_metrics(path: Path) -> list[dict]:
    """Return the rows of a run. Raises DataError if there are none, or if one has no step."""
    rows = dict(read_rows(path))
    for number, row in rows.items():
        if type(row.get("step")) is not int:
            raise DataError(f'{path}:{number}: this line has no "step"; it should be the metrics.jsonl of a run')
    if not rows:
        raise DataError(f"{path}: there is no step in it yet; wait for the first")
    return list(rows.values())


def read_results(path: Path) -> list[Evaluated]:
    """Return the models of an evaluation's results.json. Raises DataError if the file cannot be drawn."""
    from nanoqwenlong.analysis.evaluate import interval        # imported here: it imports torch
    models = []
    try:
        for model in json.loads(path.read_text(encoding="utf-8"))["models"]:
            averages = {"average": model["average"]} if model.get("average") else {}
            parts = {}
            for part in ("by_length", "by_task", "by_source"):
                cells = {**(model.get(part) or {}), **(averages if part == "by_source" else {})}.items()
                parts[part] = {name: [100 * cell[rate] for rate in ("accuracy", "low", "high")] for name, cell in cells}
            parts["pass@k"] = {name: [100 * p for p in (rate, *interval(rate, model["all"]["questions"]))]
                               for name, rate in model["all"].items() if name.startswith("pass@")}
            models.append((label(Path(model["model"])), parts))
        rates = [rate for _, parts in models for cells in parts.values() for cell in cells.values() for rate in cell]
        if not rates or not all(0 <= rate <= 100 for rate in rates):
            raise ValueError("it should have accuracies between 0 and 1")
    except (ArithmeticError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path} is not a results.json of eval.py --out ({type(error).__name__}: {error})") from None
    return models


def label(model: Path) -> str:
    """Return a short name for a model directory: its run and step, or its last part."""
    run = f"{model.parents[1].name} " if model.parent.name == "checkpoints" else ""
    return run + re.sub("^step_0*", "step ", model.name)


def seeds(runs: Sequence[Path]) -> dict[str, list[Path]]:
    """Return {name: runs}. Runs whose names differ only in a number at the end are seeds: a-0 and a-1 are "a-*"."""
    above = os.path.commonpath([run.resolve().parent for run in runs])
    names = {run: str(run.resolve().relative_to(above)) for run in runs}
    groups: dict[str, list[Path]] = {}
    for run, name in names.items():
        groups.setdefault(re.sub(r"[-_]\d+(?=/|$)", "-*", name), []).append(run)
    return {name if len(members) > 1 else names[members[0]]: members for name, members in groups.items()}


def number(row: dict, key: str) -> float | None:
    """Return the value of a metric. None: not measured, or not finite."""
    value = row.get(key)
    return float(value) if type(value) in (int, float) and abs(value) < 1e308 else None


def metrics(groups: dict[str, Group]) -> list[str]:
    """Return the names of all metrics. Raises DataError if there are none."""
    rows = [row for group in groups.values() for rows in group for row in rows]
    names = dict.fromkeys(key for row in rows for key in row if number(row, key) is not None)
    measured = [name for name in names if name not in ("step", "phase", "minutes", "million tokens")]
    if not measured:
        raise DataError("no step has a number to show; it should be the metrics.jsonl of a run")
    return measured


def buckets(names: Sequence[str]) -> list[str]:
    """Return the length buckets among the names of metrics, shortest first: "0-80", "80-200"."""
    buckets = [name.removeprefix(BY_LENGTH) for name in names if name.startswith(BY_LENGTH)]
    return sorted(buckets, key=lambda bucket: [int(number) for number in re.findall(r"\d+", bucket)])


def by_step(group: Group, key: str, smooth: bool = False) -> dict[int, list[float]]:
    """Return {step: the values of the runs that have this metric}. After the end of a run, the others continue.
    smooth: average each run over a tenth of its values, at most 15. The average starts again with each phase. What is
    no measurement of a step (EXACT) is not averaged."""
    values: dict[int, list[float]] = {}
    for rows in group:
        num_values = sum(number(row, key) is not None for row in rows)         # few, if it is not measured every step
        width = max(1, min(15, num_values // 10)) if smooth and key not in EXACT else 1
        window, phase = [], None
        for row in rows:
            if row.get("phase") != phase:
                window, phase = [], row.get("phase")
            if (value := number(row, key)) is not None:
                window = [*window, value][-width:]
                values.setdefault(row["step"], []).append(sum(window) / len(window))
    return dict(sorted(values.items()))


def borders(group: Group) -> set[int]:
    """Return the first steps of later phases."""
    return {row["step"] for rows in group for last, row in zip(rows, rows[1:]) if row.get("phase") != last.get("phase")}


def cumulated(rows: Sequence[dict]) -> list[dict]:
    """Return the rows with two more keys: "minutes" and "million tokens" since the start."""
    minutes, tokens, result = 0.0, 0.0, []
    for row in rows:
        took = number(row, "step_time") or 0.0
        minutes += took / 60
        tokens += took * (number(row, "tokens_per_s") or 0.0) / 1e6
        result.append({**row, "minutes": minutes, "million tokens": tokens})
    return result
