"""Which block of the paged KV cache belongs to whom. Pure Python: no tensor is seen here.

A sequence's block table lists the blocks that hold its keys and values, in order; the token at position p lies in
block table[p // block_size], offset p % block_size. A fork shares every block and only counts one more owner. Before a
token is written, `append` makes its place private: a shared last block is copied first (copy-on-write).
"""

from heapq import heappop, heappush

from ..errors import OutOfBlocks


def blocks_for(num_tokens: int, block_size: int) -> int:
    """How many blocks of `block_size` tokens hold `num_tokens` tokens."""
    return -(-num_tokens // block_size)


class BlockPool:
    """`num_blocks` blocks of `block_size` tokens, each free or owned by one or more block tables.

    >>> pool = BlockPool(num_blocks=4, block_size=2)
    >>> stem = pool.allocate(3)                      # three tokens: one full block, one half full
    >>> a, b = pool.fork(stem), pool.fork(stem); pool.free(stem)
    >>> pool.append(a, 3), pool.append(b, 3)         # a must copy the half-full block, b is its last owner
    ((1, 2), None)
    >>> a, b, pool.num_free
    ([0, 2], [0, 1], 1)
    """

    def __init__(self, num_blocks: int, block_size: int):
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"a pool needs at least one block of one token, got {num_blocks} blocks of {block_size}")
        self.num_blocks, self.block_size = num_blocks, block_size
        self.owners = [0] * num_blocks                        # how many block tables hold each block
        self.free_blocks = list(range(num_blocks))            # a heap: the lowest first, so neighbours stay together

    @property
    def num_free(self) -> int:
        return len(self.free_blocks)

    def blocks_for(self, num_tokens: int) -> int:
        """How many of this pool's blocks hold `num_tokens` tokens."""
        return blocks_for(num_tokens, self.block_size)

    def allocate(self, num_tokens: int) -> list[int]:
        """A block table with room for `num_tokens` tokens. Raises OutOfBlocks and takes nothing if they do not fit."""
        needed = self.blocks_for(num_tokens)
        if needed > self.num_free:
            raise OutOfBlocks(f"{num_tokens} tokens need {needed} blocks of {self.block_size}, {self.num_free} of "
                              f"{self.num_blocks} are free")
        table = [heappop(self.free_blocks) for _ in range(needed)]
        for block in table:
            self.owners[block] = 1
        return table

    def fork(self, table: list[int]) -> list[int]:
        """A second table over the same blocks."""
        for block in table:
            self.owners[block] += 1
        return list(table)

    def append(self, table: list[int], length: int) -> tuple[int, int] | None:
        """Make the place of the token at position `length` private to `table` (changed in place).

        Returns (from, to) if the caller must copy the contents of one block to another before it writes, else None."""
        if length == len(table) * self.block_size:
            table += self.allocate(1)
            return None
        last = table[length // self.block_size]
        if self.owners[last] == 1:
            return None
        (copy,) = self.allocate(1)
        self.owners[last] -= 1
        table[length // self.block_size] = copy
        return last, copy

    def free(self, table: list[int]) -> None:
        """Give up a table (emptied in place); blocks without another owner return to the pool."""
        while table:
            block = table.pop()
            if self.owners[block] == 0:
                raise RuntimeError(f"block {block} is freed twice; a block table was used after it was given up")
            self.owners[block] -= 1
            if self.owners[block] == 0:
                heappush(self.free_blocks, block)
