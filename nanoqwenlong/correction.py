"""Answers were sampled by another policy than the one that is trained. Here is what the loss of their tokens is
multiplied by, so that the gradient is right, or at least bounded."""

from collections.abc import Callable, Sequence
from math import inf

import torch

Tensor = torch.Tensor

# What --correction takes. Sampler and trainer round differently, so they give a token different probabilities. A row
# gives the factor of a token's loss from x, the trainer's probability over the sampler's, from the advantage, and from
# the change, the probability now minus the sampler's.
CORRECTIONS: dict[str, Callable] = {
    "none": lambda x, advantages, change: torch.ones_like(x),
    "tis": lambda x, advantages, change: x.clamp(max=2.0),
    "mis": lambda x, advantages, change: x * (x >= 0.5) * (x <= 5.0),
    "dppo": lambda x, advantages, change: x * (change * advantages.sign() <= 0.2),
}


def off_policy_factors(sampled: Tensor, old: Tensor, new: Tensor, advantages: Tensor, lengths: Sequence[int],
                       correction: str = "none", max_drift: float = inf) -> Tensor:
    """What each token's loss is multiplied by, because another policy sampled it: (N,), without a gradient.

    Args:
        sampled, old, new: (N,) the log-probs of the sampler, of the trainer before any update, and of the policy now.
        lengths: tokens of each answer. They add up to N.
        correction: a name in CORRECTIONS. tis: truncated importance sampling. mis: masked (IcePop, arXiv 2510.18855).
            dppo: arXiv 2602.04879, the total variation of a binary choice.
        max_drift: an answer with A < 0 gets 0 if the mean of old - new over its tokens is above this (DeepSeek-V3.2,
            arXiv 2512.02556).
    """
    x = (old - sampled).clamp(-20, 20).exp()
    factors = CORRECTIONS[correction](x, advantages, new.exp() - sampled.exp())
    drifts = [answer.mean().expand_as(answer) for answer in (old - new).split(list(lengths))]
    return factors.masked_fill((advantages < 0) & (torch.cat(drifts) > max_drift), 0.0)
