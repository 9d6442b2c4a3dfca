"""Accuracy with its interval, and pass@k, from scored samples."""

from collections.abc import Sequence
from dataclasses import asdict
from math import comb, isnan, nan, sqrt

from . import parallel
from .curriculum import bucket
from .log import progress
from .records import Example, Group
from .rewards import Score, score_all


AT_ONCE = 128                   # examples per call of the generator: a matter of speed and progress, not of results


def answer_examples(generator, tokenizer, examples: Sequence[Example], n: int, judge=None, **sampling
                    ) -> tuple[list[Group], list[list[str]], list[list[Score]]]:
    """Sample `n` answers to each example, a few examples at a time, and score them: groups, texts, scores. A judge is
    asked once, about all that the rule rejects."""
    groups: list[Group] = []
    for start in progress(range(0, len(examples), AT_ONCE), "answers", quiet=parallel.rank() > 0):
        batch = examples[start:start + AT_ONCE]
        groups += generator.sample([e.prompt_ids for e in batch], n=n, eos_ids=tokenizer.eos_ids,
                                   keys=[e.id for e in batch], **sampling)
    texts = [[tokenizer.decode(c.ids) for c in group.completions] for group in groups]
    return groups, texts, agreed(score_all(texts, examples, judge))


def agreed(scores: list[list[Score]]) -> list[list[Score]]:
    """The first rank's, on all ranks. All compute the same, but where a comparison has a deadline (rewards.TASKS'
    "math") one of them may be too late, and ranks must not take different ways for that."""
    first = parallel.gather([[asdict(score) for score in group] for group in scores])[0]
    return [[Score(**score) for score in group] for group in first]


def accuracy(scores: Sequence[Sequence[Score]], unscorable: float | None = None) -> float:
    """The mean over questions of their samples' mean reward. Unscorable samples (NaN) are left out, or count as
    `unscorable`; NaN if there are no others."""
    means = [mean for mean in mean_rewards(scores, unscorable) if not isnan(mean)]
    return sum(means) / len(means) if means else nan


def mean_rewards(scores: Sequence[Sequence[Score]], unscorable: float | None = None) -> list[float]:
    """The mean reward of each question's samples; of unscorable ones as in `accuracy`."""
    found = []
    for question in scores:
        rewards = [unscorable if isnan(s.reward) and unscorable is not None else s.reward for s in question]
        known = [reward for reward in rewards if not isnan(reward)]
        found.append(sum(known) / len(known) if known else nan)
    return found


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


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The chance that at least one of k samples drawn without replacement is right (unbiased; Chen et al. 2021).

    >>> pass_at_k(4, 1, 1), pass_at_k(4, 1, 2), pass_at_k(4, 0, 4)
    (0.25, 0.5, 0.0)
    """
    return 1 - comb(num_samples - num_correct, k) / comb(num_samples, k)


def by_task(examples: Sequence[Example], scores: Sequence[Sequence[Score]]) -> dict[str, list[Sequence[Score]]]:
    """{task: scores of its questions}, in the order of the examples; nothing if there is but one task."""
    found = {}
    for example, question in zip(examples, scores):
        found.setdefault(example.task, []).append(question)
    return found if len(found) > 1 else {}


def by_bucket(examples: Sequence[Example], scores: Sequence[Sequence[Score]], lengths: Sequence[int]
              ) -> dict[str, list[Sequence[Score]]]:
    """{length bucket: scores of its questions}, shortest first; buckets without a question are left out."""
    found = {}
    for example, question in sorted(zip(examples, scores), key=lambda pair: pair[0].length):
        found.setdefault(bucket(example.length, lengths), []).append(question)
    return found
