"""Reinforcement learning in phases of growing document length: the algorithm of QwenLong-L1, one loop.

The method (arXiv 2505.17667): a warmed-up model answers each question G times; a rule rewards the answers, and a judge
those that the rule rejects; what counts is how much better one is than its group (GRPO), with a token-level,
asymmetrically clipped loss, and groups that agree replaced by others (DAPO). Training begins on short documents (phase
I) and goes on with long ones (phase II), where a part of each batch are examples of phase I that were still hard: the
retrospective sampler. For several kinds of tasks at once there is TMN-Reweight (GoLongRL, arXiv 2605.19577).

Deliberate departures from the papers, each for a reason (docs/departures.md): exact match instead of substrings; the
normaliser counts the tokens of the whole update; difficulty has a floor; one update per rollout unless asked for more.

    python train_rl.py --name my-rl                                  the tiny warmed-up model of assets/, on a CPU
    python train_rl.py --preset paper --model DIR --data train.parquet --judge http://localhost:8000/v1 --device cuda
    torchrun --standalone --nproc_per_node=8 train_rl.py --preset r1-distill-qwen-14b --data train.jsonl

A preset that names a model reads it from models/, where `hf download deepseek-ai/DeepSeek-R1-Distill-Qwen-14B
--local-dir models/DeepSeek-R1-Distill-Qwen-14B` puts it. nanoqwenlong/ops/presets.py has the source of each setting.

Whatever ends a run, the same command goes on with it.
"""

import math
import os
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Literal

import torch

from nanoqwenlong import build, curriculum, data, errors, group_pass, grpo, optim, parallel, toy
from nanoqwenlong.analysis import evaluate, plan, step_metrics
from nanoqwenlong.analysis.doctor import Doctor
from nanoqwenlong.errors import ConfigError, DataError
from nanoqwenlong.generate import Generator
from nanoqwenlong.model import Qwen
from nanoqwenlong.ops import presets, run
from nanoqwenlong.ops.flags import rising
from nanoqwenlong.ops.settings import Settings, fixed, free
from nanoqwenlong.pretrained.tokenizer import Tokenizer
from nanoqwenlong.pretrained.weights import read_json
from nanoqwenlong.rewards import lacking, score_all


@dataclass(frozen=True)
class Config(Settings):
    name: str = free("rl")              # the run is kept in RUNS_DIR/NAME
    # data and curriculum
    data: tuple[str, ...] = ()          # JSONL or parquet files. None: the toy task, short and long documents
    task: tuple[str, ...] = ()          # use only these tasks, mixed in these shares: qa=2 f1=1. None: as they come
    skip_bad_rows: bool = False         # leave out rows that cannot be used and report them, instead of refusing all
    toy_examples: int = fixed(2000, least=1)  # of the toy task for each length, if no --data is given
    max_prompt_tokens: int = 60000      # longer prompts are dropped and counted, never cut
    phase_lengths: tuple[int, ...] = ()  # the longest document + question of each phase, in tokens. None: the toy
                                        # task's, or the median and the maximum of the data
    phase_steps: tuple[int, ...] = (30, 150)  # steps of each phase
    lengths: tuple[int, ...] = ()       # upper ends of the metrics' length buckets. None: the phases' lengths
    steps: int = free(0)                # stop after this many steps in total. 0: at the end of the last phase
    retro_fraction: float = 0.25        # part of each batch that is hard examples of earlier phases
    retro_hard_below: float = 0.75      # an example is hard up to this mean reward
    difficulty: str = ""                # JSON from eval.py --difficulty. Without it only this run's rewards count
    # rollouts
    prompts_per_step: int = fixed(16, least=1)
    group_size: int = fixed(8, least=2)  # answers per prompt
    temperature: float = fixed(1.0, least=1e-3)  # of the sampler and of the log-probs alike
    top_p: float = 1.0                  # below 1 the loss no longer scores what was sampled
    max_new_tokens: int = fixed(48, least=1)
    kv_blocks: int = free(8192, least=1)  # of the paged KV cache, 16 tokens each
    max_refills: int = 0                # sample more prompts up to this many times, while too few groups disagree
                                        # (DAPO's dynamic sampling)
    # reward
    judge: str = ""                     # scores answers that the rule rejects: the URL of an OpenAI-style server (its
                                        # key: JUDGE_API_KEY in the environment) or a Hugging Face directory
    judge_model: str = ""               # the judge's name on that server
    judge_minutes: float = free(5.0, least=1e-9)  # time limit of a server for the answers of one round
    overlong_buffer: int = 0            # an answer loses up to 1 of its reward within this many tokens below
                                        # --max-new-tokens (DAPO: 1000). 0: no penalty
    # objective and optimisation
    advantages: Literal["grpo", "dr_grpo", "tmn", "tmn_reweight", "task_std"] = "grpo"  # divided by the group's std,
                                        # not divided, or divided by the task's (GoLongRL. QwenLong-L1.5: task_std)
    loss: Literal["dapo", "grpo", "dr_grpo"] = "dapo"   # equal weight for tokens, for answers, or for tokens divided by
                                        # --max-new-tokens
    updates_per_step: int = fixed(1, least=1)  # optimizer steps per rollout
    old_logprobs: Literal["rollout", "recompute"] = "rollout"  # used from the second update on: the sampler's, or
                                        # computed again before the first update
    clip_low: float = 0.2
    clip_high: float = 0.28
    dual_clip: float = 0.0              # upper bound of the ratio for tokens of bad answers (GoLongRL: 3). 0: no bound
    kl_coef: float = 0.0                # weight in the loss of the k3 KL to the starting model
    measure_kl: bool = False            # keep the starting model and report the KL to it, even if it is not in the loss
    entropy_coef: float = 0.0           # weight of the entropy bonus
    learning_rate: float = 6e-4
    warmup_steps: int = 5
    weight_decay: float = 0.0
    max_grad_norm: float = fixed(1.0, least=1e-9)


