"""Length phases, and the sampler that goes through them and brings hard examples back."""

import json
import random
from collections import Counter

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from nanoqwenlong.curriculum import RetrospectiveSampler, bucket, phases

LENGTHS = {f"e{i}": 10 * (i + 1) for i in range(36)}                           # 10, 20, ... 360
PHASES = phases((120, 240, 360), (5, 5, 5))                                    # 12 examples each


def sampler(**changes) -> RetrospectiveSampler:
    return RetrospectiveSampler(LENGTHS, PHASES, **{"fraction": 0.25, "seed": 3, **changes})


def record_all(s, value=lambda i: (i % 9) / 8):
    for i in range(len(LENGTHS)):
        s.record(f"e{i}", value(i))


# Phases

def test_intervals_are_open_below_and_closed_above():
    assert [(p.number, p.low, p.high, p.num_steps) for p in PHASES] == [
        (1, 0, 120, 5), (2, 120, 240, 5), (3, 240, 360, 5)]
    s = RetrospectiveSampler({"zero": 0, "one": 1, "edge": 100, "over": 101, "last": 300, "beyond": 301},
                             phases((100, 300), (1, 1)))
    assert s.members == {1: ["one", "edge"], 2: ["over", "last"]}
    assert [bucket(n, (100, 300)) for n in (1, 100, 101, 300, 301)] == ["0-100", "0-100", "100-300", "100-300", "300+"]


@pytest.mark.parametrize("lengths, steps", [((), ()), ((100,), ()), ((100, 50), (1, 1)), ((100, 100), (1, 1)),
                                            ((0,), (1,)), ((-5, 10), (1, 1))])
def test_phases_that_do_not_rise_are_refused(lengths, steps):
    with pytest.raises(ValueError, match=r"--phase-lengths .* --phase-steps .*do not fit"):
        phases(lengths, steps)


def test_a_phase_without_examples_is_refused_with_its_interval():
    with pytest.raises(ValueError, match="phase 2 trains on lengths from 101 to 300"):
        RetrospectiveSampler({"a": 100, "b": 301}, phases((100, 300), (1, 1)))


@pytest.mark.parametrize("wrong", [dict(fraction=-0.1), dict(fraction=1.0), dict(floor=0.0), dict(floor=-1)])
def test_unusable_settings_are_refused(wrong):
    with pytest.raises(ValueError):
        sampler(**wrong)


# The phase's own examples

