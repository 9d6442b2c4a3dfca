"""Decoding on a GPU: kernels.paged_attention over buffers that never move, so that a CUDA graph can replay a step.
Without a GPU: no graphs, and the torch reference of the kernel. S answers, M groups (one per prompt), V vocabulary.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from kernels import Segments, is_one_call, linear_logits, paged_attention, use_triton

from .kvcache import blocks_for
from .paged import KVCache, by_prompt
from .schedule import Answer

Tensor = torch.Tensor


def is_capturable(model) -> bool:
    """Whether a CUDA graph can capture a pass: not if it has to fetch how many tokens chose each expert."""
    c = model.config
    return c.num_experts == 0 or is_one_call(model.device, model.dtype, c.hidden_size, c.moe_intermediate_size)


class Capacity(NamedTuple):
    """The largest batch that a KernelPaged holds. Sizes are powers of two, so a rollout needs only a few of them."""

    answers: int
    groups: int
    group_size: int                     # answers that share a stem
    stem_tokens: int
    tail_tokens: int

    @classmethod
    def of(cls, groups: Sequence[Sequence[Answer]], block_size: int) -> "Capacity":
        """The smallest one that holds these groups."""
        answers = sum(groups, [])
        stem_tokens = [len(answer.stem.ids) // block_size * block_size for answer in answers]
        tail_tokens = [answer.context_len - stem for answer, stem in zip(answers, stem_tokens)]
        sizes = (len(answers), len(groups), max(map(len, groups)), max(stem_tokens), max(tail_tokens))
        return cls(*(max(least, 1 << (size - 1).bit_length()) for size, least in zip(sizes, (8, 1, 1, 256, 256))))


class KernelPaged:
    """The model's `attend`, like paged.SharedPaged. All inputs of a step lie in one buffer, which `load` fills in one
    copy. Rows after the last answer are padding: they see no token and write to the cache's spare slot."""

    def __init__(self, cache: KVCache, capacity: Capacity):
        self.cache, self.capacity = cache, capacity
        S, M = capacity.answers, capacity.groups
        shapes = {"ids": (S,), "positions": (S,), "slots": (S,), "stems": (M, 3), "tails": (S, 3),
                  "stem_blocks": (M, blocks_for(capacity.stem_tokens, cache.block_size)),
                  "tail_blocks": (S, blocks_for(capacity.tail_tokens, cache.block_size))}
        total = sum(map(math.prod, shapes.values()))
        self.host = torch.zeros(total, dtype=torch.int32, pin_memory=cache.device.type == "cuda")
        self.buffer = torch.zeros_like(self.host, device=cache.device)
        self.arrays = {name: view.numpy() for name, view in views(self.host, shapes).items()}
        self.arrays["tails"][:, :2] = [(row, 1) for row in range(S)]           # first answer and number of answers
        device = views(self.buffer, shapes)
        self.ids, self.positions, self.slots = device["ids"], device["positions"], device["slots"]
        self.stems = self._segments(device["stems"], device["stem_blocks"], capacity.group_size, capacity.stem_tokens)
        self.tails = self._segments(device["tails"], device["tail_blocks"], 1, capacity.tail_tokens)
        self.loaded_stems, self.loaded_tails = [None] * M, [[]] * S            # what the rows of the block tables hold

    def _segments(self, rows: Tensor, tables: Tensor, answers: int, tokens: int) -> Segments:
        """Segments in parts of at least 512 tokens. The longest segments make 512 programs, which fills a GPU."""
        unsplit_programs = len(rows) * self.cache.keys.shape[1]
        split = min(tokens, max(512, 1 << (unsplit_programs * tokens // 512).bit_length() - 1))
        return Segments(rows, tables, answers, split, blocks_for(tokens, split))

    def load(self, groups: Sequence[Sequence[Answer]]) -> None:
        """Sets the batch of the next call: the running answers, one group per prompt. A group shares the full blocks of
        its stem. Writing blocks is slow: a row that keeps its stem or the blocks of its tail keeps what it holds."""
        arrays, block_size, rows = self.arrays, self.cache.block_size, []      # rows: id, position, slot, tail's tokens
        for number, group in enumerate(groups):
            stem = group[0].stem
            stem_blocks = len(stem.ids) // block_size
            stem_tokens = stem_blocks * block_size
            arrays["stems"][number] = len(rows), len(group), stem_tokens
            if self.loaded_stems[number] is not stem:
                arrays["stem_blocks"][number, :stem_blocks] = group[0].table[:stem_blocks]
                self.loaded_stems[number] = stem
            for answer in group:
                row, position, tail = len(rows), answer.context_len - 1, answer.table[stem_blocks:]
                if self.loaded_tails[row] != tail:
                    arrays["tail_blocks"][row, :len(tail)] = tail
                    self.loaded_tails[row] = tail
                slot = answer.table[position // block_size] * block_size + position % block_size
                rows.append((answer.last_id, position, slot, position + 1 - stem_tokens))
        rows += (self.capacity.answers - len(rows)) * [(0, 0, self.cache.spare_slot, 0)]
        arrays["ids"][:], arrays["positions"][:], arrays["slots"][:], arrays["tails"][:, 2] = zip(*rows)
        arrays["stems"][len(groups):] = 0
        self.buffer.copy_(self.host, non_blocking=True)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.write(layer, self.slots.long(), k, v)
        return paged_attention(q, self.cache.keys[layer], self.cache.values[layer], self.cache.block_size, self.stems,
                               self.tails)


def views(buffer: Tensor, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensors of these shapes that lie in the buffer one after another."""
    parts = buffer.split(list(map(math.prod, shapes.values())))
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts)}


class CudaDecoder:
    """Logits of decoding steps by paged_attention. On a GPU the second step of a Capacity becomes a CUDA graph. Make
    one decoder per rollout: graphs hold addresses of weights, and a pool whose last graph has died takes none."""

    def __init__(self, model, cache: KVCache):
        self.model, self.cache = model, cache
        self.attends: dict[Capacity, KernelPaged] = {}
        self.graphs: dict[Capacity, tuple | None] = {}         # (graph, its logits), or None after the first step
        self.can_record = use_triton(cache.device) and is_capturable(model)
        self.graph_pool = torch.cuda.graph_pool_handle() if cache.device.type == "cuda" else None

    def logits(self, running: Sequence[Answer]) -> Tensor:
        """Next-token logits (S, V), after the last token of each running answer. The next call overwrites them."""
        groups = by_prompt(running)
        capacity = Capacity.of(groups, self.cache.block_size)
        if capacity not in self.attends:
            self.attends[capacity] = KernelPaged(self.cache, capacity)
        self.attends[capacity].load(groups)
        return self.step(self.attends[capacity])[:len(running)]                # the other rows are padding

    def step(self, attend: KernelPaged) -> Tensor:
        capacity = attend.capacity
        if capacity not in self.graphs or not self.can_record:
            self.graphs[capacity] = None
            return self.forward(attend)
        if self.graphs[capacity] is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self.graph_pool):                # records without computing
                self.graphs[capacity] = graph, self.forward(attend)
        graph, logits = self.graphs[capacity]
        graph.replay()
        return logits

    def forward(self, attend: KernelPaged) -> Tensor:
        return self.model(attend.ids, attend.positions, attend, head=linear_logits)[0]
