"""Sequences of a packed row as batches: neighbours of similar length are padded to the same length.

Legend: T packed tokens, S sequences of a batch, n tokens of each with its pads.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

Tensor = torch.Tensor


@dataclass(frozen=True)
class Bucket:
    """Neighbours in a packed row, tokens `start` to `end`, as a batch of S sequences padded to n tokens.

    Pads come after their sequence, so a causal order hides them. What is computed for a pad is dropped."""

    start: int
    end: int
    S: int
    n: int
    rows: Tensor | None                 # where the tokens lie in the padded row (S n); None: there are no pads

    def pad(self, x: Tensor) -> Tensor:
        """(T, heads, D) -> (S, n, heads, D)"""
        x = x[self.start:self.end]
        if self.rows is not None:
            x = x.new_zeros(self.S * self.n, *x.shape[1:]).index_copy(0, self.rows, x)
        return x.unflatten(0, (self.S, self.n))

    def unpad(self, x: Tensor) -> Tensor:
        """(S, n, heads, D) -> (end - start, heads, D)"""
        x = x.flatten(0, 1)
        return x if self.rows is None else x.index_select(0, self.rows)


def buckets(lengths: Sequence[int], device: torch.device | str = "cpu", waste: float = 1.25) -> list[Bucket]:
    """Neighbours share a bucket as long as their pads are less than a quarter of their tokens.

    >>> [(b.S, b.n) for b in buckets([17, 17, 15, 90, 100])]
    [(3, 17), (2, 100)]
    """
    groups: list[list[int]] = []
    longest = tokens = 0
    for length in lengths:
        longest, tokens = max(longest, length), tokens + length
        if not groups or longest * (len(groups[-1]) + 1) > waste * tokens:
            groups.append([])
            longest = tokens = length
        groups[-1].append(length)

    result, start = [], 0
    for group in groups:
        longest, end = max(group), start + sum(group)
        rows = None
        if end - start < longest * len(group):
            pieces = [torch.arange(length) + i * longest for i, length in enumerate(group)]
            rows = torch.cat(pieces).to(device)
        result.append(Bucket(start, end, len(group), longest, rows))
        start = end
    return result
