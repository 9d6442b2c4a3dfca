"""Whose turn it is: answers enter as the pool has room, leave when they end, and step back when it is full.

Pure Python, like the pool: no tensor is seen here. Answers are served in the order of their prompts, so all that run
are older than all that wait. A stem's blocks are allocated once and forked for each of its answers; the stem of the
foremost waiting answer, once resident, is held until its last one has come in.

When a running answer needs a block and none is free, room is made at the young end: a held stem that nobody runs on is
released, else the youngest answer steps back. It gives up its blocks and keeps its tokens, whose keys and values are
computed again later. The oldest answer never steps back, and Generator.require has seen to it that each fits alone, so
there is always one that moves on.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, takewhile

from ..errors import OutOfBlocks
from .kvcache import BlockPool


@dataclass(eq=False)
class Stem:
    """A prompt without its last token, resident in the pool."""

    prompt: int                                                # index of the prompt
    ids: Sequence[int]
    table: list[int]                                           # its blocks: the answers' and, while held, its own
    keys_values: Sequence = ()                                 # what generate.py keeps beside it


@dataclass(eq=False)
class Answer:
    """One answer while it grows."""

    prompt: int                                                # index of its prompt
    sample: int                                                # index in its group
    prompt_ids: Sequence[int]
    uniforms: Iterator[float] = iter(())                       # one number in [0, 1) per token
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str = ""                                    # "stop" or "length" once it has ended
    stem: Stem | None = None                                   # while it runs
    table: list[int] = field(default_factory=list)             # block table
    num_cached: int = 0                                        # tokens whose keys and values are in the cache

    @property
    def context_len(self) -> int:
        """Tokens of prompt and answer so far. All but the last are in the cache when the next one is sampled."""
        return len(self.prompt_ids) + len(self.ids)

    @property
    def last_id(self) -> int:
        return self.ids[-1] if self.ids else self.prompt_ids[-1]


class Schedule:
    """The answers that are sampled with one pool. A turn is: admit, extend, one token for each of `running`, retire.

    >>> schedule = Schedule(BlockPool(4, 2), [Answer(0, i, (7, 8, 9)) for i in range(4)], max_new_tokens=3)
    >>> [stem.table for stem in schedule.admit()], len(schedule.running)       # stem 7 8: one block; 3 can begin
    ([[0]], 3)
    >>> schedule.extend(), [answer.table for answer in schedule.running]       # a place for each one's 9
    ([], [[0, 1], [0, 2], [0, 3]])
    """

    def __init__(self, pool: BlockPool, answers: Sequence[Answer], max_new_tokens: int):
        self.pool, self.max_new_tokens = pool, max_new_tokens
        self.waiting, self.running = deque(answers), []
        self.held: Stem | None = None                          # the stem of waiting[0], if resident
        self.num_ended = self.tokens_ended = 0

    def admit(self) -> list[Stem]:
        """Let waiting answers in while there is room. Returns the stems that are new in the pool: their keys and values
        must be computed before anything else happens."""
        new = []
        while self.waiting:
            answer = self.waiting[0]
            length = len(answer.prompt_ids) - 1
            needed = self.pool.blocks_for(answer.context_len) - length // self.pool.block_size
            needed += 0 if self.held else self.pool.blocks_for(length)
            # Whoever brings a stem along or must be computed again waits until the others are expected to get by, his
            # siblings included. The siblings of a resident stem come at once: for them only tails are at stake.
            if self.held and not answer.ids:
                reserve = len(self.running)
            else:
                siblings = takewhile(lambda other: other.prompt == answer.prompt, islice(self.waiting, 1, None))
                reserve = sum(map(self._expected_growth, [*self.running, *siblings]))
            if self.running and needed + reserve > self.pool.num_free:
                break
            if not self.held:
                self.held = Stem(answer.prompt, answer.prompt_ids[:-1], self.pool.allocate(length))
                new.append(self.held)
            answer.stem, answer.table, answer.num_cached = self.held, self.pool.fork(self.held.table), length
            self.running.append(self.waiting.popleft())
            if not self.waiting or self.waiting[0].prompt != answer.prompt:
                self._release_held()
        return new

    def extend(self) -> list[tuple[int, int]]:
        """Make places for each running answer's tokens, up to the one that is fed next; answers for which there is no
        room step back. Returns the blocks to copy, as (from, to)."""
        copies, row = [], 0
        while row < len(self.running):
            answer = self.running[row]
            try:
                for place in range(answer.num_cached, answer.context_len):
                    copies.append(self.pool.append(answer.table, place))
                row += 1
            except OutOfBlocks:
                self._make_room()
        return [pair for pair in copies if pair]

    def retire(self) -> None:
        """Everyone got a token: those that have ended leave."""
        for answer in self.running:
            answer.num_cached = answer.context_len - 1
            if answer.finish_reason:
                self.num_ended, self.tokens_ended = self.num_ended + 1, self.tokens_ended + len(answer.ids)
                self.pool.free(answer.table)
                answer.stem = None
        self.running = [answer for answer in self.running if not answer.finish_reason]

    def close(self) -> None:
        """Give every block back."""
        while self.running:
            self._step_back()
        self._release_held()

    def _expected_growth(self, answer: Answer) -> int:
        """Blocks that an answer will take beside those it has (or, waiting, those of its stem) if it gets as long as
        those that have ended; one at least."""
        expected = self.tokens_ended // self.num_ended if self.num_ended else self.max_new_tokens
        length = len(answer.prompt_ids) - 1
        return max(1, self.pool.blocks_for(length + expected) - (len(answer.table) or length // self.pool.block_size))

    def _make_room(self) -> None:
        if self.held and self.running[-1].prompt != self.held.prompt:
            self._release_held()
        elif len(self.running) > 1:
            self._step_back()
        elif self.held:
            self._release_held()                               # its last block can then be written in place
        else:
            raise OutOfBlocks(f"one answer alone does not fit into {self.pool.num_blocks} blocks of "
                              f"{self.pool.block_size} tokens")

    def _step_back(self) -> None:
        """The youngest answer returns to the head of the queue; its stem stays until the room is needed."""
        answer = self.running.pop()
        if not self.held:
            self.held = answer.stem
            self.held.table = self.pool.fork(answer.table[:len(self.held.table)])
        self.pool.free(answer.table)
        answer.stem = None
        self.waiting.appendleft(answer)

    def _release_held(self) -> None:
        if self.held:
            self.pool.free(list(self.held.table))
            self.held = None
