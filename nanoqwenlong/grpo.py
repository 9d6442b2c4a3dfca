"""Group-relative advantages, and the loss of a group's answers as group_pass wants it."""

from collections.abc import Callable, Sequence
from collections import Counter

import torch
from kernels import grpo_loss

Tensor = torch.Tensor


def group_advantages(rewards: Sequence[float] | Tensor, scale: bool = True, eps: float = 1e-6) -> Tensor:
    """rewards (..., G) of the answers to one prompt -> advantages (..., G), float64: A_i = (r_i - mean) / (std + eps).

    QwenLong-L1 Eq. 5, std with G - 1 as in the release; `scale=False` leaves the division out (Dr. GRPO). Rewards all
    equal, or only one scored, give exact zeros. NaN is unscorable: it gets 0 and takes no part in mean or std.

    >>> group_advantages([1, 0, 0, float("nan")], scale=False)
    tensor([ 0.6667, -0.3333, -0.3333,  0.0000], dtype=torch.float64)
    """
    rewards = torch.as_tensor(rewards, dtype=torch.float64)
    scored = ~rewards.isnan()
    count = scored.sum(-1, keepdim=True)
    known = rewards.nan_to_num(0.0)
    centred = torch.where(scored, known - known.sum(-1, keepdim=True) / count.clamp_min(1), 0.0)
    std = (centred.square().sum(-1, keepdim=True) / (count - 1).clamp_min(1)).sqrt()
    lowest = torch.where(scored, known, torch.inf).amin(-1, keepdim=True)
    highest = torch.where(scored, known, -torch.inf).amax(-1, keepdim=True)
    alike = highest <= lowest                      # tested exactly: (r - mean) / (std + eps) need not be 0 in floats
    return torch.where(alike, 0.0, centred / (std + eps) if scale else centred)


def group_loss(group, advantages: Tensor, num_tokens: int, on_policy: bool, sums: Counter,
               ref_logprobs: Sequence[Tensor] | None = None, **objective) -> Callable:
    """The `loss(rows, logprobs, entropy)` of one group's answers, for group_pass.backward.

    advantages (G,), one per answer. Every token weighs 1 / num_tokens, the completion tokens of the whole optimizer
    step (DAPO's normaliser). on_policy: this is the first update on these answers, so the ratio is 1 (and its gradient
    is not); otherwise the old log-probs are the sampler's. `objective` goes to kernels.grpo_loss. `sums` collects
    sums over tokens: loss, entropy, kl, num_tokens, clipped_low, clipped_high; and `gap`, the largest difference
    between the sampler's log-probs and these while on_policy (rounding, not learning)."""
    def loss(rows, logprobs, entropy):
        answers = [group.completions[row] for row in rows]
        lengths = torch.tensor([len(answer.ids) for answer in answers], device=logprobs.device)
        sampled = logprobs.new_tensor([value for answer in answers for value in answer.logprobs])
        value, counts = grpo_loss(
            logprobs, logprobs.detach() if on_policy else sampled,
            advantages[list(rows)].to(logprobs).repeat_interleave(lengths),
            torch.full_like(logprobs, 1 / num_tokens),
            ref_logprobs=None if ref_logprobs is None else torch.cat([ref_logprobs[row] for row in rows]), **objective)
        sums.update({name: float(count) for name, count in counts.items()})
        sums.update(loss=float(value.detach()), entropy=float(entropy.detach().sum()))
        if on_policy:
            sums["gap"] = max(sums["gap"], float((logprobs.detach() - sampled).abs().max()))
        return value
    return loss
