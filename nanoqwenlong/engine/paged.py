"""The keys and values of running sequences, in blocks, and decoding steps over them with torch alone.

    KVCache        stores the blocks
    SharedPaged    attention of a decoding step: a group reads its stem once
    TorchDecoder   logits of a decoding step. cuda_step.CudaDecoder is the same for a GPU

Legend: S answers, T tokens, L layers, H query heads, K key-value heads, D head width, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby

import torch
from kernels import linear_logits
from kernels.flash import KeysValues, merge, part

from .kvcache import blocks_for
from .schedule import Answer

Tensor = torch.Tensor
SHORT_TAIL = 64                 # tokens. Shorter tails share a call
WORTH_SHARING = 512             # answers x stem tokens. Below it, a stem is read as a part of each tail: fewer calls


class KVCache:
    """Keys and values of all layers, in blocks of `block_size` tokens. kvcache.BlockPool decides who owns a block.

    A token's place is a slot: slot = block * block_size + offset. The slots of one head lie next to each other, so
    consecutive blocks are one piece. One more block than the pool has holds `spare_slot`, where padding is written."""

    def __init__(self, num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int,
                 dtype: torch.dtype, device: torch.device):
        shape = (num_layers, num_kv_heads, (num_blocks + 1) * block_size, head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)             # (L, K, slots, D)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.block_size, self.spare_slot, self.device = block_size, num_blocks * block_size, device

    def slots(self, block_tables: Sequence[Sequence[int]], length: int) -> Tensor:
        """The slots (S, length) of the first `length` tokens of each sequence."""
        num_blocks = blocks_for(length, self.block_size)
        tables = [table[:num_blocks] for table in block_tables]
        blocks = torch.tensor(tables, device=self.device)[:, :, None]          # (S, num_blocks, 1)
        offsets = torch.arange(self.block_size, device=self.device)
        return (blocks * self.block_size + offsets).flatten(1)[:, :length]

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Stores k and v (T, K, D) in the slots (T,)."""
        self.keys[layer].index_copy_(1, slots, k.transpose(0, 1))
        self.values[layer].index_copy_(1, slots, v.transpose(0, 1))

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values at the slots (...), each (..., K, D)."""
        flat = slots.flatten()
        keys = self.keys[layer].index_select(1, flat).transpose(0, 1)          # (T, K, D)
        values = self.values[layer].index_select(1, flat).transpose(0, 1)
        return keys.unflatten(0, slots.shape), values.unflatten(0, slots.shape)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks, each (from, to). This completes the copy-on-write of BlockPool.append."""
        if not pairs:
            return
        source = self.slots([[block] for block, _ in pairs], self.block_size).flatten()
        target = self.slots([[block] for _, block in pairs], self.block_size).flatten()
        for x in (self.keys, self.values):
            x[:, :, target] = x[:, :, source]


class PastKeysValues(Sequence):
    """Per layer: the keys and values of a sequence's first `length` tokens, each (length, K, D).

    They are views of the cache if the blocks are consecutive, valid while these are owned. If not, each access copies
    one layer. All layers at once would be as large as the cached prompt: 10 GB for 49,152 tokens of a 14B model."""

    def __init__(self, cache: KVCache, block_table: Sequence[int], length: int):
        self.cache, first = cache, block_table[0] * cache.block_size
        blocks = block_table[:blocks_for(length, cache.block_size)]
        consecutive = list(blocks) == list(range(blocks[0], blocks[0] + len(blocks)))
        self.slots = slice(first, first + length) if consecutive else cache.slots([blocks], length)[0]

    def __len__(self) -> int:
        return len(self.cache.keys)

    def __getitem__(self, layer: int) -> tuple[Tensor, Tensor]:
        if not isinstance(self.slots, slice):
            return self.cache.read(layer, self.slots)
        keys, values = self.cache.keys[layer, :, self.slots], self.cache.values[layer, :, self.slots]      # (K, P, D)
        return keys.transpose(0, 1), values.transpose(0, 1)


