"""Another solution: with early returns."""

import math
from statistics import fmean, median


def wrong_canaries(rows):
    window = rows[-WINDOW:]
    wrong = len([value for value in measured(rows, "judge/canaries_wrong") if value > 0])
    if wrong <= 0.3 * WINDOW:
        return None
    return wrong, len(window), sum(measured(rows, "judge/error_rate")) / len(window)


def skipped(rows):
    usual = 1
    for row in rows:
        for number in measured([row], "updates"):
            usual = max(usual, number)
    bad = 0
    for row in rows[-WINDOW:]:
        numbers = [row.get(key) for key in ("loss", "grad_norm", "reward", "entropy", "kl")]
        numbers = [number for number in numbers if isinstance(number, float)]
        if any(math.isnan(number) or abs(number) >= 1e300 for number in numbers):
            bad += 1
        elif mean([row], "updates") < min(usual, mean([row], "sampling/informative")):
            bad += 1
    if bad == 0:
        return None
    return bad, len(rows[-WINDOW:])


def collapsing(rows):
    values, reward = measured(rows, "entropy"), mean(rows, "accuracy", "reward")
    if len(values) < 3 or math.isnan(reward) or reward >= 0.9:
        return None
    level = max(median(values), 0.0)
    at_first = measured(rows[:WINDOW], "entropy")
    start, before = median(at_first) if at_first else 0.0, mean(rows[:WINDOW], "accuracy", "reward")
    has_risen = reward >= before + 0.05
    if len(rows) >= 2 * WINDOW and level < 0.2 * start and not has_risen:
        return 1 - level, (f"entropy fell from {start:.2g} to {level:.2g} within the phase, while the mean reward went "
                           f"from {before:.2f} to {reward:.2f}")
    if level < 0.001:
        return 1 - level, f"entropy is {level:.1g} at a mean reward of {reward:.2f}"
    return None


def kl_spikes(rows):
    values = measured(rows, "kl")
    if len(values) < 5:
        return None
    usual = median(values)
    high = [value for value in values if value > max(0.1, 10 * usual)]
    return (max(high), len(high), len(values), usual) if len(high) >= 2 else None


def pool_empty(rows):
    first = rows[0]
    if len(rows) > WINDOW or not mean([first], "phase") > 1:
        return None
    returned = any(value != 0 for value in measured([first], "retro/frac"))
    return (1,) if mean([first], "retro/pool") == 0 and not returned else None


def alike(rows):
    share = mean(rows, "frac_reward_zero_std")
    rewards = measured(rows, "accuracy", "reward")
    reward = fmean(rewards) if rewards else 0.5
    if not share > 0.95:
        return None
    if reward >= 0.9:
        return share, "nearly all are right: take harder examples (--data, --difficulty) or fewer --phase-steps"
    if reward <= 0.1:
        return share, ("nearly all are wrong: take easier examples (--data), warm up with train_sft.py, or raise "
                       "--group-size")
    return share, "raise --group-size, or --max-refills, which replaces such groups by others"
