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


def group_loss(group, advantages: Tensor, num_tokens: int, sums: Counter, old_logprobs: Sequence | None = None,
               ref_logprobs: Sequence | None = None, **objective) -> Callable:
    """The `loss(rows, logprobs, entropy)` of one group's answers, for group_pass.backward.

    advantages (G,), one per answer; old_logprobs and ref_logprobs, for each answer its tokens' log-probs. Every token
    weighs 1 / num_tokens, the completion tokens of the whole optimizer step (DAPO's normaliser). Without old_logprobs
    this is the first update on these answers: the ratio is 1 (and its gradient is not), nothing need be computed.
    `objective` goes to kernels.grpo_loss. `sums` collects the loss and the sums over tokens that it returns; and `gap`,
    the largest difference between the sampler's log-probs and the old ones."""
    def loss(rows, logprobs, entropy):
        def of_rows(values):
            return torch.cat([torch.as_tensor(values[row], dtype=logprobs.dtype, device=logprobs.device)
                              for row in rows])

        sampled = of_rows([answer.logprobs for answer in group.completions])
        old = of_rows(old_logprobs) if old_logprobs else logprobs.detach()
        lengths = torch.tensor([len(group.completions[row].ids) for row in rows], device=logprobs.device)
        value, counts = grpo_loss(
            logprobs, old, advantages[list(rows)].to(logprobs).repeat_interleave(lengths),
            torch.full_like(logprobs, 1 / num_tokens), ref_logprobs=of_rows(ref_logprobs) if ref_logprobs else None,
            entropy=entropy, **objective)
        gap, *counted = torch.stack([(old - sampled).abs().max(), value.detach(), *counts.values()]).tolist()
        sums.update(dict(zip(("loss", *counts), counted)))                     # one transfer from the device for all
        sums["gap"] = max(sums["gap"], gap)
        return value
    return loss
