"""The tables of the ablations, from runs and evaluations made by hand."""

import json
import math
import shutil

import pytest
from recipes import ablations, toy_files

CHECKPOINTS = {"single": (10, 20, 30, 40)}


@pytest.fixture
def directory(tmp_path):
    """Two seeds of every run. Row i of a study has an accuracy of 0.1 i + 0.02 seed wherever it is looked up."""
    for study, rows in ablations.STUDIES.items():
        for kind, _ in rows.values():
            for seed in (0, 1):
                write_run(tmp_path / f"{kind}-{seed}", CHECKPOINTS.get(kind, (20,)), kind)
        for evaluation in {column[0] for of, columns in ablations.TABLES.values() if of == study
                           for column in columns.values()}:
            for seed in (0, 1):
                write_results(tmp_path, study, evaluation, str(seed))
    return tmp_path


def write_run(run, steps, kind):
    """Steps of 1 second and 100,000 tokens; of one stage 2 seconds and 80,000 tokens."""
    seconds, tokens = (2, 80_000) if kind == "single" else (1, 100_000)
    for step in steps:
        (run / f"checkpoints/step_{step:06d}").mkdir(parents=True, exist_ok=True)
    rows = [{"step": step, "phase": 1 + (step > 5), "reward": 0.5, "kl": 0.0 if step % 2 else 0.4, "grad_norm": 2.0,
             "entropy": 0.25, "step_time": seconds, "tokens_per_s": tokens / seconds, "reward_by_len/80-200": 0.75,
             "entropy_by_len/80-200": 0.125, "completions/mean_length": 20,
             "patterns/grounding": 1.5} for step in range(1, max(steps) + 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_results(directory, study, evaluation, seed):
    path = directory / f"eval_{evaluation}-{seed}" / "results.json"
    path.parent.mkdir(exist_ok=True)
    models = []
    for place, model in enumerate(ablations.models(directory, study, seed).values()):
        rate = 0.1 * place + 0.02 * int(seed)
        cell = {"accuracy": rate, "low": 0.0, "high": 1.0, "questions": 10, "pass@8": rate + 0.05}
        models.append({"model": str(model), "all": cell, "by_length": {"0-80": cell, "80-200": cell},
                       "by_task": {"qa": cell, "f1": cell, "pairwise": cell}, "by_source": {}, "average": None})
    path.write_text(json.dumps({"settings": {}, "models": models}))


def test_one_stage_is_looked_at_where_it_had_used_as_much(directory, capsys):
    """20 steps of 100,000 tokens are 25 of 80,000, between two checkpoints (the first is taken); 20 seconds are 10
    steps of 2."""
    found = ablations.models(directory, "curriculum", "1")
    assert found["RL from base in one stage, equal tokens"] == directory / "single-1/checkpoints/step_000020"
    assert found["RL from base in one stage, equal time"] == directory / "single-1/checkpoints/step_000010"
    assert found["base"] == directory / "base-1/checkpoints/step_000020"
    assert ablations.main([str(directory), "--models", "curriculum", "1"]) == 0
    assert capsys.readouterr().out.split() == list(map(str, found.values()))


def test_a_cell_is_mean_and_standard_deviation_over_the_seeds(directory, capsys):
    assert ablations.main([str(directory)]) == 0
    table = (directory / "table.md").read_text()
    assert table in capsys.readouterr().out and (directory / "ablations.png").read_bytes()[:4] == b"\x89PNG"
    lines = [line for line in table.splitlines() if line.startswith("| RL from short SFT |")]
    # 0.4 and 0.42: each 0.01 from their mean, n - 1
    assert lines == ["| RL from short SFT | 41.0 ± 1.4 | 41.0 ± 1.4 | 46.0 ± 1.4 | 41.0 ± 1.4 |"]
    assert "| RL with TMN-Reweight |" + " 21.0 ± 1.4 |" * 5 in table
    while_training = dict(line.strip("| ").split(" | ", 1) for line in table[table.index("### While"):].splitlines()
                          if line.startswith("|"))
    assert while_training["million tokens"] == " | ".join(["2.00 ± 0.00"] * 5)
    assert while_training["minutes"] == " | ".join(["0.33 ± 0.00"] * 4 + ["0.83 ± 0.00"])
    assert while_training["KL to the start, last 20 steps"].startswith("0.200 ± 0.000")
    # alternating 0 and 0.4: half apart 0.2 each, n - 1; windows of 5 in phase I (2 of 0.4), of 10 in phase II
    of_five = math.sqrt((2 * 0.24**2 + 3 * 0.16**2) / 4)
    expected = (of_five + 6 * 0.2 * math.sqrt(10 / 9)) / 7
    assert while_training["KL, std within 10 steps"].startswith(f"{expected:.4f} ± 0.0000")


def test_what_is_missing_is_named(directory, capsys):
    shutil.rmtree(directory / "tmn-1")
    assert ablations.main([str(directory)]) == 66
    assert "tmn-1 is not there, though other runs of this seed are" in capsys.readouterr().err
    shutil.rmtree(directory / "base-0/checkpoints")
    assert ablations.main([str(directory), "--models", "lookups", "0"]) == 66
    assert "base-0 has no checkpoint" in capsys.readouterr().err


def test_a_study_may_have_more_seeds_than_another(directory, capsys):
    for kind in ("no_retro", "single", "rl_base", "base"):
        shutil.copytree(directory / f"{kind}-1", directory / f"{kind}-2")
    for evaluation in ("curriculum", "curriculum_closed_book"):
        write_results(directory, "curriculum", evaluation, "2")
    assert ablations.main([str(directory)]) == 0
    table = (directory / "table.md").read_text()
    assert f"### {ablations.LOOKUPS} (2 seeds)" in table and f"### {ablations.CURRICULUM} (3 seeds)" in table
    # rows 2 of both studies: 0.2, 0.22 and 0.2, 0.22, 0.24
    assert "| long SFT | 21.0 ± 1.4 |" in table
    assert "| RL from base, no retrospective sampling | 22.0 ± 2.0 |" in table
    shutil.rmtree(directory / "rl_base-2")
    capsys.readouterr()
    assert ablations.main([str(directory)]) == 66
    assert "rl_base-2 is not there, though other runs of this seed are" in capsys.readouterr().err


def test_another_model_than_was_evaluated_is_refused(directory, capsys):
    (directory / "hybrid-0/checkpoints/step_000099").mkdir()
    assert ablations.main([str(directory)]) == 65
    assert "step_000099: remove" in capsys.readouterr().err


def test_too_short_a_run_cannot_be_compared(directory, capsys):
    write_run(directory / "rl_base-0", (60,), "rl_base")
    assert ablations.main([str(directory), "--models", "curriculum", "0"]) == 65
    assert "give it more steps" in capsys.readouterr().err


def test_toy_files_share_nothing_they_should_not(tmp_path):
    """Warm-up and RL are about other documents; the closed-book questions are in the base's rows only."""
    assert toy_files.main([str(tmp_path), "--seed", "3"]) == 0
    files = {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in tmp_path.iterdir()}
    assert {name: len(rows) for name, rows in files.items()} == {
        "base": 2400, "sft_short": 4000, "sft_long": 4000, "rl": 4000, "closed_book": 400, "either_word": 400}
    documents = {name: {row["context"] for row in rows if "context" in row} for name, rows in files.items()}
    assert not documents["rl"] & (documents["base"] | documents["sft_short"] | documents["sft_long"])
    assert not documents["base"] & documents["sft_short"] and not documents["closed_book"]
    assert not documents["either_word"] & set().union(*(documents[name] for name in files if name != "either_word"))
    assert {"tea": ["tea", "chai"], "Oslo": "Oslo"}.items() <= {
        row["answer"] if isinstance(row["answer"], str) else row["answer"][0]: row["answer"]
        for row in files["either_word"]}.items()
    closed = {row["id"] for row in files["closed_book"]}
    assert [{row["id"] for row in files[name]} >= closed for name in ("base", "sft_short", "sft_long", "rl")] == [
        True, False, False, False]