class SharedPaged:
    """The model's `attend` for one new token per answer: attend(layer, q, k, v) with q (S, H, D), k and v (S, K, D) ->
    (S, H, D). Keys and values go to the cache. A query attends to the stem of its group, in one product with the
    group's other answers, and to its own tail. The two parts are merged.

    context_lens: tokens of each sequence, the new one included. Its block must already be in the block table.
    stems: per group of neighbours (keys and values of the stem's full blocks or empty, number of answers). What follows
    them is each answer's tail."""

    def __init__(self, cache: KVCache, block_tables: Sequence[Sequence[int]], context_lens: Sequence[int],
                 stems: Sequence[tuple[KeysValues, int]]):
        self.cache, self.stems = cache, stems
        stem_lens = []                                         # per answer
        for stem, count in stems:
            stem_lens += [len(stem[0][0]) if stem else 0] * count
        tail_lens = [length - start for length, start in zip(context_lens, stem_lens, strict=True)]
        rows_by_size = defaultdict(list)                       # lengths within a factor of 2 share a call
        for row, length in enumerate(tail_lens):
            rows_by_size[max(length, SHORT_TAIL).bit_length()].append(row)
        self.rows = torch.tensor([row for rows in rows_by_size.values() for row in rows], device=cache.device)
        self.inverse = self.rows.argsort()                     # from the order of the tails to that of the answers
        self.tails = []
        for rows in rows_by_size.values():
            tables = [block_tables[row][stem_lens[row] // cache.block_size:] for row in rows]
            self.tails.append(self._tails(tables, [tail_lens[row] for row in rows]))
        self.slot_mapping = torch.cat([newest for newest, _, _ in self.tails])             # (S,), in the order of rows

    def _tails(self, tables: list[Sequence[int]], lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Slots of the newest tokens (s,), slots of all tokens (s, n), and the mask of the padding (s, 1, 1, n)."""
        n, most_blocks = max(lengths), max(map(len, tables))
        padded_tables = [[*table, *[0] * (most_blocks - len(table))] for table in tables]
        slots = self.cache.slots(padded_tables, n)
        end = torch.tensor(lengths, device=slots.device)[:, None]
        newest = slots.gather(1, end - 1)                                      # (s, 1)
        is_padding = torch.arange(n, device=slots.device) >= end               # (s, n)
        slots = torch.where(is_padding, newest, slots)                         # never read a slot that was not written
        mask = torch.zeros(is_padding.shape, dtype=self.cache.keys.dtype, device=slots.device)
        return newest[:, 0], slots, mask.masked_fill(is_padding, -torch.inf)[:, None, None]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.write(layer, self.slot_mapping, k[self.rows], v[self.rows])
        # 1. Tails: one call per size.
        tails = []
        rows_by_call = self.rows.split([len(slots) for _, slots, _ in self.tails])
        for rows, (_, slots, mask) in zip(rows_by_call, self.tails):
            keys, values = self.cache.read(layer, slots)
            tails.append(part(q[rows, None], keys, values, mask=mask))
        tail, tail_lse = (torch.cat(parts)[:, 0] for parts in zip(*tails))     # (S, H, D), (S, H, 1)
        # 2. Stems: one call per group. No stem: a part of weight 0.
        stems = []
        for queries, (stem, count) in zip(q.split([count for _, count in self.stems]), self.stems):
            if stem:
                keys, values = stem[layer]
                stems.append(part(queries[None], keys[None], values[None]))
            else:
                stems.append((torch.zeros_like(queries)[None], torch.full_like(tail_lse[None, :count], -torch.inf)))
        stem_out, stem_lse = (torch.cat(parts, dim=1)[0] for parts in zip(*stems))
        # 3. Merge.
        return merge(stem_out, stem_lse, tail[self.inverse], tail_lse[self.inverse])


def by_prompt(running: Sequence[Answer]) -> list[list[Answer]]:
    """The running answers in groups, one per prompt, in order."""
    return [list(group) for _, group in groupby(running, key=lambda answer: answer.prompt)]


class TorchDecoder:
    """Logits of decoding steps by SharedPaged."""

    def __init__(self, model, cache: KVCache):
        self.model, self.cache = model, cache

    def logits(self, running: Sequence[Answer]) -> Tensor:
        """Next-token logits (S, V), after the last token of each running answer."""
        block_size, stems = self.cache.block_size, []
        for group in by_prompt(running):
            stem = group[0].stem
            full_tokens = len(stem.ids) // block_size * block_size
            is_shared = full_tokens > 0 and len(group) * len(stem.ids) >= WORTH_SHARING
            if is_shared and not stem.keys_values:             # views, or copies that live while its answers run
                stem.keys_values = list(PastKeysValues(self.cache, stem.table, full_tokens))
            stems.append((stem.keys_values if is_shared else (), len(group)))
        context_lens = [answer.context_len for answer in running]
        attend = SharedPaged(self.cache, [answer.table for answer in running], context_lens, stems)
        ids = torch.tensor([answer.last_id for answer in running], device=self.cache.device)
        positions = torch.tensor(context_lens, device=self.cache.device) - 1
        return self.model(ids, positions, attend, head=linear_logits)[0]
