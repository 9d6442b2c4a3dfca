"""Log-probs and gradients of a stem and its branches.

A stem is what all sequences of a family begin with, a branch is what one of them adds (records.Branch). This is the
plain form: every branch is preceded by its own copy of the stem. Legend: N weighted targets of a micro-batch.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate

import torch
from kernels import linear_logprob

from .attention import pack
from .records import Branch

Tensor = torch.Tensor


def backward(model, stem: Sequence[int], branches: Sequence[Branch], loss: Callable, temperature: float = 1.0,
             max_tokens: int = 16384) -> None:
    """Adds the gradient of the loss to the parameters, one micro-batch of at most `max_tokens` tokens at a time.

    `loss(rows, logprobs, entropy)` is called once per micro-batch with the indices of its branches and the (N,) values
    of their weighted targets, one branch after the other; it returns a scalar. The scalars add up to the loss, so its
    normaliser must have been counted before, over everything that goes into one optimizer step."""
    for rows in microbatches(stem, branches, max_tokens):
        loss(rows, *_forward(model, stem, [branches[row] for row in rows], temperature)).backward()


@torch.no_grad()
def logprobs(model, stem: Sequence[int], branches: Sequence[Branch], temperature: float = 1.0,
             max_tokens: int = 16384) -> list[Tensor]:
    """For each branch the log-probs (num_targets,) of its weighted targets, without gradient."""
    found = []
    for rows in microbatches(stem, branches, max_tokens):
        values, _ = _forward(model, stem, [branches[row] for row in rows], temperature)
        found += values.split([branches[row].num_targets for row in rows])
    return found


def microbatches(stem: Sequence[int], branches: Sequence[Branch], max_tokens: int) -> Iterator[range]:
    """Consecutive branches whose copies (stem included) stay within `max_tokens`; a longer one goes alone."""
    start, tokens = 0, 0
    for row, branch in enumerate(branches):
        tokens += len(stem) + len(branch.input_ids)
        if tokens > max_tokens and row > start:
            yield range(start, row)
            start, tokens = row, len(stem) + len(branch.input_ids)
    if branches:
        yield range(start, len(branches))


def _forward(model, stem, branches, temperature) -> tuple[Tensor, Tensor]:
    """logprobs (N,), entropy (N,) of all weighted targets."""
    sequences = [(*stem, *branch.input_ids) for branch in branches]
    targets = torch.tensor([t for b in branches for t, w in zip(b.target_ids, b.weights) if w], dtype=torch.long,
                           device=model.device)
    wanted = torch.tensor([place for b, end in zip(branches, accumulate(map(len, sequences)))
                           for place, w in enumerate(b.weights, start=end - len(b.weights)) if w],
                          dtype=torch.long, device=model.device)
    head = partial(_score, wanted=wanted, targets=targets, temperature=temperature)
    values, _ = model(*pack(sequences, model.device), head)
    return values


def _score(hidden, weight, wanted, targets, temperature):
    return linear_logprob(hidden[wanted], weight, targets, temperature)
