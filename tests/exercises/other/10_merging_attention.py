"""Another solution: softmax by the largest score, and shares by the largest lse."""

import torch


def part_plain(q, k, v, causal=False, mask=None):
    k, v = _keys_by_head(q, k, v, causal)
    scores = _scores(_regroup(q, k), k, causal)
    if mask is not None:
        scores = scores + mask
    top = scores.amax(-1, keepdim=True).detach()
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True)
    out = torch.einsum("bkrt,bktd->bkrd", weights / total, v.to(scores.dtype))
    return _regroup(out, q).to(q.dtype), _regroup(top + total.log(), q)


def merge(out_1, lse_1, out_2, lse_2):
    top = torch.maximum(lse_1, lse_2)
    weight_1, weight_2 = (lse_1 - top).exp(), (lse_2 - top).exp()
    return ((out_1 * weight_1 + out_2 * weight_2) / (weight_1 + weight_2)).to(out_1.dtype)
