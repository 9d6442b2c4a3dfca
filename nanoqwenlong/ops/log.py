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
        self.paths = {name: directory / name for name in FILES} if directory else {}
        self.quiet, self.written = quiet, {}                   # {file name: bytes that it should hold}

    def append(self, name: str, step: int, *rows: dict) -> None:
        if path := self.paths.get(name):
            self._find_loss(path)
            with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:      # half a surrogate pair
                file.write("".join(json.dumps({"step": step, **row}, ensure_ascii=False) + "\n" for row in rows))
            self.written[name] = path.stat().st_size

    def steps(self) -> list[dict]:
        """The rows of metrics.jsonl so far. [] if the file is missing or damaged."""
        try:
            with open(self.paths["metrics.jsonl"], encoding="utf-8") as file:
                rows = [json.loads(line) for line in file]
        except (KeyError, OSError, ValueError):
            return []
        return rows if all(isinstance(row, dict) for row in rows) else []

    def sizes(self) -> dict[str, int]:
        """{file name: bytes}, after all of it is on the disk."""
        for path in self.paths.values():
            self._find_loss(path)
            if path.exists():
                with open(path, "rb+") as file:
                    os.fsync(file.fileno())
                    self.written[path.name] = file.seek(0, os.SEEK_END)
        return dict(self.written)

    def cut(self, sizes: dict[str, int]) -> None:
        """Truncate the files to these sizes, others to 0: later steps will be made again."""
        self.written = dict(sizes)
        for path in self.paths.values():
            if path.exists() and path.stat().st_size > (size := sizes.get(path.name, 0)):
                os.truncate(path, size)
            self._find_loss(path)

    def _find_loss(self, path: Path) -> None:
        """If someone has removed lines of a file, say so. Half a line is cut off, so that the next one is readable."""
        size, now = self.written.get(path.name, 0), path.stat().st_size if path.exists() else 0
        if now > size or now == size and (size == 0 or read(path, size - 1, 1) == b"\n"):
            return
        self.written[path.name] = left = read(path, 0, size).rfind(b"\n") + 1 if now else 0
        what = "is shorter than it was, or was edited" if path.exists() else "was removed"
        self.say(f"{path} {what}: {size - left:,} of its {size:,} bytes are lost, and the run continues")
        if now:
            os.truncate(path, left)

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


def read(path: Path, start: int, size: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(size)


def format_value(value) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"
