"""Rollouts: the prompt runs once, its blocks are forked, the G answers decode together.

Legend: S sequences decoding together, V vocabulary. The stem (the prompt without its last token) is prefilled once per
group and its blocks are forked for the G answers; the last prompt token is then fed G times, so the first decoding step
is like all others. Every answer has random numbers of its own, a function of (seed, key, sample index): its tokens do
not depend on what else is in the batch, on the block size or on the pool.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import torch
import torch.nn.functional as F

from .attention import KVCache, Paged, pack
from .kvcache import BlockPool, OutOfBlocks
from .records import Completion, Group

Tensor = torch.Tensor


class SamplingError(ValueError):
    """Settings that nothing can be sampled with; the message names them."""


@dataclass
class Answer:
    """One answer while it grows."""

    prompt: int                                                # index of its prompt
    sample: int                                                # index in its group
    uniforms: Iterator[float]                                  # one number in [0, 1) per token
    table: list[int] = field(default_factory=list)             # block table
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = ""


class Generator:
    """Samples from a model with a paged KV cache of `num_blocks` blocks of `block_size` tokens.

    Cache, attention and draw give each answer the same bits in any batch. The matrix products of the layers are the
    library's: some (MKL's, for fewer than four rows) round differently with the number of rows, so log-probs agree
    between batches to that rounding (1e-15 in float64) and tokens unless a draw falls into it."""

    def __init__(self, model, num_blocks: int = 4096, block_size: int = 16, prefill_tokens: int = 16384):
        c = model.config
        self.model, self.prefill_tokens = model, prefill_tokens
        self.pool = BlockPool(num_blocks, block_size)
        self.cache = KVCache(c.num_hidden_layers, num_blocks, block_size, c.num_key_value_heads, c.head_dim,
                             model.dtype, model.device)

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
        keys = list(range(len(prompts))) if keys is None else list(keys)
        answers = [Answer(p, i, uniforms(seed, keys[p], i)) for p in range(len(prompts)) for i in range(n)]
        for wave in self._waves(answers, prompts, max_new_tokens):
            try:
                self._run(wave, prompts, temperature, top_p, max_new_tokens, frozenset(eos_ids), on_token)
            finally:
                for answer in wave:
                    self.pool.free(answer.table)
        completions = [Completion(tuple(a.ids), tuple(a.logprobs), a.finish_reason) for a in answers]
        return [Group(keys[p], tuple(prompts[p]), tuple(completions[p * n:p * n + n])) for p in range(len(prompts))]

    def require(self, prompt_tokens: int, max_new_tokens: int) -> None:
        """Raises OutOfBlocks if even the empty pool could not hold one answer to such a prompt."""
        needed = self.pool.blocks_for(prompt_tokens - 1 + max_new_tokens)
        if needed > self.pool.num_blocks:
            raise OutOfBlocks(f"a prompt of {prompt_tokens} tokens with {max_new_tokens} new tokens needs {needed} "
                              f"blocks of {self.pool.block_size}, the pool has {self.pool.num_blocks}: give the cache "
                              "more blocks (--kv-blocks)")

    def _waves(self, answers, prompts, max_new_tokens) -> list[list[Answer]]:
        """Consecutive answers that fit into the pool together, however long they get."""
        waves, free, last = [], 0, None
        for answer in answers:
            stem = len(prompts[answer.prompt]) - 1
            shared = stem // self.pool.block_size                              # full blocks of the stem
            own = self.pool.blocks_for(stem + max_new_tokens) - shared
            self.require(stem + 1, max_new_tokens)
            needed = own if answer.prompt == last else shared + own
            if not waves or needed > free:
                waves.append([])
                free, needed = self.pool.num_blocks, shared + own
            waves[-1].append(answer)
            free, last = free - needed, answer.prompt
        return waves

    def _run(self, wave, prompts, temperature, top_p, max_new_tokens, eos_ids, on_token) -> None:
        """Prefill the wave's prompts, then decode until every answer of it has ended."""
        self._prefill(wave, prompts)
        running = wave if max_new_tokens else []
        for answer in wave:
            answer.finish_reason = "length"                                    # unless an end token falls
        while running:
            logits = self._decode(running, prompts)
            u = torch.tensor([next(a.uniforms) for a in running], dtype=torch.float64, device=logits.device)
            ids, logprobs = draw(logits, u, temperature, top_p)
            for answer, token, logprob in zip(running, ids.tolist(), logprobs.tolist()):
                answer.ids.append(token)
                answer.logprobs.append(logprob)
                if token in eos_ids:
                    answer.finish_reason = "stop"
                if on_token:
                    on_token(answer.prompt, answer.sample, token)
            for answer in running:
                if answer.finish_reason == "stop" or len(answer.ids) == max_new_tokens:
                    self.pool.free(answer.table)
            running = [a for a in running if a.table]

    def _prefill(self, wave, prompts) -> None:
        """Every stem of the wave once; each answer gets a fork of its blocks."""
        answers_of: dict[int, list[Answer]] = {}
        for answer in wave:
            answers_of.setdefault(answer.prompt, []).append(answer)
        pending: list[tuple[list[int], Sequence[int]]] = []                    # (block table, stem)
        for prompt, answers in answers_of.items():
            stem = prompts[prompt][:-1]
            table = self.pool.allocate(len(stem))
            for answer in answers:
                answer.table = self.pool.fork(table)
            self.pool.free(table)                                              # the answers own the blocks now
            if pending and sum(len(s) for _, s in pending) + len(stem) > self.prefill_tokens:
                self._prefill_packed(pending)
                pending = []
            if stem:
                pending.append((answers[0].table, stem))
        if pending:
            self._prefill_packed(pending)

    def _prefill_packed(self, pending) -> None:
        slots = torch.cat([self.cache.slots([table], len(stem))[0] for table, stem in pending])
        _, keys_values = self.model(*pack([stem for _, stem in pending], self.model.device))
        for layer, (k, v) in enumerate(keys_values):
            self.cache.write(layer, slots, k, v)

    def _decode(self, running, prompts) -> Tensor:
        """Feed each answer its last token: logits (S, V) of the next."""
        context_lens = [len(prompts[a.prompt]) + len(a.ids) for a in running]
        copies = [self.pool.append(a.table, length - 1) for a, length in zip(running, context_lens)]
        self.cache.copy_blocks([pair for pair in copies if pair])
        ids = torch.tensor([a.ids[-1] if a.ids else prompts[a.prompt][-1] for a in running], device=self.model.device)
        positions = torch.tensor(context_lens, device=self.model.device) - 1
        attend = Paged(self.cache, [a.table for a in running], context_lens)
        return self.model(ids, positions, attend, head=F.linear)[0]


def uniforms(seed: int | Sequence[int], key: str | int, sample: int) -> Iterator[float]:
    """Endless numbers in [0, 1) that depend on nothing but the three names."""
    seed = [int(part) for part in (seed if isinstance(seed, Sequence) else [seed])]
    digest = blake2b(repr((seed, key, sample)).encode(), digest_size=16).digest()
    rng = random.Random(int.from_bytes(digest, "big"))
    while True:
        yield rng.random()


def draw(logits: Tensor, u: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """One token per row of logits (S, V) by inverse CDF at u (S,), and its full-vocabulary log-prob: (S,), (S,)."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    if logits.isnan().any():
        raise SamplingError("the model's logits are NaN; its weights are damaged, or a training step broke them")
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
        ids = (ids if order is None else order.gather(-1, ids))[:, 0]
    return ids, logprobs.gather(-1, ids[:, None])[:, 0]
