"""Group-relative advantages, and the loss of a group's answers as group_pass wants it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from kernels import grpo_loss

Tensor = torch.Tensor


def group_advantages(rewards: Sequence[float] | Tensor, scale: bool = True, min_std: float = 0.0, eps: float = 1e-6
                     ) -> Tensor:
    """rewards (..., G) of the answers to one prompt -> advantages (..., G), float64: A_i = (r_i - mean) / (std + eps).

    QwenLong-L1 Eq. 5, std with G - 1 as in the release; `scale=False` leaves the division out (Dr. GRPO). Rewards all
    equal, only one scored, or of a std below `min_std` give exact zeros. NaN is unscorable: it gets 0 and takes no part
    in mean or std.

    >>> group_advantages([1, 0, 0, float("nan")], scale=False)
    tensor([ 0.6667, -0.3333, -0.3333,  0.0000], dtype=torch.float64)
    """
    group = Spread.of(rewards, min_std)
    return torch.where(group.alike, 0.0, group.centred / (group.std + eps) if scale else group.centred)


def tmn_advantages(rewards: Tensor, tasks: Sequence[str], reweight: bool = True, alpha: float = 0.8,
                   min_std: float = 0.0, eps: float = 1e-6) -> Tensor:
    """rewards (P, G), the task of each prompt -> advantages (P, G), float64: TMN-Reweight of GoLongRL
    (arXiv 2605.19577), for rewards that are graded, and graded otherwise from task to task.

    TMN: A = (r - mean of the group) / (s + eps), where s^2 is the mean of the groups' variances over the prompts of a
    task. So a group whose answers hardly differ is not blown up to the scale of one where they do.

    Re-weighting: an answer above its group's mean counts w = exp(1/2 - p) times, the others 1 / w times, where p is the
    share of the group's answers above alpha * mean of the group + (1 - alpha) * mean of the task's groups: success
    counts more where it is rare, failure where it is not. After it a group's advantages need not add up to zero.

    Groups whose rewards are all equal (or of a std below `min_std`), or with fewer than two scored, get exact zeros
    and take no part in a task's means: they are those that dynamic sampling leaves out. NaN is unscorable.

    >>> tmn_advantages(torch.tensor([[1.0, 0, 0, 0], [0.2, 0.4, 0.6, 0.8]]), ["em", "rouge_l"])[0]
    tensor([ 1.9260, -0.3894, -0.3894, -0.3894], dtype=torch.float64)
    """
    group = Spread.of(rewards, min_std)
    counts = (same_task(tasks) & ~group.alike[:, 0]).double()                  # (P, P): who is in whose task's means
    share = counts / counts.sum(-1, keepdim=True).clamp_min(1)
    task_std = (share @ group.std.square()).sqrt()                             # (P, 1)
    advantages = group.centred / (task_std + eps)
    if reweight:
        bar = alpha * group.mean + (1 - alpha) * (share @ group.mean)
        above = group.scored & (group.known > bar + 1e-9)                      # a reward on the bar is not above it
        p = above.double().sum(-1, keepdim=True) / group.count.clamp_min(1)
        weight = (0.5 - p).exp()
        advantages = advantages * torch.where(group.centred > 0, weight, 1 / weight)
    return torch.where(group.alike, 0.0, advantages)


def task_std_advantages(rewards: Tensor, tasks: Sequence[str], min_std: float = 0.0, eps: float = 1e-6) -> Tensor:
    """rewards (P, G), the task of each prompt -> advantages (P, G), float64: A = (r - mean of the group) / (std + eps),
    the std being that of all the task's scored rewards in the batch (QwenLong-L1.5, arXiv 2512.12967, Eq. 7; its
    released counterpart takes the mean over the task as well, the paper's is the group's).

    >>> task_std_advantages(torch.tensor([[1.0, 0], [1, 1]]), ["qa", "qa"])
    tensor([[ 1.0000, -1.0000],
            [ 0.0000,  0.0000]], dtype=torch.float64)
    """
    group, same = Spread.of(rewards, min_std), same_task(tasks)
    std = torch.stack([Spread.of(group.rewards[row].flatten()).std for row in same])                   # (P, 1)
    return torch.where(group.alike, 0.0, group.centred / (std + eps))


def same_task(tasks: Sequence[str]) -> Tensor:
    """(P, P) bool: whether two prompts are of one task."""
    return torch.tensor([[a == b for b in tasks] for a in tasks])


class Spread(NamedTuple):
    """What the rewards (..., G) of a group have in common, NaN (unscorable) left out: the members after the first three
    are (..., 1). Alike: all equal, fewer than two scored, or a std below `min_std`. Equality is tested exactly, since
    (r - mean) / (std + eps) need not be 0 in floats."""

    rewards: Tensor
    scored: Tensor
    known: Tensor                       # rewards, 0 where there is none
    count: Tensor
    mean: Tensor
    std: Tensor                         # with count - 1; computed from differences to the mean
    alike: Tensor

    @classmethod
    def of(cls, rewards: Sequence[float] | Tensor, min_std: float = 0.0) -> "Spread":
        rewards = torch.as_tensor(rewards, dtype=torch.float64)
        scored = ~rewards.isnan()
        known, count = rewards.nan_to_num(0.0), scored.sum(-1, keepdim=True)
        mean = known.sum(-1, keepdim=True) / count.clamp_min(1)
        centred = torch.where(scored, known - mean, 0.0)
        std = (centred.square().sum(-1, keepdim=True) / (count - 1).clamp_min(1)).sqrt()
        lowest = torch.where(scored, known, torch.inf).amin(-1, keepdim=True)
        highest = torch.where(scored, known, -torch.inf).amax(-1, keepdim=True)
        return cls(rewards, scored, known, count, mean, std, (highest <= lowest) | (std < min_std))

    @property
    def centred(self) -> Tensor:
        return torch.where(self.scored, self.known - self.mean, 0.0)


def overlong_penalty(lengths: Tensor, max_tokens: int, buffer: int) -> Tensor:
    """What an answer of so many tokens loses of its reward: nothing up to max_tokens - buffer, then more and more,
    1 from max_tokens on (DAPO's soft penalty; QwenLong-L1 Eq. 7). buffer 0: nothing at any length. float64.

    >>> overlong_penalty(torch.tensor([9000, 9500, 10000]), max_tokens=10000, buffer=1000)
    tensor([0.0000, 0.5000, 1.0000], dtype=torch.float64)
    """
    return ((lengths.double() - (max_tokens - buffer)) / max(1, buffer)).clamp(0, 1) * (buffer > 0)


def num_wanted(num_groups: int, num_informative: int, num_sampled: int) -> int:
    """How many more prompts should bring the number of informative groups to `num_groups`, at the rate seen so far; at
    most `num_groups` of them (DAPO's dynamic sampling). What they bring too much is trained on as well.

    >>> num_wanted(16, 16, 20), num_wanted(16, 12, 16), num_wanted(16, 4, 16), num_wanted(16, 0, 16)
    (0, 6, 16, 16)
    """
    missing = max(0, num_groups - num_informative)
    return min(num_groups, -(-missing * num_sampled // max(1, num_informative)))


def token_weights(groups: Mapping[int, object], scored: Tensor, kind: str, max_new_tokens: int) -> dict[int, Tensor]:
    """What each token of an answer weighs in the loss of one optimizer step: {row: (G,)}, for the groups of the step.

    kind: "dapo" 1 / (tokens of all answers), "grpo" 1 / (S |y_i|), "dr_grpo" 1 / (S max_new_tokens), with S answers in
    all. scored (P, G) bool: an unscorable answer weighs 0 and is not counted. Everything is counted over the whole
    step, so neither micro-batches nor ranks make a difference."""
    lengths = {row: torch.tensor([len(answer.ids) for answer in group.completions], dtype=torch.float64)
               for row, group in groups.items()}
    num_tokens = sum(lengths[row][scored[row]].sum() for row in groups)
    num_answers = sum(scored[row].sum() for row in groups)
    divisors = {row: {"dapo": num_tokens, "grpo": num_answers * lengths[row], "dr_grpo": num_answers * max_new_tokens
                      }[kind] for row in groups}
    return {row: scored[row] / divisors[row].clamp_min(1).double() for row in groups}


def group_loss(group, advantages: Tensor, weights: Tensor, sums: Counter, old_logprobs: Sequence | None = None,
               ref_logprobs: Sequence | None = None, parts: Sequence[str] = (), entropy_coef: float = 0.0,
               **objective) -> Callable:
    """The `loss(rows, logprobs, entropy)` of one group's answers, for group_pass.backward.

    advantages (G,) and weights (G,) of token_weights, one per answer; old_logprobs and ref_logprobs, for each answer
    its tokens' log-probs. Without old_logprobs this is the first update on these answers: the ratio is 1 (and its
    gradient is not), nothing need be computed. entropy_coef: of the mean entropy, which is taken off the loss.
    `objective` goes to kernels.grpo_loss. `sums` collects the loss and the sums over tokens that it returns, under
    their names and again under these with each ending of `parts`; and `gap`, the largest difference between the
    sampler's log-probs and the old ones."""
    def loss(rows, logprobs, entropy):
        def of_rows(values):
            return torch.cat([torch.as_tensor(values[row], dtype=logprobs.dtype, device=logprobs.device)
                              for row in rows])

        sampled = of_rows([answer.logprobs for answer in group.completions])
        old = of_rows(old_logprobs) if old_logprobs else logprobs.detach()
        lengths = torch.tensor([len(group.completions[row].ids) for row in rows], device=logprobs.device)
        A, weight = (x[list(rows)].to(logprobs).repeat_interleave(lengths) for x in (advantages, weights))
        ref = of_rows(ref_logprobs) if ref_logprobs else None
        value, counts = grpo_loss(logprobs, old, A, weight, ref_logprobs=ref, entropy=entropy, **objective)
        if entropy_coef:
            value = value - entropy_coef * (weight * entropy).sum()
        gap, *counted = torch.stack([(old - sampled).abs().max(), value.detach(), *counts.values()]).tolist()
        for part in ("", *parts):                                              # one transfer from the device for all
            sums.update({name + part: count for name, count in zip(("loss", *counts), counted)})
        sums["gap"] = max(sums["gap"], gap)
        return value
    return loss
