"""Who attends to whom. The model passes the queries, keys and values of each layer to one of these objects:

    Packed(cu_seqlens, stem_kv)      sequences one after another, all after the same stem: training and prefill
    SharedPaged, KernelPaged, Paged  one new token per answer, keys and values in blocks: decoding (engine/paged.py)

All are called as attend(layer, q, k, v) with q (T, H, D), k and v (T, K, D), and return (T, H, D).

A stem is what all sequences begin with. Its keys and values were computed in an earlier pass, stem_kv (P, K, D) per
layer. All sequences see all of the stem, so their queries go through it as one dense product. What follows the stem is
computed sequence by sequence, those of similar length together, and the two parts are merged (kernels/flash.py).

Legend: T packed tokens, S sequences, P tokens of the stem, H query heads, K key-value heads, D head width.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from kernels.flash import KeysValues, attention, flash_backend, merge, part, part_backward
from torch.autograd.function import once_differentiable

from .engine.padding import buckets

Tensor = torch.Tensor


class Packed:
    """S sequences in one row of T tokens. A token sees the stem, and its own sequence up to itself.

    cu_seqlens: S + 1 offsets, 0 first and T last. stem_kv: keys and values of each layer, empty if there is no stem."""

    def __init__(self, cu_seqlens: Sequence[int], stem_kv: KeysValues | None = None, device="cpu"):
        self.lengths = [end - start for start, end in pairwise(cu_seqlens)]
        self.stem_kv = stem_kv
        self.buckets = buckets(self.lengths, device)

    def __call__(self, layer: int, q, k, v) -> Tensor:
        if self.stem_kv:
            stem_k, stem_v = self.stem_kv[layer]
            if flash_backend(q.device, q.dtype):
                return StemAttention.apply(q, k, v, stem_k, stem_v, self.buckets)
            return stem_attention_plain(q, k, v, stem_k, stem_v, self.lengths)
        outs = []
        for bucket in self.buckets:
            out = attention(*bucket.pad(q, k, v), causal=True)
            outs.append(bucket.unpad(out))
        return torch.cat(outs)


def pack(sequences, device, stem_kv: KeysValues | None = None) -> tuple[Tensor, Tensor, Packed]:
    """The model's arguments for these token ids: ids (T,), positions (T,) and who attends to whom. In every sequence
    the positions continue those of the stem."""
    first = 0
    if stem_kv:
        stem_k, _ = stem_kv[0]
        first = len(stem_k)
    tokens, positions, cu_seqlens = [], [], [0]
    for sequence in sequences:
        tokens += sequence
        cu_seqlens.append(len(tokens))
        positions.append(first + torch.arange(len(sequence), device=device))
    ids = torch.tensor(tokens, device=device)
    attend = Packed(cu_seqlens, stem_kv, device)
    return ids, torch.cat(positions), attend


class StemAttention(torch.autograd.Function):
    """Attention of S sequences after one stem: q (T, H, D), k and v (T, K, D), stem_k and stem_v (P, K, D), the
    sequences in buckets -> (T, H, D).

    In the backward pass each part gets the merged out and lse, so its gradient is its exact share of the whole. The
    stem's keys and values collect their gradient from all sequences in one product."""

    @staticmethod
    def forward(ctx, q, k, v, stem_k, stem_v, buckets):
        out, lse = part(q[None], stem_k[None], stem_v[None])                   # one long sequence
        stem_out = out[0]                                                      # (T, H, D)
        stem_lse = lse[0]                                                      # (T, H, 1)
        outs, lses = [], []
        for bucket in buckets:
            out, lse = part(*bucket.pad(q, k, v), causal=True)
            outs.append(bucket.unpad(out))
            lses.append(bucket.unpad(lse))
        tail_out = torch.cat(outs)                                             # (T, H, D)
        tail_lse = torch.cat(lses)                                             # (T, H, 1)
        merged = merge(stem_out, stem_lse, tail_out, tail_lse)
        merged_lse = torch.logaddexp(stem_lse, tail_lse)
        ctx.save_for_backward(q, k, v, stem_k, stem_v, merged, merged_lse)
        ctx.buckets = buckets
        return merged

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, stem_k, stem_v, merged, merged_lse = ctx.saved_tensors
        stem_batch = [x[None] for x in (grad, q, stem_k, stem_v, merged, merged_lse)]
        dq_stem, d_stem_k, d_stem_v = part_backward(*stem_batch)
        pieces = []                                                            # gradients of q, k, v by bucket
        for bucket in ctx.buckets:
            padded = bucket.pad(grad, q, k, v, merged, merged_lse)
            gradients = part_backward(*padded, causal=True)
            pieces.append([bucket.unpad(x) for x in gradients])
        dq, dk, dv = map(torch.cat, zip(*pieces))
        dq = dq_stem[0] + dq
        return dq, dk, dv, d_stem_k[0], d_stem_v[0], None


def stem_attention_plain(q, k, v, stem_k, stem_v, lengths: Sequence[int]) -> Tensor:
    """The reference of StemAttention: every sequence gets a copy of the stem's keys and values."""
    outs = []
    sequences = [x.split(lengths) for x in (q, k, v)]
    for queries, keys, values in zip(*sequences):
        keys = torch.cat([stem_k, keys])
        values = torch.cat([stem_v, values])
        out = attention(queries[None], keys[None], values[None], causal=True)
        outs.append(out[0])
    return torch.cat(outs)
