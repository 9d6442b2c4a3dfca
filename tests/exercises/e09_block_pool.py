"""The block pool of the paged cache"""

from hypothesis import strategies as st

FILE = "nanoqwenlong/engine/kvcache.py"
WRITE = ("BlockPool.allocate", "BlockPool.fork", "BlockPool.append", "BlockPool.free")
TESTS = ["tests/test_kvcache.py", "-k", "not hundred_thousand"]
TRAIN = None

step = st.tuples(st.sampled_from(["allocate", "fork", "append", "append", "free"]), st.integers(0, 5))
CASES = st.fixed_dictionaries({"steps": st.lists(step, max_size=40), "num_blocks": st.integers(3, 12)})


def run(m, steps, num_blocks, after=lambda pool, tables: None):
    """Operations on a pool with blocks of two tokens. Returns what each gave, the pool, and all (table, tokens)."""
    pool, tables, results = m.BlockPool(num_blocks, 2), [], []
    for kind, number in [("allocate", 3), ("fork", 0), *steps]:
        place = number % max(1, len(tables))
        try:
            if kind == "allocate":
                tables.append([pool.allocate(number), number])
                results.append(list(tables[-1][0]))
            elif tables and kind == "fork":
                tables.append([pool.fork(tables[place][0]), tables[place][1]])
            elif tables and kind == "append":
                results.append(pool.append(*tables[place]))
                tables[place][1] += 1
            elif tables:
                pool.free(tables.pop(place)[0])
        except m.OutOfBlocks:
            results.append("out of blocks")
        after(pool, tables)
    return results, pool, tables


def answer(m, steps, num_blocks):
    results, pool, tables = run(m, steps, num_blocks)
    return results, pool.num_free, [table for table, _ in tables]


def owners_are_counted(m, steps, num_blocks):
    """After every operation each block is free, or is in exactly as many tables as it has owners"""
    def look(pool, tables):
        held = [block for table, _ in tables for block in table]
        assert [held.count(block) for block in range(num_blocks)] == pool.owners
        assert sorted(pool.free_blocks) == [block for block in range(num_blocks) if block not in held]
    run(m, steps, num_blocks, look)


def written_blocks_are_private(m, steps, num_blocks):
    """After append, the block of the new token is in no other table, and the caller is told which block to copy"""
    results, pool, tables = run(m, steps[:4], max(8, num_blocks))
    for table, tokens in tables:
        before = list(table)
        try:
            copied = pool.append(table, tokens)
        except m.OutOfBlocks:
            continue
        block = table[tokens // 2]
        assert sum(other.count(block) for other, _ in tables) == 1
        assert copied == (None if before == table[:len(before)] else (before[tokens // 2], block))


def everything_comes_back(m, steps, num_blocks):
    """When all tables are freed, all blocks are free, and the tables are empty"""
    _, pool, tables = run(m, steps, num_blocks)
    for table, _ in tables:
        pool.free(table)
        assert table == []
    assert pool.num_free == num_blocks


def out_of_blocks_changes_nothing(m, num_blocks):
    """If tokens do not fit, OutOfBlocks is raised and no block is taken, also if some of the blocks were free"""
    pool = m.BlockPool(num_blocks, 2)
    pool.allocate(2)
    free = list(pool.free_blocks)
    try:
        raise AssertionError(f"got {pool.allocate(2 * num_blocks)}")
    except m.OutOfBlocks:
        assert pool.free_blocks == free


LAWS = (owners_are_counted, written_blocks_are_private, everything_comes_back, out_of_blocks_changes_nothing)
WRONG = (
    ("a shared block is written without a copy", "if self.owners[shared] == 1:", "if self.owners[shared] >= 1:"),
    ("fork does not count the new owner", "self.owners[block] += 1", "pass"),
    ("free returns a block that another table still holds", "if self.owners[block] == 0:\n                heappush",
     "if True:\n                heappush"),
    ("append forgets that the old block has one owner less", "self.owners[shared] -= 1", "pass"),
    ("blocks are taken before it is known that they are enough", "if needed > self.num_free:\n            raise",
     "if needed > self.num_free:\n            self.free_blocks.clear()\n            raise"))
