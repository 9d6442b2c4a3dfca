"""Another solution: group by group, in plain Python."""

import math
import statistics

import torch

from nanoqwenlong.advantages import EPS, Tensor


class GroupStats:
    @classmethod
    def of(cls, rewards, min_std=0.0):
        rewards = torch.as_tensor(rewards, dtype=torch.float64)
        flat = rewards.reshape(-1, rewards.shape[-1]).tolist()
        columns = [cls._one(group, min_std) for group in flat]
        shape = rewards.shape[:-1]
        centred, count, mean, std, agrees = zip(*columns)
        return cls(rewards, torch.tensor(centred, dtype=torch.float64).reshape(rewards.shape),
                   torch.tensor(count).reshape(*shape, 1), torch.tensor(mean, dtype=torch.float64).reshape(*shape, 1),
                   torch.tensor(std, dtype=torch.float64).reshape(*shape, 1), torch.tensor(agrees).reshape(*shape, 1))

    @staticmethod
    def _one(group, min_std):
        known = [value for value in group if not math.isnan(value)]
        mean = math.fsum(known) / len(known) if known else 0.0
        std = statistics.stdev(known) if len(known) > 1 else 0.0
        centred = [0.0 if math.isnan(value) else value - mean for value in group]
        return centred, len(known), mean, std, len(set(known)) < 2 or std < min_std


def group_advantages(rewards, scale=True, min_std=0.0, tasks=()) -> Tensor:
    group = GroupStats.of(rewards, min_std)
    divisor = group.std + EPS if scale else torch.ones_like(group.std)
    result = group.centred / divisor
    result[group.agrees.expand_as(result)] = 0.0
    return result
