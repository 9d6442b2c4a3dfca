"""The clipped objective of GRPO and its relatives, token by token.

    ratio_t  = exp(logprob_t - old_logprob_t)
    policy_t = -min(ratio_t A_t, clip(ratio_t, 1 - clip_low, 1 + clip_high) A_t)
    kl_t     = exp(d_t) - d_t - 1,   d_t = ref_logprob_t - logprob_t                (k3: unbiased, never negative)
    loss     = sum_t weight_t (policy_t + kl_coef kl_t)

QwenLong-L1 (arXiv 2505.17667) Eq. 4-8. The objectives of the papers differ only in the weights: GRPO 1 / (S |y_i|),
DAPO 1 / (sum_i |y_i|), Dr. GRPO 1 / (S L_max), each counted over the whole batch before the first backward pass.
"""

import torch

Tensor = torch.Tensor


def grpo_loss(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, weights: Tensor, clip_low: float = 0.2,
              clip_high: float = 0.28, ref_logprobs: Tensor | None = None, kl_coef: float = 0.0
              ) -> tuple[Tensor, dict[str, Tensor]]:
    """All tensors (N,), one entry per completion token -> (loss (), sums over tokens of positive weight).

    Differentiable in logprobs. A token of weight 0 takes no part whatever it holds, NaN included. The log-ratio is
    clamped to +-20. With one update per rollout pass `logprobs.detach()` as old: the ratio is 1, its gradient is not 0.
    The sums: num_tokens, clipped_low, clipped_high (tokens whose gradient the clip cut off), kl."""
    used = weights != 0
    log_ratio = torch.where(used, logprobs - old_logprobs, 0.0).clamp(-20, 20)
    ratio = log_ratio.exp()
    policy = -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
    kl = torch.zeros_like(ratio)
    if ref_logprobs is not None:
        d = torch.where(used, ref_logprobs - logprobs, 0.0).clamp(-20, 20)
        kl = d.exp() - d - 1
    per_token = torch.where(used, policy + kl_coef * kl, 0.0)
    sums = {"num_tokens": used.sum(),
            "clipped_low": (used & (ratio < 1 - clip_low) & (advantages < 0)).sum(),
            "clipped_high": (used & (ratio > 1 + clip_high) & (advantages > 0)).sum(),
            "kl": kl.detach().sum()}
    return (weights * per_token).sum(), sums
