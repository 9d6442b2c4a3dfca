"""The clipped objective of GRPO and its relatives, token by token: QwenLong-L1 (arXiv 2505.17667), Eq. 4-8.

    ratio_t  = exp(logprob_t - old_logprob_t)
    policy_t = -min(ratio_t A_t, clip(ratio_t, 1 - clip_low, 1 + clip_high) A_t),   but at most dual_clip |A_t|
    kl_t     = exp(d_t) - d_t - 1,   d_t = ref_logprob_t - logprob_t                (k3: unbiased, never negative)
    loss     = sum_t weight_t (policy_t + kl_coef kl_t)

dual_clip (Ye et al., arXiv 1912.09729) binds only where A_t < 0. The papers' objectives differ only in the weights,
counted over the whole batch: GRPO 1 / (S |y_i|), DAPO 1 / (sum_i |y_i|), Dr. GRPO 1 / (S L_max).

The kernel also computes the gradient, weight_t (-ratio_t A_t [not clipped] + kl_coef (1 - exp(d_t))), which the
backward pass only scales. All sums have a fixed order. Log-ratios and d_t are clamped to +-20.
"""

import torch
from torch.autograd.function import once_differentiable

from .backend import tl, triton

SUMS = ("num_tokens", "clipped_low", "clipped_high", "clipped_dual", "kl", "entropy")
BLOCK = 1024                            # tokens of a program


def grpo_loss_plain(logprobs, old_logprobs, advantages, weights, ref_logprobs, entropy,
                    clip_low, clip_high, dual_clip, kl_coef) -> tuple[torch.Tensor, torch.Tensor]:
    """All tensors (N,) or None -> loss (), and the sums over tokens in the order of SUMS (6,). The reference."""
    used = weights != 0
    log_ratio = torch.where(used, logprobs - old_logprobs, 0.0)
    ratio = log_ratio.clamp(-20, 20).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    policy = -torch.minimum(ratio * advantages, clipped * advantages)
    low = used & (ratio < 1 - clip_low) & (advantages < 0)
    high = used & (ratio > 1 + clip_high) & (advantages > 0)
    dual = used & (ratio > dual_clip) & (advantages < 0)
    policy = torch.where(dual, -dual_clip * advantages, policy)
    kl = torch.zeros_like(ratio)
    if ref_logprobs is not None:
        d = torch.where(used, ref_logprobs - logprobs, 0.0)
        d = d.clamp(-20, 20)
        kl = d.expm1() - d                                     # exp(d) - d - 1 could round to below 0
    per_token = torch.where(used, policy + kl_coef * kl, 0.0)
    loss = (weights * per_token).sum()
    entropy = torch.zeros_like(ratio) if entropy is None else torch.where(used, entropy, 0.0)
    counted = (used, low, high, dual, kl, entropy)
    sums = [x.detach().sum(dtype=logprobs.dtype) for x in counted]
    return loss, torch.stack(sums)


@triton.jit
def _clamp(x):
    return tl.where(x > 20, 20.0, tl.where(x < -20, -20.0, x))                 # a NaN stays one


@triton.jit
def _read(x, token, mask):
    return tl.load(x + token, mask=mask, other=0.0)


@triton.jit
def _total(place, x):
    tl.store(place, tl.sum(x.to(place.dtype.element_ty), 0))


@triton.jit
def _loss(logprobs, old_logprobs, advantages, weights, ref_logprobs, entropy, gradient, partial, N,
          clip_low: tl.constexpr, clip_high: tl.constexpr, dual_clip: tl.constexpr, kl_coef: tl.constexpr,
          BLOCK: tl.constexpr):
    """One program per BLOCK tokens."""
    program = tl.program_id(0).to(tl.int64)
    token = program * BLOCK + tl.arange(0, BLOCK)
    weight = _read(weights, token, token < N)
    used = weight != 0                                                         # all else is read as 0
    advantage = _read(advantages, token, used)
    logprob = _read(logprobs, token, used)
    log_ratio = logprob - _read(old_logprobs, token, used)
    clamped = _clamp(log_ratio)
    ratio = tl.exp(clamped)
    low = (ratio < 1 - clip_low) & (advantage < 0)
    high = (ratio > 1 + clip_high) & (advantage > 0)
    dual = (ratio > dual_clip) & (advantage < 0)
    bound = tl.where(dual, dual_clip, ratio)
    bound = tl.where(high, 1 + clip_high, bound)
    bound = tl.where(low, 1 - clip_low, bound)
    policy = -advantage * bound
    is_flat = low | high | dual | (clamped != log_ratio)
    slope = tl.where(is_flat, 0.0, -advantage * ratio)
    kl = tl.zeros_like(ratio)
    if ref_logprobs is not None:
        d = _read(ref_logprobs, token, used) - logprob
        d_clamped = _clamp(d)
        kl = tl.exp(d_clamped) - d_clamped - 1
        kl_slope = kl_coef * (1 - tl.exp(d_clamped))
        slope += tl.where(d_clamped == d, kl_slope, 0.0)
    tl.store(gradient + token, tl.where(used, weight * slope, 0.0), mask=token < N)
    partial += program * 7                                                     # the loss and SUMS
    _total(partial, tl.where(used, weight * (policy + kl_coef * kl), 0.0))
    _total(partial + 1, used)
    _total(partial + 2, low)
    _total(partial + 3, high)
    _total(partial + 4, dual)
    _total(partial + 5, kl)
    if entropy is not None:
        _total(partial + 6, _read(entropy, token, used))


class GRPOLoss(torch.autograd.Function):
    """grpo_loss_plain in one launch, and one more to add up what the programs have summed."""
    @staticmethod
    def forward(ctx, *arguments):
        tensors = [x if x is None else x.contiguous() for x in arguments[:6]]
        N = len(tensors[0])
        programs = triton.cdiv(N, BLOCK)
        gradient = torch.empty_like(tensors[0])
        partial = gradient.new_zeros(programs, 1 + len(SUMS))
        _loss[(programs,)](*tensors, gradient, partial, N, *arguments[6:], BLOCK)
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


grpo_loss_triton = GRPOLoss.apply
