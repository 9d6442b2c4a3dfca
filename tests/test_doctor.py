"""The doctor names the fault of each run that is broken on purpose, and no other. It finds none in healthy runs."""

import json
import random
import re
from dataclasses import fields

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings
from tools import doctor as tool

import train_rl
from nanoqwenlong import errors
from nanoqwenlong.analysis.doctor import RULES, WINDOW, Doctor, diagnose, stop_reason

NAN, INF = float("nan"), float("inf")


def healthy(num_steps: int = 60) -> list[dict]:
    """A run that learns, in two phases: noise on every number, entropy falling while the reward rises."""
    rng, rows = random.Random(1), []
    for step in range(1, num_steps + 1):
        phase, done = 1 + (step > 30), (step - 1) % 30 / 30
        reward, alike = 0.3 + 0.5 * done + rng.uniform(-0.1, 0.1), 0.5 + rng.uniform(-0.2, 0.2)
        rows.append({"step": step, "phase": phase, "reward": reward, "accuracy": reward, "frac_reward_zero_std": alike,
                     "entropy": 0.5 - 0.45 * done + rng.uniform(0, 0.02), "answers/extracted": 0.9,
                     "completions/clipped_ratio": rng.uniform(0, 0.2), "sampling/informative": round(16 * (1 - alike)),
                     "kl": 0.03 * done + rng.uniform(0, 0.02), "updates": 1, "loss": rng.uniform(-1, 1),
                     "grad_norm": rng.uniform(0.5, 3), "judge/error_rate": rng.choice((0, 0, 0.1)),
                     "judge/canaries_wrong": int(step % 10 == 5), "rollout_gap": rng.uniform(0, 0.19),
                     **({"retro/pool": 5} if phase == 2 else {})})
    return rows


def names(rows: list[dict]) -> set[str]:
    """The names of all findings, at any step."""
    doctor, found = Doctor(), set()
    for row in rows:
        doctor.look(row)
        found |= {finding.name for finding in doctor.findings}
    return found


USELESS = {"reward": 0.0, "accuracy": 0.0, "frac_reward_zero_std": 1.0, "sampling/informative": 0, "updates": 0}
BROKEN = {
    "answers cut off": (range(20, 30), {**USELESS, "completions/clipped_ratio": 0.98, "answers/extracted": 0.01}),
    "nothing parsed": (range(0, 12), {**USELESS, "answers/extracted": 0.02}),
    "judge failing": (range(40, 60), {"judge/error_rate": 1.0, "reward": None, "accuracy": None,
                                      "frac_reward_zero_std": 1.0, "sampling/informative": 0, "updates": 0}),
    "updates skipped": (range(50, 52), {"updates": 0, "grad_norm": 0.0, "sampling/informative": 7}),
    "entropy collapsing": (range(10, 30), {"entropy": 0.0004, "reward": 0.3, "accuracy": 0.3,
                                           "frac_reward_zero_std": 1.0, "sampling/informative": 0, "updates": 0}),
    "KL spikes": (range(44, 46), {"kl": 2.0}),
    "retrospective pool empty": (range(30, 60), {"retro/pool": 0}),
    "rollout gap large": (range(15, 40), {"rollout_gap": 3.0}),
    "groups all alike": (range(30, 60), USELESS)}


def broken(name: str) -> list[dict]:
    places, change = BROKEN[name]
    return [{**row, **change} if place in places else row for place, row in enumerate(healthy())]


def test_a_healthy_run_has_no_complaint():
    assert names(healthy()) == set()


@pytest.mark.parametrize("name", BROKEN)
def test_each_fault_is_reported_by_its_own_name_and_no_other(name):
    assert names(broken(name)) == {name}


def test_every_rule_has_its_broken_run():
    assert BROKEN.keys() == {name for name, _, _ in RULES}


# Thresholds, both sides of each

def found(rows: list[dict]) -> dict[str, str]:
    return {name: sentence for name, _, sentence in diagnose(rows)}


def filled(count: int = WINDOW, **values) -> list[dict]:
    """Rows of the second phase with these values only. __ in a name stands for /."""
    return [{"phase": 2, **{name.replace("__", "/"): value for name, value in values.items()}}] * count


