"""Another solution: task by task, group by group."""

import math

import torch

from nanoqwenlong.advantages import EPS, GroupStats


def tmn_advantages(rewards, tasks, reweight=True, alpha=0.8, min_std=0.0):
    stats = GroupStats.of(rewards, min_std)
    result = torch.zeros_like(stats.rewards)
    for row, task in enumerate(tasks):
        if stats.agrees[row]:
            continue
        peers = [other for other, name in enumerate(tasks) if name == task and not stats.agrees[other]]
        spread = math.sqrt(sum(stats.std[other].item() ** 2 for other in peers) / len(peers))
        typical = sum(stats.mean[other].item() for other in peers) / len(peers)
        mean = stats.mean[row].item()
        known = [r for r in stats.rewards[row].tolist() if not math.isnan(r)]
        bar = alpha * mean + (1 - alpha) * typical
        p = sum(r > bar + 1e-9 for r in known) / len(known)
        for column, r in enumerate(stats.rewards[row].tolist()):
            if math.isnan(r):
                continue
            centred = stats.centred[row, column].item()
            factor = math.exp(0.5 - p) if reweight else 1.0
            result[row, column] = centred / (spread + EPS) * (factor if centred > 0 else 1 / factor)
    return result