PRESETS = presets.RL
HEADLINE = ("phase", "reward", "judge/error_rate", "frac_reward_zero_std", "entropy", "completions/clipped_ratio",
            "completions/mean_length", "grad_norm", "retro/frac", "step_time")
MIN_REWARD_STD = 0.01                   # a group whose rewards have a smaller std agrees
MAX_UNSCORABLE = 0.25                   # the largest share of its answers that the judge may leave open
MAX_UNJUDGED_STEPS = 3                  # stop after this many steps in a row above it
MAX_IDLE_STEPS = 50                     # stop after this many steps in a row in which every group agreed
SHOW_EVERY = 20                         # steps between answers printed in full


def main(cfg: Config) -> None:
    if 0 < cfg.dual_clip <= 1:
        raise ConfigError(f"dual_clip is {cfg.dual_clip}; as a bound on ratios it belongs above 1 (0: no bound)")
    if cfg.overlong_buffer > cfg.max_new_tokens:
        raise ConfigError(f"--overlong-buffer {cfg.overlong_buffer} is more than --max-new-tokens, "
                          f"{cfg.max_new_tokens}: every answer would lose reward")
    rising(cfg, "lengths")
    if cfg.judge and cfg.judge_minutes >= cfg.timeout_minutes:
        raise ConfigError(f"--judge-minutes {cfg.judge_minutes:g} should be less than --timeout-minutes "
                          f"{cfg.timeout_minutes:g}, that other ranks wait for the one that asks")
    with run.Run(cfg) as this:
        train(cfg, this)


