"""The scripts, run as a user runs them: flags in, files and an exit code out (in this process, on the tiny model)."""

import ast
import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import eval as eval_script
import sample
import train_rl
import train_sft
from nanoqwenlong import data, errors, toy
from nanoqwenlong.model import Qwen
from nanoqwenlong.ops import exits
from nanoqwenlong.ops.console import printable
from nanoqwenlong.ops.run import here
from nanoqwenlong.pretrained.tokenizer import Tokenizer
from nanoqwenlong.records import Example, Family

ROOT = Path(__file__).resolve().parent.parent
TIMES = ("step_time", "tokens_per_s", "elapsed", "timing_s/sample", "timing_s/reward", "timing_s/update")
SMALL_RL = ["--toy-examples", "12", "--prompts-per-step", "4", "--group-size", "3", "--max-new-tokens", "6",
            "--phase-steps", "1", "2", "--kv-blocks", "512"]


def start(script, *argv) -> int:
    return exits.start(script.main, script.Config, getattr(script, "PRESETS", {}), [str(word) for word in argv])


def metrics(directory: Path) -> list[dict]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def without_times(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_rows(path: Path, examples) -> Path:
    path.write_text("".join(json.dumps({"id": e.id, "context": e.document, "question": e.question, "answer": e.answer,
                                        "response": e.response}) + "\n" for e in examples))
    return path


def test_sft_lowers_the_loss_measures_and_saves_a_model_that_loads(in_tmp, toy_directory):
    rows = write_rows(in_tmp / "rows.jsonl", toy.examples(16, toy.SHORT, 0))
    code = start(train_sft, "--model", toy_directory, "--data", rows, "--heldout", rows, "--steps", 12,
                 "--batch-size", 8, "--eval-every", 6, "--learning-rate", 3e-3, "--warmup-steps", 1,
                 "--max-new-tokens", 4)
    assert code == 0
    steps = metrics(in_tmp / "runs/sft")
    assert [row["step"] for row in steps] == list(range(1, 13))
    assert steps[-1]["loss"] < 0.5 * steps[0]["loss"]
    assert [row["step"] for row in steps if "eval/acc" in row] == [6, 12]
    assert json.loads((in_tmp / "runs/sft/config.json").read_text())["steps"] == 12
    checkpoint = in_tmp / "runs/sft/checkpoints/step_000012"
    assert Qwen.from_pretrained(checkpoint).config.vocab_size >= Tokenizer(checkpoint).vocab_size


# SFT rows that could never earn reward

@pytest.mark.parametrize("response, problem", [
    ("Therefore, the answer is Oslo.", "has no </think>, after which the answer is read"),
    ("<think>Tom lives in Oslo.</think> It is clear.", "states no answer"),
    ("<think>Oslo.</think> Therefore, the answer is Bern.", "states 'Bern', but the answer is 'Oslo'"),
    ("<think>Oslo.</think> Therefore, the answer is oslo.", ""), ("<think></think>\\boxed{Oslo}", "")])
def test_sft_reports_a_response_that_could_never_earn_reward(in_tmp, toy_directory, capsys, response, problem):
    good = Example("a", "Tom lives in Oslo.", "Where does Tom live?", "Oslo",
                   response="<think>.</think>The answer is Oslo")
    rows = write_rows(in_tmp / "rows.jsonl", [good, replace(good, id="b", response=response)])
    flags = ["--model", toy_directory, "--data", rows, "--dry-run"]
    assert start(train_sft, *flags) == 0
    said = f"1 of 2 responses would earn nothing by the rule, but are learned: the one of {rows}:2 {problem}."
    output = capsys.readouterr().out
    assert (said in output) == (problem != "") and ("earn nothing" in output) == (problem != "")
    assert start(train_sft, *flags, "--strict-responses") == (65 if problem else 0)
    assert (f'{rows}:2: "response" {problem}' in capsys.readouterr().err) == (problem != "")


def test_sft_rows_without_an_answer_only_have_to_end_their_thinking(in_tmp, toy_directory, capsys):
    flags = ["--model", toy_directory, "--data", "rows.jsonl", "--dry-run", "--strict-responses"]
    right = '{"prompt": "Hello", "completion": "<think></think>Good day."}\n{"text": "Rain fell."}\n'
    (in_tmp / "rows.jsonl").write_text(right)
    assert start(train_sft, *flags) == 0 and "earn nothing" not in capsys.readouterr().out
    (in_tmp / "rows.jsonl").write_text(right + '{"prompt": "Hello", "completion": "Good day."}\n')
    assert start(train_sft, *flags) == 65 and 'rows.jsonl:3: "response" has no </think>' in capsys.readouterr().err


def test_sft_stops_when_held_out_accuracy_no_longer_rises(in_tmp, toy_directory, monkeypatch, capsys):
    """Not before it has risen at all, and saying so."""
    measured = iter([0.0, 0.0, 0.0, 0.0, 0.5, 0.4, 0.6, 0.6, 0.1, 0.6, 0.9])
    monkeypatch.setattr(train_sft, "measure", lambda *args: next(measured))
    assert start(train_sft, "--model", toy_directory, "--toy-examples", 8, "--batch-size", 4, "--steps", 50,
                 "--eval-every", 1, "--eval-questions", 2, "--patience", 3, "--max-new-tokens", 2) == 0
    assert len(metrics(in_tmp / "runs/sft")) == 10
    assert "stopped: 3 evaluations without a better accuracy than 0.600" in capsys.readouterr().out


def test_pretraining_from_random_weights(in_tmp):
    assert start(train_sft, "--preset", "nano-base", "--toy-pages", 16, "--steps", 2, "--batch-size", 8) == 0
    assert len(list((in_tmp / "runs/sft/checkpoints/step_000002").iterdir())) >= 5


def test_rl_leaves_metrics_words_and_a_checkpoint_at_the_end_of_each_phase(in_tmp, toy_directory, capsys):
    assert start(train_rl, "--model", toy_directory, *SMALL_RL) == 0
    rows, console = metrics(in_tmp / "runs/rl"), capsys.readouterr().out
    assert [(row["step"], row["phase"]) for row in rows] == [(1, 1), (2, 2), (3, 2)]
    assert {"reward", "reward_std", "frac_reward_zero_std", "entropy", "completions/mean_length", "learning_rate",
            "completions/clipped_ratio", "grad_norm", "step_time", "retro/frac", "retro/mean_difficulty", "rollout_gap",
            "timing_s/sample", "timing_s/reward", "timing_s/update", "clip_ratio/low_mean"} <= rows[0].keys()
    assert any(key.startswith("reward_by_len/") for key in rows[0])
    words = [json.loads(line) for line in (in_tmp / "runs/rl/rollouts.jsonl").read_text().splitlines()]
    assert len(words) == 3 * 4 * 3 and {"text", "reward", "answer", "gold", "advantage"} <= words[0].keys()
    assert sorted(p.name for p in (in_tmp / "runs/rl/checkpoints").iterdir()) == ["step_000001", "step_000003"]
    line = next(line for line in console.splitlines() if line.startswith("step 1 of 3"))
    assert line.index("reward") < line.index("entropy") and "loss" not in line
    assert "note: " in console                                        # a random model: told why nothing is learned


def test_the_same_seed_is_the_same_run_and_another_seed_another(in_tmp, toy_directory):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        assert start(train_rl, "--model", toy_directory, *SMALL_RL, "--name", name, "--seed", seed) == 0
    a, b, c = (without_times(metrics(in_tmp / "runs" / name)) for name in "abc")
    assert a == b != c
    words = [(in_tmp / "runs" / name / "rollouts.jsonl").read_text() for name in "abc"]
    assert words[0] == words[1] != words[2]


def learnable(rewards):
    """Stands in for the rule: an answer earns 1 if its first character's code is even, so groups disagree."""
    def score_all(texts, examples, judge=None):
        return [[rewards.Score(float(len(text) % 2), 0.0, None, text) for text in group] for group in texts]
    return score_all


def test_rl_with_several_updates_and_a_reference(in_tmp, toy_directory, monkeypatch):
    from nanoqwenlong import rewards
    monkeypatch.setattr(train_rl, "score_all", learnable(rewards))
    before = Qwen.from_pretrained(toy_directory).state_dict()
    assert start(train_rl, "--model", toy_directory, *SMALL_RL, "--updates-per-step", 2, "--kl-coef", 0.1) == 0
    rows = metrics(in_tmp / "runs/rl")
    assert rows[0]["kl"] >= 0 and rows[-1]["kl"] > 0 and max(row["grad_norm"] for row in rows) > 0
    assert max(row["rollout_gap"] for row in rows) < 0.1
    after = Qwen.from_pretrained(in_tmp / "runs/rl/checkpoints/step_000003").state_dict()
    assert any(not before[name].equal(after[name]) for name in before)


@pytest.mark.parametrize("flags, bound", [([], math.inf), (["--dual-clip", 3], 3.0)])
def test_the_objectives_settings_reach_the_loss(in_tmp, toy_directory, monkeypatch, flags, bound):
    from nanoqwenlong import grpo, rewards
    seen, loss = [], grpo.grpo_loss
    monkeypatch.setattr(train_rl, "score_all", learnable(rewards))
    monkeypatch.setattr(grpo, "grpo_loss", lambda *args, **settings: seen.append(settings) or loss(*args, **settings))
    assert start(train_rl, "--model", toy_directory, *SMALL_RL, "--clip-low", 0.1, "--clip-high", 0.3, *flags) == 0
    expected = dict(clip_low=0.1, clip_high=0.3, dual_clip=bound, kl_coef=0).items()
    assert seen and all(settings.items() >= expected for settings in seen)
    assert {row["clip_ratio/dual_mean"] for row in metrics(in_tmp / "runs/rl")} == {0.0}


def test_old_log_probs_are_computed_only_where_they_are_asked_for(in_tmp, toy_directory, monkeypatch):
    """From the second update on, before the first. The sampler's and the recomputed ones lead to the same run. (Every
    group disagrees: its answers earn 0, 1, 0.)"""
    from nanoqwenlong import group_pass, optim, rewards
    monkeypatch.setattr(train_rl, "score_all", lambda texts, examples, judge: [
        [rewards.Score(float(i % 2), 0.0, None, text) for i, text in enumerate(group)] for group in texts])
    events, logprobs, step = [], group_pass.logprobs, optim.step
    monkeypatch.setattr(group_pass, "logprobs", lambda *a, **k: (events.append("old"), logprobs(*a, **k))[1])
    monkeypatch.setattr(optim, "step", lambda *a: (events.append("step"), step(*a))[1])
    found = {}
    for name, flags in (("one", ["--updates-per-step", 1, "--old-logprobs", "recompute"]),
                        ("rollout", ["--updates-per-step", 2]),
                        ("recompute", ["--updates-per-step", 2, "--old-logprobs", "recompute"])):
        events.clear()
        assert start(train_rl, "--model", toy_directory, *SMALL_RL, "--name", name, *flags, "--steps", 1) == 0
        (found[name],), told = metrics(in_tmp / "runs" / name), "".join(event[0] for event in events)
        assert told == {"one": "s", "rollout": "ss", "recompute": "ooss"}[name]
    for name, value in found["rollout"].items():
        if name not in TIMES:
            assert found["recompute"][name] == pytest.approx(value, abs=1e-5), name


def test_checkpointing_changes_nothing(in_tmp, toy_directory, monkeypatch):
    from nanoqwenlong import rewards
    monkeypatch.setattr(train_rl, "score_all", learnable(rewards))
    for script, flags in ((train_rl, SMALL_RL), (train_sft, ["--toy-examples", 8, "--eval-every", 0, "--steps", 2])):
        for name, more in (("a", []), ("b", ["--checkpointing"])):
            assert start(script, "--model", toy_directory, *flags, "--name", name, *more) == 0
        a, b = (without_times(metrics(in_tmp / "runs" / name)) for name in "ab")
        assert a == b and any(row["grad_norm"] for row in a)
        shutil.rmtree(in_tmp / "runs")


def test_sft_runs_a_document_once_for_its_questions(in_tmp, toy_directory, monkeypatch):
    """Two questions about each of three documents: the same losses and gradients as about six."""
    pairs = [dataclasses.replace(e, id=f"{e.id}/{i}", question=e.question + "?" * i)
             for e in toy.examples(3, toy.SHORT, 0) for i in range(2)]
    rows, found, tokens, forward = write_rows(in_tmp / "rows.jsonl", pairs), [], [], Qwen.forward
    monkeypatch.setattr(Qwen, "forward",
                        lambda self, ids, *args: (tokens.append(len(ids)), forward(self, ids, *args))[1])
    for name in ("shared", "repeated"):
        tokens.clear()
        assert start(train_sft, "--model", toy_directory, "--data", rows, "--name", name, "--steps", 3, "--batch-size",
                     4, "--eval-every", 0) == 0
        found.append((metrics(in_tmp / "runs" / name), sum(tokens)))
        monkeypatch.setattr(train_sft, "share_stems", lambda batch: {0: Family((), tuple(sum(batch, [])))})
    (shared, few), (repeated, many) = found
    assert few < 0.8 * many
    for a, b in zip(shared, repeated, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_sft_takes_every_example_once_an_epoch_and_a_documents_questions_together():
    documents = ((0, 3), (1,), (2, 4, 5), (6,), (7,))
    for epoch in range(3):
        batches = [train_sft.draw(documents, 0, 2 * epoch + i, 4) for i in range(2)]
        drawn = [question for batch in batches for questions in batch for question in questions]
        assert sorted(drawn) == list(range(8))
        places = [sorted(drawn.index(question) for question in questions) for questions in documents]
        assert all(place == list(range(place[0], place[0] + len(place))) for place in places)
    assert train_sft.draw(documents, 0, 0, 4) != train_sft.draw(documents, 1, 0, 4)
    rest = [train_sft.draw((tuple(range(10)),), 0, batch, 4) for batch in range(40)]       # 2 of 10 left out an epoch:
    assert {question for batch in rest for questions in batch for question in questions} == set(range(10))   # others


def test_on_policy_rollouts_and_training_agree_on_log_probs(in_tmp, toy_directory, monkeypatch):
    from nanoqwenlong import rewards
    monkeypatch.setattr(train_rl, "score_all", learnable(rewards))
    assert start(train_rl, "--model", toy_directory, *SMALL_RL, "--temperature", 0.7) == 0
    assert 0 < max(row["rollout_gap"] for row in metrics(in_tmp / "runs/rl")) <= 1e-5


def test_a_dry_run_keeps_nothing(in_tmp, toy_directory):
    assert start(train_rl, "--model", toy_directory, *SMALL_RL, "--dry-run") == 0
    assert start(train_sft, "--model", toy_directory, "--toy-examples", 8, "--eval-questions", 2, "--max-new-tokens", 2,
                 "--batch-size", 4, "--dry-run") == 0
    assert list(in_tmp.iterdir()) == []


def test_a_dry_run_on_a_real_document(in_tmp, capsys):
    """The committed model cannot read English: the reward is 0, and the script says why."""
    assert start(train_rl, "--model", ROOT / "assets/nano-sft", "--data", ROOT / "examples/licence_qa.jsonl",
                 "--dry-run") == 0
    out = capsys.readouterr().out
    assert "step 1 of 1" in out and list(in_tmp.iterdir()) == []
    note = next(line for line in out.splitlines() if "note: " in line)
    assert "answers cut off" in note and "ramble" in note
    assert note.index("ramble") < note.index("train_sft.py") < note.index("raise --max-new-tokens")
    assert out.splitlines()[-1] == "dry run: one step, and nothing is kept"


def test_settings_that_make_no_sense_are_refused_in_one_sentence(in_tmp, toy_directory, capsys):
    for argv in (["--group-size", 1], ["--learning-rate", "nan"], ["--phase-lengths", 80], ["--phase-lengths", 5, 9],
                 ["--kv-blocks", 2], ["--top-p", 2], ["--max-prompt-tokens", 3], ["--retro-fraction", 1],
                 ["--dual-clip", 0.5]):
        code = start(train_rl, "--model", toy_directory, "--toy-examples", 12, "--dry-run", *argv)
        error = capsys.readouterr().err
        assert code in (errors.BAD_CONFIG, errors.BAD_DATA), argv
        assert error.count("\n") == 1 and "Traceback" not in error, argv


def test_a_run_is_never_overwritten(in_tmp, toy_directory, capsys):
    assert start(train_rl, "--model", toy_directory, *SMALL_RL) == 0
    kept = (in_tmp / "runs/rl/metrics.jsonl").read_bytes()
    assert start(train_rl, "--model", toy_directory, *SMALL_RL, "--resume", "never") == errors.BAD_CONFIG
    assert "runs/rl" in capsys.readouterr().err and (in_tmp / "runs/rl/metrics.jsonl").read_bytes() == kept
    assert start(train_rl, "--model", toy_directory, *SMALL_RL) == errors.DONE
    assert "complete" in capsys.readouterr().out and (in_tmp / "runs/rl/metrics.jsonl").read_bytes() == kept


def test_eval_reports_each_bucket_and_writes_difficulty_that_rl_reads(in_tmp, toy_directory, capsys):
    rows = write_rows(in_tmp / "rows.jsonl", toy.examples(6, toy.SHORT, 0) + toy.examples(6, toy.LONG, 0))
    assert start(eval_script, "--model", toy_directory, "--data", rows, "--lengths", 80, 200, "--samples", 2,
                 "--max-new-tokens", 4, "--difficulty", "d.json", "--out", "out") == 0
    assert "0-80 tokens" in capsys.readouterr().out
    table = json.loads((in_tmp / "out/results.json").read_text())["models"][0]["by_length"]
    assert table["0-80"]["questions"] == table["80-200"]["questions"] == 6 and "pass@2" in table["0-80"]
    assert len(json.loads((in_tmp / "d.json").read_text())["mean_rewards"]) == 12
    assert start(train_rl, "--model", toy_directory, "--data", rows, "--difficulty", "d.json", *SMALL_RL[2:],
                 "--phase-lengths", 80, 200, "--retro-fraction", 0.5) == 0
    assert [row["retro/frac"] for row in metrics(in_tmp / "runs/rl")] == [0, 0.5, 0.5]


@pytest.mark.parametrize("minutes", ["nan", "inf", 0])
def test_eval_waits_for_a_time_that_there_is(in_tmp, toy_directory, capsys, minutes):
    assert start(eval_script, "--model", toy_directory, "--timeout-minutes", minutes) == errors.BAD_CONFIG
    assert "--timeout-minutes" in capsys.readouterr().err


def test_kept_right_answers_are_sft_rows(in_tmp, toy_directory, monkeypatch):
    rows = write_rows(in_tmp / "rows.jsonl", toy.examples(6, toy.SHORT, 0))
    from nanoqwenlong import rewards
    from nanoqwenlong.analysis import evaluate
    monkeypatch.setattr(evaluate, "score_all", learnable(rewards))
    assert start(eval_script, "--model", toy_directory, "--data", rows, "--samples", 16, "--max-new-tokens", 40,
                 "--temperature", 2, "--keep-correct", "kept.jsonl") == 0
    kept = data.read([in_tmp / "kept.jsonl"], need_response=True)
    assert kept and all(len(example.response) % 2 for example in kept)


def test_sample_streams_and_its_json_is_the_same_answer(in_tmp, toy_directory, capsys):
    (in_tmp / "doc.txt").write_text("Notes. We showed Tom Oslo.")
    ask = ["--model", toy_directory, "--document", "doc.txt", "--question", "Which town did we show Tom?",
           "--max-new-tokens", 12, "--temperature", 1]
    assert start(sample, *ask) == 0
    streamed = capsys.readouterr().out
    assert start(sample, *ask, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer.keys() == {"prompt_ids", "completion_ids", "text", "answer", "finish_reason"}
    assert streamed.startswith(printable(answer["text"].rstrip("\ufffd"))) and len(answer["completion_ids"]) <= 12


@pytest.mark.parametrize("argv, code, words", [
    (["--documents", "x"], errors.BAD_CONFIG, "did you mean --document"),
    (["--document", "nowhere.txt", "--question", "?"], errors.MISSING_INPUT, "nowhere.txt"),
    (["--question", "?"], errors.BAD_CONFIG, "--document"),
    (["--model", "nowhere", "--document", "doc.txt", "--question", "?"], errors.MISSING_INPUT, "is not there"),
    (["--document", "latin.txt", "--question", "?"], errors.BAD_DATA, "not UTF-8"),
])
def test_sample_refuses_in_one_sentence(in_tmp, toy_directory, capsys, argv, code, words):
    (in_tmp / "doc.txt").write_text("Rain.")
    (in_tmp / "latin.txt").write_bytes(b"caf\xe9")
    assert start(sample, *(argv if "--model" in argv else ["--model", toy_directory, *argv])) == code
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_the_loop_of_train_rl_stays_within_sixty_lines_and_five_paragraphs():
    source = (ROOT / "train_rl.py").read_text()
    loops = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.For)]
    longest = max(loops, key=lambda node: node.end_lineno - node.lineno)
    assert longest.end_lineno - longest.lineno + 1 <= 60
    body = source.splitlines()[longest.lineno:longest.end_lineno]
    assert [line.split("# ")[1][0] for line in body if line.strip().startswith("# ") and ". " in line] == list("12345")
    classes = [node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)]
    assert classes == ["Config"]


