"""What a run leaves behind: a line per step on the console, numbers in metrics.jsonl, words in rollouts.jsonl."""

import json
import sys
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm


def progress(items: Iterable, description: str) -> tqdm:
    """A progress bar on a terminal, nothing elsewhere (notebooks' and Slurm's logs stay readable)."""
    return tqdm(items, desc=description, leave=False, disable=not sys.stderr.isatty())


class Log:
    """Appends to the files of a run directory; with directory None nothing is kept (a dry run)."""

    def __init__(self, directory: Path | None):
        self.directory = directory

    def _append(self, name: str, row: dict) -> None:
        if self.directory is not None:
            with open(self.directory / name, "a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def metrics(self, step: int, values: dict) -> None:
        """One step, one line of metrics.jsonl."""
        self._append("metrics.jsonl", {"step": step, **values})

    def line(self, step: int, values: dict, headline: tuple[str, ...]) -> None:
        """One step on the console: the values named in `headline` that there are, in its order."""
        self.say(f"step {step:4d}  " + "  ".join(f"{k} {format_value(values[k])}" for k in headline if k in values))

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


def advice(values: dict) -> str | None:
    """One sentence when a step's numbers show why nothing is being learned, with the flag to change; else None."""
    if values["completions/clipped_ratio"] > 0.9:
        return (f"{values['completions/clipped_ratio']:.0%} of the answers were cut before their end, so most earn 0: "
                "raise --max-new-tokens, or warm up with train_sft.py on answers that fit")
    if values["answers/extracted"] < 0.1:
        return (f"only {values['answers/extracted']:.0%} of the answers hold \"</think> ... the answer is ...\", so "
                "the reward stays 0: warm up with train_sft.py on answers in that form")
    if values["frac_reward_zero_std"] == 1:
        kind = "all wrong" if values["reward"] == 0 else "all right or all wrong within their group"
        return (f"every group's answers earned the same ({kind}), so this step taught nothing: use easier or harder "
                "examples, or raise --group-size")
    return None
