"""Who attends to whom. The model hands every layer's queries, keys and values to one of these objects.

Legend: T packed tokens, S sequences, P tokens of a stem, H query heads, K key-value heads (H a multiple of K), D head
width.

    Packed(cu_seqlens, stem)         sequences one after another, all behind one stem: training and prefill
    SharedPaged, KernelPaged, Paged  one new token per answer, keys and values in blocks: decoding, see paged.py

All are called as attend(layer, q, k, v) with q (T, H, D), k and v (T, K, D) and return (T, H, D).

Attention to a stem and to what follows it is computed in two parts and merged. Part i alone gives out_i, the average of
its values, and lse_i, the log of the sum of its exponentiated scores. Together they are

    lse = log(exp(lse_1) + exp(lse_2))        out = exp(lse_1 - lse) out_1 + exp(lse_2 - lse) out_2

which is softmax over both, exactly. So the queries of all branches, which see all of the stem, go through it as one
dense product, and only what follows it is looked at branch by branch, those of like length together.

The kernels behind `part` are torch's: flash-attention on a GPU (`flash_kernels` picks the version), its counterpart on
a CPU. Both return the log-sum-exp and, which matters more, take it back: see StemAttention.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache as remember
from importlib.util import find_spec
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

Tensor = torch.Tensor
KeysValues = Sequence[tuple[Tensor, Tensor]]                   # per layer: keys, values


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for B sequences of equal length: q (B, Tq, H, D), k and v (B, Tk, K, D) -> like q.
    Query head h reads key-value head h // (H / K). Causal: the last query sees every key, the one before it all but the
    last, and so on."""
    longer, mask = k.shape[1] - q.shape[1], None
    if causal and longer:
        from torch.nn.attention.bias import causal_lower_right  # imported here: it takes seconds
        mask = causal_lower_right(q.shape[1], k.shape[1])
    if not flash_kernels(q.device, q.dtype):                                   # those that do without a matrix of all
        k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))      # scores want equal heads
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask,
                                         is_causal=causal and not longer, enable_gqa=q.shape[2] != k.shape[2])
    return out.transpose(1, 2)


def stem_attention_plain(q: Tensor, k: Tensor, v: Tensor, stem_k: Tensor, stem_v: Tensor, lengths: Sequence[int]
                         ) -> Tensor:
    """The twin of StemAttention: every branch gets its own copy of the stem's keys and values."""
    pieces = zip(q.split(lengths), k.split(lengths), v.split(lengths))
    return torch.cat([attention(q[None], torch.cat([stem_k, k])[None], torch.cat([stem_v, v])[None], causal=True)[0]
                      for q, k, v in pieces])


@remember
def flash_kernels(device: torch.device, dtype: torch.dtype) -> str:
    """Whose kernels `part` calls for such tensors: "cpu", "cuda", or "" if there are none. On a GPU it says once which:
    flash-attention 3 on a Hopper GPU if it is installed, else flash-attention 2, which is a part of torch (its package
    holds the same kernels); or, for other types than bfloat16 and float16, what is used instead."""
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


class StemAttention(torch.autograd.Function):
    """Branches behind one stem: q (T, H, D), k and v (T, K, D), stem_k and stem_v (P, K, D), the branches in
    buckets -> (T, H, D). A token sees the whole stem, its own branch up to itself, and nothing of other branches.

    Backward, a part's weights are exp(score - lse) with the merged lse, and the term that all scores of a row share is
    the product of the merged output with its gradient. Given both, the backward of each part alone is its exact share
    of the whole; the stem's keys and values collect their gradient over all branches in one product."""

    @staticmethod
    def forward(ctx, q, k, v, stem_k, stem_v, buckets):
        stem, stem_lse = (x[0] for x in part(q[None], stem_k[None], stem_v[None]))          # (T, H, D), (T, H, 1)
        tails = [part(bucket.pad(q), bucket.pad(k), bucket.pad(v), causal=True) for bucket in buckets]
        tail, tail_lse = (torch.cat([bucket.unpad(x) for bucket, x in zip(buckets, parts)]) for parts in zip(*tails))
        out = merge(stem, stem_lse, tail, tail_lse)
        ctx.save_for_backward(q, k, v, stem_k, stem_v, out, torch.logaddexp(stem_lse, tail_lse))
        ctx.buckets = buckets
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, stem_k, stem_v, out, lse = ctx.saved_tensors
        dq, d_stem_k, d_stem_v = (x[0] for x in part_backward(*(x[None] for x in (grad, q, stem_k, stem_v, out, lse))))
        tails = [part_backward(*(bucket.pad(x) for x in (grad, q, k, v, out, lse)), causal=True)
                 for bucket in ctx.buckets]
        dq_tail, dk, dv = (torch.cat([bucket.unpad(x) for bucket, x in zip(ctx.buckets, parts)])
                           for parts in zip(*tails))
        return dq + dq_tail, dk, dv, d_stem_k, d_stem_v, None