@pytest.mark.parametrize("name, fine, bad", [
    ("answers cut off", filled(completions__clipped_ratio=0.5), filled(completions__clipped_ratio=0.51)),
    ("nothing parsed", filled(answers__extracted=0.1), filled(answers__extracted=0.09)),
    ("judge failing", filled(judge__error_rate=0.1), filled(judge__error_rate=0.11)),
    ("judge failing", filled(7, judge__canaries_wrong=0) + filled(3, judge__canaries_wrong=1),
     filled(6, judge__canaries_wrong=0) + filled(4, judge__canaries_wrong=1)),
    ("updates skipped", filled(updates=0, sampling__informative=0), filled(updates=0, sampling__informative=1)),
    ("updates skipped", filled(4, updates=4, sampling__informative=9) + filled(updates=3, sampling__informative=3),
     filled(9, updates=4, sampling__informative=9) + filled(1, updates=3, sampling__informative=4)),
    ("judge failing", filled(1, judge__canaries_wrong=1), filled(4, judge__canaries_wrong=1)),
    ("updates skipped", filled(grad_norm=1e200, loss=None), filled(9, loss=1.0) + filled(1, loss=NAN)),
    ("entropy collapsing", filled(entropy=0.1, reward=0.5) + filled(entropy=0.021, reward=0.5),
     filled(entropy=0.1, reward=0.5) + filled(entropy=0.019, reward=0.5)),
    ("entropy collapsing", filled(entropy=0.1, reward=0.5) + filled(entropy=0.01, reward=0.56),
     filled(entropy=0.1, reward=0.5) + filled(entropy=0.01, reward=0.54)),
    ("entropy collapsing", filled(entropy=1e-4, reward=0.91), filled(entropy=1e-4, reward=0.89)),
    ("entropy collapsing", filled(entropy=1.1e-3, reward=0.5), filled(entropy=0.9e-3, reward=0.5)),
    ("KL spikes", filled(8, kl=0.02) + filled(2, kl=0.19), filled(8, kl=0.02) + filled(2, kl=0.21)),
    ("KL spikes", filled(8, kl=0.001) + filled(2, kl=0.09), filled(8, kl=0.001) + filled(2, kl=0.11)),
    ("KL spikes", filled(9, kl=0.02) + filled(1, kl=15.0), filled(4, kl=0.02) + filled(1, kl=15.0) * 2),
    ("retrospective pool empty", filled(retro__pool=1), filled(retro__pool=0)),
    ("retrospective pool empty", filled(1, retro__pool=1) + filled(9, retro__pool=0), filled(1, retro__pool=0)),
    ("retrospective pool empty", filled(retro__pool=0, retro__frac=0.1), filled(retro__pool=0, retro__frac=0.0)),
    ("rollout gap large", filled(rollout_gap=0.19), filled(rollout_gap=0.21)),
    ("rollout gap large", filled(5, rollout_gap=0.1) + filled(4, rollout_gap=99.0), filled(1, rollout_gap=9.0)),
    ("groups all alike", filled(frac_reward_zero_std=0.95), filled(frac_reward_zero_std=0.96))])
def test_thresholds(name, fine, bad):
    assert found(fine) == {} and found(bad).keys() == {name}


@pytest.mark.parametrize("name, rows, words", [
    ("answers cut off", filled(5, completions__clipped_ratio=0.9) + filled(5, completions__clipped_ratio=1),
     ("95%", "--max-new-tokens")),
    ("nothing parsed", filled(answers__extracted=0.05), ("5%", "train_sft.py")),
    ("groups all alike", filled(frac_reward_zero_std=1.0, reward=0.0), ("100% of the groups", "wrong", "easier")),
    ("groups all alike", filled(frac_reward_zero_std=0.98, accuracy=1.0, reward=0.5), ("98%", "right", "harder")),
    ("groups all alike", filled(frac_reward_zero_std=1, reward=0.5), ("100% of the groups", "--max-refills")),
    ("groups all alike", filled(frac_reward_zero_std=1, reward=None), ("100% of the groups", "--max-refills")),
    ("judge failing", filled(judge__canaries_wrong=2, judge__error_rate=0.5), ("10 of 10", "50%", "--judge-model")),
    ("KL spikes", filled(8, kl=0.02) + filled(1, kl=2.5) + filled(1, kl=0.5), ("2.5", "2 of 10", "0.02", "--learning")),
    ("rollout gap large", filled(rollout_gap=2.0), ("2 in", "7.4", "more than rounding", "--dtype")),
    ("rollout gap large", filled(rollout_gap=0.51), ("0.51", "more than rounding")),
    ("rollout gap large", filled(rollout_gap=0.3), ("0.3 in", "1.3)", "bfloat16 rounds", "--dtype float32"))])
