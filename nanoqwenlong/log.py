"""What a run leaves behind: one line per step on the console, everything in metrics.jsonl, the words in rollouts.jsonl."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm


def progress(items: Iterable, description: str, total: int | None = None) -> tqdm:
    """A progress bar on a terminal, nothing elsewhere (notebooks' and Slurm's logs stay readable)."""
    return tqdm(items, desc=description, total=total, leave=False, disable=not sys.stderr.isatty())


class Log:
    """Appends to the files of a run directory; with directory None nothing is kept (a dry run)."""

    def __init__(self, directory: Path | None):
        self.directory = directory

    def _append(self, name: str, row: dict) -> None:
        if self.directory is not None:
            with open(self.directory / name, "a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def metrics(self, step: int, values: dict, headline: tuple[str, ...]) -> None:
        """All values go to metrics.jsonl, those named in `headline` (and present) also to the console, in its order."""
        self._append("metrics.jsonl", {"step": step, **values})
        shown = [f"{name} {format_value(values[name])}" for name in headline if name in values]
        tqdm.write(f"step {step:4d}  " + "  ".join(shown), file=sys.stdout)
        sys.stdout.flush()

    def rollout(self, **row) -> None:
        """One answer, with everything needed to read it later."""
        self._append("rollouts.jsonl", row)

    def say(self, text: str) -> None:
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def format_value(value) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.1e}"
