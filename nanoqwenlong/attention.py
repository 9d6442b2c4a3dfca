"""Who attends to whom. The model hands every layer's queries, keys and values to one of these objects.

Legend: T packed tokens, S sequences, P tokens of a stem, H query heads, K key-value heads (H a multiple of K), D head
width.

    Packed(cu_seqlens, stem)                       sequences one after another, all behind one stem: training, prefill
    SharedPaged(cache, tables, lengths, stems)     one new token per answer; a group reads its stem once: decode
    Paged(cache, tables, lengths)                  its plain twin: every token reads all of its own past

All are called as attend(layer, q, k, v) with q (T, H, D), k and v (T, K, D) and return (T, H, D).

Attention to a stem and to what follows it is computed in two parts and merged. Part i alone gives out_i, the average of
its values, and lse_i, the log of the sum of its exponentiated scores. Together they are

    lse = log(exp(lse_1) + exp(lse_2))        out = exp(lse_1 - lse) out_1 + exp(lse_2 - lse) out_2

which is softmax over both, exactly. So the queries of all branches, which see all of the stem, go through it as one
dense product, and only the short tails are looked at one by one.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .kvcache import blocks_for

Tensor = torch.Tensor
KeysValues = Sequence[tuple[Tensor, Tensor]]                   # per layer: keys, values


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for B sequences of equal length: q (B, Tq, H, D), k and v (B, Tk, K, D) -> like q.
    Query head h reads key-value head h // (H / K). Causal: the last query sees every key, the one before all but the
    last key, and so on."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    longer = k.shape[2] - q.shape[2]
    mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(longer) if (
        causal and longer) else None
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal and not longer,
                                          enable_gqa=q.shape[1] != k.shape[1]).transpose(1, 2)


def stem_attention_plain(q: Tensor, k: Tensor, v: Tensor, stem_k: Tensor, stem_v: Tensor, lengths: Sequence[int]
                         ) -> Tensor:
    """The twin of StemAttention: every branch gets its own copy of the stem's keys and values."""
    return torch.cat([attention(q[None], torch.cat([stem_k, k])[None], torch.cat([stem_v, v])[None], causal=True)[0]
                      for q, k, v in zip(q.split(lengths), k.split(lengths), v.split(lengths))])


class StemAttention(torch.autograd.Function):
    """Branches behind one stem, on a CPU: q (T, H, D), k and v (T, K, D), stem_k and stem_v (P, K, D), the branches'
    lengths -> (T, H, D). A token sees the whole stem, its own branch up to itself, and nothing of other branches.

    Backward, a part's weights are exp(score - lse) with the merged lse, and the term that all scores of a row share is
    the product of the merged output with its gradient. Given both, the backward of each part alone is its exact share
    of the whole; the stem's keys and values collect their gradient over all branches in one product."""

    @staticmethod
    def forward(ctx, q, k, v, stem_k, stem_v, lengths):
        out, lse = part(_fold(q, k), _heads(stem_k), _heads(stem_v))
        out, lse = _unfold(out, q), _unfold(lse[..., None], q)                 # (T, H, D), (T, H, 1)
        tails = [_flash(*tail, causal=True) for tail in _tails(q, k, v, lengths)]
        tail_out = torch.cat([out[0].transpose(0, 1) for out, _ in tails])     # (T, H, D)
        tail_lse = torch.cat([lse[0].transpose(0, 1) for _, lse in tails])[..., None]
        out = merge(out, lse, tail_out, tail_lse)
        ctx.save_for_backward(q, k, v, stem_k, stem_v, out, torch.logaddexp(lse, tail_lse))
        ctx.lengths = lengths
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        q, k, v, stem_k, stem_v, out, lse = ctx.saved_tensors
        dq, d_stem_k, d_stem_v = _flash_backward(_fold(grad, k), _fold(q, k), _heads(stem_k), _heads(stem_v),
                                                 _fold(out, k), _fold(lse, k)[..., 0], causal=False)
        parts = zip(_tails(grad, k, v, ctx.lengths), _tails(q, k, v, ctx.lengths), _tails(out, k, v, ctx.lengths),
                    lse.split(ctx.lengths))
        tails = [_flash_backward(g, *qkv, o, z[..., 0].T[None], causal=True) for (g, *_), qkv, (o, *_), z in parts]
        dq = _unfold(dq, q) + torch.cat([dq[0].transpose(0, 1) for dq, _, _ in tails])
        K = k.shape[1]
        dk, dv = (torch.cat([d[part][0].unflatten(0, (K, -1)).sum(1).transpose(0, 1) for d in tails])
                  for part in (1, 2))                                          # (T, K, D): over the heads that share it
        return dq, dk, dv, d_stem_k[0].transpose(0, 1), d_stem_v[0].transpose(0, 1), None


