"""Which rank computes which family of a training step, and how many calls of the model that takes.

FSDP gathers weights in every call of the model, so all ranks must make the same calls in the same order.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

from .. import parallel
from ..records import Branch, Family


class Calls(NamedTuple):
    """How often a family calls the model: with its stem once or never, with branches once per micro-batch."""

    stem: bool
    branches: int


def deal(model, families: Mapping, max_tokens: int) -> list[tuple]:
    """[(name, family, calls)]: this rank's families, the most expensive first. `calls` is what the ranks need for their
    n-th families together. All ranks get equally long lists, filled up with empty families."""
    items = list(families.items())
    costs = [cost(family, model.config.hidden_size) for family in families.values()]
    dealt = []
    for indices in zip_longest(*parallel.balance(costs, parallel.size())):     # the n-th family of each rank
        turn = [(None, Family((), ())) if index is None else items[index] for index in indices]
        stems, branches = zip(*(calls_of(family, max_tokens) for _, family in turn))
        dealt.append((*turn[parallel.rank()], Calls(any(stems), max(branches))))
    return dealt


def cost(family, hidden_size: int) -> int:
    """The cost in pairs of tokens that attend to each other. Per layer, a pair costs 2 C products, a token 12 C^2."""
    P = len(family.stem)
    lengths = [len(branch.input_ids) for branch in family.branches]
    pairs = P * (P + 1) // 2 + sum(n * P + n * (n + 1) // 2 for n in lengths)
    return pairs + 6 * hidden_size * (P + sum(lengths))


def calls_of(family, max_tokens: int) -> Calls:
    return Calls(bool(family.stem and family.branches), len(list(microbatches(family.branches, max_tokens))))


def microbatches(branches: Sequence[Branch], max_tokens: int) -> Iterator[range]:
    """Indices of consecutive branches with at most `max_tokens` inputs together. A longer branch goes alone."""
    start = tokens = 0
    for row, branch in enumerate(branches):
        if row > start and tokens + len(branch.input_ids) > max_tokens:
            yield range(start, row)
            start, tokens = row, 0
        tokens += len(branch.input_ids)
    if branches:
        yield range(start, len(branches))