def train(cfg: Config, this: run.Run) -> None:
    torch.set_num_threads(cfg.threads)
    tokenizer = Tokenizer(this.source or cfg.model)
    examples, phases, sampler = read_data(cfg, tokenizer, this.log.say)
    model = Qwen.from_pretrained(this.source or cfg.model, this.weights_dtype, this.device, this.prepare,
                                 cfg.check_finite)
    reference = Qwen.from_pretrained(cfg.model, this.dtype, this.device, this.prepare) if (
        cfg.kl_coef or cfg.measure_kl) else None
    model.checkpointing = cfg.checkpointing
    generator = Generator(model, cfg.kv_blocks, prefill_tokens=cfg.max_tokens)
    longest = max(len(example.prompt_ids) for example in examples.values())
    generator.require(longest, cfg.max_new_tokens)
    optimizer, parameters = optim.adamw(model, cfg.learning_rate, cfg.weight_decay), list(model.parameters())
    sampling = dict(temperature=cfg.temperature, top_p=cfg.top_p, max_new_tokens=cfg.max_new_tokens)
    scoring = dict(temperature=cfg.temperature, max_tokens=cfg.max_tokens)
    group_loss = partial(grpo.group_loss, clip_low=cfg.clip_low, clip_high=cfg.clip_high,
                         dual_clip=cfg.dual_clip or math.inf, kl_coef=cfg.kl_coef, entropy_coef=cfg.entropy_coef)
    judge = build.judge(cfg.judge, cfg.judge_model, os.environ.get("JUDGE_API_KEY", ""), seed=cfg.seed,
                        device=this.device, dtype=this.dtype, prepare=this.prepare,
                        deadline=60 * cfg.judge_minutes) if cfg.judge else None
    this.begin(model, tokenizer, optimizer, sampler=sampler, **{"judge": judge} if judge else {})
    for phase in phases:
        num_examples = len(sampler.members[phase.number])
        this.log.say(f"phase {phase.number}: {num_examples} examples of {phase.low + 1} to {phase.high} tokens, "
                     f"{phase.num_steps} steps of {min(cfg.prompts_per_step, num_examples)} x {cfg.group_size} answers")
    this.log.say(plan.words(plan.of_run(cfg, model.config, sampler.largest_draw(cfg.prompts_per_step), longest,
                                        this.dtype.itemsize, parallel.size(), this.num_hosts)))

    timeline = [phase for phase in phases for _ in range(phase.num_steps)][:cfg.steps or None]
    doctor, lengths = Doctor(), cfg.lengths or [phase.high for phase in phases]
    for values in this.log.steps():                                     # what a resumed run has said is not said again
        doctor.look(values)
    for step in this.steps(len(timeline), ends=set(accumulate(phase.num_steps for phase in phases))):
        phase, batch, groups, texts, scores, wanted = timeline[step - 1], [], [], [], [], cfg.prompts_per_step
        for refill in range(1 + cfg.max_refills):
            # 1. Roll out: this phase's examples and the hard ones kept from earlier phases, G answers each
            drawn = [examples[key] for key in sampler.draw(phase, wanted)]
            this.part("sample", longest=max(len(e.prompt_ids) for e in drawn) + cfg.max_new_tokens)
            groups += generator.sample([e.prompt_ids for e in drawn], n=cfg.group_size, eos_ids=tokenizer.eos_ids,
                                       keys=[e.id for e in drawn], seed=(cfg.seed, step, refill), **sampling)

            # 2. Reward: the rule first, the judge for what it rejects; an advantage is relative to the answer's group
            this.part("reward")
            texts += [[tokenizer.decode(c.ids) for c in group.completions] for group in groups[len(batch):]]
            scores += evaluate.agreed(score_all(texts[len(batch):], drawn, judge))
            batch += drawn
            rewards = torch.tensor([[s.reward for s in group] for group in scores], dtype=torch.float64)      # (P, G)
            shaped = rewards - penalties(cfg, groups)
            advantages = advantages_of(cfg, shaped, [e.task for e in batch])

            # 3. Select: a group that agrees with itself teaches nothing; if too many do, others are rolled out
            informative = [row for row in range(len(groups)) if advantages[row].any()]
            if not refill:
                num_groups = len(drawn)
            wanted = grpo.num_wanted(num_groups, len(informative), len(groups))
            if not wanted or step_metrics.open_share(scores) > MAX_UNSCORABLE:
                break
        minibatches = [{row: groups[row] for row in informative[i::cfg.updates_per_step]}
                       for i in range(cfg.updates_per_step)]

        # 4. Update: count the loss tokens first, then one group at a time, one optimizer step per minibatch
        this.part("update", longest=max(len(g.prompt_ids) + len(c.ids) for g in groups for c in g.completions))
        old, parts = old_logprobs(cfg, model, minibatches[1:], scoring), step_metrics.parts_of(batch, lengths)
        kl = step_metrics.kl_values(reference, groups, parts, **scoring)
        updates = []                                                    # of each its sums over tokens, its grad norm
        learning_rate = optim.learning_rate_at(step - 1, cfg.learning_rate, cfg.warmup_steps, len(timeline))
        for minibatch in filter(None, minibatches):
            weights, sums = grpo.token_weights(minibatch, ~rewards.isnan(), cfg.loss, cfg.max_new_tokens), Counter()
            ref = group_pass.logprobs_all(reference, minibatch, **scoring) if cfg.kl_coef else {}
            group_pass.backward_all(model, minibatch, lambda row: group_loss(
                groups[row], advantages[row], weights[row], sums, old.get(row), ref.get(row), parts[row]), **scoring)
            sums = parallel.reduce(sums, highest=("gap",))
            grad_norm = optim.step(optimizer, parameters, learning_rate, cfg.max_grad_norm, sums["loss"])
            if this.watch(grad_norm, ids=[group.key for group in minibatch.values()]):
                updates.append((sums, grad_norm))

        # 5. Report: numbers for every step, words for some of them
        this.part("report")
        record(sampler, batch, rewards)
        found = step_metrics.patterns_of(batch, texts)
        values = {"phase": phase.number, **kl, **step_metrics.pattern_values(found),
                  **step_metrics.rollout_values(groups, scores, rewards, shaped, parts, MIN_REWARD_STD),
                  **step_metrics.sampling_values(rewards, num_groups, len(informative), refill),
                  **step_metrics.judge_values(judge, scores), **step_metrics.retro_values(sampler, phase, batch),
                  **step_metrics.update_values(updates, learning_rate, cfg.kl_coef > 0),
                  **step_metrics.timing(this.times, groups), **step_metrics.expert_values(model)}
        this.log.metrics(step, values)
        this.log.rollouts(step, step_metrics.words(batch, groups, texts, scores, rewards, shaped, advantages, found))
        this.log.line(step, values, HEADLINE)
        if step == 1 or step % SHOW_EVERY == 0:
            show_words(this.log, batch[0], texts[0][0], scores[0][0])
        tell_and_stop(cfg, this, doctor.look(values), values, judge)


