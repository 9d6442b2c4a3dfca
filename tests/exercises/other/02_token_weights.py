"""Another solution: a loop over answers."""

import math

import torch

from nanoqwenlong.errors import choose


def token_weights(rollouts, loss, max_new_tokens):
    divisor_of = choose(LOSSES, loss, "--loss")
    known = [length for rollout in rollouts.values()
             for length, reward in zip(rollout.group.lengths, rollout.rewards) if not math.isnan(reward)]
    tokens, answers = torch.tensor(float(sum(known))), torch.tensor(float(len(known)))
    result = {}
    for row, rollout in rollouts.items():
        values = []
        for length, reward in zip(rollout.group.lengths, rollout.rewards):
            of_answer = torch.tensor([float(length)]).double()
            divisor = float(divisor_of(of_answer, tokens.double(), answers.double(), max_new_tokens))
            values.append(0.0 if math.isnan(reward) else 1 / max(divisor, 1.0))
        result[row] = torch.tensor(values, dtype=torch.float64)
    return result
