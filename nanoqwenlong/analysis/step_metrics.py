"""What a step of RL did: numbers for metrics.jsonl, under TRL's names if it has them, and rows for rollouts.jsonl."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean

import torch

from .. import group_pass, parallel
from ..advantages import MIN_STD, GroupStats
from ..curriculum import bucket
from ..pretrained.mixture import take_loads
from ..records import Rollout
from . import patterns

PATTERNS = ("grounding", *patterns.CUES)


def slices_of(rollouts: Sequence[Rollout], ends: Sequence[int]) -> list[tuple[str, ...]]:
    """Suffixes of metric names for each rollout, as in entropy_by_len/0-80. `ends`: where the length buckets end."""
    examples = [rollout.example for rollout in rollouts]
    several_tasks = len({example.task for example in examples}) > 1
    return [(f"_by_len/{bucket(example.length, ends)}", *[f"_by_task/{example.task}"] * several_tasks)
            for example in examples]


def rollout_values(rollouts: Sequence[Rollout], slices: Sequence[tuple[str, ...]]) -> dict:
    """Numbers about all answers of the step. Unscorable ones count in no reward. Only `reward` has length penalties."""
    scores = [score for rollout in rollouts for score in rollout.scores]
    lengths = [length for rollout in rollouts for length in rollout.group.lengths]
    shaped = torch.tensor([rollout.shaped_rewards for rollout in rollouts], dtype=torch.float64)       # (P, G)
    rewards = torch.tensor([rollout.rewards for rollout in rollouts], dtype=torch.float64)             # (P, G)
    stats, whole = GroupStats.of(shaped, MIN_STD), slice_values(rollouts)
    values = {"reward": mean_of(shaped.nanmean()), "reward_std": float(stats.std.mean()),
              "frac_reward_zero_std": float(stats.agrees.double().mean()), "accuracy": mean_of(rewards.nanmean()),
              "rewards/rule/mean": mean_of(*(score.rule for score in scores)) or 0.0,
              "rewards/unscorable": mean(math.isnan(score.reward) for score in scores),
              "rewards/overlong/mean": mean_of((shaped - rewards).nanmean()),
              "entropy": whole["entropy"], "answers/extracted": mean(bool(score.answer) for score in scores),
              "completions/mean_length": whole["mean_length"], "completions/min_length": min(lengths),
              "completions/max_length": max(lengths), "completions/clipped_ratio": whole["clipped_ratio"],
              "prompts/mean_length": mean(len(rollout.group.prompt_ids) for rollout in rollouts)}
    for suffix in dict.fromkeys(suffix for suffixes in slices for suffix in suffixes):
        members = [rollout for rollout, suffixes in zip(rollouts, slices) if suffix in suffixes]
        values |= {name + suffix: value for name, value in slice_values(members).items()}
    return values


def slice_values(rollouts: Sequence[Rollout]) -> dict:
    """Numbers for a part of the step. entropy: estimated by the mean of -log-prob over all sampled tokens."""
    answers = [answer for rollout in rollouts for answer in rollout.group.completions]
    num_tokens = sum(rollout.group.num_tokens for rollout in rollouts)
    return {"reward": mean_of(*(rollout.mean_reward for rollout in rollouts)),
            "entropy": -sum(sum(answer.logprobs) for answer in answers) / max(1, num_tokens),
            "mean_length": mean(len(answer.ids) for answer in answers),
            "clipped_ratio": mean(answer.finish_reason == "length" for answer in answers)}


def mean_of(*values: float) -> float | None:
    """The mean without NaN. None, as JSON has no NaN, if nothing else is left."""
    known = [float(value) for value in values if not math.isnan(value)]
    return mean(known) if known else None


def sampling_values(rollouts: Sequence[Rollout], num_groups: int, refills: int) -> dict:
    """Dynamic sampling: rounds of refills, groups that disagree, how many are missing to `num_groups`, and why."""
    informative = sum(rollout.is_informative for rollout in rollouts)
    rewards = [set(rollout.rewards) for rollout in rollouts]
    return {"sampling/refills": refills, "sampling/informative": informative,
            "sampling/missing": max(0, num_groups - informative),
            "sampling/all_wrong": rewards.count({0}), "sampling/all_right": rewards.count({1})}


def verdicts_of(rollouts: Sequence[Rollout]) -> list[float]:
    """The judge's verdicts. NaN: it was asked and gave none."""
    return [score.judge for rollout in rollouts for score in rollout.scores if score.judge is not None]