def read_data(cfg: Config, tokenizer: Tokenizer, say):
    """{id: example}, the phases, and the sampler over both."""
    shares = data.shares(cfg.task)
    examples = data.read(cfg.data, need_question=True, tell=say if cfg.skip_bad_rows else None) if cfg.data else [
        example for records in (toy.SHORT, toy.LONG)
        for example in toy.examples(cfg.toy_examples, records, cfg.seed, tasks=tuple(shares))]
    if shares:
        examples = data.mix(examples, shares, cfg.seed)
    if note := lacking({example.task for example in examples}):
        say(note)
    examples, num_dropped = data.tokenize(examples, tokenizer, cfg.max_prompt_tokens)
    if num_dropped:
        say(f"{num_dropped} examples dropped: their prompt is longer than {cfg.max_prompt_tokens} tokens")
    lengths = {example.id: example.length for example in examples}
    ends, steps = cfg.phase_lengths, cfg.phase_steps
    if not ends and not cfg.data:
        ends = toy.LENGTHS
    elif not ends:
        ends = sorted({int(median(lengths.values())), max(lengths.values())})
        steps = steps if len(ends) > 1 else (sum(steps),)                # all of one length: one phase
    phases = curriculum.phases(ends, steps)
    num_unused = sum(length > ends[-1] for length in lengths.values())
    if num_unused:
        say(f"{num_unused} examples are longer than the last phase ({ends[-1]} tokens) and are not used")
    sampler = curriculum.RetrospectiveSampler(lengths, phases, cfg.retro_fraction, cfg.retro_hard_below,
                                              seed=cfg.seed)
    if cfg.difficulty:
        sampler.load_state_dict({"mean_rewards": read_difficulty(Path(cfg.difficulty), lengths)})
    return {example.id: example for example in examples}, phases, sampler


def read_difficulty(path: Path, known) -> dict[str, float]:
    """The mean rewards that eval.py --difficulty wrote, of examples that this run has."""
    if not path.is_file():
        raise FileNotFoundError(f"difficulty file {path} is not there")
    means = read_json(path).get("mean_rewards")
    if not isinstance(means, dict) or not all(isinstance(v, int | float) and 0 <= v <= 1 for v in means.values()):
        raise DataError(f'{path}: "mean_rewards" should map example ids to numbers from 0 to 1')
    if means.keys().isdisjoint(known):
        raise DataError(f"{path} knows none of this run's example ids; measure the same data with eval.py --difficulty")
    return {key: value for key, value in means.items() if key in known}


