"""Who attends to whom. The model hands every layer's queries, keys and values to one of these objects.

Legend: T packed tokens, S sequences, P tokens of a stem, H query heads, K key-value heads (H a multiple of K), D head
width.

    Packed(cu_seqlens, stem)                       sequences one after another, all behind one stem: training, prefill
    SharedPaged(cache, tables, lengths, stems)     one new token per answer; a group reads its stem once: decode
    KernelPaged(cache, room)                       the same for a GPU, from buffers that stay where they are
    Paged(cache, tables, lengths)                  their plain twin: every token reads all of its own past

All are called as attend(layer, q, k, v) with q (T, H, D), k and v (T, K, D) and return (T, H, D).

Attention to a stem and to what follows it is computed in two parts and merged. Part i alone gives out_i, the average of
its values, and lse_i, the log of the sum of its exponentiated scores. Together they are

    lse = log(exp(lse_1) + exp(lse_2))        out = exp(lse_1 - lse) out_1 + exp(lse_2 - lse) out_2

which is softmax over both, exactly. So the queries of all branches, which see all of the stem, go through it as one
dense product, and only what follows it is looked at branch by branch, those of like length together.

The kernels behind `part` are torch's: flash-attention on a GPU (`flash_kernels` picks the version), its counterpart on a
CPU. Both give the log-sum-exp and, which matters more, take it back: see StemAttention.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache as remember
from importlib.util import find_spec
from itertools import accumulate
from typing import NamedTuple

import torch
import torch.nn.functional as F
from kernels import Segments, paged_attention
from torch.autograd.function import once_differentiable
from torch.nn.attention.bias import causal_lower_right

from .kvcache import blocks_for

Tensor = torch.Tensor
KeysValues = Sequence[tuple[Tensor, Tensor]]                   # per layer: keys, values
SHORT_TAIL = 64                                                # tokens; tails below are padded without a second thought


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for B sequences of equal length: q (B, Tq, H, D), k and v (B, Tk, K, D) -> like q.
    Query head h reads key-value head h // (H / K). Causal: the last query sees every key, the one before it all but the
    last, and so on."""
    longer = k.shape[1] - q.shape[1]
    mask = causal_lower_right(q.shape[1], k.shape[1]) if causal and longer else None
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
def flash_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `part` has kernels for such tensors. On a GPU it says once which: flash-attention 3 if it is installed and
    this is a Hopper GPU, else flash-attention 2, which torch brings along (a package of it would be no faster); and where
    there is none, what is used instead."""
    if device.type != "cuda":
        return device.type == "cpu"
    capability = torch.cuda.get_device_capability(device)
    fits = dtype in (torch.bfloat16, torch.float16) and capability >= (8, 0)
    if fits and capability[0] == 9 and find_spec("flash_attn_interface"):
        torch.nn.attention.activate_flash_attention_impl("FA3")
        print("attention: flash-attention 3")
    else:
        print("attention: flash-attention 2, as part of torch" if fits else
              f"attention: scaled_dot_product_attention, the stem copied for every branch ({dtype} has no flash kernel)")
    return fits


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
    if mask is not None and q.is_cuda or not flash_kernels(q.device, q.dtype):
        return part_plain(q, k, v, causal, mask)
    if q.is_cuda:
        out, lse, *_ = torch.ops.aten._flash_attention_forward(q, k, v, None, None, q.shape[1], k.shape[1], 0.0, causal,
                                                               False)
        return out, lse.transpose(1, 2)[..., None]
    k, v = _heads(q, k, v, causal)
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(_fold(q, k), k, v, 0.0, causal,
                                                                          attn_mask=mask)
    return _unfold(out, q), _unfold(lse[..., None], q)


def part_backward(grad, q, k, v, out, lse, causal: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, given out, lse and the gradient of out; where there are flash kernels. See StemAttention."""
    if q.is_cuda:
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


