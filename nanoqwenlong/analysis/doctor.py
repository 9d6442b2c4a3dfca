"""What is wrong with a run, told from its numbers: faults that waste days because a run with them goes on. Pure Python.

    diagnose(rows) -> findings      rows: lines of metrics.jsonl up to now; the last WINDOW of their last phase count
    Doctor().look(values) -> notes  the same while training, without saying everything at every step

Each rule takes the first rows of the phase and its last ones, and returns how bad it is and a sentence with the figure
and the flag to change, or None. Values that are missing, null or not finite are as if not measured (except where not
being finite is the fault). A rule that explains another silences it: answers that are cut cannot be parsed.
"""

from collections.abc import Callable, Mapping, Sequence
from math import exp
from statistics import fmean, median
from typing import NamedTuple

Rows = Sequence[Mapping]
WINDOW = 10                             # steps that are looked at together


class Finding(NamedTuple):
    """One fault: its name, how bad it is (more is worse; comparable between findings of one name), what to do."""

    name: str
    badness: float
    sentence: str


def diagnose(rows: Rows) -> list[Finding]:
    """The faults of a run at the last of these steps.

    >>> [finding.name for finding in diagnose([{"completions/clipped_ratio": 0.95, "answers/extracted": 0.02}])]
    ['answers cut off']
    """
    own = [row for row in rows if row is rows[-1] or row.get("phase") == rows[-1].get("phase")]
    found = {name: result for name, rule in RULES.items() if own and (result := rule(own[:WINDOW], own[-WINDOW:], own))}
    return [Finding(name, *result) for name, result in found.items()
            if not any(cause in found for cause in EXPLAINED_BY.get(name, ()))]


class Doctor:
    """Looks at a run step by step.

    >>> doctor, bad = Doctor(), {"completions/clipped_ratio": 1.0}
    >>> [len(doctor.look(bad)) for _ in range(12)]             # said again when it was not said for WINDOW steps
    [1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    """

    def __init__(self):
        self.rows: list[Mapping] = []                          # of this phase, its first and its last ones
        self.step, self.said = 0, {}
        self.found: list[Finding] = []                         # all of the last step, said or not

    def look(self, values: Mapping) -> list[str]:
        """What is to be said after a step, given its metrics."""
        if self.rows and self.rows[-1].get("phase") != values.get("phase"):
            self.rows.clear()
        self.rows.append(values)
        del self.rows[WINDOW:-WINDOW]
        self.step += 1
        self.found = diagnose(self.rows)
        new = [finding for finding in self.found if self.step - self.said.get(finding.name, -WINDOW) > WINDOW]
        self.said |= {finding.name: self.step for finding in new}
        return [f"{finding.name}: {finding.sentence}" for finding in new]


def measured(rows: Rows, *keys: str) -> list[float]:
    """Of each row its value of the first key that it has, if that is a finite number.

    >>> measured([{"a": 1}, {"a": None}, {"a": float("nan")}, {}, {"b": 2.5, "c": 3}], "a", "b")
    [1, 2.5]
    """
    values = [next((row[key] for key in keys if key in row), None) for row in rows]
    return [value for value in values if isinstance(value, int | float) and -1e300 < value < 1e300]


def broken(value) -> bool:
    """Whether a value is NaN or infinite."""
    return isinstance(value, float) and not -1e300 < value < 1e300


# The rules: (first rows of the phase, last ones, all that are known) -> (badness, sentence), or None

def cut_off(_, rows: Rows, __):
    """Over half: then most of what is learned is to be short."""
    share = fmean(measured(rows, "completions/clipped_ratio") or [0])
    if share > 0.5:
        return share, (f"{share:.0%} of the answers were cut before their end, so they can earn nothing: raise "
                       "--max-new-tokens, or warm up with train_sft.py on answers that fit")


def unparsed(_, rows: Rows, __):
    share = fmean(measured(rows, "answers/extracted") or [1])
    if share < 0.1:
        return 1 - share, (f"only {share:.0%} of the answers hold \"</think> ... the answer is ...\", so the reward "
                           "stays 0: warm up with train_sft.py on answers in that form")


def judge_failing(_, rows: Rows, __):
    """A canary judged wrongly takes up to a hundred verdicts with it; one in a while is a weak judge's due."""
    share = fmean(measured(rows, "judge/error_rate") or [0])
    wrong = sum(value > 0 for value in measured(rows, "judge/canaries_wrong"))
    if wrong > 0.3 * WINDOW:
        return share + 1, (f"in {wrong} of {len(rows)} steps the judge got a question with a known answer wrong, and "
                           f"{share:.0%} of what it was asked is left open: take a better one (--judge, --judge-model)")
    if share > 0.1:
        return share, (f"the judge left {share:.0%} of the answers that it was asked about open, and they train "
                       "nothing: see to its server, raise --judge-minutes")


