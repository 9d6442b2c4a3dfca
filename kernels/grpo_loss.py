"""The clipped objective of GRPO and its relatives, token by token.

    ratio_t  = exp(logprob_t - old_logprob_t)
    policy_t = -min(ratio_t A_t, clip(ratio_t, 1 - clip_low, 1 + clip_high) A_t),   but at most dual_clip |A_t|
    kl_t     = exp(d_t) - d_t - 1,   d_t = ref_logprob_t - logprob_t                (k3: unbiased, never negative)
    loss     = sum_t weight_t (policy_t + kl_coef kl_t)

QwenLong-L1 (arXiv 2505.17667) Eq. 4-8. The bound is the dual clip of Ye et al. (arXiv 1912.09729), 3 in GoLongRL. It
binds only where A_t < 0, on tokens that have become far more likely. The papers' objectives differ only in the weights:
GRPO 1 / (S |y_i|), DAPO 1 / (sum_i |y_i|), Dr. GRPO 1 / (S L_max), counted over the whole batch beforehand.

The gradient of a token's loss is weight_t (-ratio_t A_t [not clipped] + kl_coef (1 - exp(d_t))). The kernel computes it
in the same pass, so the backward pass only scales it. All sums have a fixed order, so the bits are always the same.
"""

import torch
from torch.autograd.function import once_differentiable

from .backend import tl, triton

Tensor = torch.Tensor
SUMS = ("num_tokens", "clipped_low", "clipped_high", "clipped_dual", "kl", "entropy")
BLOCK = 1024                            # tokens of a program


# The reference: the one place where the formula stands. Autograd derives its gradient.

def grpo_loss_plain(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, weights: Tensor,
                    ref_logprobs: Tensor | None, entropy: Tensor | None, clip_low: float, clip_high: float,
                    dual_clip: float, kl_coef: float) -> tuple[Tensor, Tensor]:
    """All tensors (N,), N tokens -> loss (), and the sums over tokens in the order of SUMS (6,)."""
    used = weights != 0
    ratio = torch.where(used, logprobs - old_logprobs, 0.0).clamp(-20, 20).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    policy = -torch.minimum(ratio * advantages, clipped * advantages)
    low = used & (ratio < 1 - clip_low) & (advantages < 0)
    high = used & (ratio > 1 + clip_high) & (advantages > 0)
    dual = (ratio > dual_clip) & (advantages < 0)
    policy = torch.where(dual, -dual_clip * advantages, policy)
    kl = torch.zeros_like(ratio)
    if ref_logprobs is not None:
        d = torch.where(used, ref_logprobs - logprobs, 0.0).clamp(-20, 20)
        kl = d.exp() - d - 1
    per_token = torch.where(used, policy + kl_coef * kl, 0.0)
    loss = (weights * per_token).sum()
    entropy = torch.zeros_like(ratio) if entropy is None else torch.where(used, entropy, 0.0)
    counted = (used, low, high, used & dual, kl.detach(), entropy.detach())
    return loss, torch.stack([x.sum(dtype=logprobs.dtype) for x in counted])


# The Triton kernel: one program per BLOCK tokens

@triton.jit
def _read(x, token, N):
    return tl.load(x + token, mask=token < N, other=0.0)


@triton.jit
def _clamp(x):
    return tl.where(x > 20, 20.0, tl.where(x < -20, -20.0, x))


@triton.jit
def _total(place, x):
    tl.store(place, tl.sum(x.to(place.dtype.element_ty), 0))


@triton.jit
def _loss(logprobs, old_logprobs, advantages, weights, ref_logprobs, entropy, gradient, partial, N,
          clip_low: tl.constexpr, clip_high: tl.constexpr, dual_clip: tl.constexpr, kl_coef: tl.constexpr,
          HAS_REF: tl.constexpr, HAS_ENTROPY: tl.constexpr, NUM_SUMS: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    token = program * BLOCK + tl.arange(0, BLOCK)
    weight = _read(weights, token, N)
    used = weight != 0
    advantage = tl.where(used, _read(advantages, token, N), 0.0)
    logprob = _read(logprobs, token, N)
    log_ratio = tl.where(used, logprob - _read(old_logprobs, token, N), 0.0)
    clamped = _clamp(log_ratio)
    ratio = tl.exp(clamped)
    low = (ratio < 1 - clip_low) & (advantage < 0)
    high = (ratio > 1 + clip_high) & (advantage > 0)
    dual = (ratio > dual_clip) & (advantage < 0)
    bound = tl.where(low, 1 - clip_low, tl.where(high, 1 + clip_high, tl.where(dual, dual_clip, ratio)))
    policy = -advantage * bound
    slope = tl.where(low | high | dual | (clamped != log_ratio), 0.0, -advantage * ratio)
    kl = tl.zeros_like(ratio)
    if HAS_REF:
        d = tl.where(used, _read(ref_logprobs, token, N) - logprob, 0.0)
        d_clamped = _clamp(d)
        kl = tl.exp(d_clamped) - d_clamped - 1
        slope += tl.where(d_clamped == d, kl_coef * (1 - tl.exp(d_clamped)), 0.0)
    tl.store(gradient + token, tl.where(used, weight * slope, 0.0), mask=token < N)
    partial += program * NUM_SUMS
    _total(partial, tl.where(used, weight * (policy + kl_coef * kl), 0.0))
    _total(partial + 1, used)
    _total(partial + 2, low)
    _total(partial + 3, high)
    _total(partial + 4, dual)
    _total(partial + 5, kl)
    if HAS_ENTROPY:
        _total(partial + 6, tl.where(used, _read(entropy, token, N), 0.0))


# The autograd wrapper

class GRPOLoss(torch.autograd.Function):
    """grpo_loss_plain in one launch, and one more to add up what the programs have summed."""

    @staticmethod
    def forward(ctx, logprobs, old_logprobs, advantages, weights, ref_logprobs, entropy, *objective):
        N = len(logprobs)
        programs = triton.cdiv(N, BLOCK)
        gradient = torch.empty_like(logprobs)
        partial = logprobs.new_zeros(programs, 1 + len(SUMS))
        ref = weights if ref_logprobs is None else ref_logprobs                # any tensor will do, it is not read
        entropies = weights if entropy is None else entropy
        _loss[(programs,)](
            logprobs, old_logprobs, advantages, weights, ref, entropies, gradient, partial, N, *objective,
            HAS_REF=ref_logprobs is not None, HAS_ENTROPY=entropy is not None, NUM_SUMS=partial.shape[1], BLOCK=BLOCK)
        ctx.save_for_backward(gradient)
        loss, *sums = partial.sum(0)
        sums = torch.stack(sums)
        ctx.mark_non_differentiable(sums)                                      # must be the tensor that is returned
        return loss.clone(), sums

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loss, _):
        (gradient,) = ctx.saved_tensors
        return d_loss * gradient, *[None] * 9


def grpo_loss_triton(logprobs: Tensor, *others) -> tuple[Tensor, Tensor]:
    return GRPOLoss.apply(*(x.contiguous() if isinstance(x, Tensor) else x for x in (logprobs, *others)))
