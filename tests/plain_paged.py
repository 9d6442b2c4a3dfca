"""The slow reference for decoding: every token reads all of its past by itself.

So its attention is bitwise independent of the rest of the batch, and of how a prompt was cut into chunks. The product's
forms group tokens as the batch has them, and agree with it up to rounding.
"""

from collections import defaultdict
from collections.abc import Sequence

import torch
from kernels import linear_logits
from kernels.flash import attention

from nanoqwenlong.attention import pack
from nanoqwenlong.engine.paged import KVCache, PastKeysValues, TorchDecoder
from nanoqwenlong.generate import Generator, chunks

Tensor = torch.Tensor


class Paged:
    """An `attend` for T new tokens, each with the block table and the length of its sequence up to it. A token's key
    and value go to the cache, then it reads all of its past there. Tokens with pasts of equal length share a call."""

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


class PlainDecoder(TorchDecoder):
    def logits(self, running) -> Tensor:
        lengths = [answer.context_len for answer in running]
        attend = Paged(self.cache, [answer.table for answer in running], lengths)
        ids = torch.tensor([answer.last_id for answer in running], device=self.cache.device)
        positions = torch.tensor(lengths, device=self.cache.device) - 1
        return self.model(ids, positions, attend, head=linear_logits)[0]


class PlainGenerator(Generator):
    """A Generator whose prefill and decoding both use Paged."""

    def _open_cache(self) -> None:
        super()._open_cache()
        self.decoder = PlainDecoder(self.model, self.cache)

    def _prefill(self, spans) -> None:
        for batch in chunks(spans, self.prefill_tokens):
            _, table, start = batch[0]
            ids, positions, _ = pack([chunk for chunk, _, _ in batch], self.model.device,
                                     PastKeysValues(self.cache, table, start) if start else None)
            tables = [table for chunk, table, _ in batch for _ in chunk]
            attend = Paged(self.cache, tables, (positions + 1).tolist())
            _, keys_values = self.model(ids, positions, attend)
            for layer, (k, v) in enumerate(keys_values):       # the last layer did not call attend: no head was wanted
                self.cache.write(layer, attend.slot_mapping, k, v)