def merge(out_1: Tensor, lse_1: Tensor, out_2: Tensor, lse_2: Tensor) -> Tensor:
    """Two parts of one attention, out_i (..., D) and lse_i (..., 1) in at least float32 -> the whole, like out_1."""
    share = torch.sigmoid(lse_1 - lse_2)                                       # exp(lse_1) / (exp(lse_1) + exp(lse_2))
    return (out_1 * share + out_2 * (1 - share)).to(out_1.dtype)


def _heads(x: Tensor) -> Tensor:
    """(n, K, D) -> (1, K, n, D)"""
    return x.transpose(0, 1)[None]


def _fold(x: Tensor, k: Tensor) -> Tensor:
    """(T, H, D) -> (1, K, T H/K, D): the query heads of a key-value head become rows that see the same keys."""
    return x.unflatten(1, (k.shape[1], -1)).transpose(0, 1).flatten(1, 2)[None]


def _unfold(x: Tensor, q: Tensor) -> Tensor:
    """(1, K, T H/K, D) -> (T, H, D), H as in q"""
    return x[0].unflatten(1, (q.shape[0], -1)).transpose(0, 1).flatten(1, 2)


def _tails(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Each branch's q, k, v, all (1, H, n, D)."""
    repeat = q.shape[1] // k.shape[1]
    return [(_heads(q), _heads(k).repeat_interleave(repeat, 1), _heads(v).repeat_interleave(repeat, 1))
            for q, k, v in zip(q.split(lengths), k.split(lengths), v.split(lengths))]


def part(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention to some of the keys, without gradient: q (B, H, n, D), k and v (B, H, m, D), mask (B, 1, 1, m) added to
    the scores -> out (B, H, n, D) and log-sum-exp (B, H, n), to be merged with other parts."""
    return (_flash if q.device.type == "cpu" else part_plain)(q, k, v, mask=mask)


def part_plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5                     # (B, H, n, m)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores = scores if mask is None else scores + mask
    lse = scores.logsumexp(-1, keepdim=True)
    return (scores - lse).exp().to(v.dtype) @ v, lse[..., 0]


def _flash(q: Tensor, k: Tensor, v: Tensor, causal: bool = False, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """torch's own CPU kernel behind scaled_dot_product_attention, by the name that also returns the log-sum-exp."""
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=mask)


def _flash_backward(grad, q, k, v, out, lse, causal: bool) -> tuple[Tensor, Tensor, Tensor]:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(grad, q, k, v, out, lse, 0.0, causal)


class Packed:
    """S sequences in one row of T tokens; a token attends to itself and to what precedes it in its own sequence.

    cu_seqlens: S + 1 offsets, 0 first and T last. stem: keys and values of each layer, (P, K, D), that stand before
    every sequence."""

    def __init__(self, cu_seqlens: Sequence[int], stem: KeysValues | None = None):
        self.lengths = [end - start for start, end in zip(cu_seqlens, cu_seqlens[1:])]
        self.stem = stem

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.stem:
            behind_stem = StemAttention.apply if q.device.type == "cpu" else stem_attention_plain
            return behind_stem(q, k, v, *self.stem[layer], self.lengths)
        pieces = zip(q.split(self.lengths), k.split(self.lengths), v.split(self.lengths))
        return torch.cat([attention(q[None], k[None], v[None], causal=True)[0] for q, k, v in pieces])


def pack(sequences: Sequence[Sequence[int]], device: torch.device, stem: KeysValues | None = None
         ) -> tuple[Tensor, Tensor, Packed]:
    """Sequences of token ids as the model takes them: ids (T,), positions (T,) that start anew behind the stem in each,
    and who attends to whom."""
    lengths, start = [len(sequence) for sequence in sequences], stem[0][0].shape[0] if stem else 0
    ids = torch.tensor([token for sequence in sequences for token in sequence], device=device)
    positions = torch.cat([torch.arange(start, start + length, device=device) for length in lengths])
    return ids, positions, Packed([0, *accumulate(lengths)], stem)


class KVCache:
    """Keys and values of all layers, in blocks. kvcache.BlockPool decides whose a block is; this only stores.

    A block is `block_size` consecutive slots; slot = block * block_size + offset."""

    def __init__(self, num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int,
                 dtype: torch.dtype, device: torch.device):
        shape = (num_layers, num_blocks * block_size, num_kv_heads, head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)       # (L, slots, K, D)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.block_size, self.device = block_size, device

    def slots(self, block_tables: Sequence[Sequence[int]], length: int) -> Tensor:
        """(S, length): where the first `length` tokens of each sequence lie."""
        used = blocks_for(length, self.block_size)
        blocks = torch.tensor([table[:used] for table in block_tables], device=self.device)           # (S, used)
        offsets = torch.arange(self.block_size, device=self.device)
        return (blocks[:, :, None] * self.block_size + offsets).flatten(1)[:, :length]

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        self.keys[layer, slots] = k
        self.values[layer, slots] = v

    def stem(self, block_table: Sequence[int], length: int) -> KeysValues:
        """A copy of a sequence's first `length` keys and values in one piece, a head's tokens next to one another."""
        (slots,) = self.slots([block_table], length)
        keys, values = (x[:, slots].transpose(1, 2).contiguous().transpose(1, 2) for x in (self.keys, self.values))
        return list(zip(keys, values))                                         # each (P, K, D)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, each (from, to): the other half of BlockPool.append's copy-on-write."""
        if pairs:
            source, target = self.slots([[a] for a, _ in pairs], self.block_size), self.slots(
                [[b] for _, b in pairs], self.block_size)
            self.keys[:, target] = self.keys[:, source]
            self.values[:, target] = self.values[:, source]


class SharedPaged:
    """One new token per answer: its key and value go into the cache, then it attends to its group's stem, together
    with the group's other answers, and to its own tail in the cache; the two parts are merged.

    context_lens: tokens of each sequence, the new one included; its place must already be in the block table.
    stems: for each group of neighbours the stem's keys and values in one piece (KVCache.stem; none if it is empty) and
    how many answers of the group are here."""

    def __init__(self, cache: KVCache, block_tables: Sequence[Sequence[int]], context_lens: Sequence[int],
                 stems: Sequence[tuple[KeysValues, int]]):
        self.cache, self.stems = cache, stems
        size, device = cache.block_size, cache.device
        starts = [stem[0][0].shape[0] if stem else 0 for stem, count in stems for _ in range(count)]
        tails = [table[start // size:blocks_for(length, size)]                 # from the block that the stem ends in
                 for table, start, length in zip(block_tables, starts, context_lens, strict=True)]
        longest = max(map(len, tails))
        blocks = torch.tensor([tail + [0] * (longest - len(tail)) for tail in tails], device=device)
        offsets = torch.arange(size, device=device)
        slots = (blocks[:, :, None] * size + offsets).flatten(1)               # (S, n)
        start, end = torch.tensor(starts, device=device), torch.tensor(context_lens, device=device)
        places = (start // size * size)[:, None] + torch.arange(slots.shape[1], device=device)
        outside = (places < start[:, None]) | (places >= end[:, None])
        newest = end - 1 - start // size * size
        self.slot_mapping = slots.gather(1, newest[:, None])[:, 0]             # (S,)
        self.slots = torch.where(outside, self.slot_mapping[:, None], slots)   # an unwritten slot is never read
        mask = torch.zeros(outside.shape, dtype=cache.keys.dtype, device=device)
        self.mask = mask.masked_fill(outside, -torch.inf)[:, None, None]       # (S, 1, 1, n)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.write(layer, self.slot_mapping, k, v)
        keys, values = (x[layer, self.slots].transpose(1, 2) for x in (self.cache.keys, self.cache.values))
        tail, tail_lse = part(q.unflatten(1, (k.shape[1], -1)), keys, values, self.mask)     # (S, K, H/K, D)
        tail, tail_lse = tail.flatten(1, 2), tail_lse.flatten(1)[..., None]    # (S, H, D), (S, H, 1)
        out, first = [], 0
        for stem, count in self.stems:
            rows = slice(first, first + count)
            first += count
            if not stem:
                out.append(tail[rows])
                continue
            stem_k, stem_v = stem[layer]
            whole, lse = part(_fold(q[rows], k), _heads(stem_k), _heads(stem_v))
            out.append(merge(_unfold(whole, q[rows]), _unfold(lse[..., None], q[rows]), tail[rows], tail_lse[rows]))
        return torch.cat(out)


class Paged:
    """The plain twin of SharedPaged, and of Packed while sampling: T new tokens, each with the block table and the
    length of its sequence up to it. A token's key and value go into the cache, then it reads all of its own past there.

    Every token attends by itself (tokens with pasts of equal length share a call), so its numbers depend on nothing
    else: not on the batch, not on how a prompt was cut into chunks."""

    def __init__(self, cache: KVCache, block_tables: Sequence[Sequence[int]], context_lens: Sequence[int]):
        self.cache = cache
        rows_by_length = defaultdict(list)
        for row, length in enumerate(context_lens):
            rows_by_length[length].append(row)
        self.rows = [torch.tensor(rows, device=cache.device) for rows in rows_by_length.values()]
        self.slots = [cache.slots([block_tables[row] for row in rows], length)
                      for length, rows in rows_by_length.items()]
        self.slot_mapping = torch.empty(len(context_lens), dtype=torch.long, device=cache.device)
        for rows, slots in zip(self.rows, self.slots):
            self.slot_mapping[rows] = slots[:, -1]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.write(layer, self.slot_mapping, k, v)
        keys, values, out = self.cache.keys[layer], self.cache.values[layer], torch.empty_like(q)
        for rows, slots in zip(self.rows, self.slots):
            out[rows] = attention(q[rows, None], keys[slots], values[slots], causal=False)[:, 0]
        return out
