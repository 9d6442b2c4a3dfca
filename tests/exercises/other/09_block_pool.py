"""Another solution: blocks are given back one by one through a helper."""

import heapq


class BlockPool:
    def allocate(self, num_tokens):
        table = []
        wanted = (num_tokens + self.block_size - 1) // self.block_size
        if len(self.free_blocks) < wanted:
            raise OutOfBlocks(f"{num_tokens} tokens need {wanted} blocks of {self.block_size}, "
                              f"{len(self.free_blocks)} of {self.num_blocks} are free")
        while len(table) < wanted:
            table.append(heapq.heappop(self.free_blocks))
            self.owners[table[-1]] = 1
        return table

    def fork(self, table):
        other = []
        for block in table:
            self.owners[block] = self.owners[block] + 1
            other.append(block)
        return other

    def append(self, table, position):
        index = position // self.block_size
        if index >= len(table):
            table.extend(self.allocate(1))
        elif self.owners[table[index]] > 1:
            old, table[index] = table[index], self.allocate(1)[0]
            self._release(old)
            return old, table[index]
        return None

    def free(self, table):
        for block in table:
            if self.owners[block] <= 0:
                raise RuntimeError(f"block {block} is freed twice")
            self._release(block)
        table.clear()

    def _release(self, block):
        self.owners[block] -= 1
        if self.owners[block] == 0:
            heapq.heappush(self.free_blocks, block)
