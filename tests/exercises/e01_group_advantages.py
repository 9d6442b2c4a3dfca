"""Group advantages"""

import torch
from hypothesis import strategies as st

FILE = "nanoqwenlong/advantages.py"
WRITE = ("GroupStats.of", "group_advantages")
TESTS = ["tests/test_grpo.py", "-k", "advantages and not tmn and not task"]
TRAIN = ""

reward = st.sampled_from([0.0, 0.1, 0.7, 1.0])


def groups(G: int):
    """Up to four groups of G rewards. In some of them all are equal."""
    group = st.one_of(st.lists(reward, min_size=G, max_size=G), reward.map(lambda value: [value] * G))
    return st.lists(group, min_size=1, max_size=4)


CASES = st.fixed_dictionaries({
    "rewards": st.integers(2, 5).flatmap(groups), "scale": st.booleans(), "unscorable": st.booleans(),
    "shift": st.sampled_from([-2.0, 0.5, 3.0])})


def answer(m, rewards, scale, unscorable=False):
    rewards = torch.tensor(rewards, dtype=torch.float64)
    if unscorable:
        rewards[0, 0] = torch.nan
    return m.group_advantages(rewards, scale=scale)


def close(a, b):
    return torch.allclose(a, b, rtol=0, atol=1e-9)


def shifted(m, rewards, scale, shift):
    """Adding the same number to all rewards of a group changes nothing"""
    moved = [[value + shift for value in group] for group in rewards]
    assert close(answer(m, rewards, scale), answer(m, moved, scale))


def scaled(m, rewards):
    """Rewards that are four times as large give the same advantages with scale, and four times as large ones without"""
    larger = [[4 * value for value in group] for group in rewards]
    few_digits = dict(rtol=0, atol=1e-4)                                       # the eps beside the std
    assert torch.allclose(answer(m, larger, True), answer(m, rewards, True), **few_digits)
    assert close(answer(m, larger, False), 4 * answer(m, rewards, False))


def sums_to_zero(m, rewards, scale, unscorable):
    """The advantages of a group sum to zero, also if one answer could not be scored"""
    total = answer(m, rewards, scale, unscorable).sum(-1)
    assert close(total, torch.zeros_like(total))


def equal_rewards(m, rewards, scale):
    """If all rewards of a group are equal, its advantages are exactly zero"""
    G = len(rewards[0])
    for value in (0.1, 0.7, 1 / 3):
        assert not answer(m, [[value] * G], scale).any(), f"{G} rewards of {value}"


def alone(m, rewards, scale, unscorable):
    """Each group is treated by itself: other groups in the batch change nothing"""
    together = answer(m, rewards, scale, unscorable)
    for row, group in enumerate(rewards):
        assert close(answer(m, [group], scale, unscorable and row == 0)[0], together[row])


def unit_variance(m, rewards):
    """With scale, the squares of a group's advantages sum to G - 1"""
    result = answer(m, rewards, True)
    for row, group in enumerate(rewards):
        if len(set(group)) > 1:
            assert abs(result[row].square().sum() - (len(group) - 1)) < 1e-3


def not_scored(m, rewards, scale, unscorable):
    """An answer that could not be scored has advantage 0, and the others are as if it did not exist"""
    if unscorable:
        result = answer(m, rewards, scale, True)[0]
        assert result[0] == 0
        assert close(result[1:], answer(m, [rewards[0][1:]], scale)[0])


LAWS = (shifted, scaled, sums_to_zero, equal_rewards, alone, unit_variance, not_scored)
WRONG = (
    ("the variance is divided by G instead of G - 1", "(count - 1).clamp_min(1)", "count.clamp_min(1)"),
    ("the std is taken over the whole batch instead of each group", "(squares / (count - 1).clamp_min(1)).sqrt()",
     "(squares.sum() / (count.sum() - 1).clamp_min(1)).sqrt().expand_as(squares)"),
    ("the mean is taken over the whole batch instead of each group", "total(known) / count.clamp_min(1)",
     "known.sum().expand_as(total(known)) / count.sum().clamp_min(1)"),
    ("rewards are divided by the std, but the mean is not subtracted", "known - mean", "known"),
    ("equal rewards are not tested exactly, so rounding becomes an advantage", "equal | (std < min_std)", "std < 0"),
    ("an unscorable answer counts as a reward of 0", "scored = ~rewards.isnan()",
     "scored = torch.ones_like(rewards, dtype=torch.bool)"))
