"""Task-mean normalisation and re-weighting"""

import torch
from hypothesis import strategies as st

FILE = "nanoqwenlong/advantages.py"
WRITE = ("tmn_advantages",)
TESTS = ["tests/test_grpo.py", "-k", "tmn or scale_of_one or hole_34 or hole_36 or equals_its_groups_mean"]
TRAIN = "--advantages tmn_reweight"

group = st.lists(st.sampled_from([0.0, 0.2, 0.5, 1.0]), min_size=4, max_size=4)
CASES = st.fixed_dictionaries({
    "rewards": st.lists(group, min_size=2, max_size=4), "reweight": st.booleans(),
    "tasks": st.lists(st.sampled_from(["qa", "rank"]), min_size=4, max_size=4)})


def answer(m, rewards, tasks, reweight=False):
    return m.tmn_advantages(torch.tensor(rewards, dtype=torch.float64), tasks[:len(rewards)], reweight=reweight)


def close(a, b, atol=1e-9):
    return torch.allclose(a, b, rtol=0, atol=atol)


def scale_of_a_task(m, rewards, tasks, reweight):
    """If the rewards of one task are ten times as large, no advantage changes (but for the eps)"""
    larger = [[10 * r if task == "rank" else r for r in rows] for rows, task in zip(rewards, tasks)]
    assert close(answer(m, rewards, tasks, reweight), answer(m, larger, tasks, reweight), 1e-4)


def one_prompt_is_grpo(m, rewards):
    """Without re-weighting, a task with a single prompt gets the advantages of GRPO"""
    assert close(answer(m, rewards[:1], ["qa"]), m.group_advantages(rewards[:1]))


def groups_keep_their_spread(m, rewards):
    """Without re-weighting, two groups of one task keep the ratio of their spreads: both are divided by one number"""
    result, centred = answer(m, rewards, ["qa"] * 4), torch.tensor(rewards, dtype=torch.float64)
    centred = centred - centred.mean(-1, keepdim=True)
    shares = [row.abs().max() / spread.abs().max() for row, spread in zip(result, centred) if spread.abs().max() > 0]
    assert all(abs(share - shares[0]) < 1e-9 for share in shares)


def unit_variance(m, rewards):
    """Without re-weighting, the variances of the advantages average to one over the groups that disagree"""
    variances = [group.var().item() for group in answer(m, rewards, ["qa"] * 4) if group.any()]
    assert not variances or abs(sum(variances) / len(variances) - 1) < 1e-4


def agreeing_groups_do_not_count(m, rewards, tasks, reweight):
    """A group whose rewards are all equal gets zeros, and without it the other groups get the same advantages"""
    result = answer(m, [*rewards, [0.7] * 4], [*tasks[:len(rewards)], tasks[0]], reweight)
    assert not result[-1].any() and close(result[:-1], answer(m, rewards, tasks, reweight))


def rare_success_counts_more(m, rewards):
    """With re-weighting one right answer of four counts exp(1/4) times as much, and its failures exp(-1/4) times"""
    plain, weighted = (answer(m, [[1, 0, 0, 0], [0, 1, 1, 1]], ["qa", "qa"], reweight) for reweight in (False, True))
    e = torch.tensor(0.25, dtype=torch.float64).exp()
    assert close(weighted / plain, torch.stack([e, 1 / e, 1 / e, 1 / e, e, 1 / e, 1 / e, 1 / e]).view(2, 4))


LAWS = (scale_of_a_task, one_prompt_is_grpo, groups_keep_their_spread, unit_variance, agreeing_groups_do_not_count,
        rare_success_counts_more)
WRONG = (
    ("every group is divided by its own std, as in GRPO", "group.centred / (task_std + EPS)\n    if",
     "group.centred / (group.std + EPS)\n    if"),
    ("the standard deviations are averaged instead of the variances", "(share @ group.std.square()).sqrt()",
     "share @ group.std"),
    ("groups that agree take part in the means of their task", "counted = same_task(tasks) & ~group.agrees[:, 0]",
     "counted = same_task(tasks)"),
    ("all tasks share one standard deviation", "counted = same_task(tasks) & ~group.agrees[:, 0]",
     "counted = (~group.agrees[:, 0]).expand(len(tasks), -1)"),
    ("success counts more where it is common: the sign in the exponent is wrong", "weight = (0.5 - p).exp()",
     "weight = (p - 0.5).exp()"))
