"""Six broken runs"""

import random

from hypothesis import strategies as st

FILE = "nanoqwenlong/analysis/doctor.py"
WRITE = ("skipped", "collapsing", "kl_spikes", "pool_empty", "alike", "wrong_canaries")
TESTS = ["tests/test_doctor.py", "-k", "not whole and not window"]
TRAIN = None

ILL = {"updates skipped": ("skipped", {"updates": 0, "sampling/informative": 7}),
       "entropy collapsing": ("collapsing", {"entropy": 0.0004, "accuracy": 0.3}),
       "KL spikes": ("kl_spikes", {"kl": 4.0}), "groups all alike": ("alike", {"frac_reward_zero_std": 0.98}),
       "judge failing": ("wrong_canaries", {"judge/canaries_wrong": 1}),
       "retrospective pool empty": ("pool_empty", {"retro/pool": 0, "retro/frac": 0.0})}
CASES = st.fixed_dictionaries({"illness": st.sampled_from(list(ILL)), "seed": st.integers(0, 999),
                               "level": st.sampled_from([0.05, 0.4, 0.95]), "steps": st.integers(12, 30)})


def run(seed, steps, level=0.4, illness="", last=10):
    """The metrics of a run of phase 2 that learns a little. In its last steps it may fall ill."""
    rng, rows = random.Random(seed), []
    for step in range(steps):
        accuracy = min(1.0, level + 0.01 * step + rng.uniform(-0.04, 0.04))
        row = {"phase": 2, "accuracy": accuracy, "entropy": 0.3 - 0.004 * step + rng.uniform(0, 0.02), "updates": 1,
               "kl": rng.uniform(0.01, 0.05), "frac_reward_zero_std": rng.uniform(0.3, 0.7), "loss": rng.uniform(-1, 1),
               "sampling/informative": 9, "judge/canaries_wrong": int(step % 7 == 3), "judge/error_rate": 0.0,
               "retro/pool": 5, "retro/frac": 0.2}
        ill = step >= steps - last or illness == "retrospective pool empty"
        if illness == "KL spikes":
            ill = steps - step in (2, 5)
        rows.append(row | ILL[illness][1] if illness and ill else row)
    return rows[:1] if illness == "retrospective pool empty" else rows


def answer(m, illness, seed, steps, level):
    """What the rule says about the ill run and the healthy one, and about some others."""
    rule = getattr(m, ILL[illness][0])
    rows = run(seed, steps, level)
    return [rule(run(seed, steps, level, illness)) or None, rule(rows) or None, rule(rows[:1]) or None,
            m.kl_spikes([*rows, {"kl": 9.0}]) or None,
            m.skipped([*rows, {"updates": 0, "sampling/informative": 0}]) or None,
            m.collapsing([row | {"entropy": 0.0} for row in run(seed, steps, 0.95)]) or None, m.alike([{}]) or None,
            m.pool_empty([{"phase": 2}]) or None]


def finds_it(m, illness, seed, steps):
    """The rule finds its illness in a run that fell ill"""
    assert getattr(m, ILL[illness][0])(run(seed, steps, illness=illness))


def is_silent(m, illness, seed, steps, level):
    """The rule is silent in a healthy run, after its first step and after its last, and if nothing was measured"""
    rule, rows = getattr(m, ILL[illness][0]), run(seed, steps, level)
    assert not rule(rows) and not rule(rows[:1]) and not rule([{"phase": 2}])


def one_step_is_noise(m, seed, steps):
    """A single KL spike, a single wrong canary, or one step whose groups agree is no illness"""
    rows = run(seed, steps)
    assert not m.kl_spikes([*rows, {"kl": 9.0}]) and not m.alike([*rows, {"frac_reward_zero_std": 1.0}])
    assert not m.wrong_canaries([*rows[:7], {"judge/canaries_wrong": 3, "judge/error_rate": 1.0}])


def success_is_not_illness(m, seed, steps):
    """Low entropy with nearly all answers right is success, and a step without any informative group skips no update"""
    assert not m.collapsing([row | {"entropy": 0.0} for row in run(seed, steps, 0.95)])
    assert not m.skipped([*run(seed, steps), {"updates": 0, "sampling/informative": 0}])


def advice_fits(m, seed, steps):
    """The advice for groups that agree depends on whether nearly all answers are right or nearly all are wrong"""
    advice = [m.alike([row | {"accuracy": level, "frac_reward_zero_std": 1.0} for row in run(seed, steps)])[1]
              for level in (0.0, 0.5, 1.0)]
    assert "harder" in advice[2] and "harder" not in advice[0] + advice[1] and "easier" in advice[0]


LAWS = (finds_it, is_silent, one_step_is_noise, success_is_not_illness, advice_fits)
WRONG = (
    ("a single KL spike is reported", "len(values) >= 5 and len(high) > 1", "len(values) >= 5 and len(high) > 0"),
    ("low entropy counts as collapse although nearly all answers are right", "or not reward < 0.9", ""),
    ("fewer updates than usual count as skipped, although no group had anything to teach",
     "(updates < usual and updates < groups)", "updates < usual"),
    ("a single wrong canary is reported", "wrong > 0.3 * WINDOW", "wrong > 0"),
    ("an empty pool is reported although nothing was measured", "mean(start, \"retro/pool\") == 0",
     "not sum(measured(start, \"retro/pool\"))"),
    ("groups that agree are reported at the usual share of one half", "share > 0.95", "share > 0.4"))
