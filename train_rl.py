"""Reinforcement learning in phases of growing document length: the algorithm of QwenLong-L1, one loop.

The method (arXiv 2505.17667): a warmed-up model answers each question G times. A rule rewards the answers, and a judge
looks at those that the rule rejects. An answer counts by how much better it is than its group (GRPO), in a token-level,
asymmetrically clipped loss. Groups that agree are replaced by others (DAPO). Training starts on short documents (phase
I) and moves to long ones (phase II). Part of each phase II batch is phase I examples the model still gets wrong (the
retrospective sampler). TMN-Reweight (GoLongRL, arXiv 2605.19577) mixes several kinds of tasks.

Deliberate departures from the papers (docs/departures.md gives the reasons): exact match instead of substrings, a
normaliser over the tokens of the whole update, a floor for difficulty, one update per rollout unless you ask for more.

    python train_rl.py --name my-rl                                  the tiny warmed-up model of assets/, on a CPU
    python train_rl.py --preset paper --model DIR --data train.parquet --judge http://localhost:8000/v1 --device cuda
    torchrun --standalone --nproc_per_node=8 train_rl.py --preset r1-distill-qwen-14b --data train.jsonl

A preset that names a model reads it from models/. This command puts it there:
`hf download deepseek-ai/DeepSeek-R1-Distill-Qwen-14B --local-dir models/DeepSeek-R1-Distill-Qwen-14B`.
nanoqwenlong/ops/presets.py has the source of each setting. The same command resumes a run, whatever stopped it.
"""

import math
import os
import sys
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Literal

from nanoqwenlong.ops import flags, presets
from nanoqwenlong.ops.settings import Rows, Settings, fixed, free


@dataclass(frozen=True)
class Config(Settings, Rows):
    name: str = free("rl")              # the run is kept in RUNS_DIR/NAME
    # data and curriculum
    toy_examples: int = fixed(2000, least=1)  # of the toy task for each length, if no --data is given
    max_prompt_tokens: int = 60000      # longer prompts are dropped and counted, never cut
    phase_lengths: tuple[int, ...] = ()  # the longest document + question of each phase, in tokens. None: the toy
                                        # task's, or the median and the maximum of the data
    phase_steps: tuple[int, ...] = (40, 80)  # steps of each phase
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
                                        # key: JUDGE_API_KEY in the environment), a Hugging Face directory or a hub id
    judge_model: str = ""               # the judge's name on that server
    judge_tokens: int = free(4096, least=1)  # room for a reply of the judge, with its thinking
    judge_minutes: float = free(5.0, least=1e-9)  # time limit of a server for the answers of one round
    overlong_buffer: int = 0            # an answer loses up to 1 of its reward within this many tokens below
                                        # --max-new-tokens (DAPO: 1000). 0: no penalty
    # objective and optimisation
    advantages: str = "grpo"            # a name in advantages.ADVANTAGES. Reward differences are divided by the group's
                                        # std (grpo), not divided (dr_grpo), or divided by the task's std (tmn,
                                        # tmn_reweight: GoLongRL; task_std: QwenLong-L1.5)
    loss: str = "dapo"                  # a name in grpo.LOSSES. Equal weight for tokens (dapo), for answers (grpo), or
                                        # for tokens divided by --max-new-tokens (dr_grpo)
    updates_per_step: int = fixed(2, least=1)  # optimizer steps per rollout
    old_logprobs: Literal["rollout", "recompute"] = "rollout"  # used from the second update on: the sampler's, or
                                        # computed again before the first update
    correction: Literal["auto", "none", "tis", "mis", "dppo"] = "auto"  # for what sampler and trainer differ in:
                                        # correction.py. auto: tis if the model computes in bfloat16, else none
    max_drift: float = 0.0              # an answer worse than its group is left out of later updates if its tokens'
                                        # log-probs fell by more than this on average. 0: none is
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

if __name__ == "__main__" and "RANK" not in os.environ:
    flags.check(Config, sys.argv[1:], PRESETS)      # before the next imports, which take seconds

from nanoqwenlong import build, data, group_pass, grpo, optim, parallel
from nanoqwenlong.advantages import ADVANTAGES, with_advantages
from nanoqwenlong.analysis import plan, step_metrics
from nanoqwenlong.analysis.doctor import MAX_UNSCORABLE, Doctor, stop_reason
from nanoqwenlong.curriculum import phase_of_each_step
from nanoqwenlong.errors import ConfigError, choose
from nanoqwenlong.generate import Generator
from nanoqwenlong.ops import exits
from nanoqwenlong.ops.run import Run
from nanoqwenlong.records import Rollout
from nanoqwenlong.rewards import score_all, verifier

