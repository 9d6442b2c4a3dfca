"""Decoding on a GPU: kernels.paged_attention over buffers that never move, so that a CUDA graph can replay a step.

    CudaDecoder    logits of a decoding step, by one Step per Capacity
    Step           one decoding step of the model, recorded as a CUDA graph
    KernelPaged    the step's inputs and its attention

Without a GPU it runs without graphs and with the torch reference of paged_attention, which the tests use.
Legend: S answers, M groups (one per prompt), V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from kernels import Segments, linear_logits, paged_attention, use_triton

from .kvcache import blocks_for
from .paged import KVCache, by_prompt
from .schedule import Answer

Tensor = torch.Tensor


class Capacity(NamedTuple):
    """The largest batch that a KernelPaged holds. Sizes are powers of two, so a rollout needs only a few of them.

    >>> Capacity.for_step(answers=13, groups=3, group_size=5, stem_tokens=5000, tail_tokens=90)
    Capacity(answers=16, groups=4, group_size=8, stem_tokens=8192, tail_tokens=256)
    """

    answers: int
    groups: int
    group_size: int                     # answers that share a stem
    stem_tokens: int
    tail_tokens: int

    @classmethod
    def for_step(cls, answers: int, groups: int, group_size: int, stem_tokens: int, tail_tokens: int) -> "Capacity":
        sizes = (answers, groups, group_size, stem_tokens, tail_tokens)
        least = (8, 1, 1, 256, 256)
        return cls(*(max(floor, 1 << (size - 1).bit_length()) for size, floor in zip(sizes, least)))


class KernelPaged:
    """The model's `attend` for one new token per answer, like paged.SharedPaged.

    All inputs that change from step to step lie in one buffer, which `load` fills with one copy to the device. So the
    launches of a step can be recorded once and replayed. Rows after the last answer are padding: they see no token and
    write to the cache's spare slot. Call the model with `ids` and `positions` (capacity.answers,)."""

    def __init__(self, cache: KVCache, capacity: Capacity):
        self.cache, self.capacity = cache, capacity
        S, M = capacity.answers, capacity.groups
        shapes = {"ids": (S,), "positions": (S,), "slots": (S,), "stems": (M, 3), "tails": (S, 3),
                  "stem_blocks": (M, blocks_for(capacity.stem_tokens, cache.block_size)),
                  "tail_blocks": (S, blocks_for(capacity.tail_tokens, cache.block_size))}
        total = sum(math.prod(shape) for shape in shapes.values())
        self.host = torch.zeros(total, dtype=torch.int32, pin_memory=cache.device.type == "cuda")
        self.buffer = torch.zeros_like(self.host, device=cache.device)
        self.host_arrays, device, start = {}, {}, 0            # views of the two buffers, by name
        for name, shape in shapes.items():
            end = start + math.prod(shape)
            self.host_arrays[name] = self.host[start:end].view(shape).numpy()
            device[name] = self.buffer[start:end].view(shape)
            start = end
        self.host_arrays["tails"][:, 0] = range(S)             # every row has its own tail: first answer, one answer
        self.host_arrays["tails"][:, 1] = 1
        self.ids, self.positions, self.slots = device["ids"], device["positions"], device["slots"]
        self.stems = self._segments(device["stems"], device["stem_blocks"], capacity.group_size, capacity.stem_tokens)
        self.tails = self._segments(device["tails"], device["tail_blocks"], 1, capacity.tail_tokens)
        self.stem_owners = [None] * M                          # whose blocks each row of stem_blocks holds
        self.tail_tables = {}                                  # row -> the blocks that it holds in tail_blocks

    def _segments(self, rows: Tensor, tables: Tensor, answers: int, tokens: int) -> Segments:
        """Segments that paged_attention splits into parts of at least 512 tokens. If all segments are as long as they
        can be, the parts make 512 programs or more, which fills a GPU."""
        unsplit_programs = len(rows) * self.cache.keys.shape[1]
        split = min(tokens, max(512, 1 << (unsplit_programs * tokens // 512).bit_length() - 1))
        return Segments(rows, tables, answers, split, blocks_for(tokens, split))

    def load(self, ids: Sequence[int], block_tables: Sequence[Sequence[int]], context_lens: Sequence[int],
             stems: Sequence[tuple[object, int, int]]) -> None:
        """Sets the batch of the next call. Per answer: its newest token, its block table, the number of its tokens.

        stems: per group of neighbours (owner, tokens, answers). `owner` is any object that stands for the stem: while a
        row has the same owner, its blocks are not copied again. `tokens` counts the stem's full blocks only."""
        arrays, block_size, count = self.host_arrays, self.cache.block_size, len(ids)
        positions = [length - 1 for length in context_lens]
        arrays["ids"][:count] = ids
        arrays["positions"][:count] = positions
        arrays["slots"][:count] = [table[position // block_size] * block_size + position % block_size
                                   for table, position in zip(block_tables, positions)]
        arrays["slots"][count:] = self.cache.spare_slot        # padding
        arrays["positions"][count:] = 0
        arrays["stems"][len(stems):] = 0
        arrays["tails"][count:, 2] = 0
        first = 0
        for group, (owner, tokens, answers) in enumerate(stems):
            full_blocks = tokens // block_size
            arrays["stems"][group] = first, answers, tokens
            if self.stem_owners[group] is not owner:
                arrays["stem_blocks"][group, :full_blocks] = block_tables[first][:full_blocks]
                self.stem_owners[group] = owner
            for row in range(first, first + answers):
                arrays["tails"][row, 2] = context_lens[row] - tokens
                tail_table = block_tables[row][full_blocks:]
                if self.tail_tables.get(row) != tail_table:    # comparing is much faster than writing
                    arrays["tail_blocks"][row, :len(tail_table)] = tail_table
                    self.tail_tables[row] = tail_table
            first += answers
        self.buffer.copy_(self.host, non_blocking=True)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.write(layer, self.slots.long(), k, v)
        return paged_attention(q, self.cache.keys[layer], self.cache.values[layer], self.cache.block_size, self.stems,
                               self.tails)


class Step:
    """One decoding step of the model over the buffers of a KernelPaged. On a GPU the second call records its launches,
    some dozens per layer, as a CUDA graph. From then on a step is one launch. Steps that share a memory pool overwrite
    each other's logits: use them before the next call."""

    def __init__(self, model, attend: KernelPaged, pool: tuple[int, int] | None = None):
        self.model, self.attend, self.pool = model, attend, pool
        self.calls, self.graph, self.logits = 0, None, None

    def __call__(self) -> Tensor:
        """Logits (capacity.answers, V). Rows of padding are meaningless."""
        self.calls += 1
        can_record = use_triton(self.attend.buffer.device) and self.model.capturable
        if self.graph is None and (self.calls == 1 or not can_record):
            self.logits = self._forward()
        elif self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, pool=self.pool):                 # records without computing
                self.logits = self._forward()
        if self.graph is not None:
            self.graph.replay()
        return self.logits

    def _forward(self) -> Tensor:
        return self.model(self.attend.ids, self.attend.positions, self.attend, head=linear_logits)[0]


class CudaDecoder:
    """Logits of decoding steps by paged_attention, with one recorded Step per Capacity. Make a new one per rollout:
    graphs hold the addresses of the weights, and a memory pool whose last graph has died cannot take new ones."""

    def __init__(self, model, cache: KVCache):
        self.model, self.cache = model, cache
        self.steps: dict[Capacity, Step] = {}
        self.graph_pool = torch.cuda.graph_pool_handle() if cache.device.type == "cuda" else None

    def logits(self, running: Sequence[Answer]) -> Tensor:
        """Next-token logits (S, V), after the last token of each running answer."""
        block_size, stems, tail_lens = self.cache.block_size, [], []
        for group in by_prompt(running):
            stem = group[0].stem
            tokens = len(stem.ids) // block_size * block_size
            stems.append((stem, tokens, len(group)))
            tail_lens += [answer.context_len - tokens for answer in group]
        capacity = Capacity.for_step(len(running), len(stems), max(count for *_, count in stems),
                                     max(tokens for _, tokens, _ in stems), max(tail_lens))
        if capacity not in self.steps:
            self.steps[capacity] = Step(self.model, KernelPaged(self.cache, capacity), self.graph_pool)
        step = self.steps[capacity]
        ids, tables, context_lens = zip(*((a.last_id, a.table, a.context_len) for a in running))
        step.attend.load(ids, tables, context_lens, stems)
        return step()[:len(running)]
