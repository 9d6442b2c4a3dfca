"""Which sequence owns which block of the paged KV cache. Pure Python: no tensors here.

The token at position p lies in block table[p // block_size] of its sequence's block table, at offset p % block_size. A
fork shares every block. Before a token is written, `append` makes its block private (copy-on-write).
"""

from heapq import heappop, heappush

from ..errors import OutOfBlocks


def blocks_for(num_tokens: int, block_size: int) -> int:
    """The number of blocks of `block_size` tokens that hold `num_tokens` tokens."""
    return -(-num_tokens // block_size)


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens. Each is free, or owned by one or more block tables."""

    def __init__(self, num_blocks: int, block_size: int):
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool needs at least one block of one token, got {num_blocks} blocks of {block_size}")
        self.num_blocks, self.block_size = num_blocks, block_size
        self.owners = [0] * num_blocks                        # block -> number of block tables that contain it
        self.free_blocks = list(range(num_blocks))            # a heap: lowest block first, so tables stay consecutive

    @property
    def num_free(self) -> int:
        return len(self.free_blocks)

    def allocate(self, num_tokens: int) -> list[int]:
        """A new block table for `num_tokens` tokens. Raises OutOfBlocks if they do not fit, and then takes nothing."""
        needed = blocks_for(num_tokens, self.block_size)
        if needed > self.num_free:
            raise OutOfBlocks(f"{num_tokens} tokens need {needed} blocks of {self.block_size}, {self.num_free} of "
                              f"{self.num_blocks} are free")
        table = [heappop(self.free_blocks) for _ in range(needed)]
        for block in table:
            self.owners[block] = 1
        return table

    def fork(self, table: list[int]) -> list[int]:
        """A second table of the same blocks."""
        for block in table:
            self.owners[block] += 1
        return list(table)

    def append(self, table: list[int], position: int) -> tuple[int, int] | None:
        """Makes the block of the token at `position` private to `table`. Returns (from, to) if the caller must copy a
        block before it writes the token, else None."""
        index = position // self.block_size
        if index == len(table):
            table += self.allocate(1)
            return None
        shared = table[index]
        if self.owners[shared] == 1:
            return None
        (copy,) = self.allocate(1)
        self.owners[shared] -= 1
        table[index] = copy
        return shared, copy

    def free(self, table: list[int]) -> None:
        """Empties a table in place. Blocks without another owner return to the pool."""
        while table:
            block = table.pop()
            if self.owners[block] == 0:
                raise RuntimeError(f"block {block} is freed twice; a block table was used after it was given up")
            self.owners[block] -= 1
            if self.owners[block] == 0:
                heappush(self.free_blocks, block)