def part(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention to some of the keys, without gradient: q (B, Tq, H, D), k and v (B, Tk, K, D), mask (B, 1, 1, Tk) added
    to the scores -> out like q and its log-sum-exp (B, Tq, H, 1), to be merged with other parts.

    These are the kernels behind scaled_dot_product_attention, by the names that also return the log-sum-exp. The CPU's
    wants equal numbers of heads: without a causal order, the H / K query heads that share keys become rows of one."""
    kernels = flash_kernels(q.device, q.dtype)
    if not kernels or kernels == "cuda" and mask is not None:
        return part_plain(q, k, v, causal, mask)
    if kernels == "cuda":
        out, lse, *_ = torch.ops.aten._flash_attention_forward(q, k, v, None, None, q.shape[1], k.shape[1], 0.0, causal,
                                                               False)
        return out, lse.transpose(1, 2)[..., None]
    k, v = _heads(q, k, v, causal)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(_fold(q, k), k, v, 0.0, causal,
                                                                          attn_mask=mask)
    return _unfold(out, q), _unfold(lse[..., None], q)


def part_backward(grad, q, k, v, out, lse, causal: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, given out, lse and the gradient of out: of the same kernels as part. See StemAttention."""
    if flash_kernels(q.device, q.dtype) == "cuda":
        unused = torch.zeros(2, dtype=torch.uint64, device=q.device), q.new_empty(0)           # of dropout
        return torch.ops.aten._flash_attention_backward(
            grad, q, k, v, out, lse[..., 0].transpose(1, 2).contiguous(), None, None, q.shape[1], k.shape[1], 0.0,
            causal, *unused)
    K = k.shape[2]
    k, v = _heads(q, k, v, causal)
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        _fold(grad, k), _fold(q, k), k, v, _fold(out, k), _fold(lse, k)[..., 0], 0.0, causal)
    return _unfold(dq, q), *(d.unflatten(1, (K, -1)).sum(2).transpose(1, 2) for d in (dk, dv))


def part_plain(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, mask: Tensor | None = None
               ) -> tuple[Tensor, Tensor]:
    """The twin of part: the formula."""
    k, v = _heads(q, k, v, causal)
    scores = _fold(q, k) @ k.transpose(-1, -2) * q.shape[-1] ** -0.5           # (B, K, Tq H/K, Tk)
    scores = scores.to(torch.promote_types(q.dtype, torch.float32)) + (0 if mask is None else mask)
    if causal:
        scores = scores.masked_fill(torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1), -torch.inf)
    lse = scores.logsumexp(-1, keepdim=True)
    return _unfold((scores - lse).exp().to(v.dtype) @ v, q), _unfold(lse, q)


def merge(out_1: Tensor, lse_1: Tensor, out_2: Tensor, lse_2: Tensor) -> Tensor:
    """Two parts of one attention, out_i (..., D) and lse_i (..., 1) in at least float32 -> the whole, like out_1."""
    share = torch.sigmoid(lse_1 - lse_2)                                       # exp(lse_1) / (exp(lse_1) + exp(lse_2))
    return (out_1 * share + out_2 * (1 - share)).to(out_1.dtype)


def _heads(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """k and v (B, n, K, D) -> (B, K, n, D), or (B, H, n, D) for a causal order: that goes by tokens, and rows that are
    folded are none."""
    k, v, repeat = k.transpose(1, 2), v.transpose(1, 2), q.shape[2] // k.shape[2] if causal else 1
    return (k, v) if repeat == 1 else (k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1))