HEADLINE = {"phase": "phase", "reward": "reward", "frac_reward_zero_std": "alike", "entropy": "entropy",
            "completions/clipped_ratio": "truncated", "grad_norm": "grad_norm"}        # names on the console
SHOW_EVERY = 20                         # steps between answers printed in full


def main(cfg: Config) -> None:
    if 0 < cfg.dual_clip <= 1:
        raise ConfigError(f"dual_clip is {cfg.dual_clip}: as a bound on ratios it must be above 1 (0: no bound)")
    if cfg.overlong_buffer > cfg.max_new_tokens:
        raise ConfigError(f"--overlong-buffer {cfg.overlong_buffer} is more than --max-new-tokens "
                          f"{cfg.max_new_tokens}: every answer would lose reward")
    flags.rising(cfg, "lengths")
    build.check_judge(cfg)
    choose(ADVANTAGES, cfg.advantages, "--advantages")
    choose(grpo.LOSSES, cfg.loss, "--loss")
    with Run(cfg) as run:
        train(run.config, run)


def train(cfg: Config, run: Run) -> None:
    say = run.log.say
    tokenizer = build.tokenizer(cfg, run)
    usable, num_dropped = data.tokenize(build.questions(cfg, say), tokenizer, cfg.max_prompt_tokens)
    if num_dropped:
        say(f"{num_dropped} examples dropped: their prompt is longer than {cfg.max_prompt_tokens} tokens")
    examples = {example.id: example for example in usable}
    phases, sampler = build.curriculum(cfg, usable, say)
    model, reference = build.policy(cfg, run), build.reference(cfg, run)
    key = os.environ.get("JUDGE_API_KEY", "")
    judge = build.judge_of(cfg, key, run.device, run.dtype, run.prepare)
    generator = Generator(model, cfg.kv_blocks, prefill_tokens=cfg.max_tokens)
    longest_prompt = max(len(example.prompt_ids) for example in usable)
    generator.require(longest_prompt, cfg.max_new_tokens)
    parameters = list(model.parameters())
    optimizer = optim.adamw(model, cfg.learning_rate, cfg.weight_decay)
    sampling = dict(temperature=cfg.temperature, top_p=cfg.top_p, max_new_tokens=cfg.max_new_tokens,
                    eos_ids=tokenizer.eos_ids)
    scoring = dict(temperature=cfg.temperature, max_tokens=cfg.max_tokens)
    group_loss = partial(grpo.group_loss, clip_low=cfg.clip_low, clip_high=cfg.clip_high, kl_coef=cfg.kl_coef,
                         dual_clip=cfg.dual_clip or math.inf, entropy_coef=cfg.entropy_coef,
                         correction=cfg.correction.replace("auto", "tis" if run.dtype.itemsize < 4 else "none"),
                         max_drift=cfg.max_drift or math.inf)
    states = {"sampler": sampler, "math": verifier} | ({"judge": judge} if judge else {})
    run.begin(model, tokenizer, optimizer, **states)
    say(plan.words(plan.of_run(cfg, model.config, sampler.largest_draw(cfg.prompts_per_step), longest_prompt,
                               run.dtype.itemsize, parallel.size(), run.num_hosts)))

    timeline = phase_of_each_step(phases)[:cfg.steps or None]
    phase_ends = set(accumulate(phase.num_steps for phase in phases))
    buckets = cfg.lengths or [phase.high for phase in phases]
    doctor = Doctor()
    for values in run.log.steps():                                     # a resumed run does not repeat its notes
        doctor.look(values)

    for step in run.steps(len(timeline), ends=phase_ends):
        phase, num_wanted = timeline[step - 1], cfg.prompts_per_step
        rollouts, num_groups = [], 0
        for refill in range(1 + cfg.max_refills):
            # 1. Roll out: G answers to examples of this phase, and to examples of earlier phases that are still hard
            batch = [examples[key] for key in sampler.draw(phase, num_wanted)]
            prompts = [example.prompt_ids for example in batch]
            run.part("sample", longest=max(map(len, prompts)) + cfg.max_new_tokens)
            groups = generator.sample(prompts, n=cfg.group_size, keys=[example.id for example in batch],
                                      seed=(cfg.seed, step, refill), **sampling)

            # 2. Reward: the rule first, the judge for what it rejects. Advantages compare an answer with its group
            run.part("reward")
            rollouts = with_advantages(rollouts + reward(cfg, batch, groups, tokenizer, judge), cfg.advantages)

            # 3. Select: a group that agrees teaches nothing. If too many agree, other prompts are sampled as well
            num_groups = num_groups or len(batch)
            num_informative = sum(rollout.is_informative for rollout in rollouts)
            num_wanted = grpo.num_refills(num_groups, num_informative, len(rollouts))
            if num_wanted == 0 or step_metrics.unjudged_share(rollouts) > MAX_UNSCORABLE:
                break

        # 4. Update: count the loss tokens first, then one group at a time, and one optimizer step per minibatch
        run.part("update", longest=max(rollout.group.longest for rollout in rollouts))
        slices = step_metrics.slices_of(rollouts, buckets)
        learning_rate = optim.learning_rate_at(step - 1, cfg.learning_rate, cfg.warmup_steps, len(timeline))
        minibatches = grpo.minibatches(rollouts, cfg.updates_per_step)
        old = old_logprobs(cfg, model, minibatches[1:], scoring)
        kl = step_metrics.kl_values(reference, rollouts, slices, **scoring)
        updates = []                                                    # token sums and gradient norm of each
        for minibatch in minibatches:
            weights = grpo.token_weights(minibatch, cfg.loss, cfg.max_new_tokens)
            ref = group_pass.logprobs_all(reference, minibatch, **scoring) if cfg.kl_coef else {}
            sums = Counter()
            def loss_of(row: int):
                return group_loss(rollouts[row], weights[row], sums, old.get(row), ref.get(row), slices[row])
            group_pass.backward_all(model, minibatch, loss_of, **scoring)
            sums = parallel.reduce(sums, highest=("gap",))
            grad_norm = optim.step(optimizer, parameters, learning_rate, cfg.max_grad_norm, sums["loss"])
            if run.watch(grad_norm, ids=[rollout.example.id for rollout in minibatch.values()]):
                updates.append((sums, grad_norm))

        # 5. Report: numbers for every step, words for some of them
        run.part("report")
        for rollout in rollouts:
            sampler.record(rollout.example.id, rollout.mean_reward)
        patterns = step_metrics.patterns_of(rollouts)
        values = {"phase": phase.number, **kl, **step_metrics.pattern_values(patterns),
                  **step_metrics.rollout_values(rollouts, slices),
                  **step_metrics.sampling_values(rollouts, num_groups, refill),
                  **step_metrics.judge_values(judge, rollouts), **step_metrics.retro_values(sampler, phase, rollouts),
                  **step_metrics.update_values(updates, learning_rate, with_kl=cfg.kl_coef > 0),
                  **step_metrics.timing_values(run.times, rollouts), **step_metrics.expert_values(model)}
        run.log.append("metrics.jsonl", step, values)
        run.log.append("rollouts.jsonl", step, *step_metrics.rows(rollouts, patterns))
        run.line(values, HEADLINE)
        show(step, rollouts[0], say)
        for note in doctor.look(values, judge):
            say(f"    note: {note}")
        run.error = stop_reason(values, run.in_a_row, judge)           # after too many steps in vain