@pytest.mark.parametrize("n", [1, 2, 3, 4, 6, 12])
def test_every_epoch_visits_every_example_once(n):
    s, orders = sampler(), []
    for _ in range(4):
        orders.append([i for _ in range(12 // n) for i in s.draw(PHASES[0], n)])
        assert sorted(orders[-1]) == sorted(s.members[1])
    assert len({tuple(order) for order in orders}) == 4                        # each epoch in an order of its own


def test_a_rest_too_small_for_a_batch_is_left_out_and_batches_do_not_repeat():
    s, epochs = sampler(), set()
    for _ in range(30):
        batches = [s.draw(PHASES[0], 5), s.draw(PHASES[0], 5)]                 # 12 = 5 + 5 + 2
        assert [len(set(batch)) for batch in batches] == [5, 5] and not set(batches[0]) & set(batches[1])
        epochs.add(tuple(batches[0] + batches[1]))
    assert len(epochs) == 30                                                   # each in an order of its own


def test_a_batch_larger_than_the_phase_is_the_whole_phase():
    s = sampler()
    for _ in range(3):
        assert sorted(s.draw(PHASES[0], 20)) == sorted(s.members[1])


def test_examples_of_other_phases_or_beyond_the_last_are_never_drawn_unless_hard():
    s = RetrospectiveSampler({**LENGTHS, "beyond": 361}, PHASES, seed=1)
    for phase in PHASES:
        seen = {i for _ in range(10) for i in s.draw(phase, 4)}
        assert seen <= set(s.members[phase.number])


# The hard ones of earlier phases

@pytest.mark.parametrize("fraction, n, expected", [(0.0, 8, 0), (0.25, 8, 2), (0.5, 8, 4), (0.25, 4, 1), (0.75, 8, 6)])
def test_the_fraction_of_every_batch_is_hard(fraction, n, expected):
    s = sampler(fraction=fraction)
    record_all(s)
    for phase, earlier in ((PHASES[1], s.members[1]), (PHASES[2], s.members[1] + s.members[2])):
        for _ in range(20):
            batch = s.draw(phase, n)
            own, kept = batch[:n - expected], batch[n - expected:]
            assert set(own) <= set(s.members[phase.number]) and set(kept) <= set(earlier)
            assert len(set(batch)) == n
            assert all(s.mean_rewards[i] <= 0.5 for i in kept)
    assert set(s.draw(PHASES[0], 4)) <= set(s.members[1])                      # phase 1 has no earlier one


def test_too_few_hard_examples_leave_their_places_to_the_phase():
    s = sampler(fraction=0.5)
    s.record("e3", 0.0)
    s.record("e4", 0.51)                                                       # not hard
    for _ in range(10):
        batch = s.draw(PHASES[1], 6)
        assert batch[-1] == "e3" and len(set(batch) & set(s.members[2])) == 5


def test_draws_are_in_proportion_to_one_over_the_mean_reward():
    """One place per batch, 20,000 batches, chi-square; a mean of 0 counts as the floor."""
    means = {"e0": 0.0, "e1": 1 / 32, "e2": 1 / 16, "e3": 0.125, "e4": 0.25, "e5": 0.5, "e6": 0.75}
    s = sampler(fraction=0.5, floor=1 / 16)
    for name, mean in means.items():
        s.record(name, mean)
    N = 20_000
    counts = Counter(s.draw(PHASES[1], 2)[1] for _ in range(N))
    weights = {"e0": 16, "e1": 16, "e2": 16, "e3": 8, "e4": 4, "e5": 2}
    assert counts.keys() == weights.keys()
    expected = {name: N * w / sum(weights.values()) for name, w in weights.items()}
    statistic = sum((counts[name] - e) ** 2 / e for name, e in expected.items())
    assert 1e-3 < torch.special.gammaincc(torch.tensor(2.5), torch.tensor(statistic / 2)) < 1 - 1e-3


def test_what_is_solved_stops_coming_back_and_what_is_forgotten_returns():
    s = sampler(fraction=0.5)
    s.record("e1", 0.1)
    s.record("e2", 0.1)
    assert set(s.draw(PHASES[1], 4)[2:]) == {"e1", "e2"}
    s.record("e1", 0.9)
    assert {i for _ in range(10) for i in s.draw(PHASES[1], 4)} & set(s.members[1]) == {"e2"}
    s.record("e1", 0.5)                                                        # at the limit: hard
    assert set(s.draw(PHASES[1], 4)[2:]) == {"e1", "e2"}


# State

def play(s, rng: random.Random, rounds: int) -> list:
    """A stretch of training: draws of any phase, and rewards that come back."""
    log = []
    for _ in range(rounds):
        batch = s.draw(rng.choice(PHASES), rng.randint(1, 7))
        for i in batch:
            s.record(i, rng.randint(0, 8) / 8)
        log.append(batch)
    return log


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1000), st.integers(0, 15), st.sampled_from((0.0, 0.25, 0.5, 0.9)))
def test_a_state_through_json_continues_with_the_same_draws_from_any_point(seed, cut, fraction):
    rng, s = random.Random(seed), sampler(fraction=fraction)
    play(s, rng, cut)
    state, place = json.dumps(s.state_dict(), sort_keys=True), rng.getstate()
    expected = play(s, rng, 8)
    resumed = sampler(fraction=fraction)
    resumed.load_state_dict(json.loads(state))
    assert json.dumps(resumed.state_dict(), sort_keys=True) == state
    rng.setstate(place)
    assert play(resumed, rng, 8) == expected


def test_a_state_is_a_copy():
    s = sampler()
    state = s.state_dict()
    before = json.dumps(state)
    play(s, random.Random(0), 3)
    assert json.dumps(state) == before


def test_loads_what_eval_difficulty_writes():
    s = sampler(fraction=0.5)
    s.load_state_dict({"mean_rewards": {"e1": 0.25, "e2": 1, "of another data set": 0}})
    assert s.hard_examples(PHASES[1]) == ["e1"] and s.difficulty("e1") == 4
    assert s.draw(PHASES[1], 4)[-1] == "e1"
    assert s.draw(PHASES[0], 12) == sampler().draw(PHASES[0], 12)              # the rest starts from the beginning


def test_draws_are_a_function_of_seed_phase_count_and_records():
    def history(seed=3, order=1, other_phase=0):
        s = sampler(seed=seed, fraction=0.5)
        record_all_in = list(range(len(LENGTHS)))[::order]
        for i in record_all_in:                                                # the order of recording does not count
            s.record(f"e{i}", (i % 9) / 8)
        for _ in range(other_phase):
            s.draw(PHASES[2], 3)
        return [s.draw(PHASES[1], 4) for _ in range(6)]
    assert history() == history() == history(order=-1) == history(other_phase=2)
    assert history() != history(seed=4)


def test_global_random_numbers_are_left_alone():
    random.seed(5)
    state = random.getstate()
    s = sampler()
    record_all(s)
    s.draw(PHASES[2], 6)
    assert random.getstate() == state


@pytest.mark.parametrize("n", [1, 2, 5, 12, 13, 16, 40])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.9])
def test_the_largest_draw_is_reached_and_never_passed(n, fraction):
    """With everything hard, in the last phase."""
    s = sampler(fraction=fraction)
    first = [len(s.draw(phase, n)) for phase in PHASES]
    for i in LENGTHS:
        s.record(i, 0.0)
    then = [len(s.draw(phase, n)) for phase in PHASES]
    assert max(first + then) == s.largest_draw(n) <= n


def test_a_group_that_nobody_could_score_says_nothing_about_its_example():
    sampler = RetrospectiveSampler({"a": 10, "b": 90}, phases((50, 100), (1, 1)), fraction=0.5)
    sampler.record("a", 0.25)
    sampler.record("a", float("nan"))
    sampler.record("b", float("nan"))
    assert sampler.mean_rewards == {"a": 0.25}
