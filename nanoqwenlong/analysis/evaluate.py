"""Accuracy with its interval, pass@k, and answers that outlive the process that sampled them."""

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
from ..rewards import Score, agreed, score_all

AT_ONCE = 64                    # examples per call of the generator, and per write: what a killed evaluation loses


class Answer(NamedTuple):
    """One sampled answer, as it is kept."""

    text: str
    length: int                 # tokens, the end token included
    finish_reason: str          # "stop" or "length"


def answer_examples(sample: Callable, tokenizer, examples: Sequence[Example], n: int, kept: "Kept | None" = None,
                    **sampling) -> list[list[Answer]]:
    """`n` answers to each example, a few examples at a time. `sample` is Generator.sample, and is not called for
    answers that an earlier start has `kept`: the batches are the same then, so the others come out as they would."""
    answers = []
    for start in progress(range(0, len(examples), AT_ONCE), "answers", quiet=parallel.rank() > 0):
        batch = examples[start:start + AT_ONCE]
        keys = [example.id for example in batch]
        found = kept.take(keys, n) if kept else None
        if found is None:
            groups = sample([e.prompt_ids for e in batch], n=n, eos_ids=tokenizer.eos_ids, keys=keys, **sampling)
            found = [[Answer(tokenizer.decode(c.ids), len(c.ids), c.finish_reason) for c in group.completions]
                     for group in groups]
            if kept:
                kept.add(keys, found)
        answers += found
    return answers


class Kept:
    """A file of answers, a line per question: whole batches are added, and taken up again in the same order. Of several
    ranks only the first touches the file; all are told what it found.

    model: whose answers these are. start: where in the file they begin, which is the `end` of another model's."""

    def __init__(self, path: Path, model: str, start: int = 0):
        self.path, self.model, self.end = path, model, start

    def take(self, keys: Sequence[str], n: int) -> list[list[Answer]] | None:
        """The answers to these questions, None if they are not all there; what there is of them is then cut off the
        file. Raises DataError where something else stands."""
        found = parallel.on_all_ranks(lambda: parallel.rank() == 0 and self._take(keys, n), "cannot read answers")[0]
        if isinstance(found, str):
            raise DataError(found)
        return found if found is None else [[Answer(*answer) for answer in answers] for answers in found]

    def add(self, keys: Sequence[str], answers: Sequence[Sequence[Answer]]) -> None:
        """They are on the disk when this returns."""
        parallel.on_all_ranks(lambda: parallel.rank() == 0 and self._add(keys, answers), "cannot keep answers")

    def _take(self, keys: Sequence[str], n: int) -> list[list[list]] | str | None:
        if not self.path.exists():
            return None
        with open(self.path, "rb+") as file:
            file.seek(self.end)
            lines = [line for line in islice(file, len(keys)) if line.endswith(b"\n")]     # the last may be half a line
            if len(lines) < len(keys):
                file.truncate(self.end)
                return None
        found = []
        for key, line in zip(keys, lines):
            try:
                row = json.loads(line)
                answers = [[answer[name] for name in Answer._fields] for answer in row["answers"]]
                whose = row["model"], row["id"], len(answers) * all(map(is_answer, answers))
            except (ValueError, KeyError, TypeError, RecursionError):
                whose = ()
            if whose != (self.model, key, n):
                return (f"{self.path} does not have {self.model}'s {n} answers to {key!r} where they should stand: the "
                        "file was changed; give another --out")
            found.append(answers)
        self.end += sum(map(len, lines))
        return found

    def _add(self, keys: Sequence[str], answers: Sequence[Sequence[Answer]]) -> None:
        lines = "".join(json.dumps({"model": self.model, "id": key, "answers": [a._asdict() for a in group]},
                                   ensure_ascii=False) + "\n" for key, group in zip(keys, answers, strict=True))
        with open(self.path, "ab") as file:
            if file.tell() != self.end:
                raise OSError(errno.EBUSY, "another process writes into it", str(self.path))
            self.end += file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())


def is_answer(values: Sequence) -> bool:
    """Whether these can be an Answer's text, length and finish_reason; ValueError of a text that nothing can write."""
    text, length, finish_reason = values
    return type(text) is str and text.encode() is not None and type(length) is int and 0 <= length < 1 << 53 and (
        finish_reason in ("stop", "length"))


def score_answers(examples: Sequence[Example], answers: Sequence[Sequence[Answer]], judge=None) -> list[list[Score]]:
    """The scores of each example's answers. A judge is asked once, about all that the rule rejects."""
    return agreed(score_all([[answer.text for answer in group] for group in answers], examples, judge))


def accuracy(scores: Sequence[Sequence[Score]], unscorable: float = 0.0) -> float:
    """The mean over questions of their samples' mean reward. Every answer counts: one that a judge left open (NaN) as
    `unscorable`, so that no question leaves the denominator."""
    means = [sum(unscorable if isnan(s.reward) else s.reward for s in question) / len(question) for question in scores]
    return sum(means) / len(means)


def mean_rewards(scores: Sequence[Sequence[Score]]) -> list[float]:
    """The mean reward of each question's samples without those that a judge left open; NaN if there are no others."""
    known = [[score.reward for score in question if not isnan(score.reward)] for question in scores]
    return [sum(rewards) / len(rewards) if rewards else nan for rewards in known]


def interval(rate: float, num_questions: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate over independent questions. Several samples of one question are not
    independent; counted as one, they leave the interval wider than need be, never too narrow.

    >>> low, high = interval(0.5, 100)
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)
    """
    centre = rate + z * z / (2 * num_questions)
    spread = z * sqrt(rate * (1 - rate) / num_questions + z * z / (4 * num_questions**2))
    scale = 1 + z * z / num_questions
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def average(rates: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    """The plain mean of independent rates, each (rate, low, high), and its interval: MOVER (Zou and Donner 2008), which
    adds the squares of the distances to each limit.

    >>> [round(x, 3) for x in average([(0.5, 0.4, 0.6), (0.7, 0.6, 0.8)])]
    [0.6, 0.529, 0.671]
    """
    rate = sum(rate for rate, _, _ in rates) / len(rates)
    below, above = (sqrt(sum((ends[0] - ends[side]) ** 2 for ends in rates)) / len(rates) for side in (1, 2))
    return rate, max(0.0, rate - below), min(1.0, rate + above)


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The chance that at least one of k samples drawn without replacement is right (unbiased; Chen et al. 2021).

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 0, 4)
    (0.25, 0.5, 0.0)
    """
    return 1 - comb(num_samples - num_correct, k) / comb(num_samples, k)
