"""The clipped objective of GRPO and its relatives, token by token.

    ratio_t  = exp(logprob_t - old_logprob_t)
    policy_t = -min(ratio_t A_t, clip(ratio_t, 1 - clip_low, 1 + clip_high) A_t),   but at most dual_clip |A_t|
    kl_t     = exp(d_t) - d_t - 1,   d_t = ref_logprob_t - logprob_t                (k3: unbiased, never negative)
    loss     = sum_t weight_t (policy_t + kl_coef kl_t)

QwenLong-L1 (arXiv 2505.17667) Eq. 4-8. The bound is the dual clip of Ye et al. (arXiv 1912.09729), which GoLongRL sets
to 3: it can only bind where A_t < 0, on tokens that have become far more likely. The objectives of the papers differ
only in the weights: GRPO 1 / (S |y_i|), DAPO 1 / (sum_i |y_i|), Dr. GRPO 1 / (S L_max), each counted over the whole
batch before the first backward pass.

The gradient of a token's loss is

    weight_t (-ratio_t A_t [not clipped] + kl_coef (1 - exp(d_t)))

known as soon as the token's terms are: the kernel computes it in the same pass, the backward pass only scales it.
Sums over tokens are added up per program, then over programs, in a fixed order: no atomics, the same bits every time.

Legend: N tokens.
"""

import torch
from torch.autograd.function import once_differentiable

from .backend import tl, triton

Tensor = torch.Tensor
SUMS = ("num_tokens", "clipped_low", "clipped_high", "clipped_dual", "kl", "entropy")
BLOCK = 1024                            # tokens of a program


# The torch twin: the one place where the formula stands, its gradient is autograd's

def grpo_loss_plain(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, weights: Tensor,
                    ref_logprobs: Tensor | None, entropy: Tensor | None, clip_low: float, clip_high: float,
                    dual_clip: float, kl_coef: float) -> tuple[Tensor, Tensor]:
    """All tensors (N,) -> loss (), and the sums over tokens in the order of SUMS (6,)."""
    used = weights != 0
    ratio = torch.where(used, logprobs - old_logprobs, 0.0).clamp(-20, 20).exp()
    policy = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    dual = (ratio > dual_clip) & (advantages < 0)
    policy = torch.where(dual, -dual_clip * advantages, policy)
    kl = torch.zeros_like(ratio)
    if ref_logprobs is not None:
        d = torch.where(used, ref_logprobs - logprobs, 0.0).clamp(-20, 20)
        kl = d.exp() - d - 1
    per_token = torch.where(used, policy + kl_coef * kl, 0.0)
    sums = (used, used & (ratio < 1 - clip_low) & (advantages < 0), used & (ratio > 1 + clip_high) & (advantages > 0),
            used & dual, kl.detach(), 0 * ratio.detach() if entropy is None else torch.where(used, entropy.detach(), 0))
    return (weights * per_token).sum(), torch.stack([x.sum(dtype=logprobs.dtype) for x in sums])


# The Triton kernel: one program per BLOCK tokens

@triton.jit
def _loss(logprobs, old_logprobs, advantages, weights, ref_logprobs, entropy, gradient, partial, N,
          clip_low: tl.constexpr, clip_high: tl.constexpr, dual_clip: tl.constexpr, kl_coef: tl.constexpr,
          HAS_REF: tl.constexpr, HAS_ENTROPY: tl.constexpr, NUM_SUMS: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    token = program * BLOCK + tl.arange(0, BLOCK)
    inside = token < N
    weight = tl.load(weights + token, mask=inside, other=0.0)
    used = weight != 0
    advantage = tl.where(used, tl.load(advantages + token, mask=inside, other=0.0), 0.0)
    logprob = tl.load(logprobs + token, mask=inside, other=0.0)
    log_ratio = tl.where(used, logprob - tl.load(old_logprobs + token, mask=inside, other=0.0), 0.0)
    held = tl.where(log_ratio > 20, 20.0, tl.where(log_ratio < -20, -20.0, log_ratio))
    ratio = tl.exp(held)
    low = (ratio < 1 - clip_low) & (advantage < 0)
    high = (ratio > 1 + clip_high) & (advantage > 0)
    dual = (ratio > dual_clip) & (advantage < 0)
    policy = -advantage * tl.where(low, 1 - clip_low, tl.where(high, 1 + clip_high, tl.where(dual, dual_clip, ratio)))
    slope = tl.where(low | high | dual | (held != log_ratio), 0.0, -advantage * ratio)
    kl = tl.zeros_like(ratio)
    if HAS_REF:
        d = tl.where(used, tl.load(ref_logprobs + token, mask=inside, other=0.0) - logprob, 0.0)
        d_held = tl.where(d > 20, 20.0, tl.where(d < -20, -20.0, d))
        kl = tl.exp(d_held) - d_held - 1
        slope += tl.where(d_held == d, kl_coef * (1 - tl.exp(d_held)), 0.0)
    tl.store(gradient + token, tl.where(used, weight * slope, 0.0), mask=inside)
    partial += program * NUM_SUMS
    tl.store(partial, tl.sum(tl.where(used, weight * (policy + kl_coef * kl), 0.0), 0))
    tl.store(partial + 1, tl.sum(used.to(ratio.dtype), 0))
    tl.store(partial + 2, tl.sum(low.to(ratio.dtype), 0))
    tl.store(partial + 3, tl.sum(high.to(ratio.dtype), 0))
    tl.store(partial + 4, tl.sum(dual.to(ratio.dtype), 0))
    tl.store(partial + 5, tl.sum(kl, 0))
    if HAS_ENTROPY:
        tl.store(partial + 6, tl.sum(tl.where(used, tl.load(entropy + token, mask=inside, other=0.0), 0.0), 0))


# The autograd wrapper

class GRPOLoss(torch.autograd.Function):
    """grpo_loss_plain in one launch, and one for the sums of the programs' sums."""

    @staticmethod
    def forward(ctx, logprobs, old_logprobs, advantages, weights, ref_logprobs, entropy, *objective):
        gradient = torch.empty_like(logprobs)
        N, programs = len(logprobs), triton.cdiv(len(logprobs), BLOCK)
        partial = logprobs.new_zeros(programs, 1 + len(SUMS))
        ref, has_ref = (weights, False) if ref_logprobs is None else (ref_logprobs, True)      # any tensor will do
        entropy, has_entropy = (weights, False) if entropy is None else (entropy, True)
        _loss[(programs,)](logprobs, old_logprobs, advantages, weights, ref, entropy, gradient, partial, N, *objective,
                           HAS_REF=has_ref, HAS_ENTROPY=has_entropy, NUM_SUMS=partial.shape[1], BLOCK=BLOCK)
        ctx.save_for_backward(gradient)
        loss, *sums = partial.sum(0)
        sums = torch.stack(sums)
        ctx.mark_non_differentiable(sums)                                      # the very tensor that is returned
        return loss.clone(), sums

    @staticmethod
    @once_differentiable
    def backward(ctx, d_loss, _):
        (gradient,) = ctx.saved_tensors
        return d_loss * gradient, *[None] * 9


def grpo_loss_triton(logprobs: Tensor, *others) -> tuple[Tensor, Tensor]:
    return GRPOLoss.apply(*(x.contiguous() if isinstance(x, Tensor) else x for x in (logprobs, *others)))
