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

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate, zip_longest
from typing import NamedTuple

import torch
from kernels import linear_logprob
from kernels.flash import KeysValues
from torch.autograd.graph import get_gradient_edge

from . import parallel
from .attention import pack
from .records import Branch, Family

Tensor = torch.Tensor
IDLE, IDLE_BRANCH = (0,), Branch((0,), (0,), (1.0,))           # of a rank that only keeps the others company
NOBODY = Family((), ())


class Calls(NamedTuple):
    """Calls of the model that a family takes: one for its stem or none, and one for each micro-batch of branches. When
    weights are sharded over ranks, every rank must make the same ones in the same order (see `deal`)."""

    stem: bool
    branches: int


def backward(model, stem: Sequence[int], branches: Sequence[Branch], loss: Callable, temperature: float = 1.0,
             max_tokens: int = 16384, calls: Calls | None = None) -> None:
    """Adds the gradient of the loss to the parameters, one micro-batch of at most `max_tokens` branch tokens at a time.

    `loss(rows, logprobs, entropy)` is called once per micro-batch with the indices of its branches and the (N,) values
    of their weighted targets, one branch after the other; it returns a scalar. The scalars add up to the loss, so its
    normaliser must have been counted before, over everything that goes into one optimizer step. What is missing to
    `calls` is made up for by calls with one token and no weight."""
    own, calls = bool(stem and branches), calls or calls_of(stem, branches, max_tokens)
    stem_kv = _run_stem(model, stem if own else IDLE) if calls.stem else []
    edges = [get_gradient_edge(x) for pair in stem_kv for x in pair if x.requires_grad]
    leaves = [tuple(x.detach().requires_grad_(x.requires_grad) for x in pair) for pair in stem_kv]     # (P, K, D) each
    del stem_kv                                                                # only the edges into its graph are kept
    made = 0
    for made, rows in enumerate(microbatches(branches, max_tokens), start=1):
        values = _run_branches(model, leaves if own else (), [branches[row] for row in rows], temperature)
        loss(rows, *values).backward()
        del values
    for _ in range(calls.branches - made):
        (0 * _run_branches(model, (), [IDLE_BRANCH], temperature)[0].sum()).backward()
    grads = [torch.zeros_like(x) if x.grad is None else x.grad for pair in leaves for x in pair if x.requires_grad]
    del leaves
    if edges:
        torch.autograd.backward(edges, grads)


@torch.no_grad()
def logprobs(model, stem: Sequence[int], branches: Sequence[Branch], temperature: float = 1.0,
             max_tokens: int = 16384, calls: Calls | None = None) -> list[Tensor]:
    """For each branch the log-probs (num_targets,) of its weighted targets, without gradient. For `calls` see
    `backward`."""
    own, calls, found, made = bool(stem and branches), calls or calls_of(stem, branches, max_tokens), [], 0
    stem_kv = _run_stem(model, stem if own else IDLE) if calls.stem else []
    for made, rows in enumerate(microbatches(branches, max_tokens), start=1):
        values, _ = _run_branches(model, stem_kv if own else (), [branches[row] for row in rows], temperature)
        found += values.split([branches[row].num_targets for row in rows])
    for _ in range(calls.branches - made):
        _run_branches(model, (), [IDLE_BRANCH], temperature)
    return found


def backward_all(model, families: Mapping, loss_of: Callable, temperature: float = 1.0, max_tokens: int = 16384
                 ) -> None:
    """`backward` of many families (named; each with .stem and .branches), every rank its share: `loss_of(name)` gives
    the loss of one, and is asked for this rank's own. All ranks must pass the same families."""
    for name, calls in deal(model, families, max_tokens):
        family = families.get(name, NOBODY)
        backward(model, family.stem, family.branches, None if family is NOBODY else loss_of(name), temperature,
                 max_tokens, calls)


def logprobs_all(model, families: Mapping, temperature: float = 1.0, max_tokens: int = 16384) -> dict:
    """`logprobs` of this rank's share of them, by name: the share that backward_all gives it."""
    found = {}
    for name, calls in deal(model, families, max_tokens):
        family = families.get(name, NOBODY)
        found[name] = logprobs(model, family.stem, family.branches, temperature, max_tokens, calls)
    parallel.at_rest(model)
    return found


def deal(model, families: Mapping, max_tokens: int) -> list[tuple]:
    """The names of the families that this rank computes, balanced by cost, the dearest first, each with the calls of
    the model that the ranks need for their n-th one together. Every rank gets as many, None filling up."""
    names = list(families)
    parts = parallel.balance([cost(families[name], model.config.hidden_size) for name in names], parallel.size())
    dealt = []
    for places in zip_longest(*parts):
        slot = [None if place is None else names[place] for place in places]
        needed = [calls_of(family.stem, family.branches, max_tokens)
                  for family in (families[name] for name in slot if name is not None)]
        dealt.append((slot[parallel.rank()], Calls(any(n.stem for n in needed), max(n.branches for n in needed))))
    return dealt


def cost(family, hidden_size: int) -> int:
    """What a family costs, in pairs of tokens that attend to each other: a layer of a Qwen multiplies about 12 C^2
    numbers per token, and 2 C per pair (C the hidden size)."""
    P, lengths = len(family.stem), [len(branch.input_ids) for branch in family.branches]
    pairs = P * (P + 1) // 2 + sum(n * P + n * (n + 1) // 2 for n in lengths)
    return pairs + 6 * hidden_size * (P + sum(lengths))


def calls_of(stem: Sequence[int], branches: Sequence[Branch], max_tokens: int) -> Calls:
    return Calls(bool(stem and branches), sum(1 for _ in microbatches(branches, max_tokens)))


def repeat_stem(stem: Sequence[int], branches: Sequence[Branch]) -> list[Branch]:
    """The same family without a stem: every branch begins with a copy of it, as context."""
    return [Branch((*stem, *b.input_ids), (*stem, *b.target_ids), (*[0.0] * len(stem), *b.weights)) for b in branches]


def split_stem(branches: Sequence[Branch]) -> Family:
    """The reverse: the longest context that all branches begin with becomes their stem. A branch keeps its first
    weighted target and one input at least.

    >>> split_stem([Branch((5, 6, 7), (6, 7, 8), (0, 0, 1)), Branch((5, 6, 9), (6, 9, 8), (0, 1, 1))])
    Family(stem=(5,), branches=(Branch(input_ids=(6, 7), target_ids=(7, 8), weights=(0, 1)), \
Branch(input_ids=(6, 9), target_ids=(9, 8), weights=(1, 1))))
    """
    length = 0
    for tokens, weights in zip(zip(*(b.input_ids[:-1] for b in branches)), zip(*(b.weights for b in branches))):
        if len(set(tokens)) > 1 or any(weights):
            break
        length += 1
    return Family(branches[0].input_ids[:length], tuple(Branch(*(part[length:] for part in b)) for b in branches))


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
