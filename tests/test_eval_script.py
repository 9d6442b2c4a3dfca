"""eval.py as a user runs it: the seven benchmarks in their released form, scored by hand; what --out keeps, and how an
evaluation that was stopped goes on from it."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

import eval as eval_script
from nanoqwenlong import errors, rewards, toy
from nanoqwenlong.analysis import evaluate
from nanoqwenlong.generate import Generator
from nanoqwenlong.ops import exits
from nanoqwenlong.pretrained.digest import model_digests
from nanoqwenlong.records import Completion, Group

ROOT = Path(__file__).resolve().parent.parent


def start(*argv) -> int:
    return exits.start(eval_script.main, eval_script.Config, eval_script.PRESETS, [str(word) for word in argv])


@pytest.fixture
def in_tmp(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jsonl(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def results(out="out") -> dict:
    return json.loads(Path(out, "results.json").read_text(encoding="utf-8"))


# The seven benchmarks

SAID = "</think> Therefore, the answer is {}."
ANSWERS = {                     # of each row: question, references, and (what is said, what it earns) by hand
    "hotpotqa": [("Where?", ["Oslo"], "Oslo", 1), ("Who?", ["Ann Lee", "Ann"], "Ann", 1),
                 ("When?", ["May"], "June", 0)],
    "2wikimqa": [("Where now?", ["the U.K."], "UK", 1)],
    "musique": [("Which?", ["Marie Curie"], "not Marie Curie", 0), ("What?", ["tea"], "coffee, no: tea", 0)],
    "narrativeqa": [("Why?", ["He was late", "For being late."], "for being late", 1)],
    "qasper": [("How?", ["BERT", "ELMo"], "ELMo", 1), ("Why so?", ["Unanswerable"], "unknown", 0)],
    "frames": [("Which country?", "Norway", "**Norway**", 1), ("How many?", "3", "4", 0)],
    "docmath": [("How much?", 20.4, "20.43", 1), ("How much less?", -20.4, "20.4", 0), ("Is it?", True, "yes", 1),
                ("Which year?", 2019, "2018", 0)],
}


def benchmark(name: str) -> Path:
    """A small file of it, in the form it is released in."""
    rows = [{"input": question, "context": f"Some text. {question}", "answers": gold, "length": 3, "dataset": name,
             "language": "en", "all_classes": None, "_id": f"{name}{i}"} if isinstance(gold, list) else
            {"Prompt": question, "Answer": gold, "wiki_items": [{"title": "A", "text": f"page {question}"}]}
            if name == "frames" else
            {"question_id": f"test-{i}", "question": question, "paragraphs": ["One.", f"Two. {question}"],
             "ground_truth": gold, "table_evidence": []} for i, (question, gold, *_) in enumerate(ANSWERS[name])]
    if name == "docmath":
        Path("docmath.json").write_text(json.dumps(rows, indent=2))
        return Path("docmath.json")
    return jsonl(Path(f"{name}.jsonl"), *rows)


class Saying:
    """A model that says what ANSWERS has for the question at the end of its prompt."""

    said = {question: said for rows in ANSWERS.values() for question, _, said, _ in rows}

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def sample(self, prompts, n, eos_ids, keys, **sampling):
        found = []
        for prompt, key in zip(prompts, keys, strict=True):
            asked = self.tokenizer.hf.decode(prompt)
            question = asked.rsplit("</text>\n\n")[-1].split("\n\nFormat your response")[0]
            ids = tuple(self.tokenizer.encode(SAID.format(self.said[question])))
            found += [Group(key, prompt, (Completion(ids, (0.0,) * len(ids), "stop"),) * n)]
        return found


def test_the_seven_benchmarks_as_they_are_released(in_tmp, toy_pair, toy_directory, monkeypatch, capsys):
    monkeypatch.setattr(eval_script, "Generator", lambda *args: Saying(toy_pair[1]))
    files = [benchmark(name) for name in ANSWERS]
    assert start("--preset", "paper", "--model", toy_directory, "--data", *files, "--out", "out") == 0
    (model,) = results()["models"]
    right = {name: sum(row[-1] for row in rows) / len(rows) for name, rows in ANSWERS.items()}
    assert {name: cell["accuracy"] for name, cell in model["by_source"].items()} == pytest.approx(right)
    assert model["average"]["accuracy"] == pytest.approx(sum(right.values()) / 7)
    assert model["all"]["accuracy"] == pytest.approx(8 / 15) and model["all"]["questions"] == 15
    settings = results()["settings"]
    assert (settings["temperature"], settings["top_p"], settings["max_new_tokens"]) == (0.7, 0.95, 10000)
    told = capsys.readouterr().out
    assert "0-20000 tokens (n=15)" in told and Path("out/table.md").read_text() == told


def test_a_question_is_the_same_in_every_form(in_tmp):
    """The warmed-up model on toy documents of two lines, in four schemas: the same prompts, so the same answers."""
    examples = [replace(example, document=example.document.replace("Notes. ", "Notes.\n", 1))
                for example in toy.examples(8, toy.SHORT, 0, "heldout")]
    forms = {"plain": lambda e: {"id": e.id, "context": e.document, "question": e.question, "answer": e.answer},
             "longbench": lambda e: {"_id": e.id, "context": e.document, "input": e.question, "answers": [e.answer]},
             "docmath": lambda e: {"question_id": e.id, "paragraphs": e.document.split("\n"), "question": e.question,
                                   "ground_truth": e.answer},
             "frames": lambda e: {"id": e.id, "Prompt": e.question, "Answer": e.answer, "wiki_items": [
                 dict(zip(("title", "text"), e.document.split("\n")))]}}
    kept = []
    for name, form in forms.items():
        jsonl(Path(f"{name}.jsonl"), *map(form, examples))
        assert start("--model", ROOT / "assets/nano-rl", "--data", f"{name}.jsonl", "--out", name) == 0
        kept.append(Path(name, "answers.jsonl").read_bytes())
        assert results(name)["models"][0]["all"] == results("plain")["models"][0]["all"]
    assert kept == kept[:1] * 4 and kept[0].count(b"\n") == 8
    assert results("plain")["models"][0]["all"]["accuracy"] >= 0.75


def test_every_question_is_asked_and_what_was_cut_is_told(in_tmp, toy_pair, toy_directory, monkeypatch, capsys):
    monkeypatch.setattr(eval_script, "Generator", lambda *args: Saying(toy_pair[1]))
    rows = [{"context": "We saw. " * times, "question": question, "answer": "Oslo", "id": question}
            for times, question in ((1, "Where?"), (200, "Who?"), (300, "When?"))]
    assert start("--model", toy_directory, "--data", jsonl(Path("d.jsonl"), *rows), "--max-prompt-tokens", 200,
                 "--lengths", 100, "--out", "out") == 0
    (model,) = results()["models"]
    assert {name: (cell["questions"], cell.get("cut", 0)) for name, cell in model["by_length"].items()} == {
        "0-100": (1, 0), "100+": (2, 2)}
    assert "2 of 3 documents were cut in their middle to fit 200 tokens" in capsys.readouterr().out


# What --out keeps

SMALL = ("--toy-examples", 4, "--max-new-tokens", 5, "--samples", 2, "--kv-blocks", 512)


def evaluated(directory, out: str, *more) -> dict[str, bytes]:
    """Of two models, which answer alike."""
    if not Path("other").exists():
        Path("other").symlink_to(directory)
    assert start("--model", directory, "other", *SMALL, "--out", out, *more) == 0
    return {path.name: path.read_bytes() for path in Path(out).iterdir()}


class Counted(Generator):
    prompts = 0

    def sample(self, prompts, **options):
        Counted.prompts += len(prompts)
        return super().sample(prompts, **options)


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setattr(evaluate, "AT_ONCE", 3)
    monkeypatch.setattr(eval_script, "Generator", Counted)
    Counted.prompts = 0
    return Counted


def test_an_evaluation_goes_on_from_any_line_to_the_same_bytes(in_tmp, toy_directory, counted):
    """Twice eight questions in batches of 3, 3 and 2: cut after a line, and within one. test_evaluate.py cuts after
    every byte."""
    whole = evaluated(toy_directory, "out")
    assert set(whole) == {"answers.jsonl", "results.json", "table.md", "settings.json"} and counted.prompts == 16
    lines = whole["answers.jsonl"].splitlines(keepends=True)
    for length, part, taken in ((2, 20, 0), (7, 0, 6), (8, 0, 8), (12, 20, 11), (16, 0, 16)):
        Path("out/answers.jsonl").write_bytes(b"".join(lines[:length]) + b"".join(lines[length:])[:part])
        Path("out/results.json").unlink()
        counted.prompts = 0
        assert evaluated(toy_directory, "out") == whole, (length, part)
        assert counted.prompts == 16 - taken


def test_a_complete_evaluation_is_scored_again_without_its_model(in_tmp, toy_directory, counted, monkeypatch):
    """By another rule, in other buckets, its directory named with a slash: only the answers are needed."""
    before = evaluated(toy_directory, "out")
    monkeypatch.setattr(eval_script.Qwen, "from_pretrained", None)
    monkeypatch.setattr(evaluate, "score_all", lambda texts, examples, judge: [
        [rewards.Score(1.0, 1.0, None, "x") for _ in group] for group in texts])
    after = evaluated(f"{toy_directory}/", "out", "--lengths", 60, "--seed", 0)
    assert counted.prompts == 16 and after["answers.jsonl"] == before["answers.jsonl"]
    assert {name: cell["accuracy"] for name, cell in results()["models"][0]["by_length"].items()} == {
        "0-60": 1, "60+": 1}


@pytest.mark.parametrize("flags, named", [
    (["--samples", 3], "--samples (now it is 3, then it was 2)"), (["--seed", 1], "--seed"),
    (["--temperature", 0.5], "--temperature (now it is 0.5, then it was 1.0)"), (["--top-p", 0.5], "--top-p"),
    (["--max-new-tokens", 6], "--max-new-tokens"), (["--max-prompt-tokens", 300], "--max-prompt-tokens"),
    (["--dtype", "float64"], "--dtype"), (["--toy-examples", 5], "--toy-examples"), (["--task", "qa"], "--task"),
    (["--data", "d.jsonl"], "--toy-examples"), (["--model", "other"], "--model")])
def test_answers_of_other_settings_are_not_mixed(in_tmp, toy_directory, capsys, flags, named):
    jsonl(Path("d.jsonl"), {"context": "Tom lives in Oslo.", "question": "Where?", "answer": "Oslo"})
    Path("other").symlink_to(toy_directory)
    settings = eval_script.settings_of(eval_script.Config(toy_examples=4, max_new_tokens=5, samples=2))
    settings |= {"data": {}, "model": {str(toy_directory): model_digests(toy_directory)}}
    Path("out").mkdir()
    Path("out/settings.json").write_text(json.dumps(settings))
    Path("out/answers.jsonl").write_text("{}\n")
    words = {"--model": [toy_directory], "--toy-examples": [4], "--max-new-tokens": [5], "--samples": [2]}
    words |= {flags[0]: flags[1:]}
    assert start(*[word for flag, values in words.items() for word in (flag, *values)], "--out", "out") == 78
    told = capsys.readouterr().err
    assert f"out holds answers of another {named}" in told and told.count("\n") == 1
    assert Path("out/answers.jsonl").read_text() == "{}\n"


def test_answers_of_other_files_and_of_nobody_are_not_mixed(in_tmp, toy_directory, capsys):
    row = {"context": "Tom lives in Oslo.", "question": "Where?", "answer": "Oslo"}
    flags = ("--model", toy_directory, "--data", jsonl(Path("d.jsonl"), row), "--max-new-tokens", 2, "--out", "a/out")
    assert start(*flags) == 0
    jsonl(Path("d.jsonl"), {**row, "answer": "Rome"})
    assert start(*flags) == 78 and "another --data (the files have changed since)" in capsys.readouterr().err
    files = [jsonl(Path(f"{name}.jsonl"), {**row, "id": name}) for name in "xy"]
    for order, code in ((files, 0), (files[::-1], 78), (files, 0)):
        assert start("--model", toy_directory, "--data", *order, "--max-new-tokens", 2, "--out", "b") == code
    assert "another --data (now it is y.jsonl x.jsonl, then it was x.jsonl y.jsonl)" in capsys.readouterr().err
    Path("a/out/settings.json").write_text("{")
    assert start(*flags) == 78 and "settings.json is not readable" in capsys.readouterr().err
    Path("a/out/settings.json").unlink()
    assert start(*flags) == 78 and "answers, but no settings.json" in capsys.readouterr().err
    Path("a/out/answers.jsonl").unlink()
    assert start(*flags) == 0                                                  # nothing is there that could be mixed


def test_a_directory_that_cannot_be_written_ends_with_74(in_tmp, toy_directory, monkeypatch, capsys):
    def full(handle):
        if Path("out/answers.jsonl").exists():
            raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    assert start("--model", toy_directory, *SMALL, "--out", "out") == errors.IO_ERROR == 74
    assert capsys.readouterr().err == "cannot save answers: No space left on device\n"


@pytest.mark.full
def test_an_evaluation_that_is_killed_goes_on_to_the_same_bytes(tmp_path):
    """SIGKILL, at whatever it is doing; the last start is left alone."""
    words = [sys.executable, "eval.py", "--toy-examples", "90", "--samples", "2", "--out"]
    subprocess.run([*words, str(tmp_path / "whole")], cwd=ROOT, check=True, capture_output=True)
    answers, killed = tmp_path / "parts/answers.jsonl", 0
    for wanted in (1, 130, 300):                               # of 360 lines
        running = subprocess.Popen([*words, str(tmp_path / "parts")], cwd=ROOT, stdout=subprocess.DEVNULL)
        while running.poll() is None and (not answers.exists() or answers.read_bytes().count(b"\n") < wanted):
            time.sleep(0.005)
        running.send_signal(signal.SIGKILL)
        killed += running.wait() == -signal.SIGKILL
    subprocess.run([*words, str(tmp_path / "parts")], cwd=ROOT, check=True, capture_output=True)
    assert killed == 3
    for name in ("answers.jsonl", "results.json", "table.md", "settings.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
