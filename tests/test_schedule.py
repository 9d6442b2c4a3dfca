"""Turns without a model: the slots hold names of tokens, and every running answer must read its own past."""

import random
from collections import Counter
from itertools import count

import pytest

from nanoqwenlong.engine.kvcache import BlockPool, blocks_for
from nanoqwenlong.engine.schedule import Answer, Schedule
from nanoqwenlong.errors import OutOfBlocks


class Rollout:
    """A schedule and the contents of its pool. `lengths` says for each prompt how long its answers get.

    A slot of a stem holds (None, token), a slot behind it (sample, token); every token is a number of its own, so a
    slot that two answers write, or that was never written, cannot go unseen."""

    def __init__(self, prompt_lengths, lengths, num_blocks, block_size, max_new_tokens, shuffle=None):
        self.clock, self.max_new_tokens, self.size = count(), max_new_tokens, block_size
        self.answers = []
        for prompt, (length, group) in enumerate(zip(prompt_lengths, lengths)):
            ids = [next(self.clock) for _ in range(length)]
            self.answers += [Answer(prompt, sample, ids) for sample in range(len(group))]
        self.goals = dict(zip(self.answers, (goal for group in lengths for goal in group)))
        self.pool = BlockPool(num_blocks, block_size)
        if shuffle:
            shuffle(self.pool.free_blocks)
        self.schedule = Schedule(self.pool, self.answers, max_new_tokens)
        self.slots, self.turns, self.stems, self.preemptions = {}, 0, Counter(), 0
        self.largest = max(blocks_for(len(a.prompt_ids) - 1 + goal, block_size) for a, goal in self.goals.items())

    def slot(self, table, place):
        return table[place // self.size] * self.size + place % self.size

    def read(self, table, length):
        return [self.slots.get(self.slot(table, place)) for place in range(length)]

    def turn(self) -> None:
        before = list(self.schedule.running)
        for stem in self.schedule.admit():
            self.stems[stem.prompt] += 1
            assert len(stem.table) == blocks_for(len(stem.ids), self.size)
            assert all(self.pool.owners[block] > 0 for block in stem.table)
            self.slots.update({self.slot(stem.table, place): (None, token) for place, token in enumerate(stem.ids)})
        admitted = list(self.schedule.running)
        assert admitted and admitted[:len(before)] == before
        self.copy(self.schedule.extend())
        running = self.schedule.running
        assert running and running == admitted[:len(running)]                  # the oldest stays, the youngest go
        self.preemptions += len(admitted) - len(running)
        self.check()
        for answer in running:
            self.feed(answer)
        for answer in running:                                                 # all have written: who reads what?
            stem, tail = answer.prompt_ids[:-1], [answer.prompt_ids[-1], *answer.ids]
            past = [(None, token) for token in stem] + [(answer.sample, token) for token in tail]
            assert self.read(answer.table, answer.context_len) == past
            assert answer.stem.prompt == answer.prompt and list(answer.stem.ids) == stem
        for answer in running:
            answer.ids.append(next(self.clock))
            if len(answer.ids) == self.goals[answer]:
                answer.finish_reason = "length" if len(answer.ids) == self.max_new_tokens else "stop"
        self.schedule.retire()
        assert self.schedule.running == [answer for answer in running if not answer.finish_reason]
        assert all(answer.num_cached == answer.context_len - 1 for answer in self.schedule.running)
        self.check()
        self.turns += 1

    def copy(self, pairs) -> None:
        """All at once, as one read and one write of the cache would."""
        assert len({target for _, target in pairs}) == len(pairs)
        offsets = range(self.size)
        images = [[self.slots.get(source * self.size + offset) for offset in offsets] for source, _ in pairs]
        for (_, target), image in zip(pairs, images):
            self.slots.update(zip((target * self.size + offset for offset in offsets), image))

    def feed(self, answer) -> None:
        """What is not in the cache goes there: the newest token, and more if the answer was preempted."""
        assert len(answer.prompt_ids) - 1 <= answer.num_cached < answer.context_len
        assert len(answer.table) == blocks_for(answer.context_len, self.size)
        tokens = [*answer.prompt_ids, *answer.ids]
        for place in range(answer.num_cached, answer.context_len):
            assert self.pool.owners[answer.table[place // self.size]] == 1, "a place to write is private"
            self.slots[self.slot(answer.table, place)] = answer.sample, tokens[place]

    def check(self) -> None:
        """Order, and every block's owners."""
        schedule = self.schedule
        order = [(answer.prompt, answer.sample) for answer in (*schedule.running, *schedule.waiting)]
        assert order == sorted(order)
        tables = [answer.table for answer in schedule.running]
        if schedule.cached_stem:
            tables.append(schedule.cached_stem.table)
        owners = Counter(block for table in tables for block in table)
        assert self.pool.owners == [owners[block] for block in range(self.pool.num_blocks)]
        assert sorted(self.pool.free_blocks) == [b for b in range(self.pool.num_blocks) if not owners[b]]
        assert not any(answer.table or answer.stem for answer in self.answers if answer not in schedule.running)
        assert not schedule.cached_stem or schedule.cached_stem.prompt == schedule.waiting[0].prompt

    def check_empty(self) -> None:
        assert self.pool.num_free == self.pool.num_blocks and not any(self.pool.owners)
        assert not self.schedule.running and not any(answer.table or answer.stem for answer in self.answers)

    def run(self) -> "Rollout":
        """In every turn the oldest gets a token, so there are never more turns than tokens."""
        while self.schedule.waiting or self.schedule.running:
            self.turn()
            assert self.turns <= sum(self.goals.values())
        assert [len(answer.ids) for answer in self.answers] == list(self.goals.values())
        assert all(answer.finish_reason for answer in self.answers)
        self.check_empty()
        return self


def random_case(rng) -> dict:
    """Sizes from one block per token to one block for all, pools from the smallest on, answers that end at once."""
    block_size, max_new_tokens, n = rng.choice((1, 1, 2, 3, 4, 16)), rng.randint(1, 9), rng.randint(1, 5)
    prompt_lengths = [rng.randint(1, 9) for _ in range(rng.randint(1, 4))]
    lengths = [[rng.choice((1, rng.randint(1, max_new_tokens), max_new_tokens)) for _ in range(n)]
               for _ in prompt_lengths]
    longest = max(length - 1 + goal for length, group in zip(prompt_lengths, lengths) for goal in group)
    num_blocks = blocks_for(longest, block_size) + rng.choice((0, 0, 1, 2, 3, rng.randint(0, 40)))
    return dict(prompt_lengths=prompt_lengths, lengths=lengths, num_blocks=num_blocks, block_size=block_size,
                max_new_tokens=max_new_tokens)


def test_random_schedules_end_and_every_answer_reads_its_own_past():
    """2,000 of them, and in hundreds of them answers are preempted and stems are computed again."""
    preempted = stems_again = 0
    for seed in range(2000):
        rng = random.Random(seed)
        case = random_case(rng)
        try:
            rollout = Rollout(**case, shuffle=rng.shuffle).run()
        except Exception as error:
            raise AssertionError(f"seed {seed}: {case}") from error
        preempted += rollout.preemptions > 0
        stems_again += max(rollout.stems.values()) > 1
    assert preempted > 300 and stems_again > 100


def test_an_ample_pool_runs_all_from_the_first_turn_and_computes_each_stem_once():
    for seed in range(200):
        case = random_case(random.Random(seed))
        case["num_blocks"] = sum(blocks_for(length + case["max_new_tokens"], case["block_size"]) + 1
                                 for length, group in zip(case["prompt_lengths"], case["lengths"]) for _ in group)
        rollout = Rollout(**case).run()
        assert rollout.turns == max(rollout.goals.values())
        assert rollout.preemptions == 0 and set(rollout.stems.values()) == {1}
        assert set(rollout.stems) == set(range(len(case["prompt_lengths"])))


def test_siblings_come_in_while_their_stem_is_there():
    """A pool too small for a whole group: its answers come in as others leave, on the one copy of their stem."""
    rollout = Rollout([17], [[3] * 12], num_blocks=10, block_size=4, max_new_tokens=3).run()
    assert rollout.stems == {0: 1} and rollout.preemptions == 0 and 2 * 3 <= rollout.turns < 12 * 3


def test_the_stem_of_a_preempted_answer_stays():
    """The first answer ends early, so the others are expected to, and more come in than fit in the end. As long as
    one of them runs, their stem costs nothing: it is not computed again."""
    for num_blocks in range(9 - 1 + 6, 9 - 1 + 4 * 6):                         # from one answer to all but the first
        rollout = Rollout([9], [[1, 6, 6, 6, 6]], num_blocks=num_blocks, block_size=1, max_new_tokens=6).run()
        assert rollout.preemptions > 0 and rollout.stems == {0: 1}


def test_the_smallest_pool_lets_one_answer_through_at_a_time():
    """The stem's last block is half full, so with its copy held even one answer could not write."""
    rollout = Rollout([6, 6], [[4, 4], [4, 4]], num_blocks=3, block_size=3, max_new_tokens=4).run()
    assert rollout.largest == 3 and rollout.turns == 16


def test_out_of_blocks_comes_exactly_if_an_answer_does_not_fit_alone():
    refused = 0
    for seed in range(300):
        rng = random.Random(seed)
        rollout = Rollout(**{**random_case(rng), "num_blocks": rng.randint(1, 8)})
        if rollout.largest <= rollout.pool.num_blocks:
            rollout.run()
        else:
            with pytest.raises(OutOfBlocks):
                rollout.run()
            refused += 1
            rollout.schedule.close()
            rollout.check_empty()
    assert 30 < refused < 270


def test_the_message_names_the_pool():
    with pytest.raises(OutOfBlocks, match="one answer alone does not fit into 3 blocks of 2 tokens"):
        Rollout([3, 4], [[2], [9]], num_blocks=3, block_size=2, max_new_tokens=9).run()


def test_close_frees_all_at_any_point_and_what_was_running_can_go_on():
    for seed in range(300):
        rng = random.Random(seed)
        rollout = Rollout(**random_case(rng))
        schedule = rollout.schedule
        for _ in range(rng.randint(0, 6)):
            if schedule.waiting or schedule.running:
                rollout.turn()
        if schedule.waiting or schedule.running:
            for step in (schedule.admit, schedule.extend)[:rng.randint(0, 2)]:  # in the middle of a turn
                step()
        left = [*schedule.running, *schedule.waiting]
        schedule.close()
        rollout.check_empty()
        assert list(schedule.waiting) == left and schedule.cached_stem is None
        rollout.slots.clear()
        rollout.run()


def test_nothing_to_do():
    schedule = Schedule(BlockPool(1, 1), [], max_new_tokens=3)
    assert (schedule.admit(), schedule.extend()) == ([], [])
    schedule.retire()
    schedule.close()
    assert schedule.pool.num_free == 1