def _fold(x: Tensor, k: Tensor) -> Tensor:
    """(B, n, H, D) -> (B, K, n H/K, D), K as in k (B, K, ...)"""
    return x.unflatten(2, (k.shape[1], -1)).transpose(1, 2).flatten(2, 3)


def _unfold(x: Tensor, q: Tensor) -> Tensor:
    """(B, K, n H/K, D) -> (B, n, H, D), n as in q (B, n, ...)"""
    return x.unflatten(2, (q.shape[1], -1)).transpose(1, 2).flatten(2, 3)


@dataclass(frozen=True)
class Bucket:
    """Neighbours of a packed row, from token `start` to `end`, as a batch: S sequences padded to n tokens. A pad stands
    behind its sequence, so no token sees it; what a pad itself computes is dropped, and gets no gradient."""

    start: int
    end: int
    S: int
    n: int
    rows: Tensor | None                                        # where the tokens lie in the (S n) padded row; all: None

    def pad(self, x: Tensor) -> Tensor:
        """(T, heads, D) -> (S, n, heads, D)"""
        x = x[self.start:self.end]
        if self.rows is not None:
            x = x.new_zeros(self.S * self.n, *x.shape[1:]).index_copy(0, self.rows, x)
        return x.unflatten(0, (self.S, self.n))

    def unpad(self, x: Tensor) -> Tensor:
        """(S, n, heads, D) -> (end - start, heads, D)"""
        return x.flatten(0, 1) if self.rows is None else x.flatten(0, 1).index_select(0, self.rows)


def buckets(lengths: Sequence[int], device: torch.device | str = "cpu", waste: float = 1.25) -> list[Bucket]:
    """Neighbours go together as long as their pads stay below a quarter of their tokens.

    >>> [(b.S, b.n) for b in buckets([17, 17, 15, 90, 100])]
    [(3, 17), (2, 100)]
    """
    found, start, bucket, tokens, n = [], 0, [], 0, 0
    for length, following in zip(lengths, [*lengths[1:], None]):
        bucket.append(length)
        tokens, n = tokens + length, max(n, length)
        if following is None or max(n, following) * (len(bucket) + 1) > waste * (tokens + following):
            rows = None if tokens == n * len(bucket) else torch.cat(
                [torch.arange(length) + i * n for i, length in enumerate(bucket)]).to(device)
            found.append(Bucket(start, start + tokens, len(bucket), n, rows))
            start, bucket, tokens, n = start + tokens, [], 0, 0
    return found


class Packed:
    """S sequences in one row of T tokens; a token attends to itself and to what precedes it in its own sequence.

    cu_seqlens: S + 1 offsets, 0 first and T last. stem: keys and values of each layer, (P, K, D), that stand before
    every sequence."""

    def __init__(self, cu_seqlens: Sequence[int], stem: KeysValues | None = None, device: torch.device | str = "cpu"):
        self.lengths, self.stem = [end - start for start, end in zip(cu_seqlens, cu_seqlens[1:])], stem
        self.buckets = buckets(self.lengths, device)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.stem and flash_kernels(q.device, q.dtype):
            return StemAttention.apply(q, k, v, *self.stem[layer], self.buckets)
        if self.stem:
            return stem_attention_plain(q, k, v, *self.stem[layer], self.lengths)
        return torch.cat([bucket.unpad(attention(bucket.pad(q), bucket.pad(k), bucket.pad(v), causal=True))
                          for bucket in self.buckets])


def pack(sequences: Sequence[Sequence[int]], device: torch.device, stem: KeysValues | None = None
         ) -> tuple[Tensor, Tensor, Packed]:
    """Sequences of token ids as the model takes them: ids (T,), positions (T,) that start anew behind the stem in each,
    and who attends to whom."""
    lengths, start = [len(sequence) for sequence in sequences], stem[0][0].shape[0] if stem else 0
    ids = torch.tensor([token for sequence in sequences for token in sequence], device=device)
    positions = torch.cat([torch.arange(start, start + length, device=device) for length in lengths])
    return ids, positions, Packed([0, *accumulate(lengths)], stem, device)
