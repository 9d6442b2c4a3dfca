"""What a run records: a line per step on the console, numbers in metrics.jsonl, texts in rollouts.jsonl."""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from .console import say

FILES = ("metrics.jsonl", "rollouts.jsonl", "skipped.jsonl")           # skipped: updates that were not made


def progress(items: Iterable, description: str, quiet: bool = False) -> tqdm:
    """A progress bar on a terminal. Elsewhere it prints nothing, so that logs of notebooks and Slurm stay readable."""
    return tqdm(items, desc=description, leave=False, disable=quiet or not (sys.stderr and sys.stderr.isatty()))


class Log:
    """Appends to the files of a run directory, or to none if it is None. quiet: prints nothing either."""

    def __init__(self, directory: Path | None, quiet: bool = False):
        self.paths = [directory / name for name in FILES] if directory else []
        self.quiet, self.known = quiet, {}                     # known: the sizes of the files when they were synced

    def append(self, name: str, step: int, *rows: dict) -> None:
        for path in self.paths:
            if path.name == name:
                with open(path, "a", encoding="utf-8") as file:
                    file.write("".join(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n" for row in rows))

    def steps(self) -> list[dict]:
        """The rows of metrics.jsonl so far. [] if the file is missing or damaged."""
        try:
            with open(self.paths[0], encoding="utf-8") as file:
                rows = [json.loads(line) for line in file]
        except (IndexError, OSError, ValueError):
            return []
        return rows if all(isinstance(row, dict) for row in rows) else []

    def sizes(self) -> dict[str, int]:
        """{file name: bytes}, after all of it is on the disk. Reports files that others have removed or shortened."""
        sizes = {}
        for path in filter(Path.exists, self.paths):
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
                sizes[path.name] = file.seek(0, os.SEEK_END)
        self._report_losses(self.known, sizes)
        self.known = sizes
        return sizes

    def cut(self, sizes: dict[str, int]) -> None:
        """Truncate the files to these sizes, others to 0: later steps will be made again. Half a line at the end of a
        file that others have shortened goes, too."""
        self._report_losses(sizes, now := {path.name: path.stat().st_size for path in filter(Path.exists, self.paths)})
        for path in self.paths:
            size = sizes.get(path.name, 0)
            if now.get(path.name, 0) > size:
                os.truncate(path, size)
            elif 0 < now.get(path.name, 0) < size:
                now[path.name] = path.read_bytes().rfind(b"\n") + 1
                os.truncate(path, now[path.name])
        self.known = {name: min(size, now.get(name, 0)) for name, size in sizes.items()}

    def _report_losses(self, before: dict[str, int], now: dict[str, int]) -> None:
        for path in self.paths:
            if now.get(path.name, 0) < before.get(path.name, 0):
                what = "is shorter than it was: some of its lines are lost"
                self.say(f"{path} {what if path.name in now else 'was removed: its lines are lost'}; the run continues")

    def line(self, step: str, values: dict, headline: dict[str, str], seconds: float) -> None:
        """Print one step in at most 120 columns: the values of `headline` {key: its name here}, as far as they fit.
        seconds: that the rest will take."""
        left = f"  left {tqdm.format_interval(seconds)}"       # 02:05, or 1:02:05
        parts = [f"  {name} {format_value(values[key])}" for key, name in headline.items() if key in values]
        while len(step) + sum(map(len, parts)) + len(left) > 120:
            parts.pop()
        self.say(f"{step}{''.join(parts)}{left}")

    def say(self, text: str) -> None:
        """Print a line. If the console is gone, the run continues in silence."""
        self.quiet = self.quiet or not say(text)


def format_value(value) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"
