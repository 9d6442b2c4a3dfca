"""Log-probs, losses and attention over long sequences (docs/kernels.md).

    linear_logprob    log-prob and entropy of target tokens from hidden states, without a whole tensor of logits
    linear_logits     the logits themselves, for the sampler
    grpo_loss         the clipped policy-gradient objective
    grouped_linear    a linear map per group of rows: the experts of a mixture
    paged_attention   one decoding step over a cache in blocks, a group's stem read once
    flash             attention over dense sequences, whole or in parts that are merged (kernels/flash.py)

Each has a reference in plain torch beside its kernel. The kernels run on a GPU, the references elsewhere.
"""

import math

import torch

PLAIN = False       # set it to True to try a change of a formula: all functions run their references, on a GPU too
from . import grpo_loss as _grpo_loss, logprob as _logprob, paged_attention as _paged_attention
from .backend import use_triton, wide
from .grouped_linear import grouped_linear, is_one_call
from .logprob import linear_logits
from .paged_attention import Segments

Tensor = torch.Tensor
__all__ = ["Segments", "grouped_linear", "grpo_loss", "is_one_call", "linear_logits", "linear_logprob",
           "paged_attention", "use_triton"]


def linear_logprob(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0,
                   chunk: int | None = None) -> tuple[Tensor, Tensor]:
    """hidden (N, C), weight (V, C), targets (N,) -> logprobs (N,), entropy (N,) in nats.

    Differentiable in hidden and weight, in float32 at least. `temperature` divides the logits, as in the sampler.
    Memory holds one block of logits: on a GPU `chunk` positions, on a CPU about 160 MB (kernels/logprob.py). Raises
    IndexError for a target outside the vocabulary."""
    N, V = len(hidden), len(weight)
    if targets.numel() and not 0 <= int(targets.min()) <= int(targets.max()) < V:
        row = int(((targets < 0) | (targets >= V)).nonzero()[0])
        raise IndexError(f"target {row} is token {int(targets[row])}, outside the vocabulary of {V} (0 to {V - 1})")
    has_kernels = use_triton(hidden.device)
    n, v = _logprob.block_sizes(N, V, has_kernels, chunk)
    if has_kernels:
        kernels = _logprob.statistics_triton, _logprob.gradient_triton
    else:
        kernels = _logprob.statistics_plain, _logprob.gradient_plain
    return _logprob.LinearLogprob.apply(hidden, weight, targets, temperature, n, v, *kernels)


def grpo_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, weights: Tensor, clip_low: float = 0.2,
              clip_high: float = 0.28, ref_logprobs: Tensor | None = None, kl_coef: float = 0.0,
              dual_clip: float = math.inf, entropy: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """All tensors (N,), one entry per completion token -> loss (), and sums over tokens of nonzero weight: num_tokens,
    clipped_low, clipped_high, clipped_dual (tokens whose gradient a clip cut off), kl, entropy.

    Differentiable in logprobs, in float32 at least. A token of weight 0 is ignored, even if it holds NaN. With one
    update per rollout, pass `logprobs.detach()` as old: the ratio is 1 and its gradient is not 0."""
    if not dual_clip > 1:
        raise ValueError(f"dual_clip bounds a bad token's ratio: it must be above 1 (inf: no bound), not {dual_clip}")
    dtype = wide(logprobs.dtype)
    constants = (None if x is None else x.detach().to(dtype)
                 for x in (old_logprobs, advantages, weights, ref_logprobs, entropy))
    run = _grpo_loss.grpo_loss_triton if use_triton(logprobs.device) else _grpo_loss.grpo_loss_plain
    loss, sums = run(logprobs.to(dtype), *constants, clip_low, clip_high, dual_clip, kl_coef)
    return loss, dict(zip(_grpo_loss.SUMS, sums))


def paged_attention(q: Tensor, keys: Tensor, values: Tensor, block_size: int, stems: Segments, tails: Segments
                    ) -> Tensor:
    """q (S, H, D), one query per answer and head, over keys and values (K, slots, D) in blocks of `block_size` slots ->
    (S, H, D), like q. An answer that is not in one stem segment and one tail segment gets an undefined result."""
    run = _paged_attention.paged_attention_triton if use_triton(q.device) else _paged_attention.paged_attention_plain
    return run(q, keys, values, block_size, stems, tails)
