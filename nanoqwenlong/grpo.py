"""The loss of a group's answers, the weights of its tokens, and the numbers of dynamic sampling (GRPO, DAPO)."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from math import inf

import torch
from kernels import grpo_loss

from .correction import off_policy_factors
from .errors import choose
from .records import Rollout

Tensor = torch.Tensor


def overlong_penalty(length: int, max_tokens: int, buffer: int) -> float:
    """What an answer of `length` tokens loses of its reward (DAPO's soft penalty, QwenLong-L1 Eq. 7).

    Nothing up to max_tokens - buffer, then linearly more, and 1 from max_tokens on. If buffer is 0: always nothing.

    >>> [overlong_penalty(length, max_tokens=10000, buffer=1000) for length in (9000, 9500, 10000)]
    [0.0, 0.5, 1.0]
    """
    if buffer == 0:
        return 0.0
    excess = (length - (max_tokens - buffer)) / buffer
    return min(1.0, max(0.0, excess))


def num_refills(num_groups: int, num_informative: int, num_sampled: int) -> int:
    """How many more prompts should bring the number of informative groups to `num_groups` (DAPO's dynamic sampling).

    The estimate uses the rate seen so far, and is at most `num_groups`. Surplus groups are trained on as well.

    >>> num_refills(16, 16, 20), num_refills(16, 12, 16), num_refills(16, 4, 16), num_refills(16, 0, 16)
    (0, 6, 16, 16)
    """
    missing = max(0, num_groups - num_informative)
    rounded_up = -(-missing * num_sampled // max(1, num_informative))
    return min(num_groups, rounded_up)


def minibatches(rollouts: Sequence[Rollout], num: int) -> list[dict]:
    """The informative rollouts, dealt out to `num` optimizer steps: {row: rollout} each. Empty ones are left out."""
    dealt = [{} for _ in range(num)]
    place = 0
    for row, rollout in enumerate(rollouts):
        if rollout.is_informative:
            dealt[place % num][row] = rollout
            place += 1
    return list(filter(None, dealt))


# What --loss takes. A token of answer i weighs 1 / divisor_i. A row gives the divisors (G,), or one for all answers,
# from the answers' lengths (G,), the tokens and the answers of the whole step, and the longest answer allowed.
LOSSES: dict[str, Callable] = {
    "dapo": lambda lengths, num_tokens, num_answers, longest: num_tokens,
    "grpo": lambda lengths, num_tokens, num_answers, longest: num_answers * lengths,
    "dr_grpo": lambda lengths, num_tokens, num_answers, longest: num_answers * longest,
}


def token_weights(rollouts: Mapping, loss: str, max_new_tokens: int) -> dict:
    """The weight of each answer's tokens in one optimizer step: {row: Rollout} -> {row: (G,) float64}.

    With S answers in the step, a token of answer i weighs
        dapo      1 / (tokens of all answers)
        grpo      1 / (S |y_i|)
        dr_grpo   1 / (S max_new_tokens)
    An unscorable answer weighs 0 and is not counted. Everything is counted over the whole step, so micro-batches and
    ranks make no difference. Raises ConfigError for an unknown loss."""
    divisors_of = choose(LOSSES, loss, "--loss")
    # 1. Count the answers that could be scored, and their tokens
    lengths, scored = {}, {}
    for row, rollout in rollouts.items():
        lengths[row] = torch.tensor(rollout.group.lengths).double()            # (G,)
        scored[row] = ~torch.tensor(rollout.rewards).isnan()                   # (G,)
    num_answers = num_tokens = 0
    for row, mask in scored.items():
        num_answers = num_answers + mask.sum()
        num_tokens = num_tokens + lengths[row][mask].sum()
    # 2. Weigh each of them
    weights = {}
    for row in rollouts:
        divisors = divisors_of(lengths[row], num_tokens, num_answers, max_new_tokens)
        divisors = divisors.clamp_min(1).double()
        weights[row] = scored[row] / divisors
    return weights


def group_loss(rollout: Rollout, weights: Tensor, sums: Counter, old_logprobs=None, ref_logprobs=None, slices=(),
               entropy_coef=0.0, correction="none", max_drift=inf, **objective) -> Callable:
    """The `loss(rows, logprobs, entropy)` of one group's answers, as group_pass.backward calls it.

    Args:
        weights: (G,) from token_weights.
        sums: collects the loss, token counts and clip counts, and `gap`, the largest difference between the sampler's
            log-probs and the old ones. Every other key also appears once per suffix in `slices`.
        old_logprobs, ref_logprobs: for each answer, the log-probs of its tokens. Without old_logprobs this is the
            first update on these answers: the ratio is 1, but its gradient is not 0.
        entropy_coef: weight of the mean entropy, which is subtracted from the loss.
        correction, max_drift: of off_policy_factors.
        objective: clip_low, clip_high, dual_clip, kl_coef of kernels.grpo_loss.
    """
    completions = rollout.group.completions

    def loss(rows, logprobs, entropy):
        """rows: the answers of this micro-batch. logprobs, entropy: (N,) of their tokens, one answer after another."""
        def tensor(values):
            return torch.as_tensor(values, dtype=logprobs.dtype, device=logprobs.device)

        def per_token(answers):
            """One sequence of token values per answer of the group -> (N,) for this micro-batch."""
            return torch.cat([tensor(answers[row]) for row in rows])

        def spread(values):
            """One value per answer of the group -> (N,), the value of each token's answer."""
            chosen = tensor([float(values[row]) for row in rows])
            return chosen.repeat_interleave(lengths)

        # 1. Collect what each token needs
        answer_lengths = [len(completions[row].ids) for row in rows]
        lengths = torch.tensor(answer_lengths, device=logprobs.device)
        sampled = per_token([answer.logprobs for answer in completions])
        old = per_token(old_logprobs) if old_logprobs else logprobs.detach()
        ref = per_token(ref_logprobs) if ref_logprobs else None
        weight = spread(weights)
        advantages = spread(rollout.advantages)
        counted = weight != 0

        # 2. Correct for the difference between this policy and the one that sampled
        new = logprobs.detach()
        factors = off_policy_factors(sampled, old, new, advantages,
                                     answer_lengths, correction, max_drift)
        corrected = torch.where(counted, weight * factors, 0.0)

        # 3. The loss of these tokens
        value, counts = grpo_loss(logprobs, old, advantages, corrected,
                                  ref_logprobs=ref, entropy=entropy, **objective)
        if entropy_coef:
            bonus = (weight * entropy).sum()
            value = value - entropy_coef * bonus

        # 4. Report. One transfer from the device for all numbers
        gap = (old - sampled).abs().max()
        counts["factors"] = factors[counted].sum()
        masked = counted & (factors == 0)
        counts["masked"] = masked.sum()
        numbers = [gap, value.detach(), *counts.values()]
        gap, *numbers = torch.stack(numbers).tolist()
        for suffix in ("", *slices):
            for name, number in zip(("loss", *counts), numbers):
                sums[name + suffix] += number
        sums["gap"] = max(sums["gap"], gap)
        return value
    return loss
