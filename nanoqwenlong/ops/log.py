"""What a run leaves behind: a line per step on the console, numbers in metrics.jsonl, words in rollouts.jsonl."""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

FILES = ("metrics.jsonl", "rollouts.jsonl", "skipped.jsonl")


def progress(items: Iterable, description: str, quiet: bool = False) -> tqdm:
    """A progress bar on a terminal, nothing elsewhere (notebooks' and Slurm's logs stay readable)."""
    return tqdm(items, desc=description, leave=False, disable=quiet or not sys.stderr.isatty())


class Log:
    """Appends to the files of a run directory; with directory None nothing is kept (a dry run, and every rank but the
    first). quiet: nothing is said either."""

    def __init__(self, directory: Path | None, quiet: bool = False):
        self.directory, self.quiet = directory, quiet

    def append(self, name: str, *rows: dict) -> None:
        """Lines of a file, in JSON."""
        if self.directory is not None:
            with open(self.directory / name, "a", encoding="utf-8") as file:
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def metrics(self, step: int, values: dict) -> None:
        """One step, one line of metrics.jsonl."""
        self.append("metrics.jsonl", {"step": step, **values})

    def rollouts(self, step: int, rows: Iterable[dict]) -> None:
        """The answers of a step, a line each, with everything needed to read it later."""
        self.append("rollouts.jsonl", *({"step": step, **row} for row in rows))

    def skipped(self, **row) -> None:
        """An update that was not made, and the examples it would have been made from."""
        self.append("skipped.jsonl", row)

    def steps(self) -> list[dict]:
        """The lines of metrics.jsonl up to now; none where there are none, or where they have been changed."""
        try:
            with open(self.directory / "metrics.jsonl", encoding="utf-8") as file:
                rows = [json.loads(line) for line in file]
        except (OSError, ValueError, TypeError):               # TypeError: of directory None
            return []
        return rows if all(isinstance(row, dict) for row in rows) else []

    def sizes(self) -> dict[str, int]:
        """How long each file is, once all of it is on the disk."""
        found = {}
        for name in FILES if self.directory is not None else ():
            if (self.directory / name).exists():
                with open(self.directory / name, "rb+") as file:
                    os.fsync(file.fileno())
                    found[name] = file.seek(0, os.SEEK_END)
        return found

    def cut(self, sizes: dict[str, int]) -> None:
        """Back to these lengths: what was written later, half a line perhaps, will be written again."""
        for name in FILES if self.directory is not None else ():
            path = self.directory / name
            if path.exists() and path.stat().st_size != (length := sizes.get(name, 0)):
                if path.stat().st_size < length:
                    self.say(f"{path} is shorter than it was: some of its lines are lost")
                else:
                    os.truncate(path, length)

    def line(self, step: int, values: dict, headline: tuple[str, ...]) -> None:
        """One step on the console: the values named in `headline` that there are, in its order."""
        self.say(f"step {step:4d}  " + "  ".join(f"{k} {format_value(values[k])}" for k in headline if k in values))

    def say(self, text: str) -> None:
        """On the console; if that is gone, on nothing: the run goes on."""
        self.quiet = self.quiet or not tell(text, sys.stdout)


def tell(text: str, stream) -> bool:
    """On stdout or stderr, if it is still there: its reader may have ended, its terminal may be closed."""
    if stream is None:                                                         # closed before we began
        return False
    try:
        tqdm.write(text, file=stream)
        stream.flush()
        return True
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())             # or Python complains at its end
        return False


def format_value(value) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"
