"""Rollouts: the prompt runs once, its blocks are forked, the G answers decode together.

Legend: S answers decoding together, V vocabulary. The stem (the prompt without its last token) is prefilled once per
group and its blocks are forked for the G answers; the last prompt token is then fed G times, so the first decoding step
is like all others. schedule.py says who runs: answers leave as they end and others enter, prompt after prompt. Every
answer has random numbers of its own, a function of (seed, key, sample index), so its tokens do not depend on what else
is in the batch, on the block size, on the pool, or on whether it was interrupted.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import groupby

import torch
from kernels import linear_logits, use_triton

from . import parallel
from .attention import pack
from .engine.kvcache import BlockPool
from .engine.paged import KernelPaged, KVCache, Paged, Room, SharedPaged
from .engine.schedule import Answer, Schedule, Stem
from .errors import OutOfBlocks
from .records import Completion, Group

Tensor = torch.Tensor
WORTH_SHARING = 512             # answers x stem tokens; below, a stem is read with its answers' tails: fewer calls

from .errors import NaNLogits, SamplingError


class Generator:
    """Samples from a model with a paged KV cache of `num_blocks` blocks of `block_size` tokens, which takes memory only
    while it samples. With several ranks all call `sample` alike, each answers its share of the prompts, and all get all
    answers; the weights are in one piece meanwhile (parallel.whole).

    prefill_tokens: prompt tokens in one forward pass; a longer prompt goes through in chunks. shared=False is the plain
    twin: every token reads its own past, by itself. So its attention gives an answer the same bits in any company,
    while the shared form groups tokens as the batch has it: log-probs then agree to rounding (1e-15 in float64), and
    tokens unless a draw falls into it. The library's matrix products are no better (MKL's float64 rounds differently
    for fewer than four rows).

    On a GPU with Triton (kernels=None: there) the blocks are read by kernels.paged_attention, and a decoding step is
    recorded as a CUDA graph. Elsewhere a stem's blocks are read where they lie if they follow one another, as they do
    in a pool that is not fragmented; if not, the shared form keeps a copy in one piece while answers to it run."""

    def __init__(self, model, num_blocks: int = 4096, block_size: int = 16, prefill_tokens: int = 16384,
                 shared: bool = True, kernels: bool | None = None):
        self.model, self.prefill_tokens, self.shared = model, prefill_tokens, shared
        self.kernels = shared and (
            use_triton(model.device) and model.dtype != torch.float64 if kernels is None else kernels)
        self.steps: dict[Room, Step] = {}
        self.graph_pool = None
        self.pool, self.cache = BlockPool(num_blocks, block_size), None

    @torch.no_grad()
    def sample(self, prompts: Sequence[Sequence[int]], n: int = 1, temperature: float = 1.0, top_p: float = 1.0,
               max_new_tokens: int = 1024, seed: int | Sequence[int] = 0, eos_ids: Sequence[int] = (),
               keys: Sequence[str | int] | None = None, on_token: Callable | None = None) -> list[Group]:
        """One Group of `n` completions per prompt, in order. `temperature` 0 is greedy.

        A completion ends with the first id in `eos_ids` ("stop") or after `max_new_tokens` ("length"). Its log-probs
        are of the full vocabulary at `temperature` (1 when greedy), whatever `top_p` cut off. `keys` names each prompt
        (its position if not given). `on_token(prompt_index, sample_index, id)` sees every token as it falls.
        Raises OutOfBlocks if the pool could not hold a single answer, SamplingError for unusable settings."""
        if n < 1 or max_new_tokens < 0 or temperature < 0 or not 0 < top_p <= 1 or not all(map(len, prompts)):
            raise SamplingError(f"sampling needs n >= 1 (got {n}), max_new_tokens >= 0 ({max_new_tokens}), temperature "
                                f">= 0 ({temperature}), 0 < top_p <= 1 ({top_p}) and no empty prompt")
        keys, end_ids = list(range(len(prompts))) if keys is None else list(keys), frozenset(eos_ids)
        if len(keys) != len(prompts):
            raise SamplingError(f"{len(prompts)} prompts came with {len(keys)} keys; give one for each")
        if prompts:
            self.require(max(map(len, prompts)), max_new_tokens)
        parts = [sorted(part) for part in parallel.balance([len(prompt) ** 2 for prompt in prompts], parallel.size())]
        answers = [Answer(p, i, prompts[p], uniforms(seed, keys[p], i)) for p in parts[parallel.rank()]
                   for i in range(n)]
        with parallel.whole(self.model):
            self._answer(answers, temperature, top_p, max_new_tokens, end_ids, on_token)
        completions = [Completion(tuple(a.ids), tuple(a.logprobs), a.finish_reason or "length") for a in answers]
        found = dict(zip([p for part in parts for p in part], batched(exchange(completions), n)))
        return [Group(keys[p], tuple(prompts[p]), found[p]) for p in range(len(prompts))]

    def _answer(self, answers: Sequence[Answer], temperature: float, top_p: float, max_new_tokens: int, end_ids,
                on_token: Callable | None) -> None:
        """Fill in the answers."""
        if not answers or not max_new_tokens:
            return
        c, pool = self.model.config, self.pool
        self.cache = KVCache(c.num_hidden_layers, pool.num_blocks, pool.block_size, c.num_key_value_heads, c.head_dim,
                             self.model.dtype, self.model.device)
        if self.cache.device.type == "cuda":                                   # a new one: graphs cannot go back into a
            self.graph_pool = torch.cuda.graph_pool_handle()                   # pool in which the last of them has died
        schedule = Schedule(pool, answers, max_new_tokens)
        try:
            while schedule.waiting or schedule.running:
                self._prefill_stems(schedule.admit())
                self.cache.copy_blocks(schedule.extend())
                self._prefill(([*a.prompt_ids, *a.ids[:-1]], a.table, a.num_cached) for a in schedule.running
                              if a.num_cached < a.context_len - 1)             # those that had stepped back
                for answer, token, logprob in self._decode(schedule.running, temperature, top_p):
                    answer.ids.append(token)
                    answer.logprobs.append(logprob)
                    if token in end_ids or len(answer.ids) == max_new_tokens:
                        answer.finish_reason = "stop" if token in end_ids else "length"
                    if on_token:
                        on_token(answer.prompt, answer.sample, token)
                schedule.retire()
        finally:
            schedule.close()
            self.steps.clear()                                                 # they know where the weights lay
            self.cache = None
            if self.graph_pool:
                torch.cuda.empty_cache()                                       # or what stays settles in pieces of it

    def require(self, prompt_tokens: int, max_new_tokens: int) -> None:
        """Raises OutOfBlocks if even the empty pool could not hold one answer to such a prompt, ModelError
        (architecture.py) if it would be longer than the model's window."""
        self.model.config.require_window(prompt_tokens - 1 + max_new_tokens)
        needed = self.pool.blocks_for(prompt_tokens - 1 + max_new_tokens)
        if needed > self.pool.num_blocks:
            raise OutOfBlocks(f"a prompt of {prompt_tokens} tokens with {max_new_tokens} new tokens needs {needed} "
                              f"blocks of {self.pool.block_size}, the pool has {self.pool.num_blocks}: give the cache "
                              "more blocks (--kv-blocks)")

    def _prefill_stems(self, stems: Sequence[Stem]) -> None:
        self._prefill((stem.ids, stem.table, 0) for stem in stems)
        for stem in stems:
            whole_blocks = len(stem.ids) // self.pool.block_size * self.pool.block_size
            if self.shared and whole_blocks and not self.kernels:
                stem.keys_values = list(self.cache.past(stem.table, whole_blocks))

    def _prefill(self, sequences: Iterable[tuple[Sequence[int], list[int], int]]) -> None:
        """Keys and values of each sequence's tokens from `start` on go into its blocks: (ids, block table, start)."""
        for batch in chunks(sequences, self.prefill_tokens):
            (_, table, start), *_ = batch
            ids, positions, attend = pack([ids for ids, _, _ in batch], self.model.device,
                                          self.cache.past(table, start) if start else None)
            if not self.shared:
                attend = Paged(self.cache, [table for ids, table, _ in batch for _ in ids], (positions + 1).tolist())
            _, keys_values = self.model(ids, positions, attend)
            slots = torch.cat([self.cache.slots([table], start + len(ids))[0, start:] for ids, table, start in batch])
            for layer, (k, v) in enumerate(keys_values):
                self.cache.write(layer, slots, k, v)
            del keys_values, k, v                                              # or the next pass runs beside them

    def _decode(self, running, temperature: float, top_p: float) -> Iterator[tuple[Answer, int, float]]:
        """Feed each answer its last token: (answer, next token, its log-prob)."""
        logits = self._logits(running)                                         # (S, V)
        u = torch.tensor([next(a.uniforms) for a in running], dtype=torch.float64, device=logits.device)
        drawn = torch.stack([x.double() for x in draw(logits, u, temperature, top_p)]).tolist()      # one transfer
        if any(map(math.isnan, drawn[1])):
            raise NaNLogits("the model's logits are NaN: its weights are damaged (--check-finite names the tensor), or "
                            "a training step broke them")
        return zip(running, map(int, drawn[0]), drawn[1])

    def _logits(self, running: Sequence[Answer]) -> Tensor:
        """(S, V) behind the last token of each answer."""
        last_ids, tables, lengths = zip(*((a.last_id, a.table, a.context_len) for a in running))
        groups = [list(answers) for _, answers in groupby(running, key=lambda a: a.prompt)]
        if self.kernels:
            size = self.pool.block_size
            stems = [(g[0].stem, len(g[0].stem.ids) // size * size, len(g)) for g in groups]
            shared = [tokens for _, tokens, count in stems for _ in range(count)]
            room = Room.for_step(len(running), len(groups), max(map(len, groups)), max(shared),
                                 max(length - tokens for length, tokens in zip(lengths, shared)))
            if room not in self.steps:
                self.steps[room] = Step(self.model, KernelPaged(self.cache, room), self.graph_pool)
            step = self.steps[room]
            step.attend.load(last_ids, tables, lengths, stems)
            return step()[:len(running)]
        if self.shared:
            stems = [(g[0].stem.keys_values if len(g) * len(g[0].stem.ids) >= WORTH_SHARING else (), len(g))
                     for g in groups]
            attend = SharedPaged(self.cache, tables, lengths, stems)
        else:
            attend = Paged(self.cache, tables, lengths)
        device = self.model.device
        return self.model(torch.tensor(last_ids, device=device), torch.tensor(lengths, device=device) - 1, attend,
                          head=linear_logits)[0]


class Step:
    """One decoding step of the model over a KernelPaged's buffers. On a GPU the second call records its launches, some
    dozens per layer, as a CUDA graph; from then on a step is one launch. Steps with the same memory pool overwrite each
    other's logits: use them before the next call."""

    def __init__(self, model, attend: KernelPaged, pool: tuple[int, int] | None = None):
        self.model, self.attend, self.pool = model, attend, pool
        self.calls, self.graph, self.logits = 0, None, None

    def __call__(self) -> Tensor:
        """(answers of the room, V)"""
        self.calls += 1
        if self.graph is None and (self.calls == 1 or not self.attend.buffer.is_cuda or self.model.waits):
            self.logits = self._forward()
        elif self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph, pool=self.pool):                 # which records, and computes nothing
                self.logits = self._forward()
        if self.graph is not None:
            self.graph.replay()
        return self.logits

    def _forward(self) -> Tensor:
        return self.model(self.attend.ids, self.attend.positions, self.attend, head=linear_logits)[0]


def chunks(sequences: Iterable[tuple[Sequence[int], list[int], int]], max_tokens: int):
    """What goes through the model at once: some whole sequences of `max_tokens` together, or a piece of one that has a
    past. In and out: (ids, block table, start), start tokens of the sequence being in the cache already; in, ids are
    the whole sequence's, out, a chunk's.

    >>> list(chunks([("abc", [], 0), ("de", [], 0), ("fghi", [], 1), ("klmnop", [], 0)], max_tokens=5))
    [[('abc', [], 0), ('de', [], 0)], [('ghi', [], 1)], [('klmno', [], 0)], [('p', [], 5)]]
    """
    batch, tokens = [], 0
    for ids, table, first in sequences:
        for start in range(first, len(ids), max_tokens):
            chunk = ids[start:start + max_tokens]
            if batch and (start or batch[-1][2] or tokens + len(chunk) > max_tokens):
                yield batch
                batch, tokens = [], 0
            batch.append((chunk, table, start))
            tokens += len(chunk)
    if batch:
        yield batch


def batched(items: Sequence, n: int) -> Iterator[tuple]:
    """(a, b), (c, d) of a, b, c, d, for n = 2."""
    return (tuple(items[start:start + n]) for start in range(0, len(items), n))


def exchange(completions: Sequence[Completion]) -> Sequence[Completion]:
    """The completions of all ranks, in the ranks' order, as numbers in one row: for each completion how many tokens it
    has, whether it was cut, the ids, the log-probs. float64 holds them all exactly."""
    if parallel.size() == 1:
        return completions
    numbers = [number for c in completions for number in (len(c.ids), c.finish_reason == "length", *c.ids, *c.logprobs)]
    found = []
    for row in parallel.gather_flat(torch.tensor(numbers, dtype=torch.float64)):
        row, at = row.tolist(), 0
        while at < len(row):
            length, cut = int(row[at]), row[at + 1]
            ids, logprobs = row[at + 2:at + 2 + length], row[at + 2 + length:at + 2 + 2 * length]
            found.append(Completion(tuple(map(int, ids)), tuple(logprobs), "length" if cut else "stop"))
            at += 2 + 2 * length
    return found


def uniforms(seed: int | Sequence[int], key: str | int, sample: int) -> Iterator[float]:
    """Endless numbers in [0, 1) that depend on nothing but the three names."""
    seed = [int(part) for part in (seed if isinstance(seed, Sequence) else [seed])]
    digest = blake2b(repr((seed, key, sample)).encode(), digest_size=16).digest()
    rng = random.Random(int.from_bytes(digest, "big"))
    while True:
        yield rng.random()


def draw(logits: Tensor, u: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """One token per row of logits (S, V) by inverse CDF at u (S,), and its full-vocabulary log-prob: (S,), (S,). It is
    NaN where a logit is."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    logprobs = (logits.to(wide) / (temperature or 1.0)).log_softmax(-1)        # (S, V)
    if temperature == 0:
        ids = logprobs.argmax(-1)
    else:
        mass = logprobs.double().exp()
        order = None
        if top_p < 1:                                                          # smallest set of mass >= top_p
            mass, order = mass.sort(dim=-1, descending=True, stable=True)
            mass = torch.where(mass.cumsum(-1) - mass < top_p, mass, 0.0)
        cdf = mass.cumsum(-1)
        ids = torch.searchsorted(cdf, u[:, None] * cdf[:, -1:], right=True)    # first place with cdf > u
        ids = ids.clamp(max=logits.shape[-1] - 1)                              # NaN logits lead beyond
        ids = (ids if order is None else order.gather(-1, ids))[:, 0]
    return ids, logprobs.gather(-1, ids[:, None])[:, 0]
