"""The experiment on real documents: its tables, from runs and evaluations made by hand, and all of it in miniature."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT
from recipes import real

from nanoqwenlong import data, toy
from nanoqwenlong.analysis.evaluate import interval

GOLD = "</think> The answer is x."
WRONG = "</think> The answer is y."


@pytest.fixture
def directory(tmp_path):
    """Two seeds of warm-up, RL and SFT instead, and one of no retrospective sampling. Each has answered four questions
    of one part and two of another one."""
    for part, number in (("held_nq_one", 4), ("held_nq_three", 2)):
        rows = [{"id": f"{part}-{row}", "context": "Some text.", "question": f"Which {row}?", "answer": "x"}
                for row in range(number)]
        (tmp_path / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluate(tmp_path, "base", "000000")
    evaluate(tmp_path, "warm-0", "100010")
    evaluate(tmp_path, "warm-1", "110010")
    evaluate(tmp_path, "sft-0", "100011")
    evaluate(tmp_path, "sft-1", "100011")
    evaluate(tmp_path, "rl-0", "011110")
    evaluate(tmp_path, "rl-1", "111111")
    evaluate(tmp_path, "no_retro-0", "011010")
    for name, steps, seconds in (("warm-0", 2, 30), ("warm-1", 2, 60), ("rl-0", 4, 240), ("rl-1", 4, 240)):
        write_run(tmp_path / name, steps, seconds)
    return tmp_path


def evaluate(directory, name, right):
    """Answers of a model: right where there is a 1, in the order of the questions of both files."""
    out = directory / "eval" / name
    out.mkdir(parents=True)
    paths = [str(directory / f"{part}.jsonl") for part in ("held_nq_one", "held_nq_three")]
    (out / "settings.json").write_text(json.dumps({"data": dict.fromkeys(paths, "sha"), "model": {"m": {}}}))
    ids = [f"held_nq_one-{row}" for row in range(4)] + [f"held_nq_three-{row}" for row in range(2)]
    lines = []
    for id, each in zip(ids, right, strict=True):
        answer = {"text": GOLD if each == "1" else WRONG, "length": 7, "finish_reason": "stop"}
        lines.append(json.dumps({"model": "m", "id": id, "answers": [answer]}) + "\n")
    (out / "answers.jsonl").write_text("".join(lines))
    (out / "results.json").write_text("{}")


def write_run(run, steps, seconds, tokens=1000, checkpoint=None):
    """Steps of one second. The first half is phase I."""
    checkpoint = run / f"checkpoints/step_{checkpoint or steps:06d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text(json.dumps({"seconds": seconds}))
    rows = [{"step": step, "phase": 1 if step <= steps / 2 else 2, "reward": step / 10, "retro/frac": 0.25,
             "step_time": 1.0, "tokens_per_s": tokens} for step in range(1, steps + 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def table_of(text: str, title: str) -> dict[str, list[str]]:
    """{first cell: other cells} of the table with this head."""
    part = next(part for part in text.split("\n\n") if part.startswith(f"| {title}"))
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in part.splitlines()]
    return {name.strip(): cells for name, *cells in rows}


def test_seeds_count_as_answers_and_differences_are_paired(directory, capsys):
    """Of RL, 3 of 4 and 4 of 4 are right. Question by question it wins -1/2, 1/2, 1, 1 over the warm-up."""
    assert real.main([str(directory)]) == 0
    text = (directory / "table.md").read_text()
    assert text in capsys.readouterr().out and (directory / "real.png").read_bytes()[:4] == b"\x89PNG"
    accuracy = table_of(text, "accuracy, %")
    assert accuracy["accuracy, %"] == ["NQ short (n=4)", "NQ three passages (n=2)"]
    assert [accuracy[name][0].split()[0] for name in ("as it came", "warm-up", "SFT instead of RL", "RL phase II",
            "RL, no retrospective sampling")] == ["0.0", "37.5", "25.0", "87.5", "50.0"]
    low, high = interval(0.875, 4)
    assert accuracy["RL phase II"][0] == f"87.5 [{100 * low:.1f}, {100 * high:.1f}]"
    assert table_of(text, "each seed, %")["RL phase II, seed 1"][0].startswith("100.0 [")
    differences = table_of(text, "difference")
    error = 1.96 * math.sqrt(sum((each - 0.5) ** 2 for each in (-0.5, 0.5, 1, 1)) / 3 / 4)
    assert differences["RL phase II - warm-up"][0] == (
        f"+50.0 [{50 - 100 * error:+.1f}, {50 + 100 * error:+.1f}] (+5 -1)")
    # only seed 0 has no retrospective sampling: 0, 0, 0, 1
    error = 1.96 * 50 / math.sqrt(4)
    assert differences["RL phase II - RL, no retrospective sampling"][0] == (
        f"+25.0 [{25 - error:+.1f}, {25 + error:+.1f}] (+1 -0)")
    assert "RL phase II - RL in one stage, equal tokens" not in differences
    assert table_of(text, "answers, %")["NQ short: RL phase II"] == ["87.5", "12.5"]
    training = table_of(text, "while training")
    assert training["while training"] == ["warm-up", "RL phase II"]
    assert training["minutes"] == ["0.8 ± 0.4", "4.0 ± 0.0"]
    assert training["reward, last 10 steps of phase II"][1] == "0.350 ± 0.000"


def test_a_model_may_have_answered_fewer_parts():
    question = real.Question(None, None, type("Score", (), {"reward": 1.0}))
    assert real.paired({"0": {"held_nq_one": [question]}}, {"0": {}}, "held_nq_one") == ""


def test_answers_are_shown_before_and_after(directory, capsys):
    assert real.main([str(directory), "--read", "warm-0", "rl-0", "--number", "2"]) == 0
    text = capsys.readouterr().out
    titles = [line for line in text.splitlines() if line.startswith("==")]
    assert titles == ["== right: 2 of 3, of 4 questions", "== wrong: 1 of 1, of 4 questions",
                      "== gained: 2 of 3, of 4 questions", "== lost: 1 of 1, of 4 questions"]
    lost = text[text.index("== lost"):]
    assert f"held_nq_one-0: Which 0?\n  gold    x\n  before  1  {GOLD}\n  after   0  {WRONG}\n" in lost


def test_evaluations_that_cannot_be_used_are_named(directory, capsys):
    answers = directory / "eval/rl-0/answers.jsonl"
    answers.write_text("".join(answers.read_text().splitlines(keepends=True)[:3]))
    assert real.main([str(directory)]) == 65
    assert f"{answers} is incomplete: start recipes/real.sh again" in capsys.readouterr().err
    shutil.rmtree(directory / "eval")
    assert real.main([str(directory)]) == 66
    assert "has no finished evaluation" in capsys.readouterr().err


def test_one_stage_continues_until_it_has_used_the_tokens(tmp_path, capsys):
    """40 steps of 1,000 tokens. Steps after the last checkpoint will be done again, so they do not count."""
    def next_steps():
        assert real.main([str(tmp_path), "--equal-tokens", "single-0", "rl-0"]) == 0
        return capsys.readouterr().out.strip()

    write_run(tmp_path / "rl-0", 40, 90)
    assert next_steps() == "10"
    (tmp_path / "single-0/checkpoints").mkdir(parents=True)                    # killed before its first checkpoint
    assert next_steps() == "10"
    for steps, checkpoint, expected in ((10, 10, "20"), (19, 15, "20"), (24, 20, "30"), (30, 20, "30"), (31, 30, "")):
        shutil.rmtree(tmp_path / "single-0", ignore_errors=True)
        write_run(tmp_path / "single-0", steps, 1, tokens=1500, checkpoint=checkpoint)
        assert next_steps() == expected, (steps, checkpoint)
    assert real.main([str(tmp_path), "--minutes", "rl-0"]) == 0 and capsys.readouterr().out == "1.50\n"
    assert real.main([str(tmp_path), "--minutes", "rl-1"]) == 66 and "has no checkpoint" in capsys.readouterr().err


def test_hours_are_those_of_the_counts(tmp_path, monkeypatch, capsys):
    """Steps of an hour in every stage, answers in no time: 3 warm-up, 2 + 4 of RL, the same of SFT and of controls."""
    monkeypatch.setattr(real, "SECONDS", {"warm-up step": 3600, "step of phase I": 3600, "step of phase II": 3600,
                                          "answer": 0})
    words = [str(tmp_path / "runs"), "--expect", str(tmp_path), str(tmp_path), "--steps", "3", "2", "4"]
    write_data(tmp_path, 2)
    for seeds, jobs, hours in (("01", 2, 21), ("0", 2, 21), ("0", 1, 27), ("012", 2, 36)):
        assert real.main([*words, "--seeds", *seeds, "--jobs", str(jobs)]) == 0
        text = capsys.readouterr().out
        assert f"expected: {hours}.0 hours" in text and "sft 2, rl_one 2, rl_three 2" in text
    (tmp_path / "held_xquad_three.jsonl").unlink()
    assert real.main([*words, "--seeds", "0", "--jobs", "1"]) == 66
    assert "held_xquad_three.jsonl does not exist" in capsys.readouterr().err


# In miniature

def write_data(directory: Path, number: int) -> None:
    """The files of recipes/real_data.py with toy documents of its lengths: up to 200 tokens, to 520, and longer."""
    for place, name in enumerate((*real.DATA, *real.PARTS)):
        split = "heldout" if name.startswith("held") else "train"
        examples = toy.examples(number, toy.SHORT, place, split)
        times = {"one": 0, "three": 2, "long": 4}.get(name.rpartition("_")[2], 0)
        others = toy.examples(number * times or 1, toy.LONG, place, split)
        rows = []
        for row, example in enumerate(examples):
            documents = [other.document for other in others[row * times:(row + 1) * times]]
            rows.append(data.as_row(replace(example, document=" ".join([example.document, *documents]),
                                            response=example.response if name == "sft" else "")))
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.full
def test_the_experiment_is_killed_and_resumed(tmp_path):
    """SIGKILL at two moments, with everything that it has started. The last start ends with all tables."""
    write_data(tmp_path, 8)
    shutil.copy(tmp_path / "sft.jsonl", tmp_path / "control.jsonl")
    runs = tmp_path / "runs"
    words = ["bash", "recipes/real.sh", "assets/nano-sft", str(tmp_path)]
    environment = {**os.environ, "SEEDS": "0", "WARMUP_STEPS": "1", "PHASE_STEPS": "2 2", "RUNS": str(runs),
                   "PYTHON": sys.executable}
    for sign in (runs / "rl-0/checkpoints", runs / "single-0/checkpoints"):
        running = subprocess.Popen(words, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
        while running.poll() is None and not sign.exists():
            time.sleep(0.02)
        os.killpg(running.pid, signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL, sign
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    accuracy = table_of((runs / "table.md").read_text(), "accuracy, %")
    assert list(accuracy)[2:] == list(real.KINDS.values()) and len(accuracy["warm-up"]) == len(real.PARTS)
    assert (runs / "real.png").exists()
