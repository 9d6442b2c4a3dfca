"""Decoding: keys and values in blocks, and who reads which of them.

    KVCache                                        the blocks
    SharedPaged(cache, tables, lengths, stems)     one new token per answer; a group reads its stem once
    KernelPaged(cache, room)                       the same for a GPU, from buffers that stay where they are
    Paged(cache, tables, lengths)                  their plain twin: every token reads all of its own past

The last three are handed to the model as attention.Packed is: called as attend(layer, q, k, v) with q (T, H, D), k and
v (T, K, D) they return (T, H, D).

Legend: S answers, T tokens, H query heads, K key-value heads (H a multiple of K), D head width, L layers.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from kernels import Segments, paged_attention
from kernels.flash import KeysValues, attention, merge, part

from .kvcache import blocks_for

Tensor = torch.Tensor
SHORT_TAIL = 64                                                # tokens; tails below are padded without a second thought


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

    def past(self, block_table: Sequence[int], length: int) -> "Past":
        """The first `length` keys and values of a sequence, in one piece, per layer (length, K, D)."""
        return Past(self, block_table[:blocks_for(length, self.block_size)], length)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, each (from, to): the other half of BlockPool.append's copy-on-write."""
        if pairs:
            source, target = (self.slots([[block] for block in blocks], self.block_size).flatten()
                              for blocks in zip(*pairs))
            for x in (self.keys, self.values):
                x[:, :, target] = x[:, :, source]


class Past(Sequence):
    """KeysValues of what a sequence begins with: where they lie, if its blocks follow one another, and good as long as
    those are owned; else a copy, made of a layer whenever it is asked for. Of all layers at once it would be as large
    as a prompt in the cache: 10 GB for 49,152 tokens of a 14B model."""

    def __init__(self, cache: KVCache, blocks: Sequence[int], length: int):
        self.cache, first = cache, blocks[0] * cache.block_size
        adjacent = list(blocks) == list(range(blocks[0], blocks[0] + len(blocks)))
        self.slots = slice(first, first + length) if adjacent else cache.slots([blocks], length)[0]

    def __len__(self) -> int:
        return len(self.cache.keys)

    def __getitem__(self, layer: int) -> tuple[Tensor, Tensor]:
        if isinstance(self.slots, slice):
            return tuple(x[layer, :, self.slots].transpose(0, 1) for x in (self.cache.keys, self.cache.values))
        return self.cache.read(layer, self.slots)


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

    >>> Room.for_step(answers=13, groups=3, group_size=5, stem_tokens=5000, tail_tokens=90)
    Room(answers=16, groups=4, group_size=8, stem_tokens=8192, tail_tokens=256)
    """

    answers: int
    groups: int
    group_size: int                     # answers that share a stem
    stem_tokens: int
    tail_tokens: int

    @classmethod
    def for_step(cls, answers: int, groups: int, group_size: int, stem_tokens: int, tail_tokens: int) -> "Room":
        sizes = (answers, groups, group_size, stem_tokens, tail_tokens)
        return cls(*(max(least, 1 << (n - 1).bit_length()) for n, least in zip(sizes, (8, 1, 1, 256, 256))))


class KernelPaged:
    """SharedPaged for a GPU, by kernels.paged_attention. All that changes from step to step lies in one buffer, which
    `load` fills with one copy to the device: so a step's launches can be recorded once and replayed (generate.Step).

    Rows of the batch behind the last answer stand for nobody: they see no token, and write into the spare slot.
    ids, positions (answers,) are what the model is to be called with."""

    def __init__(self, cache: KVCache, room: Room):
        self.cache, self.room = cache, room
        A, M = room.answers, room.groups
        stem_blocks, tail_blocks = (blocks_for(n, cache.block_size) for n in (room.stem_tokens, room.tail_tokens))
        shapes = {"ids": (A,), "positions": (A,), "slots": (A,), "stems": (M, 3), "tails": (A, 3),
                  "stem_blocks": (M, stem_blocks), "tail_blocks": (A, tail_blocks)}
        sizes = [math.prod(shape) for shape in shapes.values()]
        self.host = torch.zeros(sum(sizes), dtype=torch.int32, pin_memory=cache.device.type == "cuda")
        self.buffer = torch.zeros_like(self.host, device=cache.device)
        here, there = ({name: piece.view(shape) for (name, shape), piece in zip(shapes.items(), whole.split(sizes))}
                       for whole in (self.host, self.buffer))
        self.values = {name: x.numpy() for name, x in here.items()}            # on the host, to be filled
        self.values["tails"][:, 0], self.values["tails"][:, 1] = range(A), 1   # every row has a tail of its own
        self.ids, self.positions, self.slots = there["ids"], there["positions"], there["slots"]
        self.stems = self._segments(there["stems"], there["stem_blocks"], room.group_size, room.stem_tokens)
        self.tails = self._segments(there["tails"], there["tail_blocks"], 1, room.tail_tokens)
        self.owners = [None] * M                               # whose blocks stand in a row of stem_blocks
        self.written = {}                                      # row: the blocks that stand in it, of tail_blocks

    def _segments(self, rows: Tensor, tables: Tensor, answers: int, tokens: int) -> Segments:
        """Long segments go in parts of at least 512 tokens; if all are as long as they can be, 512 programs or more
        share the work, which fills a GPU."""
        programs = len(rows) * self.cache.keys.shape[1]                        # if nothing were split
        split = min(tokens, max(512, 1 << (programs * tokens // 512).bit_length() - 1))
        return Segments(rows, tables, answers, split, blocks_for(tokens, split))

    def load(self, ids: Sequence[int], block_tables: Sequence[Sequence[int]], context_lens: Sequence[int],
             stems: Sequence[tuple[object, int, int]]) -> None:
        """The newest token of each answer, the blocks and the number of all its tokens; and for each group of
        neighbours an object that stands for what they share (as long as it is the same one, so are the blocks), how
        many tokens that are, whole blocks, and how many answers it has."""
        to, size, count = self.values, self.cache.block_size, len(ids)
        last = [length - 1 for length in context_lens]
        to["ids"][:count], to["positions"][:count] = ids, last
        to["slots"][:count] = [table[n // size] * size + n % size for table, n in zip(block_tables, last)]
        to["slots"][count:] = self.cache.spare_slot
        to["positions"][count:] = to["stems"][len(stems):] = to["tails"][count:, 2] = 0
        first = 0
        for group, (owner, shared, answers) in enumerate(stems):
            to["stems"][group] = first, answers, shared
            if self.owners[group] is not owner:
                to["stem_blocks"][group, :shared // size] = block_tables[first][:shared // size]
                self.owners[group] = owner
            for row in range(first, first + answers):
                to["tails"][row, 2] = context_lens[row] - shared
                blocks = block_tables[row][shared // size:]
                if self.written.get(row) != blocks:                            # to compare is much faster than to write
                    to["tail_blocks"][row, :len(blocks)] = self.written[row] = blocks
            first += answers
        self.buffer.copy_(self.host, non_blocking=True)

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
