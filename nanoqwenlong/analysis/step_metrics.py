"""What a step of RL did: numbers for metrics.jsonl, under TRL's names where it has them, and words for rollouts.jsonl.

A step has P prompts and G answers to each: `batch` has P examples, `groups` their Groups, `texts` and `scores` (P, G).
Most numbers are told for the whole step and again for its parts, by length and by task: entropy and
entropy_by_len/0-80.
"""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from statistics import mean

import torch

from .. import group_pass, parallel
from ..curriculum import bucket
from ..grpo import Spread
from ..records import Example
from . import patterns

Tensor = torch.Tensor
PATTERNS = ("grounding", *patterns.CUES)


def parts_of(batch: Sequence[Example], ends: Sequence[int]) -> list[tuple[str, ...]]:
    """The parts that each example's numbers are told for as well, as endings of metrics' names: its length bucket's,
    and its task's where there are several. ends: of the buckets.

    >>> parts_of([Example("a", "", "", "", length=70), Example("b", "", "", "", "f1", length=90)], (80, 200))
    [('_by_len/0-80', '_by_task/qa'), ('_by_len/80-200', '_by_task/f1')]
    """
    tasks = {example.task for example in batch}
    return [(f"_by_len/{bucket(example.length, ends)}", *[f"_by_task/{example.task}"] * (len(tasks) > 1))
            for example in batch]


def rollout_values(groups, scores, rewards: Tensor, shaped: Tensor, parts, min_std: float) -> dict:
    """What was sampled, as numbers under TRL's names where it has them. Unscorable answers are in no reward. `reward`
    is what is trained on, penalties for length included; all else called a reward is without them.

    rewards, shaped (P, G): without and with the penalties. A group whose rewards spread less than min_std agreed."""
    answers = [completion for group in groups for completion in group.completions]
    lengths = [len(answer.ids) for answer in answers]
    rows_of = {}
    for row, names in enumerate(parts):
        for name in names:
            rows_of.setdefault(name, []).append(row)
    spread = Spread.of(shaped, min_std)
    return {
        "reward": number(shaped.nanmean()),
        "reward_std": float(spread.std.mean()),
        "frac_reward_zero_std": float(spread.alike.double().mean()),
        "accuracy": number(rewards.nanmean()),
        "rewards/rule/mean": mean(score.rule for group in scores for score in group),
        "rewards/overlong/mean": number((shaped - rewards).nanmean()),
        "entropy": sampled_entropy(answers),
        "answers/extracted": mean(bool(score.answer) for group in scores for score in group),
        "completions/mean_length": mean(lengths),
        "completions/min_length": min(lengths),
        "completions/max_length": max(lengths),
        "completions/clipped_ratio": clipped_ratio(answers),
        "prompts/mean_length": mean(len(group.prompt_ids) for group in groups),
        **{name + part: value for part, rows in rows_of.items()
           for name, value in part_values([groups[row] for row in rows], rewards[rows]).items()},
    }


def part_values(groups, rewards: Tensor) -> dict:
    """The same of some of the groups, in short."""
    answers = [completion for group in groups for completion in group.completions]
    return {"reward": mean_of(rewards.nanmean(-1).tolist()), "entropy": sampled_entropy(answers),
            "mean_length": mean(len(answer.ids) for answer in answers), "clipped_ratio": clipped_ratio(answers)}


def sampled_entropy(answers) -> float:
    """An estimate over all tokens, trained on or not: the mean of -log-prob as sampled."""
    return -sum(sum(answer.logprobs) for answer in answers) / max(1, sum(len(answer.ids) for answer in answers))


def clipped_ratio(answers) -> float:
    return mean(answer.finish_reason == "length" for answer in answers)


def mean_of(values: list[float]) -> float | None:
    """Of those that are no NaN; None if all are."""
    known = [value for value in values if not math.isnan(value)]
    return mean(known) if known else None


def number(value: Tensor) -> float | None:
    return mean_of([float(value)])


def sampling_values(rewards: Tensor, num_wanted: int, num_informative: int, refills: int) -> dict:
    """Dynamic sampling: rounds of more prompts, groups that disagree, how many of those are missing, and why."""
    known = rewards.nan_to_num(0.5)
    return {"sampling/refills": refills, "sampling/informative": num_informative,
            "sampling/missing": max(0, num_wanted - num_informative),
            "sampling/all_wrong": int((known == 0).all(-1).sum()),
            "sampling/all_right": int((known == 1).all(-1).sum())}


def open_share(scores) -> float:
    """Of the answers that a judge was asked about, those that it left open."""
    return mean([math.isnan(s.judge) for group in scores for s in group if s.judge is not None] or [0.0])


def judge_values(judge, scores) -> dict:
    """What was asked, and what came of it."""
    if judge is None:
        return {}
    counts, verdicts = judge.take(), [s.judge for group in scores for s in group if s.judge is not None]
    return {"judge/calls": counts["asked"], "judge/cached": counts["cached"],
            "judge/error_rate": open_share(scores),
            "rewards/judge/mean": mean_of(verdicts) or 0.0, "judge/canaries_wrong": counts["canaries_wrong"]}


