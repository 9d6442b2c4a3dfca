"""Which answers run: admit them while the pool has free blocks, retire them when they end, preempt them if it is full.

Answers are served in order. The blocks of a stem are allocated once and forked for each of its answers. It stays
cached until its last waiting answer is admitted. If a running answer needs a block and none is free, a cached stem that
no running answer uses is evicted. Otherwise the youngest answer is preempted: its blocks are freed, and its keys and
values are computed again later. The oldest answer fits alone (Generator.require), so it always advances.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from ..errors import OutOfBlocks
from .kvcache import BlockPool, blocks_for


@dataclass(eq=False)
class Stem:
    """A prompt without its last token, cached in the pool."""

    prompt: int                                                # index of its prompt
    ids: Sequence[int]
    table: list[int]                                           # its block table
    keys_values: Sequence = ()                                 # see paged.TorchDecoder


@dataclass(eq=False)
class Answer:
    """One answer while it is sampled."""

    prompt: int                                                # index of its prompt
    sample: int                                                # index in its group
    prompt_ids: Sequence[int]
    uniforms: Iterator[float] = iter(())                       # one number in [0, 1) per token
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = ""                                    # "stop" or "length" when it has ended
    stem: Stem | None = None                                   # while it runs
    table: list[int] = field(default_factory=list)             # block table
    num_cached: int = 0                                        # tokens whose keys and values are in the cache

    @property
    def context_len(self) -> int:
        return len(self.prompt_ids) + len(self.ids)

    @property
    def last_id(self) -> int:
        return self.ids[-1] if self.ids else self.prompt_ids[-1]


class Schedule:
    """The answers that share a pool. One turn: admit, extend, sample one token for each of `running`, retire."""

    def __init__(self, pool: BlockPool, answers: Sequence[Answer], max_new_tokens: int):
        self.pool, self.max_new_tokens = pool, max_new_tokens
        self.waiting, self.running = deque(answers), []
        self.cached_stem: Stem | None = None                   # the stem of waiting[0], if it is cached
        self.num_retired = self.tokens_retired = 0

    def admit(self) -> list[Stem]:
        """Admits waiting answers while there is room. Returns the new stems, to be prefilled before anything else.
        Stem already cached: admit if each running answer can still get one block. New stem or preempted answer: admit
        if the expected growth of all running answers and of its siblings fits too."""
        new_stems, block_size = [], self.pool.block_size
        while self.waiting:
            answer = self.waiting[0]
            stem_len = len(answer.prompt_ids) - 1
            needed = blocks_for(answer.context_len, block_size) - stem_len // block_size
            needed += 0 if self.cached_stem else blocks_for(stem_len, block_size)
            if self.cached_stem and not answer.ids:
                reserve = len(self.running)
            else:
                _, *siblings = takewhile(lambda other: other.prompt == answer.prompt, self.waiting)
                reserve = sum(map(self._expected_growth, [*self.running, *siblings]))
            if self.running and needed + reserve > self.pool.num_free:
                break
            if not self.cached_stem:
                self.cached_stem = Stem(answer.prompt, answer.prompt_ids[:-1], self.pool.allocate(stem_len))
                new_stems.append(self.cached_stem)
            answer.stem = self.cached_stem
            answer.table = self.pool.fork(answer.stem.table)
            answer.num_cached = stem_len
            self.running.append(self.waiting.popleft())
            if not self.waiting or self.waiting[0].prompt != answer.prompt:
                self._evict_stem()
        return new_stems

    def extend(self) -> list[tuple[int, int]]:
        """Gives each running answer blocks for its tokens, the next one included. Returns the blocks to copy."""
        copies, row = [], 0
        while row < len(self.running):
            answer = self.running[row]
            try:
                for position in range(answer.num_cached, answer.context_len):
                    copies.append(self.pool.append(answer.table, position))
                row += 1
            except OutOfBlocks:
                self._make_room()
        return [pair for pair in copies if pair]

    def retire(self) -> None:
        """After each turn's tokens: removes the answers that have ended and frees their blocks."""
        for answer in self.running:
            answer.num_cached = answer.context_len - 1
            if answer.finish_reason:
                self.num_retired += 1
                self.tokens_retired += len(answer.ids)
                self.pool.free(answer.table)
                answer.stem = None
        self.running = [answer for answer in self.running if not answer.finish_reason]

    def close(self) -> None:
        while self.running:
            self._preempt()
        if self.cached_stem:
            self._evict_stem()

    def _expected_growth(self, answer: Answer) -> int:
        """Blocks that an answer will still take if it gets as long as the average retired one, at least one."""
        expected = self.tokens_retired // self.num_retired if self.num_retired else self.max_new_tokens
        stem_len, block_size = len(answer.prompt_ids) - 1, self.pool.block_size
        num_blocks = len(answer.table) or stem_len // block_size               # waiting: the full blocks of its stem
        return max(1, blocks_for(stem_len + expected, block_size) - num_blocks)

    def _make_room(self) -> None:
        youngest, is_alone = self.running[-1], len(self.running) == 1
        if self.cached_stem and (is_alone or youngest.prompt != self.cached_stem.prompt):
            self._evict_stem()
        elif is_alone:
            size = f"{self.pool.num_blocks} blocks of {self.pool.block_size} tokens"
            raise OutOfBlocks(f"one answer alone does not fit into {size}")
        else:
            self._preempt()

    def _preempt(self) -> None:
        """Moves the youngest running answer to the head of the queue. Its stem stays cached while there is room."""
        answer = self.running.pop()
        if not self.cached_stem:
            self.cached_stem = answer.stem
            self.cached_stem.table = self.pool.fork(answer.table[:len(self.cached_stem.table)])
        self.pool.free(answer.table)
        answer.stem = None
        self.waiting.appendleft(answer)

    def _evict_stem(self) -> None:
        self.pool.free(list(self.cached_stem.table))
        self.cached_stem = None