def old_logprobs(cfg: Config, model, minibatches, scoring) -> dict:
    """Of the policy before the first update, for answers that are trained on after it: {row: one per answer}."""
    if cfg.old_logprobs == "recompute":
        parts = [group_pass.logprobs_all(model, minibatch, **scoring) for minibatch in minibatches]
    else:
        parts = [{row: [answer.logprobs for answer in group.completions] for row, group in minibatch.items()}
                 for minibatch in minibatches]
    return {row: found for part in parts for row, found in part.items()}


def penalties(cfg: Config, groups) -> torch.Tensor:
    """(P, G): what each answer loses of its reward for its length."""
    lengths = torch.tensor([[len(answer.ids) for answer in group.completions] for group in groups])
    return grpo.overlong_penalty(lengths, cfg.max_new_tokens, cfg.overlong_buffer)


def advantages_of(cfg: Config, rewards: torch.Tensor, tasks: list[str]) -> torch.Tensor:
    """(P, G), exact zeros where a group agrees."""
    if cfg.advantages in ("grpo", "dr_grpo"):
        return grpo.group_advantages(rewards, scale=cfg.advantages == "grpo", min_std=MIN_REWARD_STD)
    if cfg.advantages == "task_std":
        return grpo.task_std_advantages(rewards, tasks, MIN_REWARD_STD)
    return grpo.tmn_advantages(rewards, tasks, reweight=cfg.advantages == "tmn_reweight", min_std=MIN_REWARD_STD)


def record(sampler, batch, rewards: torch.Tensor) -> None:
    """What was earned, where anything could be scored, without the penalties for length."""
    for example, mean_reward in zip(batch, rewards.nanmean(-1).tolist()):
        if not math.isnan(mean_reward):
            sampler.record(example.id, mean_reward)


def tell_and_stop(cfg: Config, this: run.Run, notes: list[str], values: dict, judge) -> None:
    """The doctor's notes, and what went wrong with rewards in this step. After too many steps in a row in which the
    judge left too much open, or in which not one group disagreed, the run ends, saved."""
    for note in notes:
        this.log.say(f"    note: {note}")
    unjudged = this.in_a_row("unjudged", values.get("judge/error_rate", 0) > MAX_UNSCORABLE)
    idle = this.in_a_row("idle", not values["sampling/informative"] and values["reward"] is not None)
    if cfg.max_refills and values["sampling/missing"]:
        this.log.say(f"    {values['sampling/missing']} groups are missing after {values['sampling/refills']} refills: "
                     f"{values['sampling/informative']} disagreed, {values['sampling/all_wrong']} were all wrong, "
                     f"{values['sampling/all_right']} all right")
    if unjudged:
        this.log.say(f"    the judge: {judge.trouble()}")
    if unjudged >= MAX_UNJUDGED_STEPS:
        this.leave(errors.JudgeUnavailable(
            f"{unjudged} steps in a row the judge left over {MAX_UNSCORABLE:.0%} of the answers it was asked about "
            f"open, at last: {judge.trouble()}; see to it, then go on with the same command"))
    elif idle >= MAX_IDLE_STEPS:
        this.leave(DataError(
            f"in {idle} steps in a row no group's answers earned different rewards, the last mean reward was "
            f"{values['reward']}: nothing can be learned from these examples; warm up with train_sft.py, take easier "
            "or harder ones, or raise --group-size or --max-refills, under another --name; or run the "
            "same command again to continue"))


def show_words(logger, example, text, score) -> None:
    """One answer in full."""
    reward = "none: the judge left it open" if math.isnan(score.reward) else f"{score.reward:g}"
    gold = " | ".join(example.accepted).replace("\n", ", ")
    logger.say(f"    {example.question} {text}\n    gold {gold}, extracted {score.answer!r}, "
               f"reward {reward}{' by the judge' if score.judge == 1 else ''}")


if __name__ == "__main__":
    run.exit_process(run.start(main, Config, PRESETS, sys.argv[1:]))
