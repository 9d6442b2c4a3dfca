"""Dense attention, and attention to only some of the keys, by torch's flash-attention kernels.

Softmax attention can be computed in parts, over disjoint sets of keys, and merged exactly. Part i gives out_i, the
weighted mean of its values, and lse_i, the log of the sum of its exponentiated scores. Together they are

    lse = log(exp(lse_1) + exp(lse_2))        out = exp(lse_1 - lse) out_1 + exp(lse_2 - lse) out_2

In the backward pass a part's weights are exp(score - lse) with the merged lse. All scores of a row share a term, the
dot product of the merged out with its gradient.

Legend: B sequences of equal length, Tq queries and Tk keys of each, H query heads, K key-value heads, D head width.
Query head h reads key-value head h // (H / K).
"""

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec

import kernels
import torch
import torch.nn.functional as F

from .backend import wide

Tensor = torch.Tensor
KeysValues = Sequence[tuple[Tensor, Tensor]]                   # per layer: keys (P, K, D), values (P, K, D)


def flash_backend(device: torch.device, dtype: torch.dtype) -> str:
    """Which of torch's flash-attention kernels take such tensors: "cuda", "cpu", or "" for none of them."""
    return "" if kernels.PLAIN else _installed(device, dtype)


@cache
def _installed(device: torch.device, dtype: torch.dtype) -> str:
    """flash_backend without PLAIN. On a GPU it prints its choice once. Flash-attention 3 needs a Hopper."""
    if device.type != "cuda":
        return "cpu" if device.type == "cpu" else ""
    capability = torch.cuda.get_device_capability(device)
    if dtype not in (torch.bfloat16, torch.float16) or capability < (8, 0):
        print(f"attention in {dtype}: scaled_dot_product_attention, the stem copied for every branch")
        return ""
    if capability[0] == 9 and find_spec("flash_attn_interface"):
        torch.nn.attention.activate_flash_attention_impl("FA3")
        print("attention: flash-attention 3")
    else:
        print("attention: flash-attention 2, as part of torch")
    return "cuda"


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(D)) v, differentiable: q (B, Tq, H, D), k and v (B, Tk, K, D) -> (B, Tq, H, D).
    causal: the last query sees every key, the one before it all keys but the last, and so on."""
    if kernels.PLAIN:
        return part_plain(q, k, v, causal)[0]
    mask = None
    if causal and k.shape[1] > q.shape[1]:
        from torch.nn.attention.bias import causal_lower_right  # imported here: it takes seconds
        mask = causal_lower_right(q.shape[1], k.shape[1])
    if not flash_backend(q.device, q.dtype):
        # Without equal numbers of heads torch would fall back to a kernel that stores the whole matrix of scores.
        repeat = q.shape[2] // k.shape[2]
        k, v = k.repeat_interleave(repeat, 2), v.repeat_interleave(repeat, 2)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)          # (B, heads, T, D)
    out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal and mask is None,
                                         enable_gqa=q.shape[1] != k.shape[1])
    return out.transpose(1, 2)


def part(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention to some of the keys, without gradient: q (B, Tq, H, D), k and v (B, Tk, K, D) -> out (B, Tq, H, D) and
    its log-sum-exp (B, Tq, H, 1), to be merged with other parts. mask (B, 1, 1, Tk) is added to the scores."""
    backend = flash_backend(q.device, q.dtype)
    if not backend or backend == "cuda" and mask is not None:
        return part_plain(q, k, v, causal, mask)
    if backend == "cuda":
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            q, k, v, None, None, q.shape[1], k.shape[1], 0.0, causal, False)
        return out, lse.transpose(1, 2)[..., None]
    k, v = _keys_by_head(q, k, v, causal)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        _regroup(q, k), k, v, 0.0, causal, attn_mask=mask)
    return _regroup(out, q), _regroup(lse[..., None], q)


def part_plain(q, k, v, causal=False, mask=None) -> tuple[Tensor, Tensor]:
    """The reference of part, in float32 at least, with a matrix of all scores. Differentiable."""
    k, v = _keys_by_head(q, k, v, causal)
    scores = _scores(_regroup(q, k), k, causal)                                   # (B, K, Tq H/K, Tk)
    scores = scores if mask is None else scores + mask
    lse = scores.logsumexp(-1, keepdim=True)
    out = (scores - lse).exp() @ v.to(scores.dtype)
    return _regroup(out, q).to(q.dtype), _regroup(lse, q)


