"""The block pool against a Python model: lists of tokens that know nothing about blocks."""

import random
from itertools import chain

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nanoqwenlong.engine.kvcache import BlockPool
from nanoqwenlong.errors import OutOfBlocks


class Mirror:
    """A pool, the contents of its blocks, and next to them what every sequence should read."""

    def __init__(self, num_blocks: int, block_size: int):
        self.pool, self.block_size = BlockPool(num_blocks, block_size), block_size
        self.blocks = [[None] * block_size for _ in range(num_blocks)]
        self.sequences: list[tuple[list[int], list[int]]] = []                 # (block table, tokens)
        self.clock = 0                                                         # every token written is a new number

    def write(self, table, position, token):
        self.blocks[table[position // self.block_size]][position % self.block_size] = token

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def allocate(self, num_tokens: int) -> None:
        if -(-num_tokens // self.block_size) > self.pool.num_free:
            with pytest.raises(OutOfBlocks):
                self.pool.allocate(num_tokens)
            return
        table, tokens = self.pool.allocate(num_tokens), [self.tick() for _ in range(num_tokens)]
        for position, token in enumerate(tokens):
            self.write(table, position, token)
        self.sequences.append((table, tokens))

    def fork(self, which: int) -> None:
        table, tokens = self.sequences[which]
        self.sequences.append((self.pool.fork(table), list(tokens)))

    def append(self, which: int) -> None:
        table, tokens = self.sequences[which]
        at = len(tokens) // self.block_size
        if self.pool.num_free == 0 and (at == len(table) or self.pool.owners[table[at]] > 1):
            before = list(table)
            with pytest.raises(OutOfBlocks):
                self.pool.append(table, len(tokens))
            assert table == before
            return
        copy = self.pool.append(table, len(tokens))
        if copy:
            self.blocks[copy[1]] = list(self.blocks[copy[0]])
        assert self.pool.owners[table[at]] == 1, "the place to write is private"
        tokens.append(self.tick())
        self.write(table, len(tokens) - 1, tokens[-1])

    def free(self, which: int) -> None:
        table, _ = self.sequences.pop(which)
        self.pool.free(table)
        assert table == []

    def check(self) -> None:
        """The whole invariant: owners, free list, and what each sequence reads."""
        owners = [0] * self.pool.num_blocks
        for table, tokens in self.sequences:
            for block in table:
                owners[block] += 1
            assert len(table) == -(-len(tokens) // self.block_size)
            assert list(chain.from_iterable([self.blocks[b] for b in table]))[:len(tokens)] == tokens
        assert owners == self.pool.owners
        assert sorted(self.pool.free_blocks) == [block for block, n in enumerate(owners) if n == 0]
        assert self.pool.num_free == len(self.pool.free_blocks)


def test_a_hundred_thousand_random_operations_keep_the_whole_invariant():
    rng, mirror = random.Random(0), None
    for step in range(100_000):
        if step % 5_000 == 0:
            mirror = Mirror(num_blocks=rng.randint(1, 10), block_size=rng.choice((1, 2, 3, 4)))
        num = len(mirror.sequences)
        kind = rng.choice("aaafffpppppppppx" if num < 5 else "axxp")
        if not num or kind == "a":
            mirror.allocate(rng.randint(0, 6))
        elif kind == "f":
            mirror.fork(rng.randrange(num))
        elif kind == "p":
            mirror.append(rng.randrange(num))
        else:
            mirror.free(rng.randrange(num))
        mirror.check()


class PoolMachine(RuleBasedStateMachine):
    """The same, with hypothesis looking for the shortest history that breaks it."""

    @initialize(num_blocks=st.integers(1, 8), block_size=st.integers(1, 4))
    def start(self, num_blocks, block_size):
        self.mirror = Mirror(num_blocks, block_size)

    @rule(num_tokens=st.integers(0, 9))
    def allocate(self, num_tokens):
        self.mirror.allocate(num_tokens)

    @rule(name=st.sampled_from(("fork", "append", "append", "free")), which=st.integers(0, 100))
    def change(self, name, which):
        if self.mirror.sequences:
            getattr(self.mirror, name)(which % len(self.mirror.sequences))

    @invariant()
    def holds(self):
        if hasattr(self, "mirror"):
            self.mirror.check()


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_out_of_blocks_names_both_numbers_and_changes_nothing():
    pool = BlockPool(num_blocks=5, block_size=4)
    table = pool.allocate(9)                                                   # 3 blocks
    owners, free = list(pool.owners), list(pool.free_blocks)
    with pytest.raises(OutOfBlocks, match="need 3 blocks of 4, 2 of 5 are free"):
        pool.allocate(12)
    assert (pool.owners, pool.free_blocks, len(table)) == (owners, free, 3)
    pool.allocate(8)
    fork = pool.fork(table)
    for length in (9, 12):                                                     # a shared block; a new block
        before = list(fork), list(pool.owners)
        with pytest.raises(OutOfBlocks):
            pool.append(fork, length)
        assert (fork, pool.owners) == before


def test_what_fits_exactly_fits():
    pool = BlockPool(num_blocks=3, block_size=4)
    assert sorted(pool.allocate(12)) == [0, 1, 2] and pool.num_free == 0
    assert pool.allocate(0) == []


def test_a_double_free_is_refused():
    pool = BlockPool(num_blocks=3, block_size=2)
    table = pool.allocate(3)
    stale = list(table)
    pool.free(table)
    pool.free(table)                                                           # emptied in place: nothing to give up
    with pytest.raises(RuntimeError, match="freed twice"):
        pool.free(stale)
    assert sorted(pool.free_blocks) == [0, 1, 2]


@pytest.mark.parametrize("num_blocks, block_size", [(0, 4), (4, 0), (-1, 1)])
def test_a_pool_without_room_is_refused(num_blocks, block_size):
    with pytest.raises(ValueError):
        BlockPool(num_blocks, block_size)