class KVCache:
    """Keys and values of all layers, in blocks. kvcache.BlockPool decides whose a block is; this only stores.

    A block is `block_size` consecutive slots; slot = block * block_size + offset. A head's slots lie next to one
    another, so blocks that follow one another are one piece for attention. There is one block more than the pool knows
    of: `spare_slot` is for rows of a batch that stand for no answer."""

    def __init__(self, num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int,
                 dtype: torch.dtype, device: torch.device):
        shape = (num_layers, num_kv_heads, (num_blocks + 1) * block_size, head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)             # (L, K, slots, D)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.block_size, self.spare_slot, self.device = block_size, num_blocks * block_size, device

    def slots(self, block_tables: Sequence[Sequence[int]], length: int) -> Tensor:
        """(S, length): where the first `length` tokens of each sequence lie."""
        used = blocks_for(length, self.block_size)
        blocks = torch.tensor([table[:used] for table in block_tables], device=self.device)           # (S, used)
        offsets = torch.arange(self.block_size, device=self.device)
        return (blocks[:, :, None] * self.block_size + offsets).flatten(1)[:, :length]

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """k and v (T, K, D) into the slots (T,)."""
        self.keys[layer].index_copy_(1, slots, k.transpose(0, 1))
        self.values[layer].index_copy_(1, slots, v.transpose(0, 1))

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values at the slots (...), each (..., K, D)."""
        return tuple(x[layer].index_select(1, slots.flatten()).transpose(0, 1).unflatten(0, slots.shape)
                     for x in (self.keys, self.values))

    def past(self, block_table: Sequence[int], length: int) -> KeysValues:
        """The first `length` keys and values of a sequence, in one piece, per layer (length, K, D): where they lie, if
        the blocks follow one another, and good as long as those are owned; else a copy."""
        blocks = block_table[:blocks_for(length, self.block_size)]
        first = blocks[0] * self.block_size
        if list(blocks) == list(range(blocks[0], blocks[0] + len(blocks))):
            pieces = (x[:, :, first:first + length] for x in (self.keys, self.values))
        else:
            (slots,) = self.slots([blocks], length)
            pieces = (x.index_select(2, slots) for x in (self.keys, self.values))
        return list(zip(*(piece.transpose(1, 2) for piece in pieces)))

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, each (from, to): the other half of BlockPool.append's copy-on-write."""
        if pairs:
            source, target = (self.slots([[block] for block in blocks], self.block_size).flatten()
                              for blocks in zip(*pairs))
            for x in (self.keys, self.values):
                x[:, :, target] = x[:, :, source]


