"""Admission and preemption"""

from hypothesis import strategies as st

FILE = "nanoqwenlong/engine/schedule.py"
WRITE = ("Schedule.admit", "Schedule._make_room", "Schedule._preempt")
TESTS = ["tests/test_schedule.py", "-k", "not random_schedules"]
TRAIN = "--kv-blocks 24"

prompt = st.tuples(st.integers(1, 6), st.lists(st.integers(1, 6), min_size=1, max_size=3))
CASES = st.fixed_dictionaries({"prompts": st.lists(prompt, min_size=1, max_size=3), "spare": st.integers(0, 6),
                               "block_size": st.sampled_from([1, 2, 4])})


def needed(length, block_size):
    return -(-length // block_size)


def run(m, prompts, block_size, spare, look=lambda schedule, admitted: None):
    """Run answers of given lengths to prompts of given lengths, in a pool for the longest one and `spare` more blocks.
    Returns one line per turn: stems admitted, the running answers and how far each is."""
    answers, goals = [], {}
    for number, (length, lengths) in enumerate(prompts):
        for sample, goal in enumerate(lengths):
            answers.append(m.Answer(number, sample, tuple(range(length))))
            goals[answers[-1]] = goal
    num_blocks = spare + max(needed(length - 1 + goal, block_size) for length, lengths in prompts for goal in lengths)
    schedule, turns = m.Schedule(m.BlockPool(num_blocks, block_size), answers, 6), []
    while schedule.waiting or schedule.running:
        before = list(schedule.running)
        stems = schedule.admit()
        admitted = [each for each in schedule.running if each not in before]
        schedule.extend()
        look(schedule, admitted)
        assert schedule.running, "nobody runs, although somebody waits"
        assert len(turns) < sum(goals.values()), "it takes more turns than there are tokens"
        turns.append([len(stems), [(a.prompt, a.sample, len(a.ids)) for a in schedule.running]])
        for each in schedule.running:
            each.ids.append(7)
            each.finish_reason = "stop" if len(each.ids) == goals[each] else ""
        schedule.retire()
    assert [len(each.ids) for each in answers] == list(goals.values())
    return turns, schedule


def answer(m, prompts, block_size, spare):
    return run(m, prompts, block_size, spare)[0]


def everything_ends(m, prompts, block_size, spare):
    """Every answer ends with all its tokens, in at most as many turns as there are tokens, if each one fits alone"""
    run(m, prompts, block_size, spare)


def no_block_is_held(m, prompts, block_size, spare):
    """At the end all blocks are free, and nothing is cached"""
    _, schedule = run(m, prompts, block_size, spare)
    assert schedule.pool.num_free == schedule.pool.num_blocks and schedule.cached_stem is None


def order_is_kept(m, prompts, block_size, spare):
    """The running answers and then the waiting ones are always in the order of the prompts and samples"""
    def look(schedule, admitted):
        order = [(each.prompt, each.sample) for each in (*schedule.running, *schedule.waiting)]
        assert order == sorted(order)
    run(m, prompts, block_size, spare, look)


def admission_is_not_in_vain(m, prompts, block_size, spare):
    """A new answer is not preempted in the turn that admits it: admission leaves the running ones a block each"""
    def look(schedule, admitted):
        if not any(each.ids for each in admitted):                             # none that comes back with tokens
            assert all(each in schedule.running for each in admitted)
    run(m, prompts, block_size, spare, look)


def stems_are_shared(m, prompts, block_size):
    """In a large pool all answers run from the first turn, and each prompt is computed once"""
    turns, _ = run(m, prompts, block_size, 99)
    everyone = [(p, sample, 0) for p, (_, lengths) in enumerate(prompts) for sample in range(len(lengths))]
    assert turns[0] == [len(prompts), everyone]


def preempted_answers_keep_their_tokens(m):
    """Of two answers in a pool for one and a half, the younger one is preempted and goes on with the tokens it has"""
    turns, _ = run(m, [(1, [6, 6])], 1, 3)
    youngest = [row[2] for _, running in turns for row in running if row[1] == 1]
    assert youngest == sorted(youngest) and turns[-1][1] == [(0, 1, 5)]


LAWS = (everything_ends, no_block_is_held, order_is_kept, admission_is_not_in_vain, stems_are_shared,
        preempted_answers_keep_their_tokens)
WRONG = (
    ("the oldest answer is preempted instead of the youngest", "answer = self.running.pop()\n",
     "answer = self.running.pop(0)\n"),
    ("a preempted answer loses the tokens that it has", "        self.waiting.appendleft(answer)",
     "        answer.ids.clear()\n        self.waiting.appendleft(answer)"),
    ("a preempted answer goes to the end of the queue", "self.waiting.appendleft(answer)",
     "self.waiting.append(answer)"),
    ("the stem stays cached after its last answer was admitted",
     "if not self.waiting or self.waiting[0].prompt != answer.prompt:", "if False:"),
    ("an answer is admitted without a look at what the running ones still need",
     "if self.running and needed + reserve > self.pool.num_free:", "if self.running and needed > self.pool.num_free:"))
