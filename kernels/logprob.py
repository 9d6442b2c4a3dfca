"""Log-prob and entropy of target tokens, straight from hidden states.

For each of N positions with hidden state h (C,), head W (V, C) and temperature t:

    logits  z = W h / t            logprob  z[target] - logsumexp(z)            entropy  logsumexp(z) - sum softmax(z) z

All N rows of logits at once would be N x V numbers (20 GB for 32,768 positions of Qwen2.5 in fp32), so the positions go
through in chunks, and the backward pass computes each chunk's logits again.
"""

import torch
from torch.utils.checkpoint import checkpoint

Tensor = torch.Tensor


def linear_logprob(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0,
                   chunk: int = 2048) -> tuple[Tensor, Tensor]:
    """hidden (N, C), weight (V, C), targets (N,) -> logprobs (N,), entropy (N,) in nats.

    float32 results, or float64 for float64 inputs; differentiable in hidden and weight. `temperature` divides the
    logits, as in the sampler. Holds one (chunk, V) block of logits at a time."""
    pieces = [checkpoint(_logprob, h, weight, t, temperature, use_reentrant=False)
              for h, t in zip(hidden.split(chunk), targets.split(chunk))]
    logprobs, entropy = zip(*pieces)
    return torch.cat(logprobs), torch.cat(entropy)


def _logprob(hidden, weight, targets, temperature):
    z = hidden @ weight.T                                                      # (n, V)
    z = z.to(torch.promote_types(z.dtype, torch.float32)) / temperature
    logsumexp = z.logsumexp(-1)                                                # (n,)
    z = z - logsumexp[:, None]
    entropy = -(z.exp() * z).sum(-1)
    return z.gather(-1, targets[:, None])[:, 0], entropy
