"""The picture is drawn from the files of a run."""

import json

import pytest

from tools import plot

pytest.importorskip("matplotlib")


def test_a_picture_of_a_small_run(tmp_path):
    (tmp_path / "rl").mkdir()
    steps = [{"step": 1, "phase": 1, "reward_by_len/0-80": 0.5}, {"step": 2, "phase": 2, "reward_by_len/80-200": 0.2,
             "reward_by_len/0-80": 0.6}]
    (tmp_path / "rl/metrics.jsonl").write_text("".join(json.dumps(step) + "\n" for step in steps))
    cell = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "questions": 10}
    rows = [{"model": "runs/x/rl/checkpoints/step_000002", "0-80": cell, "80-200": cell}]
    (tmp_path / "table.json").write_text(json.dumps(rows))
    assert plot.main([str(tmp_path)]) == 0
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_metrics_of_several_runs(tmp_path, capsys):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n{"step": 2, "reward": null}\n')
    runs = [str(tmp_path / name) for name in ("a", "b")]
    assert plot.main([*runs, "--metric", "reward", "entropy", "--out", str(tmp_path / "ab.png")]) == 0
    assert (tmp_path / "ab.png").read_bytes().startswith(b"\x89PNG")
    assert plot.main(runs) == 78 and "--metric" in capsys.readouterr().err


def test_an_unfinished_run_gets_one_sentence(tmp_path, capsys):
    assert plot.main([str(tmp_path)]) == 66
    assert "metrics.jsonl" in capsys.readouterr().err


def test_labels_and_moving_average():
    assert plot.label("runs/demo-0/rl/checkpoints/step_000030") == "rl step_000030"
    assert plot.label("assets/nano-base") == "nano-base"
    assert plot.moving_average([1.0, 3.0, 5.0, 7.0], 2) == [1.0, 2.0, 4.0, 6.0]


@pytest.mark.parametrize("line, metric", [('{"step": 1, "reward": "x"}', "reward"), ("[1]", "reward")])
def test_metrics_that_cannot_be_drawn_are_refused_in_a_sentence(tmp_path, capsys, line, metric):
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    assert plot.main([str(tmp_path), "--metric", metric]) == 65
    assert "cannot be drawn" in capsys.readouterr().err and not (tmp_path / "curve.png").exists()
