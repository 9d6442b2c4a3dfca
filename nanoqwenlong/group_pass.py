"""One prompt, one pass: log-probs and gradients of a stem and its branches, where the stem runs only once.

A stem is what all sequences of a family begin with, a branch is what one of them adds (records.Branch). Branches depend
on the stem only through its keys and values. So the chain rule splits the gradient into phases, exactly:

    1. The stem runs forward. Its keys and values, detached from its graph, become leaves.
    2. The branches run against the leaves, one micro-batch at a time. The leaves collect gradient.
    3. The stem runs backward, from its keys and values with the leaves' gradients.

Memory holds one stem and one micro-batch. See docs/one_prompt_one_pass.md.

FSDP needs equally many forward calls on every rank (engine/deal.py). Missing ones are dummy calls: one token, weight
zero.

Legend: N weighted targets of a micro-batch, P tokens of the stem, K key-value heads, D head width.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import compress, count
from os.path import commonprefix

import torch
from kernels import linear_logprob
from kernels.flash import KeysValues
from torch.autograd.graph import get_gradient_edge

from . import parallel
from .attention import pack
from .engine.deal import Calls, deal, microbatches
from .records import Branch, Family

Tensor = torch.Tensor
DUMMY_STEM = (0,)
DUMMY_BRANCH = Branch((0,), (0,), (1.0,))


def backward(model, stem, branches: Sequence[Branch], loss: Callable, temperature=1.0, max_tokens=16384,
             calls: Calls | None = None) -> None:
    """Adds the gradient of the loss to the parameters, in micro-batches of at most `max_tokens` branch tokens.

    loss(rows, logprobs (N,), entropy (N,)) returns a scalar for one micro-batch. `rows` are the indices of its
    branches. The values belong to their weighted targets, one branch after the other. The scalars are added up, so
    their normaliser must be counted before, over all of an optimizer step. `calls`: how many to fill up to."""
    # 1. The stem runs forward.
    edges, leaves, stem_kv = [], [], []
    for pair in _run_stem(model, stem, branches, calls):
        stem_kv.append([x.detach() for x in pair])                             # (P, K, D) each
        for x, leaf in zip(pair, stem_kv[-1]):
            if x.requires_grad:
                edges.append(get_gradient_edge(x))
                leaves.append(leaf.requires_grad_())
        del pair, x, leaf                                                      # only edges keep the stem's graph

    # 2. The branches run, forward and backward.
    passes = _run_branches(model, stem_kv, stem, branches, temperature, max_tokens, calls)
    for rows, logprobs, entropy in passes:
        if rows:
            scalar = loss(rows, logprobs, entropy)
        else:
            scalar = 0 * logprobs.sum()                                        # a dummy call
        scalar.backward()
        del logprobs, entropy, scalar                                          # before the next take memory

    # 3. The stem runs backward.
    gradients = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
    leaves.clear()
    stem_kv.clear()
    if edges:
        torch.autograd.backward(edges, gradients)


@torch.no_grad()
def logprobs(model, stem, branches: Sequence[Branch], temperature=1.0, max_tokens=16384,
             calls: Calls | None = None) -> list[Tensor]:
    """For each branch the log-probs (num_targets,) of its weighted targets, without gradient. See `backward`."""
    result = []
    stem_kv = _run_stem(model, stem, branches, calls)
    passes = _run_branches(model, stem_kv, stem, branches, temperature, max_tokens, calls)
    for rows, values, _ in passes:
        lengths = [branches[row].num_targets for row in rows]
        if rows:
            result += values.split(lengths)
    return result


def backward_all(model, families: Mapping, loss_of: Callable, temperature=1.0, max_tokens=16384) -> None:
    """`backward` for many families, {name: object with .stem and .branches}, each rank its share. All ranks must pass
    the same families. loss_of(name) gives the loss of one, and is only called for this rank's."""
    for name, family, calls in deal(model, families, max_tokens):
        loss = loss_of(name) if name in families else None
        backward(model, family.stem, family.branches, loss, temperature, max_tokens, calls)


def logprobs_all(model, families: Mapping, temperature=1.0, max_tokens=16384) -> dict:
    """{name: logprobs} of this rank's share of the families, which is the share that backward_all gives it."""
    result = {}
    for name, family, calls in deal(model, families, max_tokens):
        result[name] = logprobs(model, family.stem, family.branches, temperature, max_tokens, calls)
    parallel.at_rest(model)
    return result


def split_stem(branches: Sequence[Branch]) -> Family:
    """The longest context that all branches begin with becomes their stem. Each branch keeps its first weighted target
    and at least one input.

    >>> split_stem([Branch((5, 6, 7), (6, 7, 8), (0, 0, 1)), Branch((5, 6, 9), (6, 9, 8), (0, 1, 1))])
    Family(stem=(5,), branches=(Branch(input_ids=(6, 7), target_ids=(7, 8), weights=(0, 1)), \
Branch(input_ids=(6, 9), target_ids=(9, 8), weights=(1, 1))))
    """
    stem = commonprefix([branch.input_ids[:-1] for branch in branches])
    for branch in branches:
        context = next(compress(count(), branch.weights), len(stem))           # inputs before the first weighted target
        stem = stem[:context]
    P = len(stem)
    rest = []
    for branch in branches:
        rest.append(Branch(*(field[P:] for field in branch)))
    return Family(stem, tuple(rest))


def _run_stem(model, stem, branches, calls) -> KeysValues:
    """Keys and values of each layer, (P, K, D). If there is nothing to run: a dummy call if `calls` needs one."""
    if not (stem and branches):
        if calls is None or not calls.stem:
            return []
        stem = DUMMY_STEM
    _, keys_values = model(*pack([stem], model.device))
    return keys_values


def _run_branches(model, stem_kv, stem, branches, temperature, max_tokens, calls):
    """Yields (rows, logprobs (N,), entropy (N,)) for each micro-batch, then for dummy calls, whose rows are empty."""
    past = stem_kv if stem else None
    batches = list(microbatches(branches, max_tokens))
    for rows in batches:
        batch = branches[rows.start:rows.stop]
        yield rows, *_score(model, past, batch, temperature)
    missing = calls.branches - len(batches) if calls else 0
    for _ in range(missing):
        yield range(0), *_score(model, None, [DUMMY_BRANCH], temperature)


def _score(model, stem_kv, branches, temperature) -> tuple[Tensor, Tensor]:
    """logprobs (N,) and entropy (N,) of all weighted targets."""
    rows, targets, sequences, start = [], [], [], 0
    for branch in branches:
        rows += compress(count(start), branch.weights)
        targets += compress(branch.target_ids, branch.weights)
        sequences.append(branch.input_ids)
        start += len(branch.input_ids)
    scored = torch.tensor([rows, targets], dtype=torch.long, device=model.device)
    rows, targets = scored                                                     # (N,) each

    def head(hidden, weight):
        return linear_logprob(hidden[rows], weight, targets, temperature)

    scores, _ = model(*pack(sequences, model.device, stem_kv), head)
    return scores