def unjudged_share(rollouts: Sequence[Rollout]) -> float:
    """Among the answers that the judge was asked about, the share without a verdict."""
    return mean([math.isnan(verdict) for verdict in verdicts_of(rollouts)] or [0.0])


def judge_values(judge, rollouts: Sequence[Rollout]) -> dict:
    """What the judge was asked and what it said. Empty without a judge."""
    if judge is None:
        return {}
    counts = judge.take()
    return {"judge/calls": counts["asked"], "judge/cached": counts["cached"],
            "judge/error_rate": unjudged_share(rollouts), "rewards/judge/mean": mean_of(*verdicts_of(rollouts)) or 0.0,
            "judge/canaries_wrong": counts["canaries_wrong"]}


def retro_values(sampler, phase, rollouts: Sequence[Rollout]) -> dict:
    """Earlier phases' examples: their share in the batch, their mean difficulty, and how many hard ones there are."""
    earlier = [rollout.example.id for rollout in rollouts if rollout.example.length <= phase.low]
    values = {"retro/frac": len(earlier) / len(rollouts),
              "retro/mean_difficulty": mean([sampler.difficulty(key) for key in earlier] or [0.0])}
    if phase.number > 1 and sampler.fraction:
        values["retro/pool"] = len(sampler.hard_examples(phase))
    return values


def kl_values(reference, rollouts: Sequence[Rollout], slices: Sequence[tuple[str, ...]], **scoring) -> dict:
    """The KL to the starting model: k3 per sampled token of all groups, also those that agree. {} without a model."""
    if reference is None:
        return {}
    sums = Counter()
    for row, ref_logprobs in group_pass.logprobs_all(reference, dict(enumerate(rollouts)), **scoring).items():
        completions = () if row is None else rollouts[row].group.completions           # None: a dummy call
        for answer, ref in zip(completions, ref_logprobs):
            sampled = torch.tensor(answer.logprobs, dtype=torch.float64)
            d = (ref.double().cpu() - sampled).clamp(-20, 20)
            k3 = float((d.expm1() - d).sum())
            for suffix in ("", *slices[row]):
                sums.update({f"kl{suffix}": k3, f"tokens{suffix}": len(answer.ids)})
    sums = parallel.reduce(sums)
    return {name: total / max(1, sums[f"tokens{name.removeprefix('kl')}"]) for name, total in sums.items()
            if name.startswith("kl")}


def update_values(updates: Sequence[tuple[Counter, float]], learning_rate: float, with_kl: bool) -> dict:
    """What the updates did. `updates`: the sums over tokens of informative groups, and the gradient norm, of each."""
    total = Counter()
    for sums, _ in updates:
        total.update(sums)
    num_tokens = max(1, total["num_tokens"])
    values = {"loss": total["loss"], "entropy_trained": total["entropy"] / num_tokens}
    if with_kl:
        values["kl_trained"] = total["kl"] / num_tokens
    values |= {f"clip_ratio/{name}_mean": total[f"clipped_{name}"] / num_tokens for name in ("low", "high", "dual")}
    num_weighed = total["num_tokens"] + total["masked"]
    values |= {"correction/mean": total["factors"] / max(1, num_weighed),
               "correction/masked": total["masked"] / max(1, num_weighed)}
    values |= {"updates": len(updates), "grad_norm": mean([norm for _, norm in updates] or [0.0]),
               "learning_rate": learning_rate, "rollout_gap": max([sums["gap"] for sums, _ in updates], default=0.0)}
    for suffix in [name.removeprefix("num_tokens") for name in total if name.startswith("num_tokens_by_")]:
        clipped = total["clipped_low" + suffix] + total["clipped_high" + suffix]
        values[f"clip_ratio{suffix}"] = clipped / max(1, total["num_tokens" + suffix])
    return values