def test_sentences_give_the_figure_and_what_to_do(name, rows, words):
    assert all(word in found(rows)[name] for word in words) and "\n" not in found(rows)[name]


def test_flags_named_in_sentences_are_flags_of_training():
    more = [filled(judge__canaries_wrong=2), filled(entropy=0.0, reward=0.5),
            filled(frac_reward_zero_std=1, reward=0.5), filled(frac_reward_zero_std=1, reward=1.0)]
    flags = [flag for rows in [*map(broken, BROKEN), *more] for place in range(len(rows))
             for sentence in found(rows[:place + 1]).values() for flag in re.findall(r"--([a-z-]+)", sentence)]
    known = {field.name for field in fields(train_rl.Config)}
    assert {flag.replace("-", "_") for flag in flags} <= known and len(set(flags)) >= 12


def test_success_is_no_fault():
    """No fault: entropy near 0 because the answers are right, a pool emptied by solving, the very first step."""
    assert found(filled(30, entropy=1e-5, reward=0.97, frac_reward_zero_std=0.9)) == {}
    assert found(filled(retro__pool=4) + filled(30, retro__pool=0)) == {}
    assert found(filled(11, retro__pool=0)) == {}              # reported at the start of the phase
    assert found([{**row, "phase": 1} for row in filled(retro__pool=0)]) == {}
    assert found(healthy()[:1]) == {} and found([]) == {} and found([{}]) == {}


def test_phases_are_judged_apart():
    """Nine steps of a solved phase say nothing about the next one, and entropy is compared with its own phase."""
    solved = [{"phase": 1, "frac_reward_zero_std": 1.0, "reward": 1.0, "entropy": 0.9}] * 30
    assert found(solved).keys() == {"groups all alike"}
    assert found(solved + filled(20, frac_reward_zero_std=0.5, reward=0.4, entropy=0.1)) == {}


# While training

def test_the_doctor_finds_what_is_found_in_the_whole_run():
    for rows in [*map(broken, BROKEN), filled(25, entropy=0.2) + filled(25, entropy=0.001, reward=0.1)]:
        doctor = Doctor()
        for place, row in enumerate(rows):
            doctor.look(row)
            assert doctor.findings == diagnose(rows[:place + 1]) and len(doctor.rows) <= 2 * WINDOW


def test_a_finding_is_said_once_a_window_and_the_obvious_at_the_first_step():
    doctor, cut, fine = Doctor(), {"completions/clipped_ratio": 1.0}, {"completions/clipped_ratio": 0.0}
    said = [doctor.look(row) for row in [cut] * 15 + [fine] * 15 + [cut] * 15]
    assert [step for step, notes in enumerate(said, start=1) if notes] == [1, 12, 36]
    assert said[0][0].startswith("answers cut off: 100% of the answers were truncated")
    assert all(Doctor().look(broken(name)[place])[0].startswith(name) for name, place in (
        ("nothing parsed", 0), ("judge failing", 40), ("groups all alike", 40)))


# What ends a run

class Judge:
    def trouble(self):
        return "3 of 4 questions without a verdict"


def reasons(rows: list[dict], judge=None) -> list:
    """The reason to stop after each row; a streak is counted as run.Run does."""
    streaks = {}

    def in_a_row(what, happened):
        streaks[what] = streaks.get(what, 0) + 1 if happened else 0
        return streaks[what]
    return [stop_reason({"sampling/informative": 1, "reward": 0.5, **row}, in_a_row, judge) for row in rows]


def test_three_unjudged_steps_in_a_row_end_the_run():
    fine, bad = {"judge/error_rate": 0.25}, {"judge/error_rate": 0.26, "sampling/informative": 0, "reward": None}
    stops = reasons([bad, bad, fine, bad, bad, bad, bad], Judge())
    assert stops[:5] == [None] * 5 and all(isinstance(error, errors.JudgeUnavailable) for error in stops[5:])
    assert "3 steps in a row" in str(stops[5]) and "25%" in str(stops[5]) and Judge().trouble() in str(stops[5])
    assert Doctor().look(bad, Judge())[-1] == "the judge: 3 of 4 questions without a verdict"
    assert not any("the judge: " in note for note in Doctor().look(bad) + Doctor().look(fine, Judge()))


