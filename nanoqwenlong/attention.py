"""Who attends to whom. The model hands every layer's queries, keys and values to one of these objects.

Legend: T packed tokens, S sequences, H query heads, K key-value heads (H a multiple of K), D head width.

    Packed(cu_seqlens)                             whole sequences, one after another: training and prefill
    Paged(cache, block_tables, context_lens)       one new token per sequence against its cached past: decode

Both are called as attend(layer, q, k, v) with q (T, H, D), k and v (T, K, D) and return (T, H, D).
"""

from collections import defaultdict
from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F

from .kvcache import blocks_for

Tensor = torch.Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for B sequences of equal length: q (B, Tq, H, D), k and v (B, Tk, K, D) -> like q.
    Query head h reads key-value head h // (H / K)."""
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=causal,
                                         enable_gqa=q.shape[2] != k.shape[2])
    return out.transpose(1, 2)


class Packed:
    """S sequences in one row of T tokens; a token attends to itself and to what precedes it in its own sequence.

    cu_seqlens: S + 1 offsets, 0 first and T last."""

    def __init__(self, cu_seqlens: Sequence[int]):
        self.lengths = [end - start for start, end in zip(cu_seqlens, cu_seqlens[1:])]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pieces = zip(q.split(self.lengths), k.split(self.lengths), v.split(self.lengths))
        return torch.cat([attention(q[None], k[None], v[None], causal=True)[0] for q, k, v in pieces])


def pack(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor, Packed]:
    """Sequences of token ids as the model takes them: ids (T,), positions (T,) that start anew in each, and who attends
    to whom."""
    lengths = [len(sequence) for sequence in sequences]
    ids = torch.tensor([token for sequence in sequences for token in sequence], device=device)
    positions = torch.cat([torch.arange(length, device=device) for length in lengths])
    return ids, positions, Packed([0, *accumulate(lengths)])


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

    def copy_blocks(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy whole blocks, each (from, to): the other half of BlockPool.append's copy-on-write."""
        if pairs:
            source, target = self.slots([[a] for a, _ in pairs], self.block_size), self.slots(
                [[b] for _, b in pairs], self.block_size)
            self.keys[:, target] = self.keys[:, source]
            self.values[:, target] = self.values[:, source]


class Paged:
    """One new token per sequence: its key and value go into the cache, then it attends to the whole sequence there.

    context_lens: tokens of each sequence, the new one included; its place must already be in the block table.
    Sequences of equal length share one call, so a sequence's numbers do not depend on who else is in the batch."""

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