def expert_values(model) -> dict:
    """How evenly trained tokens went to the experts of a mixture. Empty for a dense model. All ranks call it.
    max_load: the busiest expert's tokens over an even share, averaged over layers. unused: a share of experts."""
    ranks = [loads for loads in parallel.gather(take_loads(model)) if loads] if model.config.num_experts else []
    if not ranks:
        return {}
    loads = torch.tensor(ranks, dtype=torch.float64).sum(0)                    # (layers, E)
    loads = loads[loads.any(-1)]                               # drop the last layer if it saw nothing but dummy calls
    return {"experts/max_load": float((loads.amax(-1) / loads.mean(-1)).mean()),
            "experts/unused": float((loads == 0).double().mean())}


def timing_values(times: Mapping[str, float], rollouts: Sequence[Rollout]) -> dict:
    """Seconds of the step and of its parts, and tokens per second (each prompt counted once)."""
    parts = {f"timing_s/{name}": times[name] for name in ("sample", "reward", "update")}
    num_tokens = sum(len(rollout.group.prompt_ids) + rollout.group.num_tokens for rollout in rollouts)
    step_time = sum(parts.values())
    return {"step_time": step_time, **parts, "tokens_per_s": num_tokens / step_time}


def patterns_of(rollouts: Sequence[Rollout]) -> list[list[patterns.Patterns]]:
    """The reasoning patterns of each answer of each rollout. Every rank reads its share, one document at a time."""
    def read(rollout: Rollout) -> list[patterns.Patterns]:
        document = patterns.Document(patterns.read_by(rollout.example))
        return [patterns.count(text, document) for text in rollout.texts]
    shares = parallel.gather([read(rollout) for rollout in rollouts[parallel.rank()::parallel.size()]])
    groups = [shares[row % len(shares)][row // len(shares)] for row in range(len(rollouts))]
    return [[patterns.Patterns(*answer) for answer in group] for group in groups]             # gathered as lists


def pattern_values(counted: Sequence[Sequence[patterns.Patterns]]) -> dict:
    """How many patterns an answer has on average, and how many words its longest quote has."""
    return {f"patterns/{name}": mean(getattr(answer, name) for group in counted for answer in group)
            for name in (*PATTERNS, "longest_quote")}


def rows(rollouts: Sequence[Rollout], counted: Sequence[Sequence[patterns.Patterns]]) -> Iterator[dict]:
    """Every answer of the step, for rollouts.jsonl. The reward has its penalty. `quotes`: start and end in the text."""
    for rollout, patterns_of_group in zip(rollouts, counted):
        example = rollout.example
        for i, completion in enumerate(rollout.group.completions):
            score, habits = rollout.scores[i], patterns_of_group[i]
            reward, shaped = rollout.rewards[i], rollout.shaped_rewards[i]
            yield {
                "id": example.id, "sample": i, "task": example.task, "question": example.question,
                "gold": example.accepted, "text": rollout.texts[i], "answer": score.answer, "rule": mean_of(score.rule),
                "judge": None if score.judge is None else mean_of(score.judge), "reward": mean_of(shaped),
                "penalty": mean_of(reward - shaped), "advantage": rollout.advantages[i], "length": len(completion.ids),
                "finish_reason": completion.finish_reason,
                "patterns": {name: getattr(habits, name) for name in PATTERNS}, "quotes": habits.quotes}
