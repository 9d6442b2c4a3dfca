"""Which rank computes which family of a training step, and how many calls of the model that takes.

FSDP gathers weights in every call of the model, so all ranks must make the same calls in the same order.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import NamedTuple

from .. import parallel
from ..records import Branch, Family

NO_FAMILY = Family((), ())


class Calls(NamedTuple):
    """How often a family calls the model: with its stem once or never, with branches once per micro-batch."""

    stem: bool
    branches: int


def deal(model, families: Mapping, max_tokens: int) -> list[tuple]:
    """[(name, family, calls)]: this rank's families, balanced by cost, the most expensive first. `calls` is what the
    ranks need for their n-th families together. All ranks get equally long lists, filled up with empty families."""
    names = list(families)
    costs = [cost(family, model.config.hidden_size) for family in families.values()]
    dealt = []
    for indices in zip_longest(*parallel.balance(costs, parallel.size())):     # the n-th family of each rank
        turn = [None if index is None else names[index] for index in indices]
        needed = [calls_of(families[name], max_tokens) for name in turn if name is not None]
        calls = Calls(any(c.stem for c in needed), max(c.branches for c in needed))
        name = turn[parallel.rank()]
        dealt.append((name, families.get(name, NO_FAMILY), calls))
    return dealt


def cost(family, hidden_size: int) -> int:
    """The cost of a family in pairs of tokens that attend to each other. A layer multiplies about 12 C^2 numbers per
    token and 2 C per pair (C the hidden size)."""
    P = tokens = len(family.stem)
    pairs = P * (P + 1) // 2
    for branch in family.branches:
        n = len(branch.input_ids)
        pairs += n * P + n * (n + 1) // 2
        tokens += n
    return pairs + 6 * hidden_size * tokens


def calls_of(family, max_tokens: int) -> Calls:
    stem, branches = family.stem, family.branches
    return Calls(bool(stem and branches), len(list(microbatches(branches, max_tokens))))


def microbatches(branches: Sequence[Branch], max_tokens: int) -> Iterator[range]:
    """Indices of consecutive branches with at most `max_tokens` inputs together. A longer branch goes alone."""
    start, tokens = 0, 0
    for row, branch in enumerate(branches):
        tokens += len(branch.input_ids)
        if tokens > max_tokens and row > start:
            yield range(start, row)
            start, tokens = row, len(branch.input_ids)
    if branches:
        yield range(start, len(branches))