def skipped(_, rows: Rows, known: Rows):
    """An update whose gradient is not finite is not made, so it shows as one that is missing: a step makes as many as
    others do, or one for each group that teaches something where these are fewer."""
    usual = max([1, *measured(known, "updates")])

    def lacks_one(row: Mapping) -> bool:
        made, groups = measured([row], "updates"), measured([row], "sampling/informative")
        return bool(made and groups) and made[0] < min(usual, groups[0])

    bad = sum(any(broken(row.get(key)) for key in ("loss", "grad_norm", "reward", "entropy", "kl")) or lacks_one(row)
              for row in rows)
    if bad:
        return bad, (f"in {bad} of {len(rows)} steps the loss or its gradient was not finite, and an update left out "
                     "(its examples are in skipped.jsonl): look at them, see with --check-finite whether the model is "
                     "whole, or start from an earlier checkpoint with a lower --learning-rate")


def collapsing(first: Rows, rows: Rows, known: Rows):
    """Low entropy with high reward is success. Phases differ in difficulty, so a phase is compared with its own start.
    Below 0.001 nats a token hardly anything else is ever tried (of a thousand answers of ten tokens one or two differ),
    so there, with a tenth of the answers wrong, no start is needed."""
    start, now = measured(first, "entropy"), measured(rows, "entropy")
    before, reward = (measured(side, "accuracy", "reward") for side in (first, rows))
    if len(now) < 3 or not reward or fmean(reward) >= 0.9:
        return None
    level = max(0.0, median(now))
    advice = ("the answers are no longer different enough to learn from: go on from an earlier checkpoint with a lower "
              "--learning-rate, a higher --clip-high or an --entropy-coef")
    if len(known) >= 2 * WINDOW and start and before and level < 0.2 * median(start) and (
            fmean(reward) < fmean(before) + 0.05):
        return 1 - level, (f"entropy fell from {median(start):.2g} at the start of the phase to {level:.2g}, while the "
                           f"mean reward went from {fmean(before):.2f} to {fmean(reward):.2f}; {advice}")
    if level < 0.001:
        return 1 - level, f"entropy is {level:.1g} with a mean reward of {fmean(reward):.2f}; {advice}"


def kl_spikes(_, rows: Rows, __):
    """In two steps or more ten times what is usual, and a tenth of a nat a token: 100 for an answer of 1,000. One step
    alone is no sign: in k3 a token that the starting model thinks far likelier counts for many others (a step of the
    toy reached 15, between steps of 0.1)."""
    values = measured(rows, "kl")
    usual = median(values or [0])
    high = [value for value in values if value > 0.1 and value > 10 * usual]
    if len(values) >= 5 and len(high) > 1:
        return max(high), (f"the KL to the starting model jumped to {max(high):.2g}, in {len(high)} of {len(values)} "
                           f"steps to over ten times their median, {usual:.2g}: lower --learning-rate or "
                           "--max-grad-norm, or raise --kl-coef")


def pool_empty(first: Rows, _, known: Rows):
    """At the beginning of a later phase; later on an empty pool means that its examples have been solved, and so it
    does after a first step that had some of them."""
    if len(known) <= WINDOW and measured(first[:1], "phase") > [1] and measured(first[:1], "retro/pool") == [0] and (
            not any(measured(first[:1], "retro/frac"))):
        return 1, ("no example of the earlier phases is hard enough to come back: raise --retro-hard-below (or give "
                   "--difficulty); if they are simply solved, shorten their --phase-steps")


def gap_large(_, rows: Rows, __):
    """The median of the steps' largest differences. Rounding leaves 1e-5 of them in float32, and in bfloat16 a tenth or
    a quarter (measured with the toy model: 0.02 to 0.26, 2,000 tokens a step); a wrong temperature, position or weight
    costs whole nats."""
    level = median(measured(rows, "rollout_gap") or [0])
    if level > 0.5:
        return level, (f"sampler and trainer differ by {level:.2g} in the log-prob of a token (a ratio of "
                       f"{exp(min(level, 99)):.2g} before any update): sampled and trained model are not the same; try "
                       "--dtype float32, or --old-logprobs recompute with more than one --updates-per-step")


def all_alike(_, rows: Rows, __):
    """From 19 of 20 groups on; a window in which more of them disagree still teaches."""
    share = fmean(measured(rows, "frac_reward_zero_std") or [0])
    if share <= 0.95:
        return None
    reward = fmean(measured(rows, "accuracy", "reward") or [0.5])
    every = "all" if share == 1 else f"{share:.0%} of"
    told = f"the answers of {every} groups earned the same within their group"
    if reward > 0.9:
        return share, (f"{told}, nearly all of them right, so these steps teach next to nothing: the examples are too "
                       "easy; take harder ones (--data, --difficulty), or fewer --phase-steps")
    if reward < 0.1:
        return share, (f"{told}, nearly all of them wrong, so these steps teach next to nothing: take easier examples "
                       "(--data), warm up with train_sft.py, or raise --group-size")
    return share, (f"{told}, so these steps teach next to nothing: raise --group-size, or --max-refills, which rolls "
                   "out others in their place")


RULES: dict[str, Callable] = {
    "answers cut off": cut_off, "nothing parsed": unparsed, "judge failing": judge_failing, "updates skipped": skipped,
    "entropy collapsing": collapsing, "KL spikes": kl_spikes, "retrospective pool empty": pool_empty,
    "rollout gap large": gap_large, "groups all alike": all_alike}
EXPLAINED_BY = {"nothing parsed": ("answers cut off",),
                "groups all alike": ("answers cut off", "nothing parsed", "judge failing", "entropy collapsing")}
