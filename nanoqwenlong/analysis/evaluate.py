"""Ask a model every question, and measure: accuracy with its interval, and pass@k. Answers can be saved and resumed."""

import errno
import json
import os
from collections.abc import Callable, Sequence
from itertools import islice
from math import comb, isnan, nan, sqrt
from pathlib import Path
from typing import NamedTuple

from .. import parallel
from ..errors import DataError
from ..ops.log import progress
from ..records import Example
from ..reward.answers import said
from ..rewards import Score, score_all

# What can become of an answer: its name in results.json, and in the tables
OUTCOMES = {"right": "right", "partly_right": "partly right", "wrong": "wrong", "truncated": "truncated",
            "no_think_end": "no `</think>`", "no_answer": "no answer", "unscorable": "no verdict"}
AT_ONCE = 64        # questions per call of the generator and per write: a killed evaluation loses no more than these


class Answer(NamedTuple):
    text: str
    length: int                 # tokens, the end token included
    finish_reason: str          # "stop" or "length"


def answer_examples(sample: Callable, tokenizer, examples: Sequence[Example], n: int,
                    saved: "SavedAnswers | None" = None, model: str = "", **sampling) -> list[list[Answer]]:
    """Return `n` answers to each example. `sample` is Generator.sample. Batches in `saved` are read, not sampled."""
    answers = []
    for start in progress(range(0, len(examples), AT_ONCE), "answers", quiet=parallel.rank() > 0):
        batch = examples[start:start + AT_ONCE]
        ids = [example.id for example in batch]
        batch_answers = saved.read(model, ids, n) if saved else None
        if batch_answers is None:
            groups = sample([e.prompt_ids for e in batch], n=n, eos_ids=tokenizer.eos_ids, keys=ids, **sampling)
            batch_answers = [[Answer(tokenizer.response(c.ids), len(c.ids), c.finish_reason) for c in group.completions]
                             for group in groups]
            if saved:
                saved.append(model, ids, batch_answers)
        answers += batch_answers
    return answers


class SavedAnswers:
    """The file answers.jsonl: a line per question, one model after the other. Only the first rank touches it."""

    def __init__(self, path: Path):
        self.path = path
        self.end = 0            # bytes that this process has read or written

    def read(self, model: str, ids: Sequence[str], n: int) -> list[list[Answer]] | None:
        """Return the saved answers to these questions. If some are missing, truncate the file there and return None.
        Raises DataError if the file holds something else at this place."""
        def read_lines() -> list[str] | None:
            if parallel.rank() > 0 or not self.path.exists():
                return None
            with open(self.path, "rb+") as file:
                file.seek(self.end)
                lines = [line for line in islice(file, len(ids)) if line.endswith(b"\n")]   # half a line: killed
                if len(lines) < len(ids):
                    file.truncate(self.end)
                    return None
            self.end += sum(map(len, lines))
            return [line.decode(errors="surrogateescape") for line in lines]
        lines = parallel.on_all_ranks(read_lines, "cannot read answers")[0]
        if lines is None:
            return None
        answers = []
        for id, line in zip(ids, lines):
            try:
                row = json.loads(line)
                group = [Answer(**fields) for fields in row["answers"]]
                valid = (row["model"], row["id"], len(group)) == (model, id, n)
                for answer in group:
                    answer.text.encode()        # raises ValueError for half a surrogate pair
                    valid &= type(answer.length) is int and 0 <= answer.length < 1 << 53
                    valid &= answer.finish_reason in ("stop", "length")
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                valid = False
            if not valid:
                raise DataError(f"{self.path} does not have {model}'s {n} answers to {id!r} here. Use another --out")
            answers.append(group)
        return answers

    def append(self, model: str, ids: Sequence[str], answers: Sequence[Sequence[Answer]]) -> None:
        """Write the answers to these questions. They are on the disk when this returns."""
        rows = [{"model": model, "id": id, "answers": [answer._asdict() for answer in group]}
                for id, group in zip(ids, answers, strict=True)]

        def write() -> None:
            if parallel.rank() > 0:
                return
            with open(self.path, "ab") as file:
                if file.tell() != self.end:
                    raise OSError(errno.EBUSY, "another process writes into it", str(self.path))
                self.end += file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
                file.flush()
                os.fsync(file.fileno())
        parallel.on_all_ranks(write, "cannot save answers")


def score_answers(examples: Sequence[Example], answers: Sequence[Sequence[Answer]], judge=None) -> list[list[Score]]:
    """Return the scores of each example's answers, after one call of the judge for all that the rule rejects."""
    return score_all([[answer.text for answer in group] for group in answers], examples, judge)


def outcome(answer: Answer, score: Score) -> str:
    """Return what became of an answer: a key of OUTCOMES, the first that applies in the order of these lines. So
    an answer is truncated if it earned nothing and reached the token limit."""
    if score.reward == 1:
        return "right"
    if isnan(score.reward):
        return "unscorable"
    if score.reward > 0:
        return "partly_right"
    if answer.finish_reason == "length":
        return "truncated"
    if said(answer.text) is None:
        return "no_think_end"
    return "wrong" if score.answer else "no_answer"


def accuracy(scores: Sequence[Sequence[Score]], unscorable: float = 0.0) -> float:
    """Return the mean over questions of the mean reward. A reward without a verdict (NaN) counts as `unscorable`."""
    means = [sum(unscorable if isnan(s.reward) else s.reward for s in question) / len(question) for question in scores]
    return sum(means) / len(means)


def mean_rewards(scores: Sequence[Sequence[Score]]) -> list[float]:
    """Return the mean reward of each question, without answers that have no verdict. NaN if no answer has one."""
    known = [[score.reward for score in question if not isnan(score.reward)] for question in scores]
    return [sum(rewards) / len(rewards) if rewards else nan for rewards in known]


def interval(rate: float, num_questions: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's 95 % interval (low, high) of a rate. The samples of a question count as one."""
    centre = rate + z * z / (2 * num_questions)
    spread = z * sqrt(rate * (1 - rate) / num_questions + z * z / (4 * num_questions**2))
    scale = 1 + z * z / num_questions
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def average(rates: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """Return the mean of independent (rate, low, high), by MOVER (Zou and Donner 2008): squared distances add up."""
    mean = sum(rate for rate, _, _ in rates) / len(rates)
    below = sqrt(sum((rate - low) ** 2 for rate, low, _ in rates)) / len(rates)
    above = sqrt(sum((rate - high) ** 2 for rate, _, high in rates)) / len(rates)
    return mean, max(0.0, mean - below), min(1.0, mean + above)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return the chance that at least one of k samples is right: the unbiased estimate of Chen et al. (2021)."""
    return 1 - comb(num_samples - num_correct, k) / comb(num_samples, k)