@pytest.mark.parametrize("script", [train_sft, train_rl, eval_script, sample], ids=lambda script: script.__name__)
def test_help_is_the_manual(script, capsys):
    with pytest.raises(SystemExit) as done:
        start(script, "--help")
    manual = capsys.readouterr().out
    assert done.value.code == 0 and "class Config" in manual and f"python {script.__name__}.py" in manual


def test_a_script_runs_from_the_shell():
    done = subprocess.run([sys.executable, "sample.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "class Config" in done.stdout


def test_outputs_of_eval_are_checked_before_any_work_and_never_overwrite_its_data(in_tmp, toy_directory, capsys):
    rows = write_rows(in_tmp / "rows.jsonl", toy.examples(4, toy.SHORT, 0))
    before = rows.read_bytes()
    (in_tmp / "answers.jsonl").write_bytes(before)
    for argv in (["--keep-correct", rows], ["--difficulty", "a.json", "--keep-correct", "a.json"],
                 ["--difficulty", "nowhere/a.json"], ["--difficulty", os.devnull], ["--out", rows],
                 ["--out", "new", "--difficulty", "new/../new/table.md"], ["--out", ".", "--data", "answers.jsonl"],
                 ["--keep-correct", in_tmp]):
        argv = argv if "--data" in argv else [*argv, "--data", rows]
        assert start(eval_script, "--model", toy_directory, *argv) == errors.BAD_CONFIG, argv
        captured = capsys.readouterr()
        assert captured.err.count("\n") == 1 and captured.out == ""
    assert rows.read_bytes() == before == (in_tmp / "answers.jsonl").read_bytes() and len(list(in_tmp.iterdir())) == 2


@pytest.mark.parametrize("content, words", [
    ('{"mean_rewards": {"nobody": 0.5}}', "has none"), ('{"mean_rewards": []}', "mean_rewards"),
    ('{"mean_rewards": {"a": "hard"}}', "mean_rewards"), ('{"mean_rewards": {"a": NaN}}', "mean_rewards"),
    ("{}", "mean_rewards"), ("[", "JSON"),
])
def test_a_difficulty_file_that_does_not_fit_is_refused(in_tmp, toy_directory, capsys, content, words):
    (in_tmp / "d.json").write_text(content)
    assert start(train_rl, "--model", toy_directory, *SMALL_RL, "--difficulty", "d.json") == errors.BAD_DATA
    error = capsys.readouterr().err
    assert "d.json" in error and words in error and error.count("\n") == 1 and not (in_tmp / "runs").exists()


def test_plain_text_is_for_pretraining_only(in_tmp, toy_directory, capsys):
    (in_tmp / "text.jsonl").write_text('{"text": "Rain fell."}\n')
    for script in (train_rl, eval_script):
        assert start(script, "--model", toy_directory, "--data", "text.jsonl") == errors.BAD_DATA
        assert "text.jsonl:1" in capsys.readouterr().err
    assert start(train_sft, "--model", toy_directory, "--data", "text.jsonl", "--dry-run") == 0


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/tmp/x", "a/b"])
def test_a_run_stays_inside_runs_dir(in_tmp, toy_directory, capsys, name):
    assert start(train_rl, "--model", toy_directory, *SMALL_RL, f"--name={name}") == errors.BAD_CONFIG
    assert "--name" in capsys.readouterr().err and list(in_tmp.iterdir()) == []


def test_a_gradient_that_is_not_finite_updates_nothing_and_ends_the_run(in_tmp, toy_directory, monkeypatch, capsys):
    from nanoqwenlong import errors, group_pass
    seen = {}

    def poisoned(model, *args, **kwargs):
        seen["model"], seen["before"] = model, {k: v.clone() for k, v in model.state_dict().items()}
        for parameter in model.parameters():
            parameter.grad = parameter.detach().new_full(parameter.shape, float("nan"))
    monkeypatch.setattr(group_pass, "backward", poisoned)
    argv = ["--model", toy_directory, "--toy-examples", 4, "--steps", 9, "--eval-every", 0, "--max-bad-updates", 2]
    assert start(train_sft, *argv) == errors.INTERNAL
    assert "not finite 2 times in a row" in capsys.readouterr().err
    assert [row["loss"] for row in metrics(in_tmp / "runs/sft")] == [None]
    assert all(v.equal(seen["before"][k]) for k, v in seen["model"].state_dict().items())
    assert not (in_tmp / "runs/sft/checkpoints").exists()


# The first hour

def run_script(*words, cwd=ROOT, **variables) -> tuple[subprocess.CompletedProcess, float]:
    """A command as a user types it, and the seconds of processor time that it takes."""
    before = os.times()
    done = subprocess.run([sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=120,
                          env={**os.environ, **variables})
    after = os.times()
    return done, after.children_user + after.children_system - before.children_user - before.children_system


@pytest.mark.parametrize("words, said", [
    (["train_rl.py", "--nmae", "x"], "unknown flag --nmae; did you mean --name?"),
    (["train_sft.py", "--steps", "many"], "--steps takes one value of type int"),
    (["train_sft.py", "--keep", "0"], "--keep must be at least 1"),
    (["eval.py", "--modl", "x"], "did you mean --model?"), (["sample.py", "--quesiton", "x"], "--question?"),
    (["-m", "tools.plan", "--nope"], "unknown flag --nope"), (["-m", "tools.rollouts", "--nope"], "usage: "),
    (["-m", "tools.doctor", "--nope"], "usage: "), (["-m", "tools.plot", "--nope"], "usage: ")])
def test_a_mistyped_flag_is_reported_before_torch_is_imported(words, said):
    done, seconds = run_script(*words)
    assert done.returncode in (2, 78) and said in done.stderr and "Traceback" not in done.stderr and not done.stdout
    assert seconds < 0.5, "it takes a tenth of a second here, and torch over one"


@pytest.mark.parametrize("script", ["train_rl.py", "train_sft.py", "eval.py", "sample.py"])
def test_help_is_as_fast(script):
    done, seconds = run_script(script, "--help")
    assert done.returncode == 0 and "class Config" in done.stdout and seconds < 0.5


CALLED = [f"{path.parent.name}.{path.stem}" for folder in ("tools", "recipes") for path in (ROOT / folder).glob("*.py")
          if "__main__" in path.read_text() and path.stem != "budget"]              # that one has no flags


@pytest.mark.parametrize("module", sorted(CALLED))
def test_every_module_that_can_be_called_has_help(module):
    done, _ = run_script("-m", module, "--help")
    assert done.returncode == 0 and module.split(".")[1] in done.stdout and "Traceback" not in done.stderr


def test_ctrl_c_during_the_imports_is_one_word(in_tmp):
    code = ("import sys; from nanoqwenlong.ops import flags; from train_sft import Config; flags.check(Config, []); "
            "raise KeyboardInterrupt")
    done, _ = run_script("-c", code)
    assert done.stderr == "interrupted\n" and done.returncode in (130, -2)
    done, _ = run_script("-c", code.replace("KeyboardInterrupt", "ValueError('a bug')"))
    assert "Traceback" in done.stderr and "a bug" in done.stderr             # other errors keep theirs
    done, _ = run_script("-c", code.replace("raise KeyboardInterrupt", "import torhc"))
    assert done.stderr.count("\n") == 1 and "has no package torhc: use .venv/bin/python" in done.stderr


def test_a_python_without_our_packages_is_told_which_to_use(in_tmp):
    """-S leaves out site-packages. Flags are still read, because that needs the standard library only."""
    for script in ("train_rl.py", "train_sft.py", "eval.py", "sample.py"):
        done, _ = run_script("-S", "-E", ROOT / script)
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "has no package torch" in done.stderr
        done, _ = run_script("-S", "-E", ROOT / script, "--nmae")
        assert done.returncode == 78 and "unknown flag --nmae" in done.stderr


def test_a_dry_run_of_the_warm_up_shows_a_step(in_tmp, toy_directory, capsys):
    flags = ["--model", toy_directory, "--toy-examples", 8, "--eval-questions", 2, "--max-new-tokens", 2,
             "--batch-size", 4]
    assert start(train_sft, *flags, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith("step")] == ["step 1 of 1"]
    assert all(f"  {name} " in lines[1] for name in ("loss", "accuracy", "grad_norm", "lr", "left"))
    assert lines[-1] == "dry run: one step, and nothing is kept"


def test_data_without_heldout_says_that_accuracy_is_not_measured(in_tmp, toy_directory, capsys):
    rows = write_rows(in_tmp / "rows.jsonl", toy.examples(4, toy.SHORT, 0))
    flags = ["--model", toy_directory, "--max-new-tokens", 2, "--batch-size", 4, "--dry-run"]
    for more, measured in ((["--data", rows], False), (["--data", rows, "--heldout", rows], True),
                           (["--toy-examples", 4, "--eval-questions", 2], True),
                           (["--toy-examples", 4, "--eval-every", 0], False)):
        assert start(train_sft, *flags, *more) == 0
        out = capsys.readouterr().out
        assert ("accuracy is not measured: --heldout" in out) == (not measured) == ("  accuracy " not in out), more
    assert "with --data nothing: accuracy is not measured" in " ".join(
        (ROOT / "train_sft.py").read_text().replace("#", " ").split())


def test_the_last_line_of_a_run_is_a_command_that_evaluates_its_model(in_tmp, toy_directory, capsys):
    """On the toy task, on held-out files, or on a placeholder for them, with the settings of training."""
    rows = write_rows(in_tmp / "rows.jsonl", toy.examples(8, toy.SHORT, 0))
    small = ["--model", toy_directory, "--batch-size", 4, "--steps", 1]
    runs = {"toy": (train_sft, [*small, "--toy-examples", 8, "--eval-every", 0]),
            "both": (train_sft, [*small, "--data", rows, "--heldout", rows, "--max-new-tokens", 3]),
            "data": (train_sft, [*small, "--data", rows]),
            "rl": (train_rl, ["--model", toy_directory, *SMALL_RL, "--steps", 1])}
    ends = {"toy": [], "both": ["--data", str(rows), "--max-new-tokens", "3"], "data": ["--data", "HELDOUT.jsonl"],
            "rl": ["--max-new-tokens", "6"]}
    for name, (script, flags) in runs.items():
        for again in range(2):                                         # a run that is complete says it again
            assert start(script, *flags, "--name", name) == 0
            last = capsys.readouterr().out.splitlines()[-1]
        begin, command = last.split(": ", 1)
        model = f"runs/{name}/checkpoints/step_000001"
        assert begin == "done. To evaluate this model"
        assert command.split()[1:] == [str(ROOT / "eval.py"), "--model", model, *ends[name]]
    done, _ = run_script(*last.split(": ", 1)[1].split()[1:], "--toy-examples", 2, cwd=in_tmp)
    assert done.returncode == 0 and model in done.stdout, done.stderr


@pytest.mark.parametrize("path, elsewhere, shown", [
    ("a/train.py", "", "a/train.py"), ("/x/train.py", "", "/x/train.py"), ("/x/bin/python", "python", "python")])
def test_commands_name_paths_that_are_true_where_they_are_pasted(in_tmp, path, elsewhere, shown):
    assert here(in_tmp / path, elsewhere) == shown


def test_errors_about_phases_name_both_flags(in_tmp, toy_directory, capsys):
    for argv in (["--phase-lengths", 80], ["--phase-lengths", 80, 60], ["--phase-steps", 3], ["--phase-steps", 0, 4],
                 ["--phase-lengths", 5, 9], ["--phase-lengths", 80, 200, 300]):
        assert start(train_rl, "--model", toy_directory, "--toy-examples", 12, "--dry-run", *argv) == errors.BAD_CONFIG
        error = capsys.readouterr().err
        assert "--phase-lengths" in error and "--phase-steps" in error and error.count("\n") == 1, argv


def test_keep_1_keeps_one_checkpoint_that_resumes(in_tmp, toy_directory):
    flags = ["--model", toy_directory, "--toy-examples", 8, "--batch-size", 4, "--eval-every", 0, "--save-every", 1,
             "--keep", 1]
    for steps in (3, 5):
        assert start(train_sft, *flags, "--steps", steps) == 0
        assert [path.name for path in (in_tmp / "runs/sft/checkpoints").iterdir()] == [f"step_00000{steps}"]
    assert [row["step"] for row in metrics(in_tmp / "runs/sft")] == [1, 2, 3, 4, 5]


def test_the_judges_room_reaches_it(in_tmp, toy_directory, monkeypatch):
    from nanoqwenlong import build
    rooms = []
    monkeypatch.setattr(build, "completer", lambda generator, tokenizer, room: rooms.append(room) or (
        lambda prompts: [None] * len(prompts)))
    for flags in ([], ["--judge-tokens", 77]):
        start(train_rl, "--model", toy_directory, *SMALL_RL, "--judge", toy_directory, "--dry-run", *flags)
        start(eval_script, "--model", toy_directory, "--toy-examples", 2, "--max-new-tokens", 2, "--judge",
              toy_directory, *flags)
    assert rooms == [4096, 4096, 77, 77]


def test_a_run_in_the_place_of_a_model_is_answered_with_its_newest_checkpoint(in_tmp, toy_directory, capsys):
    assert start(train_rl, "--model", toy_directory, *SMALL_RL) == 0
    capsys.readouterr()
    for script, more in ((eval_script, []), (train_rl, ["--name", "b"]), (train_sft, ["--name", "c"])):
        for place in ("runs/rl", "runs/rl/checkpoints"):
            assert start(script, "--model", place, *more) == errors.BAD_DATA
            assert "is runs/rl/checkpoints/step_000003 meant?" in capsys.readouterr().err
    assert start(eval_script, "--model", "runs/rl/checkpoints/step_000003", "--toy-examples", 2) == 0


def test_from_another_directory_the_default_model_is_not_looked_for_elsewhere(in_tmp, capsys):
    for script, argv in ((train_rl, []), (train_sft, []), (eval_script, []),
                         (sample, ["--document", "x", "--question", "y"])):
        assert start(script, *argv) == errors.MISSING_INPUT
        assert (error := capsys.readouterr().err).startswith("assets/ is not here: run") and error.count("\n") == 1
    assert start(train_rl, "--model", "missing") == errors.MISSING_INPUT
    assert "missing is not there" in capsys.readouterr().err


def test_torchruns_traceback_is_announced_before_it_appears(in_tmp, capsys, monkeypatch):
    """After the sentence of ours, and only under torchrun, which has an opinion on every code but 0."""
    flags = ["--model", ROOT / "assets/nano-sft", "--name", "a/b"]
    for launched in (False, True):
        monkeypatch.setattr(exits.parallel, "is_launched", lambda: launched)
        monkeypatch.setattr(exits.parallel, "start", lambda *args: "cpu")
        assert start(train_rl, *flags) == errors.BAD_CONFIG
        first, *more = capsys.readouterr().err.splitlines()
        assert first.startswith("--name 'a/b' should be a plain name")
        assert more == ["torchrun now reports this exit with a traceback of its own. That is expected."] * launched
