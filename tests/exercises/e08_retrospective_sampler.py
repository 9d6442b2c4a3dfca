"""The retrospective sampler"""

from collections import Counter

from hypothesis import strategies as st

FILE = "nanoqwenlong/curriculum.py"
WRITE = ("RetrospectiveSampler.difficulty", "RetrospectiveSampler.hard_examples", "RetrospectiveSampler.draw")
TESTS = ["tests/test_curriculum.py", "-k", "not largest and not 10000"]
TRAIN = "--retro-fraction 0.5"

reward = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
CASES = st.fixed_dictionaries({"own": st.integers(2, 6), "rewards": st.lists(reward, min_size=1, max_size=6),
                               "fraction": st.sampled_from([0.0, 0.25, 0.5]), "n": st.integers(1, 6),
                               "seed": st.integers(0, 99)})


def sampler(m, own, rewards, fraction, seed=0):
    """Phase 1 has a0, a1, ... with these mean rewards, and "a new" that was never seen. Phase 2 has b0, b1, ..., and
    phase 3 has c0."""
    lengths = {"a new": 10} | {f"a{i}": 10 for i in range(len(rewards))}
    lengths |= {f"b{i}": 20 for i in range(own)} | {"c0": 30}
    made = m.RetrospectiveSampler(lengths, m.phases((10, 20, 30), (1, 1, 1)), fraction=fraction, seed=seed)
    for i, value in enumerate(rewards):
        made.record(f"a{i}", value)
    return made


def answer(m, own, rewards, fraction, n, seed):
    """Three draws of phase 2. Examples of phases 2 and 3 were hard as well."""
    made = sampler(m, own, rewards, fraction, seed)
    made.record("b0", 0.0)
    made.record("c0", 0.0)
    return [made.draw(made.phases[1], n) for _ in range(3)]


def counts(m, own, rewards, fraction, n, seed):
    """A batch has the reserved number of hard examples, or all if there are fewer, and the rest are the phase's own"""
    num_hard = min(int(fraction * n + 0.5), sum(value <= 0.5 for value in rewards))
    for batch in answer(m, own, rewards, fraction, n, seed):
        came = Counter("phase 1" if key[0] == "a" else "own" for key in batch)
        assert came == Counter({"own": min(n - num_hard, own), "phase 1": num_hard}), (
            f"{batch} has {dict(came)} for n = {n}, {min(n - num_hard, own)} own and {num_hard} hard ones are expected")
        assert len(set(batch)) == len(batch), "an example came twice in one batch"


def only_hard_ones_return(m, own, rewards, fraction, n, seed):
    """Of earlier phases only examples with a mean reward of at most hard_below return, and none of later phases"""
    for batch in answer(m, own, rewards, fraction, n, seed):
        for key in batch:
            assert key[0] == "b" or key[0] == "a" and key != "a new" and rewards[int(key[1:])] <= 0.5


def harder_ones_come_more_often(m, own):
    """Hard examples are drawn in proportion to 1 / mean reward: 0.125 comes four times as often as 0.5"""
    made = sampler(m, own, [0.125, 0.5], 0.5)
    came = Counter(made.draw(made.phases[1], 2)[1] for _ in range(400))
    assert 270 < came["a0"] < 365, f"{came['a0']} of 400 draws took the harder one, 320 are expected"
    made.record("a0", 0.0)
    assert made.difficulty("a0") == 16, "the weight of an example that nobody solved is 1 / floor"


def state_decides(m, own, rewards, fraction, n, seed):
    """A sampler that loads the state of another one continues with the same draws"""
    first = sampler(m, own, rewards, fraction, seed)
    first.draw(first.phases[1], n)
    second = sampler(m, own, [0.5] * len(rewards), fraction, seed)
    second.load_state_dict(first.state_dict())
    assert first.draw(first.phases[1], n) == second.draw(second.phases[1], n)


def solved_ones_stay_away(m, own, n):
    """An example that has been solved does not return"""
    made = sampler(m, own, [0.0, 0.0], 0.5)
    made.record("a0", 1.0)
    assert "a0" not in made.draw(made.phases[1], n)


LAWS = (only_hard_ones_return, counts, harder_ones_come_more_often, state_decides, solved_ones_stay_away)
WRONG = (
    ("the difficulty is the mean reward itself, so easy ones come more often", "list(map(self.difficulty, hard))",
     "[self.mean_rewards[key] + 1e-9 for key in hard]"),
    ("the difficulty has no floor, so an example that nobody solved has an infinite weight",
     "max(self.mean_rewards[example_id], self.floor)", "self.mean_rewards[example_id]"),
    ("reserved places stay empty if there are too few hard examples", "phase.number, n - len(chosen))",
     "phase.number, n - self.num_reserved(n))"),
    ("an example can be drawn twice for one batch", "hard.remove(example_id)", "pass"),
    ("examples that were never seen count as hard", ".get(example_id, math.inf)", ".get(example_id, 0.0)"),
    ("the examples of the phase itself and of later ones can return", "for number in range(1, phase.number):",
     "for number in self.members:"),
    ("the random numbers do not depend on the state: every draw takes the same hard ones",
     "/{phase.number}/{self.num_draws[phase.number]}\")", "/{phase.number}\")"))