def part_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool = False
                  ) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. out and lse are merged, as in `merge`, and grad is the gradient of that out."""
    backend = flash_backend(q.device, q.dtype)
    if not backend:
        return part_backward_plain(grad, q, k, v, out, lse, causal)
    if backend == "cuda":
        rng_state = torch.zeros(2, dtype=torch.uint64, device=q.device)        # of dropout, which is not used
        lse = lse[..., 0].transpose(1, 2).contiguous()                         # (B, H, Tq)
        return torch.ops.aten._flash_attention_backward(
            grad, q, k, v, out, lse, None, None, q.shape[1], k.shape[1], 0.0, causal, rng_state, q.new_empty(0))
    num_kv_heads, dtype = k.shape[2], q.dtype
    grad, q, k, v, out = (x.to(lse.dtype) for x in (grad, q, k, v, out))       # 2 to 6 times as fast as in bfloat16
    k, v = _keys_by_head(q, k, v, causal)
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        _regroup(grad, k), _regroup(q, k), k, v, _regroup(out, k), _regroup(lse, k)[..., 0], 0.0, causal)
    gradients = _regroup(dq, q), _sum_heads(dk, num_kv_heads), _sum_heads(dv, num_kv_heads)
    return tuple(x.to(dtype) for x in gradients)


def part_backward_plain(grad, q, k, v, out, lse, causal=False) -> tuple[Tensor, Tensor, Tensor]:
    """The reference of part_backward."""
    num_kv_heads, dtype = k.shape[2], q.dtype
    grad, q, k, v, out = (x.to(lse.dtype) for x in (grad, q, k, v, out))
    k, v = _keys_by_head(q, k, v, causal)
    q_rows, grad_rows, out_rows = _regroup(q, k), _regroup(grad, k), _regroup(out, k)   # (B, K, Tq H/K, D)
    weights = (_scores(q_rows, k, causal) - _regroup(lse, k)).exp()               # (B, K, Tq H/K, Tk)
    shared = (grad_rows * out_rows).sum(-1, keepdim=True)
    d_scores = weights * (grad_rows @ v.mT - shared) * q.shape[-1] ** -0.5
    dq = _regroup(d_scores @ k, q)
    dk = _sum_heads(d_scores.mT @ q_rows, num_kv_heads)
    dv = _sum_heads(weights.mT @ grad_rows, num_kv_heads)
    return dq.to(dtype), dk.to(dtype), dv.to(dtype)


def merge(out_1: Tensor, lse_1: Tensor, out_2: Tensor, lse_2: Tensor) -> Tensor:
    """Two parts of one attention, out_i (..., D) and lse_i (..., 1) in at least float32 -> the whole, like out_1."""
    share = torch.sigmoid(lse_1 - lse_2)                                       # exp(lse_1) / (exp(lse_1) + exp(lse_2))
    return (out_1 * share + out_2 * (1 - share)).to(out_1.dtype)


def _keys_by_head(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """k and v (B, Tk, K, D) -> (B, K, Tk, D), or (B, H, Tk, D) for a causal order. The CPU's kernels want equal numbers
    of heads. Query heads that read the same keys become rows of one. A causal order takes rows for tokens."""
    repeat = q.shape[2] // k.shape[2]
    k, v = k.transpose(1, 2), v.transpose(1, 2)
    if causal and repeat > 1:
        return k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    return k, v


def _regroup(x: Tensor, like: Tensor) -> Tensor:
    """(B, Tq, H, D) -> (B, K, Tq H/K, D), like k (B, K, ...). And back, like q (B, Tq, ...)."""
    return x.unflatten(2, (like.shape[1], -1)).transpose(1, 2).flatten(2, 3)


def _sum_heads(x: Tensor, num_kv_heads: int) -> Tensor:
    """Gradients of repeated keys or values (B, K or H, Tk, D) -> (B, Tk, K, D)."""
    return x.unflatten(1, (num_kv_heads, -1)).sum(2).transpose(1, 2)


def _scores(rows: Tensor, k: Tensor, causal: bool) -> Tensor:
    """rows (B, K, R, D), k (B, K, Tk, D) -> (B, K, R, Tk), -inf where a key comes later than its query."""
    dtype = wide(rows.dtype)
    scores = rows.to(dtype) @ k.to(dtype).mT * rows.shape[-1] ** -0.5
    if not causal:
        return scores
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=rows.device).triu(1 + k.shape[2] - rows.shape[2])
    return scores.masked_fill(later, -torch.inf)
