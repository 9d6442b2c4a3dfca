"""The keys and values of running sequences, in blocks, and decoding steps over them with torch alone.
S answers, T tokens, L layers, H query heads, K key-value heads, D head width, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby

import torch
from kernels import linear_logits
from kernels.flash import merge, part

from .kvcache import blocks_for
from .schedule import Answer

Tensor = torch.Tensor
SHORT_TAIL = 64                 # tokens. Shorter tails share a call
WORTH_SHARING = 512             # answers x stem tokens. Below it, a stem is read as a part of each tail: fewer calls


class KVCache:
    """Keys and values of all layers, in the blocks of a BlockPool. A token's slot is block * block_size + offset.
    Consecutive blocks are one piece of memory. Padding goes to `spare_slot`, in a block that the pool does not have."""

    def __init__(self, num_layers: int, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int,
                 dtype: torch.dtype, device: torch.device):
        shape = (num_layers, num_kv_heads, (num_blocks + 1) * block_size, head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)             # (L, K, slots, D)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.block_size, self.spare_slot, self.device = block_size, num_blocks * block_size, device

    def slots(self, block_tables: Sequence[Sequence[int]], length: int) -> Tensor:
        """The slots (S, length) of the first `length` tokens of each sequence."""
        num_blocks = blocks_for(length, self.block_size)
        blocks = torch.tensor([table[:num_blocks] for table in block_tables], device=self.device)
        slots = blocks[:, :, None] * self.block_size + torch.arange(self.block_size, device=self.device)
        return slots.flatten(1)[:, :length]                                    # from (S, num_blocks, block_size)

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Stores k and v (T, K, D) in the slots (T,)."""
        self.keys[layer].index_copy_(1, slots, k.transpose(0, 1))
        self.values[layer].index_copy_(1, slots, v.transpose(0, 1))

    def read(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values at the slots (...), each (..., K, D)."""
        flat = slots.flatten()
        keys, values = (x[layer].index_select(1, flat).transpose(0, 1) for x in (self.keys, self.values))  # (T, K, D)
        return keys.unflatten(0, slots.shape), values.unflatten(0, slots.shape)

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copies whole blocks, each (from, to): the pairs of BlockPool.append."""
        if pairs:
            source, target = self.slots(list(zip(*pairs)), len(pairs) * self.block_size)
            self.keys[:, :, target] = self.keys[:, :, source]
            self.values[:, :, target] = self.values[:, :, source]


class PastKeysValues(Sequence):
    """Per layer: the keys and values of a sequence's first `length` tokens, each (length, K, D). If the blocks are
    consecutive: views. If not: each access copies one layer. All would be 10 GB for 49,152 tokens of a 14B model."""

    def __init__(self, cache: KVCache, block_table: Sequence[int], length: int):
        self.cache, start = cache, block_table[0] * cache.block_size
        blocks = list(block_table[:blocks_for(length, cache.block_size)])
        is_consecutive = blocks == list(range(blocks[0], blocks[0] + len(blocks)))
        self.slots = slice(start, start + length) if is_consecutive else cache.slots([blocks], length)[0]

    def __len__(self) -> int:
        return len(self.cache.keys)

    def __getitem__(self, layer: int) -> tuple[Tensor, Tensor]:
        if not isinstance(self.slots, slice):
            return self.cache.read(layer, self.slots)
        keys, values = self.cache.keys[layer, :, self.slots], self.cache.values[layer, :, self.slots]      # (K, T, D)
        return keys.transpose(0, 1), values.transpose(0, 1)


def by_prompt(running: Sequence[Answer]) -> list[list[Answer]]:
    """The running answers in groups, one per prompt, in order."""
    return [list(group) for _, group in groupby(running, key=lambda answer: answer.prompt)]


class SharedPaged:
    """The model's `attend` for one new token per answer, with `ids` and `positions` (S,): attend(layer, q (S, H, D), k
    (S, K, D), v) -> (S, H, D). Stores k and v. Each answer must already have a block for its new token. A query attends
    to the full blocks of its group's stem, in one call for the group, and to the tokens after them, its tail."""

    def __init__(self, cache: KVCache, running: Sequence[Answer]):
        self.cache, device = cache, cache.device
        self.ids = torch.tensor([answer.last_id for answer in running], device=device)
        self.positions = torch.tensor([answer.context_len for answer in running], device=device) - 1
        self.stems, self.tails = [], []    # (keys and values or (), answers) per group, (rows, slots, mask) per size
        tables, lengths = [], []                               # of the tails
        for group in by_prompt(running):
            stem = group[0].stem
            shared_blocks = len(stem.ids) // cache.block_size if len(group) * len(stem.ids) >= WORTH_SHARING else 0
            shared_tokens = shared_blocks * cache.block_size
            if shared_tokens and not stem.keys_values:         # views, or copies that live while its answers run
                stem.keys_values = list(PastKeysValues(cache, stem.table, shared_tokens))
            self.stems.append((stem.keys_values if shared_tokens else (), len(group)))
            tables += [answer.table[shared_blocks:] for answer in group]
            lengths += [answer.context_len - shared_tokens for answer in group]
        rows_by_size = defaultdict(list)                       # lengths within a factor of 2 share a call
        for row, length in enumerate(lengths):
            rows_by_size[max(length, SHORT_TAIL).bit_length()].append(row)
        for rows in rows_by_size.values():
            most_blocks, longest = max(len(tables[row]) for row in rows), max(lengths[row] for row in rows)
            slots = cache.slots([tables[row] + [0] * (most_blocks - len(tables[row])) for row in rows], longest)
            places = torch.arange(longest, device=device)
            newest = torch.tensor([lengths[row] for row in rows], device=device)[:, None] - 1      # (s, 1)
            slots = slots.gather(1, places.minimum(newest))    # padding repeats the newest token: all slots are written
            mask = torch.zeros(slots.shape, dtype=cache.keys.dtype, device=device)                 # (s, n)
            mask = mask.masked_fill(places > newest, -torch.inf)[:, None, None]
            self.tails.append((torch.tensor(rows, device=device), slots, mask))
        self.inverse = torch.cat([rows for rows, _, _ in self.tails]).argsort()            # from tails to answers
        self.slot_mapping = torch.cat([slots[:, -1] for _, slots, _ in self.tails])[self.inverse]          # (S,)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.write(layer, self.slot_mapping, k, v)
        tails = [part(q[rows, None], *self.cache.read(layer, slots), mask=mask) for rows, slots, mask in self.tails]
        tail, tail_lse = (torch.cat(parts)[:, 0][self.inverse] for parts in zip(*tails))   # (S, H, D), (S, H, 1)
        stems = []                                             # one call per group. No stem: a part of weight 0
        for queries, (stem, count) in zip(q.split([count for _, count in self.stems]), self.stems):
            if stem:
                stems.append(part(queries[None], *(x[None] for x in stem[layer])))
            else:
                stems.append((torch.zeros_like(queries)[None], torch.full_like(tail_lse[None, :count], -torch.inf)))
        stem_out, stem_lse = (torch.cat(parts, dim=1)[0] for parts in zip(*stems))
        return merge(stem_out, stem_lse, tail, tail_lse)


class TorchDecoder:
    """Logits of decoding steps by SharedPaged. cuda_step.CudaDecoder is the same for a GPU."""

    def __init__(self, model, cache: KVCache):
        self.model, self.cache = model, cache

    def logits(self, running: Sequence[Answer]) -> Tensor:
        """Next-token logits (S, V), after the last token of each running answer."""
        attend = SharedPaged(self.cache, running)
        return self.model(attend.ids, attend.positions, attend, head=linear_logits)[0]
