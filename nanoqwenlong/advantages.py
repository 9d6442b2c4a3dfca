"""Advantages: how much better each answer is than the other answers of its group.

Every estimator gets the rewards (P, G) of P prompts with G answers each, and the task of each prompt. It returns
advantages (P, G) in float64. A NaN reward is unscorable: its advantage is 0 and it counts in no mean. A group that
agrees gets exact zeros, because it teaches nothing. A group agrees if its rewards are all equal, if fewer than two of
them could be scored, or if their standard deviation is below `min_std`.

A new estimator is one function here and one row of ADVANTAGES.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

from .errors import choose
from .records import Rollout

Tensor = torch.Tensor
Tasks = Sequence[str]                   # the task of each prompt
MIN_STD = 0.01                          # of a group's rewards, in training
EPS = 1e-6


class GroupStats(NamedTuple):
    """What the rewards of each group have in common. Unscorable rewards are left out."""

    rewards: Tensor                     # (..., G) NaN: unscorable
    centred: Tensor                     # (..., G) reward - mean, 0 if unscorable
    count: Tensor                       # (..., 1) number of scored rewards
    mean: Tensor                        # (..., 1)
    std: Tensor                         # (..., 1) with count - 1
    agrees: Tensor                      # (..., 1) bool

    @classmethod
    def of(cls, rewards: Tensor, min_std: float = 0.0) -> "GroupStats":
        rewards = torch.as_tensor(rewards, dtype=torch.float64)
        scored = ~rewards.isnan()
        known = rewards.nan_to_num(0.0)
        count = total(scored)
        mean = total(known) / count.clamp_min(1)
        centred = torch.where(scored, known - mean, 0.0)
        squares = total(centred.square())
        std = (squares / (count - 1).clamp_min(1)).sqrt()
        # Test equality exactly: (r - mean) / (std + eps) of equal rewards need not be 0 in floating point.
        lowest = torch.where(scored, known, torch.inf)
        highest = torch.where(scored, known, -torch.inf)
        equal = highest.amax(-1, keepdim=True) <= lowest.amin(-1, keepdim=True)
        return cls(rewards, centred, count, mean, std, equal | (std < min_std))


def total(x):
    """(..., G) -> (..., 1)"""
    return x.sum(-1, keepdim=True)


def group_advantages(rewards: Tensor, scale: bool = True, min_std: float = 0.0, tasks: Tasks = ()) -> Tensor:
    """GRPO: A_i = (r_i - mean) / (std + eps) within the group, (..., G) -> (..., G) float64.

    QwenLong-L1 Eq. 5, with the released code's G - 1 in the std. `scale=False`: Dr. GRPO (arXiv 2503.20783).

    >>> group_advantages([1, 0, 0, float("nan")], scale=False)
    tensor([ 0.6667, -0.3333, -0.3333,  0.0000], dtype=torch.float64)
    """
    group = GroupStats.of(rewards, min_std)
    advantages = group.centred
    if scale:
        advantages = advantages / (group.std + EPS)
    return torch.where(group.agrees, 0.0, advantages)


def tmn_advantages(rewards: Tensor, tasks: Tasks, reweight: bool = True, alpha: float = 0.8, min_std: float = 0.0
                   ) -> Tensor:
    """TMN-Reweight of GoLongRL (arXiv 2605.19577), for tasks whose rewards are graded on different scales.

    Task-mean normalisation: A = (r - mean of the group) / (s + eps). s^2 is the mean of the group variances over the
    prompts of one task. So a group whose answers hardly differ is not blown up to the scale of one where they do.

    Re-weighting: an answer above its group's mean counts w = exp(1/2 - p) times, any other 1 / w times. p is the share
    of the group's answers above alpha * mean of the group + (1 - alpha) * mean of the task's groups. So success counts
    more where it is rare, and failure where success is common. Afterwards a group's advantages need not sum to zero.

    A group that agrees takes no part in its task's means: dynamic sampling leaves it out of training.

    >>> tmn_advantages(torch.tensor([[1.0, 0, 0, 0], [0.2, 0.4, 0.6, 0.8]]), ["em", "rouge_l"])[0]
    tensor([ 1.9260, -0.3894, -0.3894, -0.3894], dtype=torch.float64)
    """
    group = GroupStats.of(rewards, min_std)
    # 1. Average over the groups of the same task that disagree
    counted = same_task(tasks) & ~group.agrees[:, 0]                           # (P, P)
    share = counted.double() / total(counted).clamp_min(1)
    task_std = (share @ group.std.square()).sqrt()                             # (P, 1)
    task_mean = share @ group.mean                                             # (P, 1)
    advantages = group.centred / (task_std + EPS)
    if reweight:
        # 2. Weigh success by how rare it is
        bar = alpha * group.mean + (1 - alpha) * task_mean
        above = group.rewards > bar + 1e-9                     # a reward on the bar is not above it, nor is NaN
        p = total(above).double() / group.count.clamp_min(1)
        weight = (0.5 - p).exp()
        advantages *= torch.where(group.centred > 0, weight, 1 / weight)
    return torch.where(group.agrees, 0.0, advantages)


def task_std_advantages(rewards: Tensor, tasks: Tasks, min_std: float = 0.0) -> Tensor:
    """A = (r - mean of the group) / (std of all scored rewards of the task in this batch + eps).

    QwenLong-L1.5 (arXiv 2512.12967), Eq. 7. Its released code also takes the mean over the task. The paper takes the
    group's mean, and so does this function.

    >>> task_std_advantages(torch.tensor([[1.0, 0], [1, 1]]), ["qa", "qa"])
    tensor([[ 1.0000, -1.0000],
            [ 0.0000,  0.0000]], dtype=torch.float64)
    """
    group = GroupStats.of(rewards, min_std)
    task_stds = []
    for same in same_task(tasks):
        of_task = group.rewards[same].flatten()
        task_stds.append(GroupStats.of(of_task).std)
    task_std = torch.stack(task_stds)                                          # (P, 1)
    advantages = group.centred / (task_std + EPS)
    return torch.where(group.agrees, 0.0, advantages)


def same_task(tasks: Tasks) -> Tensor:
    """(P, P) bool: whether two prompts have the same task."""
    numbers = torch.tensor([tasks.index(task) for task in tasks])
    return numbers[:, None] == numbers[None, :]


# What --advantages takes. An estimator is called with rewards (P, G), tasks (P names) and min_std.
ADVANTAGES: dict[str, Callable] = {
    "grpo": group_advantages,
    "dr_grpo": partial(group_advantages, scale=False),
    "tmn": partial(tmn_advantages, reweight=False),
    "tmn_reweight": tmn_advantages,
    "task_std": task_std_advantages,
}


def with_advantages(rollouts: Sequence[Rollout], name: str) -> list[Rollout]:
    """The rollouts of a whole step, each with its advantages. Raises ConfigError for an unknown name."""
    estimator = choose(ADVANTAGES, name, "--advantages")
    rewards = [rollout.shaped_rewards for rollout in rollouts]                 # (P, G)
    tasks = [rollout.example.task for rollout in rollouts]
    advantages = estimator(rewards, tasks=tasks, min_std=MIN_STD)              # (P, G)
    result = []
    for rollout, row in zip(rollouts, advantages.tolist()):
        result.append(replace(rollout, advantages=row))
    return result
