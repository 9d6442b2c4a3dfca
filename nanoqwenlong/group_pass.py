"""One prompt, one pass: log-probs and gradients of a stem and its branches, the stem run once.

A stem is what all sequences of a family begin with, a branch is what one of them adds (records.Branch); only keys and
values join them. So the gradient is computed in two phases:

    1. The stem runs forward. Its keys and values, detached, become leaves.
    2. The branches run against the leaves, a micro-batch at a time, each backpropagated at once; the leaves collect
       their gradient. Then one backward pass through the stem, from its keys and values with the leaves' gradients.

That is the chain rule, and exact: docs/one_prompt_one_pass.md. In memory are one stem, its keys and values with their
gradients, and one micro-batch. The plain twin is the same without a stem, after `repeat_stem` gave every branch a copy.

Legend: N weighted targets of a micro-batch, P tokens of the stem, K key-value heads, D head width.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import accumulate

import torch
from kernels import linear_logprob
from torch.autograd.graph import get_gradient_edge

from .attention import KeysValues, pack
from .records import Branch

Tensor = torch.Tensor


def backward(model, stem: Sequence[int], branches: Sequence[Branch], loss: Callable, temperature: float = 1.0,
             max_tokens: int = 16384) -> None:
    """Adds the gradient of the loss to the parameters, one micro-batch of at most `max_tokens` branch tokens at a time.

    `loss(rows, logprobs, entropy)` is called once per micro-batch with the indices of its branches and the (N,) values
    of their weighted targets, one branch after the other; it returns a scalar. The scalars add up to the loss, so its
    normaliser must have been counted before, over everything that goes into one optimizer step."""
    stem_kv = _run_stem(model, stem) if branches else []
    edges = [get_gradient_edge(x) for pair in stem_kv for x in pair if x.requires_grad]
    leaves = [tuple(x.detach().requires_grad_(x.requires_grad) for x in pair) for pair in stem_kv]     # (P, K, D) each
    del stem_kv                                                                # only the edges into its graph are kept
    for rows in microbatches(branches, max_tokens):
        loss(rows, *_run_branches(model, leaves, [branches[row] for row in rows], temperature)).backward()
    grads = [x.grad for pair in leaves for x in pair if x.requires_grad]
    del leaves
    if edges:
        torch.autograd.backward(edges, grads)


@torch.no_grad()
def logprobs(model, stem: Sequence[int], branches: Sequence[Branch], temperature: float = 1.0,
             max_tokens: int = 16384) -> list[Tensor]:
    """For each branch the log-probs (num_targets,) of its weighted targets, without gradient."""
    stem_kv, found = _run_stem(model, stem) if branches else [], []
    for rows in microbatches(branches, max_tokens):
        values, _ = _run_branches(model, stem_kv, [branches[row] for row in rows], temperature)
        found += values.split([branches[row].num_targets for row in rows])
    return found


def repeat_stem(stem: Sequence[int], branches: Sequence[Branch]) -> list[Branch]:
    """The same family without a stem: every branch begins with a copy of it, as context."""
    return [Branch((*stem, *b.input_ids), (*stem, *b.target_ids), (*[0.0] * len(stem), *b.weights)) for b in branches]


def split_stem(branches: Sequence[Branch]) -> tuple[tuple[int, ...], list[Branch]]:
    """The reverse: the longest context that all branches begin with becomes their stem. A branch keeps its first
    weighted target and one input at least.

    >>> split_stem([Branch((5, 6, 7), (6, 7, 8), (0, 0, 1)), Branch((5, 6, 9), (6, 9, 8), (0, 1, 1))])
    ((5,), [Branch(input_ids=(6, 7), target_ids=(7, 8), weights=(0, 1)), \
Branch(input_ids=(6, 9), target_ids=(9, 8), weights=(1, 1))])
    """
    length = 0
    for tokens, weights in zip(zip(*(b.input_ids[:-1] for b in branches)), zip(*(b.weights for b in branches))):
        if len(set(tokens)) > 1 or any(weights):
            break
        length += 1
    return branches[0].input_ids[:length], [Branch(*(part[length:] for part in b)) for b in branches]


def microbatches(branches: Sequence[Branch], max_tokens: int) -> Iterator[range]:
    """Consecutive branches that stay within `max_tokens` inputs together; a longer one goes alone."""
    start, tokens = 0, 0
    for row, branch in enumerate(branches):
        tokens += len(branch.input_ids)
        if tokens > max_tokens and row > start:
            yield range(start, row)
            start, tokens = row, len(branch.input_ids)
    if branches:
        yield range(start, len(branches))


def _run_stem(model, stem: Sequence[int]) -> KeysValues:
    """Keys and values of each layer, (P, K, D); nothing for an empty stem."""
    return model(*pack([stem], model.device))[1] if stem else []


def _run_branches(model, stem_kv: KeysValues, branches: Sequence[Branch], temperature: float) -> tuple[Tensor, Tensor]:
    """logprobs (N,), entropy (N,) of all weighted targets."""
    ends = accumulate(len(b.input_ids) for b in branches)
    wanted = [(end - len(b.weights) + i, b.target_ids[i]) for b, end in zip(branches, ends)
              for i, weight in enumerate(b.weights) if weight]
    rows, targets = torch.tensor(wanted, dtype=torch.long, device=model.device).view(-1, 2).T
    head = partial(_score, rows=rows, targets=targets, temperature=temperature)
    return model(*pack([b.input_ids for b in branches], model.device, stem_kv), head)[0]


def _score(hidden, weight, rows, targets, temperature):
    return linear_logprob(hidden[rows], weight, targets, temperature)
