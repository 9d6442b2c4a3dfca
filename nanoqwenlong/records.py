"""The records that flow through the system. All frozen: a change makes a new record.

    Example  --generate-->  Group of Completions  --branches-->  stem and Branches  --group_pass-->  gradient
"""

from dataclasses import dataclass
from typing import NamedTuple


class DataError(ValueError):
    """Data that cannot be used; the message names the file, the line and the field."""


@dataclass(frozen=True)
class Example:
    """One question about one document.

    >>> e = Example(id="a1", document="Tom lives in Oslo.", question="Where does Tom live?", answer=("Oslo", "oslo"))
    >>> e.accepted, e.task
    (('Oslo', 'oslo'), 'qa')
    >>> Example(id="a2", document="Rain fell.", question="", answer="", task="text").accepted   # pretraining text
    ('',)
    >>> Example(id="a3", document="", question="", answer="tea\\nsalt", task="f1").task      # a list: an item a line
    'f1'
    """

    id: str
    document: str
    question: str
    answer: str | tuple[str, ...]       # one accepted answer, or several
    task: str = "qa"                    # how it is rewarded: a name in rewards.TASKS; "text": plain text for language
                                        # modelling, no question
    messages: tuple[tuple[str, str], ...] = ()      # (role, content) of a chat that stands for the prompt as it is;
                                        # the question, if known, is then for the judge only
    response: str = ""                  # a full worked response, for supervised fine-tuning
    prompt_ids: tuple[int, ...] = ()    # filled by data.tokenize
    length: int = 0                     # tokens of document and question: |c| + |x| of QwenLong-L1, Eq. 9
    num_cut: int = 0                    # of them, those that data.tokenize cut out of the middle
    source: str = ""                    # the benchmark or file it comes from

    @property
    def accepted(self) -> tuple[str, ...]:
        return (self.answer,) if isinstance(self.answer, str) else tuple(self.answer)


@dataclass(frozen=True)
class Completion:
    """One sampled answer, token by token as the model produced it.

    >>> c = Completion(ids=(5, 9, 2), logprobs=(-0.1, -0.7, -0.2), finish_reason="stop")
    >>> len(c.ids) == len(c.logprobs), c.finish_reason
    (True, 'stop')
    """

    ids: tuple[int, ...]                # the end token included
    logprobs: tuple[float, ...]         # full vocabulary, at the sampling temperature
    finish_reason: str                  # "stop" or "length"


class Branch(NamedTuple):
    """What follows a stem: inputs, the token each of them should predict, and that target's weight in the loss.
    A target of weight 0 is context only: no log-prob is computed for it.

    >>> Branch(input_ids=(7, 5), target_ids=(5, 2), weights=(1.0, 1.0)).num_targets
    2
    """

    input_ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    weights: tuple[float, ...]

    @property
    def num_targets(self) -> int:
        return sum(weight != 0 for weight in self.weights)


class Family(NamedTuple):
    """What group_pass computes at once: a stem, which may be empty, and its branches. A Group can stand for one.

    >>> Family(stem=(3, 4), branches=(Branch((7,), (5,), (1.0,)),)).stem
    (3, 4)
    """

    stem: tuple[int, ...]
    branches: tuple[Branch, ...]


@dataclass(frozen=True)
class Group:
    """The G completions of one prompt. As a family of sequences: the stem is the prompt without its last token, each
    branch starts with that last token, so only keys and values join them.

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
        return tuple(Branch(self.prompt_ids[-1:] + c.ids[:-1], c.ids, (1.0,) * len(c.ids)) for c in self.completions)

    @property
    def num_tokens(self) -> int:
        """Completion tokens: what the loss is normalised by."""
        return sum(len(c.ids) for c in self.completions)
