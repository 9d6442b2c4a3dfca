"""Another solution: only over the tokens that count, one after another."""

import torch


def grpo_loss_plain(logprobs, old_logprobs, advantages, weights, ref_logprobs, entropy,
                    clip_low, clip_high, dual_clip, kl_coef):
    loss = (logprobs[:0]).sum()
    counts = [0, 0, 0, 0, 0.0, 0.0]
    for t in weights.nonzero()[:, 0].tolist():
        A, w = advantages[t], weights[t]
        ratio = torch.exp(torch.clamp(logprobs[t] - old_logprobs[t], -20, 20))
        counts[0] += 1
        if A > 0:
            cost = -A * torch.clamp(ratio, max=1 + clip_high)
            counts[2] += int(ratio > 1 + clip_high)
        else:
            bounded = torch.clamp(ratio, min=1 - clip_low)
            counts[1] += int(A < 0 and ratio < 1 - clip_low)
            counts[3] += int(A < 0 and ratio > dual_clip)
            cost = -A * (torch.clamp(bounded, max=dual_clip) if A < 0 else ratio)
        if ref_logprobs is not None:
            d = torch.clamp(ref_logprobs[t] - logprobs[t], -20, 20)
            kl = torch.expm1(d) - d
            counts[4] += kl.item()
            cost = cost + kl_coef * kl
        if entropy is not None:
            counts[5] += entropy[t].item()
        loss = loss + w * cost
    return loss, torch.tensor(counts, dtype=logprobs.dtype, device=logprobs.device)