class SharedPaged:
    """One new token per answer: its key and value go into the cache, then it attends to its group's stem, together
    with the group's other answers, and to its own tail; the two parts are merged.

    context_lens: tokens of each sequence, the new one included; its place must already be in the block table.
    stems: for each group of neighbours the keys and values of the blocks that its answers share (KVCache.past of whole
    blocks; empty if there is none) and how many answers of the group are here. What lies behind those is the tail."""

    def __init__(self, cache: KVCache, block_tables: Sequence[Sequence[int]], context_lens: Sequence[int],
                 stems: Sequence[tuple[KeysValues, int]]):
        self.cache, self.stems = cache, stems
        shared = [stem[0][0].shape[0] if stem else 0 for stem, count in stems for _ in range(count)]
        rows_by_size = defaultdict(list)                       # tails within a factor of 2 together, so pads are few
        for row, (start, length) in enumerate(zip(shared, context_lens, strict=True)):
            rows_by_size[max(length - start, SHORT_TAIL).bit_length()].append(row)
        self.rows = torch.tensor([row for rows in rows_by_size.values() for row in rows], device=cache.device)
        self.back = self.rows.argsort()                        # from the order of the tails to that of the answers
        self.tails = [self._tails([block_tables[row][shared[row] // cache.block_size:] for row in rows],
                                  [context_lens[row] - shared[row] for row in rows]) for rows in rows_by_size.values()]
        self.slot_mapping = torch.cat([newest for newest, _, _ in self.tails])             # (S,), in the order of rows

    def _tails(self, tables: list[Sequence[int]], lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Slots of the newest tokens (s,), of all tokens (s, n), and what masks those that are none (s, 1, 1, n)."""
        n, longest = max(lengths), max(map(len, tables))
        slots = self.cache.slots([[*table, *[0] * (longest - len(table))] for table in tables], n)
        end = torch.tensor(lengths, device=slots.device)[:, None]
        newest, outside = slots.gather(1, end - 1), torch.arange(n, device=slots.device) >= end
        mask = torch.zeros(outside.shape, dtype=self.cache.keys.dtype, device=slots.device)
        return (newest[:, 0], torch.where(outside, newest, slots),             # an unwritten slot is never read
                mask.masked_fill(outside, -torch.inf)[:, None, None])

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.write(layer, self.slot_mapping, k[self.rows], v[self.rows])
        tails = [part(q[rows, None], *self.cache.read(layer, slots), mask=mask) for rows, (_, slots, mask) in
                 zip(self.rows.split([len(slots) for _, slots, _ in self.tails]), self.tails)]
        tail, tail_lse = (torch.cat(parts)[:, 0] for parts in zip(*tails))     # (S, H, D), (S, H, 1)
        stems = [part(queries[None], *(x[None] for x in stem[layer])) if stem else (
            torch.zeros_like(queries)[None], torch.full_like(tail_lse[None, :len(queries)], -torch.inf))
            for queries, (stem, _) in zip(q.split([count for _, count in self.stems]), self.stems)]
        whole, whole_lse = (torch.cat(parts, dim=1)[0] for parts in zip(*stems))
        return merge(whole, whole_lse, tail[self.back], tail_lse[self.back])


class Room(NamedTuple):
    """What a KernelPaged can hold, at most; by powers of two, so that a few of them do for a whole rollout.

    >>> Room.for_step(answers=13, group=5, stem_tokens=5000, tail_tokens=90)
    Room(answers=16, group=8, stem_tokens=8192, tail_tokens=256)
    """

    answers: int
    group: int                          # answers that share a stem
    stem_tokens: int
    tail_tokens: int

    @classmethod
    def for_step(cls, answers: int, group: int, stem_tokens: int, tail_tokens: int) -> "Room":
        least = (8, 1, 256, 256)
        return cls(*(max(low, 1 << (n - 1).bit_length()) for low, n in zip(least, (answers, group, stem_tokens,
                                                                                  tail_tokens))))


class KernelPaged:
    """SharedPaged for a GPU, by kernels.paged_attention. All that changes from step to step lies in one buffer that
    `load` fills, with one copy to the device: so the step's launches can be recorded once and replayed (a CUDA graph).

    Rows of the batch behind the last answer stand for nobody: they see no tokens, and write into the spare slot."""

    def __init__(self, cache: KVCache, room: Room):
        self.cache, self.room = cache, room
        A, block_size = room.answers, cache.block_size
        widths = [blocks_for(tokens, block_size) for tokens in (room.stem_tokens, room.tail_tokens)]
        shapes = [(A,), (A,), (A,), (A, 3), (A, 3), *((A, width) for width in widths)]
        sizes = [torch.Size(shape).numel() for shape in shapes]
        self.host = torch.zeros(sum(sizes), dtype=torch.int32, pin_memory=cache.device.type == "cuda")
        self.buffer = torch.zeros_like(self.host, device=cache.device)
        self.on_host = [x.view(shape).numpy() for x, shape in zip(self.host.split(sizes), shapes)]
        self.ids, self.positions, self.slots, *of = (x.view(s) for x, s in zip(self.buffer.split(sizes), shapes))
        self.written = [[None] * A, [None] * A]                # block tables of stems and of tails as `load` left them
        self.stems, self.tails = (
            Segments(rows, tables, answers, split, blocks_for(tokens, split)) for rows, tables, answers, tokens, split in (
                (of[0], of[2], room.group, room.stem_tokens, self.split(A // room.group, room.stem_tokens)),
                (of[1], of[3], 1, room.tail_tokens, self.split(A, room.tail_tokens))))

    def split(self, segments: int, tokens: int) -> int:
        """Tokens of one program's part: so many that some hundred programs share the work, which fills a GPU."""
        wanted = segments * self.cache.keys.shape[1] * tokens // 512
        return min(tokens, max(512, 1 << wanted.bit_length()))

    def load(self, ids: Sequence[int], block_tables: Sequence[Sequence[int]], context_lens: Sequence[int],
             stems: Sequence[tuple[int, int]]) -> None:
        """The newest token of each answer, the blocks and the number of all its tokens; and for each group of
        neighbours how many tokens (whole blocks) they share, and how many answers it has. `positions` follow."""
        host_ids, positions, slots, stem_rows, tail_rows, *tables = self.on_host
        size, count = self.cache.block_size, len(ids)
        host_ids[:count], host_ids[count:] = ids, 0
        positions[:count], positions[count:] = [length - 1 for length in context_lens], 0
        slots[:count] = [table[(n - 1) // size] * size + (n - 1) % size for table, n in zip(block_tables, context_lens)]
        slots[count:] = self.cache.spare_slot
        stem_rows[len(stems):, 1:] = tail_rows[count:, 2] = 0
        tail_rows[:, 0], tail_rows[:, 1] = range(len(tail_rows)), 1
        first = 0
        for group, (shared, answers) in enumerate(stems):
            stem_rows[group] = first, answers, shared
            whole = shared // size
            self._write(tables, 0, group, block_tables[first][:whole])
            for row in range(first, first + answers):
                tail_rows[row, 2] = context_lens[row] - shared
                self._write(tables, 1, row, block_tables[row][whole:])
            first += answers
        self.buffer.copy_(self.host, non_blocking=True)

    def _write(self, tables, kind: int, row: int, blocks: Sequence[int]) -> None:
        if blocks != self.written[kind][row]:                  # comparing is much faster than writing
            tables[kind][row, :len(blocks)] = blocks
            self.written[kind][row] = list(blocks)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.write(layer, self.slots.long(), k, v)
        return paged_attention(q, self.cache.keys[layer], self.cache.values[layer], self.cache.block_size, self.stems,
                               self.tails)


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
        out = torch.empty_like(q)
        for rows, slots in zip(self.rows, self.slots):
            out[rows] = attention(q[rows, None], *self.cache.read(layer, slots), causal=False)[:, 0]
        return out
