"""Faults of a training run, judged from its metrics. Values that are missing or not finite count as not measured."""

from collections.abc import Callable, Mapping, Sequence
from math import exp, nan
from statistics import fmean, median
from typing import NamedTuple

from ..errors import DataError, JudgeUnavailable, UserError

Rows = Sequence[Mapping]
WINDOW = 10                             # steps that a rule looks at
MAX_UNSCORABLE = 0.25                   # a step is unjudged if the judge left more than this share open
MAX_UNJUDGED_STEPS = 3                  # in a row, then the run stops
MAX_IDLE_STEPS = 50                     # in a row in which no group disagreed, then the run stops


class Finding(NamedTuple):
    name: str
    badness: float                      # comparable between findings of one name
    sentence: str


def diagnose(rows: Rows) -> list[Finding]:
    """The faults of a run at the last of these steps. If one fault explains another, only the cause is reported."""
    phase = [row for row in rows if row is rows[-1] or row.get("phase") == rows[-1].get("phase")]
    findings = {}
    for name, check, sentence in RULES if phase else ():
        if figures := check(phase):
            findings.setdefault(name, Finding(name, figures[0], sentence.format(*figures)))
    return [finding for name, finding in findings.items() if not findings.keys() & EXPLAINED_BY.get(name, set())]


class Doctor:
    """Looks at a run step by step. A finding is repeated after WINDOW steps of silence."""

    def __init__(self):
        self.rows, self.findings = [], []          # first and last rows of the phase. All faults at the last step
        self.step, self.reported = 0, {}           # name of a fault -> step at which it was last reported

    def look(self, values: Mapping, judge=None) -> list[str]:
        """The notes to print after a step with these metrics. judge: asked for its trouble if it left much open."""
        if self.rows and self.rows[-1].get("phase") != values.get("phase"):
            self.rows.clear()
        self.rows.append(values)
        del self.rows[WINDOW:-WINDOW]
        self.step += 1
        self.findings = diagnose(self.rows)
        new = [finding for finding in self.findings if self.step - self.reported.get(finding.name, -WINDOW) > WINDOW]
        self.reported |= {finding.name: self.step for finding in new}
        notes = [f"{finding.name}: {finding.sentence}" for finding in new]
        if values.get("sampling/refills") and values.get("sampling/missing"):
            notes.append("{sampling/missing} groups are missing after {sampling/refills} refills: "
                         "{sampling/informative} disagreed, {sampling/all_wrong} were all wrong, "
                         "{sampling/all_right} all right".format_map(values))
        if judge and is_unjudged(values):
            notes.append(f"the judge: {judge.trouble()}")
        return notes


def is_unjudged(values: Mapping) -> bool:
    return (values.get("judge/error_rate") or 0) > MAX_UNSCORABLE


def stop_reason(values: Mapping, in_a_row: Callable[[str, bool], int], judge=None) -> UserError | None:
    """The error to end a run with after a step with these metrics, or None. in_a_row is run.Run.in_a_row."""
    unjudged = in_a_row("unjudged", is_unjudged(values))
    idle = in_a_row("idle", not values["sampling/informative"] and values["reward"] is not None)
    if unjudged >= MAX_UNJUDGED_STEPS:
        return JudgeUnavailable(f"{unjudged} steps in a row the judge left over {MAX_UNSCORABLE:.0%} of its questions "
                                f"open, at last: {judge.trouble()}; repair it, then resume with the same command")
    if idle and idle % MAX_IDLE_STEPS == 0:
        return DataError(
            f"in {idle} steps in a row no group earned different rewards (the last mean was {values['reward']}): "
            "warm up with train_sft.py, take easier or harder examples, or raise --group-size or --max-refills, under "
            f"another --name; the same command resumes for {MAX_IDLE_STEPS} more steps")


def measured(rows: Rows, *keys: str) -> list[float]:
    """The value of the first of these keys that a row has, for each of the last WINDOW rows where it is finite."""
    values = [next((row[key] for key in keys if key in row), None) for row in rows[-WINDOW:]]
    return [value for value in values if isinstance(value, int | float) and -1e300 < value < 1e300]


def mean(rows: Rows, *keys: str) -> float:
    return fmean(measured(rows, *keys) or [nan])               # any comparison with NaN is false


# A check gets the rows of the phase. It returns the badness and other figures for the sentence, or something false.
def above(limit: float, key: str) -> Callable:
    return lambda rows: mean(rows, key) > limit and (mean(rows, key),)


def wrong_canaries(rows: Rows):
    """A canary judged wrongly invalidates up to a hundred verdicts. Even a weak judge may do that now and then."""
    wrong, steps = sum(value > 0 for value in measured(rows, "judge/canaries_wrong")), len(rows[-WINDOW:])
    return wrong > 0.3 * WINDOW and (wrong, steps, sum(measured(rows, "judge/error_rate")) / steps)


def skipped(rows: Rows):
    """A step has as many updates as others, or one per group that teaches something, unless one was not finite."""
    usual, bad = max([1, *(number for row in rows for number in measured([row], "updates"))]), 0
    for row in rows[-WINDOW:]:
        updates, groups = mean([row], "updates"), mean([row], "sampling/informative")
        numbers = [row.get(key) for key in ("loss", "grad_norm", "reward", "entropy", "kl")]
        not_finite = any(isinstance(number, float) and not -1e300 < number < 1e300 for number in numbers)
        bad += not_finite or (updates < usual and updates < groups)
    return bad and (bad, len(rows[-WINDOW:]))


