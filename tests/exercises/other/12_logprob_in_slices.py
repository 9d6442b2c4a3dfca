"""Another solution: without pieces, with one-hot targets."""

import torch


def statistics_plain(logits, targets, rows):
    inside = targets.clamp(min=0, max=logits.shape[1] - 1)
    top = logits.max(dim=-1).values
    difference = torch.maximum(logits - top[:, None], torch.tensor(LOWEST, dtype=logits.dtype))
    weights = difference.exp()
    total = weights.sum(-1)
    at_target = logits[torch.arange(len(logits)), inside]
    rows[0] = at_target - top - total.log()
    rows[1] = total.log() - (weights * difference).sum(-1) / total
    rows[2] = top
    rows[3] = total.log()


def gradient_plain(logits, targets, rows, d_logprob, d_entropy, out):
    entropy, top, log_sum = rows[1][:, None], rows[2][:, None], rows[3][:, None]
    log_p = logits - top - log_sum
    p = log_p.exp()
    words = torch.arange(logits.shape[1], device=logits.device)
    one_hot = (words[None] == targets[:, None]).to(logits.dtype)
    dz = d_logprob[:, None] * (one_hot - p)
    if d_entropy is not None:
        dz = dz - d_entropy[:, None] * p * (log_p.clamp(min=LOWEST) + entropy)
    out.copy_(dz)


def merge(parts, holds):
    logprobs, entropies, tops, log_sums = parts[:, 0], parts[:, 1], parts[:, 2], parts[:, 3]
    top = tops.max(dim=0).values
    mass = (tops - top + log_sums).exp()
    total = mass.sum(0)
    mean = (mass / total * (torch.where(mass > 0, tops - top + log_sums, 0.0) - entropies)).sum(0)
    target = torch.zeros_like(top)
    for logprob, log_sum, own_top, held in zip(logprobs, log_sums, tops, holds):
        target = torch.where(held, logprob + log_sum + own_top - top, target)
    return torch.stack([target - total.log(), total.log() - mean, top, total.log()])