def reward(cfg: Config, batch, groups, tokenizer, judge) -> list[Rollout]:
    """One Rollout per example and its group: texts, scores, and penalties for length. No advantages yet."""
    texts = [[tokenizer.response(answer.ids) for answer in group.completions] for group in groups]
    scores = score_all(texts, batch, judge)
    rollouts = []
    for row, group in enumerate(groups):
        penalties = []
        for length in group.lengths:
            penalties.append(grpo.overlong_penalty(length, cfg.max_new_tokens, cfg.overlong_buffer))
        rollouts.append(Rollout(batch[row], group, texts[row], scores[row], penalties))
    return rollouts


def old_logprobs(cfg: Config, model, later_minibatches, scoring) -> dict:
    """{row: log-probs of each answer} under the policy that sampled, for minibatches trained on after an update."""
    old = {}
    for minibatch in later_minibatches:
        if cfg.old_logprobs == "recompute":
            old |= group_pass.logprobs_all(model, minibatch, **scoring)
        else:
            for row, rollout in minibatch.items():
                old[row] = [answer.logprobs for answer in rollout.group.completions]
    return old


def show(step: int, rollout: Rollout, say) -> None:
    """Print a prompt's first answer in full, after the first step and every SHOW_EVERY steps."""
    if step > 1 and step % SHOW_EVERY:
        return
    score = rollout.scores[0]
    earned = "unscorable (no verdict)" if math.isnan(score.reward) else f"{score.reward:g}"
    gold = " | ".join(rollout.example.accepted).replace("\n", ", ")
    say(f"    {rollout.example.question} {rollout.texts[0]}\n    gold {gold}, extracted {score.answer!r}, "
        f"reward {earned}{' by the judge' if score.judge == 1 else ''}")


if __name__ == "__main__":
    exits.start(main, Config, PRESETS, sys.argv[1:], leave=exits.exit_process)