def test_fifty_idle_steps_in_a_row_end_the_run_and_it_may_be_resumed_for_fifty_more():
    idle = {"sampling/informative": 0, "reward": 0.0}
    stops = reasons([idle] * 49 + [{}] + [idle] * 101 + [{**idle, "reward": None}] + [idle] * 49)
    assert [step for step, error in enumerate(stops, start=1) if error] == [100, 150]
    assert isinstance(stops[99], errors.DataError) and "50 steps in a row" in str(stops[99])
    assert "100" in str(stops[149]) and "--group-size" in str(stops[99]) and "\n" not in str(stops[99])


def test_groups_that_are_missing_after_refills_are_reported_at_each_step():
    doctor, row = Doctor(), {"sampling/refills": 3, "sampling/missing": 2, "sampling/informative": 2,
                             "sampling/all_wrong": 9, "sampling/all_right": 1}
    for _ in range(3):
        assert doctor.look(row)[-1] == ("2 groups are missing after 3 refills: 2 disagreed, 9 were all wrong, "
                                        "1 all right")
    assert doctor.look({**row, "sampling/refills": 0}) == doctor.look({**row, "sampling/missing": 0}) == []


VALUES = st.one_of(st.none(), st.sampled_from([NAN, INF, -INF, 0, 1, 10**400, -10**400, 1e300, "x", True, [], {}]),
                   st.floats(), st.floats(0, 1))
KEYS = sorted({key for row in healthy() for key in row})


@settings(max_examples=50)
@given(st.lists(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8), max_size=4).map(lambda rows: 6 * rows))
@example([{"phase": NAN, "kl": 1.0}] * 25)
@example([{"phase": 2, "rollout_gap": 1e299, "entropy": -1e299, "reward": -1e299}] * 25)
def test_no_numbers_make_it_fail(rows):
    assert all(isinstance(sentence, str) for sentence in found(rows).values())
    assert isinstance(names(rows), set)


# The tool

def write(directory, rows: list[dict], end: str = ""):
    directory.mkdir(exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "metrics.jsonl").write_text(text + end, encoding="utf-8")
    return str(directory)


def test_the_tool_tells_each_fault_in_a_line_with_its_steps_and_worst_figure(tmp_path, capsys):
    """In steps 21 to 30 a share of 0.98 of the answers is cut, elsewhere at most 0.2. So the mean of ten steps is over
    0.5 from the fifth or sixth of these steps until the phase ends."""
    run = write(tmp_path / "cut", broken("answers cut off"))
    assert tool.main([run]) == 1
    line, = capsys.readouterr().out.splitlines()
    first = int(re.match(rf"{run}: answers cut off \(steps (\d+) to 30: ", line)[1])
    assert first in (25, 26) and f"to 30: {31 - first} of 60): 98% of the answers" in line
    assert tool.main([write(tmp_path / "spike", broken("KL spikes")[:46])]) == 1
    assert "spike: KL spikes (step 46: 1 of 46): the KL" in capsys.readouterr().out


def test_the_tool_leaves_a_healthy_run_alone_and_a_half_written_line_out(tmp_path, capsys):
    run = write(tmp_path / "run", healthy(), end='{"step": 61, "phase": 2, "completions/cli')
    assert tool.main([run]) == 0
    assert capsys.readouterr().out == f"{run}: no complaint in 60 steps\n"
    assert tool.main([write(tmp_path / "nan", [{"step": 1, "loss": NAN}])]) == 1      # as Python writes it


@pytest.mark.parametrize("content, code, words", [
    (None, 66, "No such file"), ("", 65, "no step in it yet"), ('{"step": 1', 65, "no step in it yet"),
    ('{"step": 1}\nhalf\n{"step": 3}\n', 65, "metrics.jsonl:2: this line is not a JSON object"),
    ("[1]\n", 65, "metrics.jsonl:1"), ("[" * 100_000 + "\n", 65, "metrics.jsonl:1")])
def test_the_tool_says_what_cannot_be_read_and_goes_on(tmp_path, capsys, content, code, words):
    other = write(tmp_path / "other", healthy(20))
    run = tmp_path / "run"
    run.mkdir()
    if content is not None:
        (run / "metrics.jsonl").write_text(content)
    assert tool.main([str(run), other]) == code
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and str(run) in said.err
    assert said.out == f"{other}: no complaint in 20 steps\n"
