"""The records that flow through the system. All are frozen: a change makes a new record.

    Example  --generate-->  Group of Completions  --reward-->  Rollout with Scores and advantages
    Group    --branches-->  stem and Branches     --group_pass-->  gradient
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan
from typing import NamedTuple


@dataclass(frozen=True)
class Example:
    """One question about one document.

    >>> Example(id="a1", document="Tom lives in Oslo.", question="Where does Tom live?", answer="Oslo").accepted
    ('Oslo',)
    """

    id: str
    document: str
    question: str
    answer: str | tuple[str, ...]       # one accepted answer, or several. A list has one item per line
    task: str = "qa"                    # how the answer is rewarded: a name in reward.tasks.TASKS.
                                        # "text": plain text for language modelling, without a question
    messages: tuple[tuple[str, str], ...] = ()      # (role, content) of a chat. If given, it is the prompt as it is,
                                        # and only the judge sees `question`
    response: str = ""                  # a full worked response, for supervised fine-tuning
    prompt_ids: Sequence[int] = ()      # filled in by data.tokenize, as an array of 32-bit integers
    length: int = 0                     # tokens of document and question: |c| + |x| of QwenLong-L1, Eq. 9
    num_cut: int = 0                    # tokens that data.tokenize cut out of the document's middle
    source: str = ""                    # the benchmark or file it comes from

    @property
    def accepted(self) -> tuple[str, ...]:
        return (self.answer,) if isinstance(self.answer, str) else tuple(self.answer)


@dataclass(frozen=True)
class Completion:
    """One sampled answer, token by token as the model produced it."""

    ids: tuple[int, ...]                # the end token included
    logprobs: tuple[float, ...]         # full vocabulary, at the sampling temperature
    finish_reason: str                  # "stop" or "length"


class Branch(NamedTuple):
    """What follows a stem: inputs, the token that each input should predict, and that target's weight in the loss.

    A target of weight 0 is context only: no log-prob is computed for it."""

    input_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def num_targets(self) -> int:
        return sum(weight != 0 for weight in self.weights)


class Family(NamedTuple):
    """What group_pass computes at once: a stem, which may be empty, and its branches. Group and Rollout have both."""

    stem: tuple[int, ...]
    branches: tuple[Branch, ...]


@dataclass(frozen=True)
class Group:
    """The G completions of one prompt.

    Seen as a family of sequences, the stem is the prompt without its last token. Each branch starts with that last
    token, so a branch needs only the stem's keys and values.

    >>> g = Group(key="a1", prompt_ids=(3, 4, 7), completions=(Completion((5, 2), (-0.1, -0.2), "stop"),))
    >>> g.stem, g.branches[0].input_ids, g.branches[0].target_ids
    ((3, 4), (7, 5), (5, 2))
    """

    key: str | int
    prompt_ids: tuple[int, ...]
    completions: tuple[Completion, ...]

    @property
    def stem(self) -> tuple[int, ...]:
        return self.prompt_ids[:-1]

    @property
    def branches(self) -> tuple[Branch, ...]:
        last_id = self.prompt_ids[-1:]
        branches = []
        for answer in self.completions:
            inputs = last_id + answer.ids[:-1]
            weights = (1.0,) * len(answer.ids)
            branches.append(Branch(inputs, answer.ids, weights))
        return tuple(branches)

    @property
    def lengths(self) -> list[int]:
        """(G,) The tokens of each completion."""
        return [len(completion.ids) for completion in self.completions]

    @property
    def num_tokens(self) -> int:
        """Completion tokens: what the loss is normalised by."""
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the prompt and its longest completion."""
        return len(self.prompt_ids) + max(self.lengths)


@dataclass(frozen=True)
class Score:
    """What one response earned."""

    reward: float                       # the larger of rule and judge. NaN: unscorable
    rule: float
    judge: float | None                 # None: not asked. NaN: asked, and it gave no verdict
    answer: str                         # what was extracted, "" if nothing was


@dataclass(frozen=True)
class Rollout:
    """One prompt on its way through a training step: G answers, what they earned, and how they count.

    >>> group = Group("a1", (3, 7), (Completion((5,), (-0.1,), "stop"), Completion((6,), (-2.3,), "stop")))
    >>> scores = (Score(1.0, 1.0, None, "Oslo"), Score(0.0, 0.0, None, "Rome"))
    >>> r = Rollout(Example("a1", "", "", "Oslo"), group, ("Oslo", "Rome"), scores, (0.0, 0.0), (0.7, -0.7))
    >>> r.rewards, r.mean_reward, r.is_informative
    ((1.0, 0.0), 0.5, True)
    """

    example: Example
    group: Group                        # G completions
    texts: Sequence[str]                # (G,) the completions as text
    scores: Sequence[Score]             # (G,)
    penalties: Sequence[float]          # (G,) what each answer loses of its reward for its length
    advantages: Sequence[float] = ()    # (G,) filled in once all groups of the step are scored

    @property
    def stem(self) -> tuple[int, ...]:
        return self.group.stem

    @property
    def branches(self) -> tuple[Branch, ...]:
        return self.group.branches

    @property
    def rewards(self) -> tuple[float, ...]:
        """(G,) What rule and judge gave. NaN: unscorable."""
        return tuple(score.reward for score in self.scores)

    @property
    def shaped_rewards(self) -> tuple[float, ...]:
        """(G,) What is trained on: rewards minus penalties."""
        return tuple(reward - penalty for reward, penalty in zip(self.rewards, self.penalties))

    @property
    def mean_reward(self) -> float:
        """The mean over the answers that could be scored. NaN if there are none."""
        known = [reward for reward in self.rewards if not isnan(reward)]
        return sum(known) / len(known) if known else float("nan")

    @property
    def is_informative(self) -> bool:
        """Whether the group teaches something: its answers earned different rewards."""
        return any(self.advantages)