def collapsing(rows: Rows):
    """Low entropy with a high reward is success. Phases differ in difficulty, so a phase is compared with its start.
    Below 0.001 nats per token one or two of a thousand ten-token answers differ. That is too few at any time."""
    first, now, reward = rows[:WINDOW], measured(rows, "entropy"), mean(rows, "accuracy", "reward")
    if len(now) < 3 or not reward < 0.9:
        return None
    level, before = max(0.0, median(now)), mean(first, "accuracy", "reward")
    start = median(measured(first, "entropy") or [0.0])
    if len(rows) >= 2 * WINDOW and level < 0.2 * start and not reward >= before + 0.05:
        return 1 - level, (f"entropy fell from {start:.2g} to {level:.2g} within the phase, while the mean reward went "
                           f"from {before:.2f} to {reward:.2f}")
    return level < 0.001 and (1 - level, f"entropy is {level:.1g} at a mean reward of {reward:.2f}")


def kl_spikes(rows: Rows):
    """At least two steps over ten times the median and over 0.1 nats per token. A single one is no sign: in the k3
    estimate one unlikely token weighs like many (a toy run reached 15 between steps of 0.1)."""
    values, usual = measured(rows, "kl"), median(measured(rows, "kl") or [0])
    high = [value for value in values if value > 0.1 and value > 10 * usual]
    return len(values) >= 5 and len(high) > 1 and (max(high), len(high), len(values), usual)


def pool_empty(rows: Rows):
    """A later phase starts with an empty pool and draws no old example. An empty pool later means solved examples."""
    start, starts = rows[:1], len(rows) <= WINDOW and mean(rows[:1], "phase") > 1
    return starts and mean(start, "retro/pool") == 0 and not any(measured(start, "retro/frac")) and (1,)


def alike(rows: Rows):
    """Over 19 of 20 groups agree. What to change depends on the mean reward."""
    share, reward = mean(rows, "frac_reward_zero_std"), fmean(measured(rows, "accuracy", "reward") or [0.5])
    advice = "raise --group-size, or --max-refills, which replaces such groups by others"
    if reward >= 0.9:
        advice = "nearly all are right: take harder examples (--data, --difficulty) or fewer --phase-steps"
    elif reward <= 0.1:
        advice = "nearly all are wrong: take easier examples (--data), warm up with train_sft.py, or raise --group-size"
    return share > 0.95 and (share, advice)


def gap(limit: float) -> Callable:
    """At 0.2 the rounding of one token changes its ratio as much as clipping (0.8 to 1.28) allows a whole update."""
    return lambda rows: (level := median(measured(rows, "rollout_gap") or [0])) > limit and (level, exp(min(level, 99)))


RULES = (                               # (name, check, sentence). For each name the first rule that applies counts
    ("answers cut off", above(0.5, "completions/clipped_ratio"), "{0:.0%} of the answers were truncated at "
     "--max-new-tokens and can earn nothing; if they ramble or repeat themselves, warm up with train_sft.py; if they "
     "are sound but too long, raise --max-new-tokens"),
    ("nothing parsed", lambda rows: (share := mean(rows, "answers/extracted")) < 0.1 and (1 - share, share),
     'only {1:.0%} of the answers hold "</think> ... the answer is ...", so the reward stays 0; warm up with '
     "train_sft.py on answers in that form"),
    ("judge failing", wrong_canaries, "in {0} of {1} steps the judge got a question with a known answer wrong, and it "
     "left {2:.0%} of its questions open; take a better one (--judge, --judge-model)"),
    ("judge failing", above(0.1, "judge/error_rate"), "the judge left {0:.0%} of its questions open, and those answers "
     "train nothing; the console said why: a server that fails or is slow (--judge-minutes), truncated replies "
     "(--judge-tokens), or replies in another format (another --judge)"),
    ("updates skipped", skipped, "in {0} of {1} steps a loss or gradient was not finite, so an update was skipped; "
     "look at skipped.jsonl, try --check-finite, or start from an earlier checkpoint with a lower --learning-rate"),
    ("entropy collapsing", collapsing, "{1}: the answers hardly differ, so they teach little; resume from an earlier "
     "checkpoint with a lower --learning-rate, a higher --clip-high or an --entropy-coef"),
    ("KL spikes", kl_spikes, "the KL to the starting model jumped to {0:.2g}, in {1} of {2} steps to over ten times "
     "the median of {3:.2g}; lower --learning-rate or --max-grad-norm, or raise --kl-coef"),
    ("retrospective pool empty", pool_empty, "no example of earlier phases is hard enough to come back; raise "
     "--retro-hard-below, or give --difficulty. If they are simply solved, shorten the earlier --phase-steps"),
    # Rounding gives about 3e-5 in float32, up to 0.26 in bfloat16 (toy model, SmolLM2). An error costs whole nats.
    ("rollout gap large", gap(0.5), "sampler and trainer differ by {0:.2g} in a token's log-prob (a ratio of {1:.2g}) "
     "before any update, which is more than rounding; try --dtype float32, or with several --updates-per-step "
     "--old-logprobs recompute"),
    ("rollout gap large", gap(0.2), "sampler and trainer differ by up to {0:.2g} in a token's log-prob (a ratio of "
     "{1:.2g}) before any update. bfloat16 rounds that much. Such a token was sampled with another probability than "
     "the update assumes, so without --correction its gradient is biased; if the reward stalls or falls, try "
     "--correction mis, or --dtype float32"),
    ("groups all alike", alike, "in {0:.0%} of the groups all answers earned the same, so they teach nothing; {1}"))
EXPLAINED_BY = {"nothing parsed": {"answers cut off"},
                "groups all alike": {"answers cut off", "nothing parsed", "judge failing", "entropy collapsing"}}
