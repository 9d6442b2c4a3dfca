"""Sequences of a packed row of T tokens as batches: neighbours of similar length are padded to the same length."""

from collections.abc import Sequence
from typing import NamedTuple

import torch

Tensor = torch.Tensor


class Bucket(NamedTuple):
    """Neighbours in a packed row, tokens `start` to `end`, as a batch of S sequences padded to n tokens. Pads come
    after their sequence, so a causal order hides them. What is computed for a pad is dropped."""

    start: int
    end: int
    S: int
    n: int
    rows: Tensor | None                 # where the tokens lie in the padded row (S n); None: there are no pads

    def pad(self, *tensors: Tensor) -> list[Tensor]:
        """(T, heads, D) each -> (S, n, heads, D) each"""
        padded = []
        for x in tensors:
            x = x[self.start:self.end]
            if self.rows is not None:
                x = x.new_zeros(self.S * self.n, *x.shape[1:]).index_copy(0, self.rows, x)
            padded.append(x.unflatten(0, (self.S, self.n)))
        return padded

    def unpad(self, x: Tensor) -> Tensor:
        """(S, n, heads, D) -> (end - start, heads, D)"""
        x = x.flatten(0, 1)
        return x if self.rows is None else x.index_select(0, self.rows)


def buckets(lengths: Sequence[int], device: torch.device | str = "cpu") -> list[Bucket]:
    """Neighbours share a bucket as long as their pads are at most a quarter of their tokens."""
    result, start = [], 0
    while lengths:
        S, n, tokens = 1, lengths[0], lengths[0]
        for length in lengths[1:]:
            if max(n, length) * (S + 1) > 1.25 * (tokens + length):
                break
            S, n, tokens = S + 1, max(n, length), tokens + length
        pieces = [torch.arange(length) + i * n for i, length in enumerate(lengths[:S])]
        rows = torch.cat(pieces).to(device) if tokens < S * n else None
        result.append(Bucket(start, start + tokens, S, n, rows))
        start, lengths = start + tokens, lengths[S:]
    return result