def kl_values(reference, groups, parts, **scoring) -> dict:
    """The KL to the starting model, k3 per token of all sampled answers, of groups that agree as well: those that do
    not are few towards the end, and hard. `reference` reads every answer once for it; None: nothing."""
    if reference is None:
        return {}
    sums = Counter()
    for row, ref_logprobs in group_pass.logprobs_all(reference, dict(enumerate(groups)), **scoring).items():
        for answer, ref in zip(groups[row].completions if row is not None else (), ref_logprobs):
            d = (ref.double().cpu() - torch.tensor(answer.logprobs, dtype=torch.float64)).clamp(-20, 20)
            k3 = float((d.exp() - d - 1).sum())
            for part in ("", *parts[row]):
                sums.update({f"kl{part}": k3, f"tokens{part}": len(answer.ids)})
    sums = parallel.reduce(sums)
    return {name: sums[name] / max(1, sums[name.replace("kl", "tokens", 1)]) for name in sums if name.startswith("kl")}


def update_values(updates: list[tuple[Counter, float]], learning_rate: float, with_kl: bool) -> dict:
    """What was learned from: sums over the tokens of the informative groups, divided once. with_kl: the KL is in the
    loss, and told as it stands there."""
    total = Counter()
    for sums, _ in updates:
        total.update(sums)
    parts = [name.removeprefix("num_tokens") for name in total if name.startswith("num_tokens_by_")]

    def per_token(*names: str, part: str = "") -> float:
        return sum(total[name + part] for name in names) / max(1, total["num_tokens" + part])

    return {"loss": total["loss"], "entropy_trained": per_token("entropy"),
            **({"kl_trained": per_token("kl")} if with_kl else {}),
            "clip_ratio/low_mean": per_token("clipped_low"), "clip_ratio/high_mean": per_token("clipped_high"),
            "clip_ratio/dual_mean": per_token("clipped_dual"), "updates": len(updates),
            "grad_norm": mean([norm for _, norm in updates] or [0.0]), "learning_rate": learning_rate,
            "rollout_gap": max([sums["gap"] for sums, _ in updates], default=0.0),
            **{f"clip_ratio{part}": per_token("clipped_low", "clipped_high", part=part) for part in parts}}


def retro_values(sampler, phase, batch) -> dict:
    """The share of earlier phases' hard examples in the batch, how hard they are by their newest rewards, and how many
    of them there are now."""
    kept = [example.id for example in batch if example.length <= phase.low]
    pool = {"retro/pool": len(sampler.hard_examples(phase))} if phase.number > 1 and sampler.fraction else {}
    return {"retro/frac": len(kept) / len(batch),
            "retro/mean_difficulty": mean([sampler.difficulty(key) for key in kept] or [0.0]), **pool}


def patterns_of(batch, texts) -> list[list[patterns.Patterns]]:
    """The reasoning patterns in each answer, of each example. Every rank reads its share, one document at a time: a
    long one takes a second or two with its answers, and 30 MB."""
    def read(row: int) -> list[tuple]:
        document = patterns.Document(patterns.read_by(batch[row]))
        return [astuple(patterns.count(text, document)) for text in texts[row]]

    shares = parallel.gather([read(row) for row in range(parallel.rank(), len(batch), parallel.size())])
    return [[patterns.Patterns(*answer) for answer in shares[row % len(shares)][row // len(shares)]]
            for row in range(len(batch))]


def pattern_values(found) -> dict:
    """How many an answer has, on average, and how long its longest quote is, in words."""
    answers = [answer for group in found for answer in group]
    return {f"patterns/{name}": mean(getattr(answer, name) for answer in answers)
            for name in (*PATTERNS, "longest_quote")}


def expert_values(model) -> dict:
    """How evenly the tokens that were trained on since the last call went to the experts of a mixture: the busiest
    one's tokens over the even share (mean over layers; 1 is even, the number of experts over k the worst), and the
    share of all experts that none went to. Nothing for a dense model. With several ranks all of them call it."""
    if not model.config.num_experts:
        return {}
    ranks = [loads for loads in parallel.gather(model.take_loads()) if loads]
    if not ranks:
        return {}
    loads = torch.tensor(ranks, dtype=torch.float64).sum(0)                    # (layers, E)
    loads = loads[loads.any(-1)]                               # the last layer, if all that it saw were lone tokens
    return {"experts/max_load": float((loads.amax(-1) / loads.mean(-1)).mean()),
            "experts/unused": float((loads == 0).double().mean())}


def timing(times, groups) -> dict:
    parts = {f"timing_s/{name}": times[name] for name in ("sample", "reward", "update")}
    num_tokens = sum(len(group.prompt_ids) + group.num_tokens for group in groups)
    step_time = sum(parts.values())
    return {"step_time": step_time, **parts, "tokens_per_s": num_tokens / step_time}


def words(batch, groups, texts, scores, rewards, shaped, advantages, found) -> Iterator[dict]:
    """Every answer of the step, for rollouts.jsonl; its reward as trained on, penalty included, and where in its text
    the document is quoted."""
    for row, (example, group) in enumerate(zip(batch, groups)):
        for i, completion in enumerate(group.completions):
            score = scores[row][i]
            yield dict(id=example.id, sample=i, task=example.task, question=example.question, gold=example.accepted,
                       text=texts[row][i], answer=score.answer, rule=score.rule,
                       judge=score.judge and mean_of([score.judge]), reward=number(shaped[row][i]),
                       penalty=number(rewards[row][i] - shaped[row][i]), advantage=float(advantages[row][i]),
                       length=len(completion.ids), finish_reason=completion.finish_reason,
                       patterns={name: getattr(found[row][i], name) for name in PATTERNS}, quotes=found[row][i].quotes)
