"""Rollouts: a prompt is prefilled once, its blocks are forked, and its G answers decode together.

The stem is prefilled: the prompt without its last token. That token is then fed once per answer, so the first decoding
step is like all others. engine/schedule.py decides who runs. Each answer has its own random numbers, a function of
(seed, key, sample index). So its tokens do not depend on the rest of the batch, the block size, or preemption.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from kernels import use_triton

from . import parallel
from .attention import pack
from .engine.cuda_step import CudaDecoder
from .engine.kvcache import BlockPool, blocks_for
from .engine.paged import KVCache, PastKeysValues, TorchDecoder
from .engine.sampling import draw, exchange, uniforms
from .engine.schedule import Answer, Schedule
from .errors import NaNLogits, OutOfBlocks, SamplingError
from .records import Group

Span = tuple[Sequence[int], list[int], int]     # ids, block table, start: the first `start` tokens are already cached


class Generator:
    """Samples from a model with a paged KV cache, which takes memory only while it samples.

    prefill_tokens: the most tokens that one forward pass prefills.
    kernels: whether to decode with kernels.paged_attention, on a GPU as a CUDA graph. None: if Triton can be used.
    All ranks must call `sample` alike. Each answers its share of the prompts, and every rank gets all answers."""

    def __init__(self, model, num_blocks: int = 4096, block_size: int = 16, prefill_tokens: int = 16384,
                 kernels: bool | None = None):
        self.model, self.prefill_tokens, self.kernels = model, prefill_tokens, kernels
        self.pool = BlockPool(num_blocks, block_size)
        self.cache = self.decoder = None                       # while it samples

    @torch.no_grad()
    def sample(
        self,
        prompts: Sequence[Sequence[int]],                      # token ids
        n: int = 1,                                            # completions per prompt
        temperature: float = 1.0,                              # 0 is greedy
        top_p: float = 1.0,
        max_new_tokens: int = 1024,
        seed: int | Sequence[int] = 0,
        eos_ids: Sequence[int] = (),
        keys: Sequence[str | int] | None = None,               # a name per prompt, by default its position
        on_token: Callable | None = None,                      # called as on_token(prompt_index, sample_index, id)
    ) -> list[Group]:
        """One Group of `n` completions per prompt, in order.

        A completion ends with the first id in `eos_ids` ("stop") or after `max_new_tokens` ("length").
        Raises OutOfBlocks if the pool cannot hold a single answer, SamplingError for invalid settings."""
        is_valid = n >= 1 and max_new_tokens >= 0 and temperature >= 0 and 0 < top_p <= 1
        if not is_valid or not all(map(len, prompts)):
            raise SamplingError(f"sampling needs n >= 1 (got {n}), max_new_tokens >= 0 ({max_new_tokens}), temperature "
                                f">= 0 ({temperature}), 0 < top_p <= 1 ({top_p}) and no empty prompt")
        keys = range(len(prompts)) if keys is None else keys
        if len(keys) != len(prompts):
            raise SamplingError(f"{len(prompts)} prompts came with {len(keys)} keys; give one for each")
        if prompts:
            self.require(max(map(len, prompts)), max_new_tokens)

        # 1. Deal the prompts to the ranks.
        costs = [len(prompt) ** 2 for prompt in prompts]
        shares = [sorted(share) for share in parallel.balance(costs, parallel.size())]
        answers = []
        for p in shares[parallel.rank()]:
            for sample in range(n):
                answers.append(Answer(p, sample, prompts[p], uniforms(seed, keys[p], sample)))

        # 2. Answer the prompts of this rank.
        with parallel.whole(self.model):
            self._answer(answers, temperature, top_p, max_new_tokens, frozenset(eos_ids), on_token)

        # 3. Collect the answers of all ranks: n per prompt, share after share.
        completions = iter(exchange(answers))
        groups = [None] * len(prompts)
        for share in shares:
            for p in share:
                group = tuple(islice(completions, n))
                groups[p] = Group(keys[p], tuple(prompts[p]), group)
        return groups

    def require(self, prompt_tokens: int, max_new_tokens: int) -> None:
        """Raises OutOfBlocks if the empty pool cannot hold one such answer, ModelError if it exceeds the window."""
        length = prompt_tokens - 1 + max_new_tokens
        self.model.config.require_window(length)
        needed = blocks_for(length, self.pool.block_size)
        if needed > self.pool.num_blocks:
            raise OutOfBlocks(f"{prompt_tokens} prompt tokens and {max_new_tokens} new tokens need {needed} blocks of "
                              f"{self.pool.block_size}, the pool has {self.pool.num_blocks}: give more --kv-blocks")

    def _answer(self, answers, temperature, top_p, max_new_tokens, end_ids, on_token) -> None:
        """Samples every answer to its end: fills its ids, logprobs and finish_reason."""
        if not answers or not max_new_tokens:
            return
        self._open_cache()
        schedule = Schedule(self.pool, answers, max_new_tokens)
        try:
            while schedule.waiting or schedule.running:
                # 1. Admit waiting answers and prefill their stems.
                self._prefill([(stem.ids, stem.table, 0) for stem in schedule.admit()])
                # 2. Give each answer a block for its next token. This may preempt the youngest answers.
                self.cache.copy_blocks(schedule.extend())
                # 3. Prefill what preempted answers have lost.
                again = []
                for a in schedule.running:
                    if a.num_cached < a.context_len - 1:
                        ids = [*a.prompt_ids, *a.ids[:-1]]
                        again.append((ids, a.table, a.num_cached))
                self._prefill(again)
                # 4. Decode one token for each running answer.
                drawn = self._decode(schedule.running, temperature, top_p)
                for answer, token, logprob in zip(schedule.running, *drawn):
                    answer.ids.append(token)
                    answer.logprobs.append(logprob)
                    if token in end_ids:
                        answer.finish_reason = "stop"
                    elif len(answer.ids) == max_new_tokens:
                        answer.finish_reason = "length"
                    if on_token:
                        on_token(answer.prompt, answer.sample, token)
                # 5. Retire the answers that have ended.
                schedule.retire()
        finally:
            schedule.close()
            self.cache = self.decoder = None
            if self.model.device.type == "cuda":
                torch.cuda.empty_cache()                       # otherwise later tensors would fragment this memory

    def _open_cache(self) -> None:
        model, c = self.model, self.model.config
        self.cache = KVCache(c.num_hidden_layers, self.pool.num_blocks, self.pool.block_size, c.num_key_value_heads,
                             c.head_dim, model.dtype, model.device)
        use_kernels = self.kernels
        if use_kernels is None:
            use_kernels = use_triton(model.device) and model.dtype != torch.float64
        self.decoder = CudaDecoder(model, self.cache) if use_kernels else TorchDecoder(model, self.cache)

    def _prefill(self, spans: Sequence[Span]) -> None:
        """Computes the keys and values of each span's tokens from `start` on, and writes them to its blocks."""
        for batch in chunks(spans, self.prefill_tokens):
            _, table, start = batch[0]                         # a span with a cached past is alone in its batch
            past = PastKeysValues(self.cache, table, start) if start else None
            ids, positions, attend = pack([chunk for chunk, _, _ in batch], self.model.device, past)
            _, keys_values = self.model(ids, positions, attend)
            slots = []
            for chunk, table, start in batch:
                end = start + len(chunk)
                slots.append(self.cache.slots([table], end)[0, start:])
            slots = torch.cat(slots)                           # (T,)
            for layer, (k, v) in enumerate(keys_values):
                self.cache.write(layer, slots, k, v)
            del keys_values, k, v                              # or they stay in memory during the next pass

    def _decode(self, running: Sequence[Answer], temperature: float, top_p: float) -> tuple[list[int], list[float]]:
        """Feeds each of the S running answers its last token. Returns the next tokens and their log-probs."""
        logits = self.decoder.logits(running)                  # (S, vocabulary)
        u = [next(answer.uniforms) for answer in running]
        u = torch.tensor(u, dtype=torch.float64, device=logits.device)
        ids, logprobs = draw(logits, u, temperature, top_p)    # (S,), (S,)
        ids, logprobs = torch.stack([ids.double(), logprobs.double()]).tolist()            # one transfer to the CPU
        if any(map(math.isnan, logprobs)):
            raise NaNLogits("the model's logits are NaN: its weights are damaged (--check-finite names the tensor), or "
                            "a training step broke them")
        return list(map(int, ids)), logprobs


def chunks(spans: Sequence[Span], max_tokens: int) -> Iterator[list[Span]]:
    """Batches of spans for one forward pass each: whole sequences of at most `max_tokens` together, or one piece of a
    sequence whose past is cached. Input ids are those of the whole sequence, output ids begin at `start`.

    >>> list(chunks([("abc", [], 0), ("de", [], 0), ("fghi", [], 1), ("klmnop", [], 0)], max_tokens=5))
    [[('abc', [], 0), ('de', [], 0)], [('ghi', [], 1)], [('klmno', [], 0)], [('p', [], 5)]]
    """
    batch, tokens = [], 0
    for ids, table, first in spans:
        for start in range(first, len(ids), max_tokens):
            chunk = ids[start:start + max_tokens]
            if batch and (start or batch[-1][2] or tokens + len(chunk) > max_tokens):
                yield batch
                batch, tokens = [], 0
            batch.append((chunk, table, start))
            tokens += len(chunk)
    if batch:
        yield batch
