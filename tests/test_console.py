"""What reaches the console: a character that it cannot encode never ends a program, terminal escape sequences in text
of models, data and file names never reach it, a reader that has gone is no error. Files are UTF-8 in every locale."""

import ast
import io
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, strategies as st
from test_scripts import SMALL_RL, in_tmp, start
from tools import budget, doctor, plot, rollouts

import eval as eval_script
import sample
import train_rl
from nanoqwenlong import data, errors
from nanoqwenlong.errors import DataError
from nanoqwenlong.ops.console import printable, say, tell, with_exit_code
from nanoqwenlong.ops.log import progress

__all__ = ["in_tmp"]                                          # a fixture
ROOT = Path(__file__).resolve().parent.parent
EVIL = "\x1b[2J\x1b]52;c;cm0=\x07\x1b]8;;http://x\x1b\\\x9b31m\x9d0;t\x9c\r\x08\x7f\u202e\u2066\u200f\ufeff\u2028\x00"
FINE = "Zürich 東京 नमस्ते 🙂👨\u200d👩\u200d👧 می\u200cخواهم 5\u202f000\u00a0€\u3000\u2009 «quote»\n\ttab e\u0301 ✅️"
CONSOLES = ["ascii", "cp1252", "latin-1", "gbk", "utf-8"]


class Console:
    """Both streams as a console with this encoding, and what was written on them."""

    def __init__(self, patch, encoding: str):
        self.written, self.encoding = io.BytesIO(), encoding
        for name in ("stdout", "stderr"):
            patch.setattr(sys, name, io.TextIOWrapper(self.written, encoding, write_through=True))

    @property
    def text(self) -> str:
        return self.written.getvalue().decode(self.encoding)


def is_safe(text: str) -> bool:
    """Whether no character moves the cursor, changes colours or directions, or begins a command to the terminal."""
    return all(c in "\n\t" or unicodedata.category(c) != "Cc" for c in text) and not (
        set(text) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c\u2028\u2029\ufeff"))


# A console that cannot encode a character

@pytest.mark.parametrize("encoding", CONSOLES)
def test_any_text_can_be_printed_on_any_console(monkeypatch, encoding):
    console = Console(monkeypatch, encoding)
    for text in (FINE, EVIL, "\ud800\udcff", "─│█", "\U0010ffff", "\x80"):
        assert say(text) and tell(text, sys.stderr)
    assert is_safe(console.text) and "tab" in console.text
    if encoding == "utf-8":
        assert console.text.startswith(FINE + "\n" + FINE + "\n")
    if encoding == "ascii":                                   # our own signs get a likeness, others their code
        assert "Z\\xfcrich \\u6771\\u4eac" in console.text and "<<quote>>" in console.text and "-|#" in console.text


@pytest.mark.parametrize("encoding", CONSOLES[:3])
def test_the_scripts_end_well_on_a_console_that_lacks_the_characters(in_tmp, toy_directory, monkeypatch, encoding):
    rows = [{"context": "Zürich 東京" * (1 + 9 * (i % 2)),
             "question": f"Où — {i} 東京?{EVIL}", "answer": "東京"} for i in range(6)]
    Path("rows.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    Path("doc.txt").write_text("Zürich 東京", encoding="utf-8")
    console = Console(monkeypatch, encoding)
    assert start(train_rl, "--model", toy_directory, *SMALL_RL, "--data", "rows.jsonl", "--steps", 1) == 0, console.text
    assert "O\\xf9 \\u2014 0" in console.text or encoding != "ascii"
    assert start(sample, "--model", toy_directory, "--document", "doc.txt", "--question", f"ù?{EVIL}",
                 "--temperature", 3, "--max-new-tokens", 40) == 0
    assert start(eval_script, "--model", toy_directory, "--data", "rows.jsonl", "--out", "out",
                 "--max-new-tokens", 3) == 0
    for tool, words in ((rollouts, ["--full"]), (doctor, []), (plot, ["--text"])):
        assert tool.main(["runs/rl", *words]) in (0, 1), console.text
    assert is_safe(console.text) and "\\x1b[2J" in console.text
    assert "東京" in Path("runs/rl/rollouts.jsonl").read_text(encoding="utf-8")
    missing = f"nowhere-é{EVIL[:4]}.jsonl"
    assert start(train_rl, "--model", toy_directory, "--data", missing, "--name", "b") == errors.MISSING_INPUT
    assert is_safe(console.text) and "\\x1b[2J.jsonl" in console.text


def test_what_others_print_cannot_end_a_script_either(monkeypatch):
    """argparse, a library, or a print that somebody added for a moment."""
    console = Console(monkeypatch, "ascii")
    assert with_exit_code(lambda: print("中"))() == 0 and console.text == "\\u4e2d\n"


@pytest.mark.parametrize("environment", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, pytest.param(
    {"PYTHONIOENCODING": "cp1252", "LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"}, marks=pytest.mark.full)])
def test_a_locale_without_utf8_changes_no_file(in_tmp, toy_directory, environment):
    Path("é 東京.jsonl").write_text(json.dumps({"context": "a 中", "question": "é?", "answer": "中"}, ensure_ascii=False),
                                  encoding="utf-8")
    done = subprocess.run([sys.executable, ROOT / "eval.py", "--model", toy_directory, "--data", "é 東京.jsonl", "--out",
                           "öut", "--max-new-tokens", "3", "--samples", "2", "--keep-correct", "ö.jsonl"],
                          capture_output=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("öut/settings.json").read_text("utf-8"))["data"]
    assert Path("öut/answers.jsonl").read_text("utf-8") and Path("ö.jsonl").exists()


# Terminal escape sequences

@given(st.text(st.characters()))
def test_what_is_printable_changes_no_terminal_and_keeps_the_rest(text):
    shown = printable(text)
    assert is_safe(shown) and printable(shown) == shown
    kept = "".join(c for c in text if unicodedata.category(c)[0] in "LMNPSZ" and c not in "\u2028\u2029" or c in "\n\t")
    assert shown == kept or len(kept) < len(text)             # nothing else is rewritten


def test_normal_text_is_printed_as_it_is_and_codes_stand_for_the_rest():
    assert printable(FINE) == FINE
    assert is_safe(printable(EVIL)) and printable("\x1b[31m\x9b\r\n\u202e") == "\\x1b[31m\\x9b\\r\n\\u202e"
    assert not is_safe(EVIL) and not is_safe("\r") and is_safe(FINE)


def test_a_stream_of_tokens_that_spells_an_escape_sequence_is_harmless(capsys):
    class Bytes:
        decode = staticmethod(lambda ids: bytes(ids).decode("utf-8", "replace"))
    stream = sample.Stream(Bytes)
    for token in "a\x1b]0;é\x07\r中b".encode():
        stream(0, 0, token)
    assert capsys.readouterr().out == "a\\x1b]0;é\\x07\\r中b"


def test_errors_and_reports_that_quote_data_are_harmless(in_tmp, toy_directory, capsys):
    row = {"context": "c", "question": "q", "answer": "", "task": EVIL}
    for name, content in (("a.jsonl", row), (f"{EVIL[:4]}.jsonl", {**row, "id": EVIL})):
        Path(name).write_text(json.dumps(content) + "\n")
        assert start(train_rl, "--model", toy_directory, "--data", name) == errors.BAD_DATA
        shown = capsys.readouterr().err
        assert shown and is_safe(shown)

    def fails():
        raise DataError(EVIL)
    assert with_exit_code(fails)() == 65 and is_safe(capsys.readouterr().err)


def test_only_one_place_prints():
    """print would pass it by."""
    files = [*ROOT.glob("*.py"), *(path for folder in ("nanoqwenlong", "tools", "recipes")
                                   for path in (ROOT / folder).rglob("*.py"))]
    calls = [(path, node) for path in files for node in ast.walk(ast.parse(path.read_text("utf-8")))
             if isinstance(node, ast.Call)]
    assert len(files) > 50 and not [f"{path}:{call.lineno}" for path, call in calls
                                    if getattr(call.func, "id", "") == "print"]
    # Text files are opened as UTF-8, whatever the locale
    texts = [(path, call) for path, call in calls
             if getattr(call.func, "id", getattr(call.func, "attr", "")) in ("open", "read_text", "write_text")]
    bare = [f"{path.name}:{call.lineno}" for path, call in texts
            if "utf-8" not in ast.unparse(call) and '"b' not in (mode := ast.unparse(call).replace("'", '"'))
            and 'b"' not in mode and 'b+"' not in mode
            and not any(other in mode for other in ("os.open", "urlopen", "gzip.open"))]
    assert len(texts) > 20 and not bare, bare


# A reader that has gone, and no console at all

def test_a_closed_pipe_gives_no_traceback(tmp_path):
    rows = [{"step": s, "id": "q", "text": "x" * 9000, "finish_reason": "stop", "reward": 1.0, "advantage": 0.0,
             "rule": 1.0, "judge": None, "penalty": 0.0} for s in [1] * 99]
    (tmp_path / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for words in (["-m", "tools.rollouts", tmp_path, "--worst", "99", "--full"], ["-m", "tools.rollouts", "--help"],
                  ["train_sft.py", "--help"], ["-m", "tools.budget"]):
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run([sys.executable, *words], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
        os.close(writer)
        assert (done.returncode in (0, 1), done.stderr) == (True, ""), words


@pytest.mark.parametrize("names", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_without_a_console_everything_works(tmp_path, monkeypatch, names):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 1.0}\n')
    for name in names:
        monkeypatch.setattr(sys, name, None)
    assert doctor.main([str(tmp_path)]) == 0 and doctor.main([str(tmp_path / "x")]) == errors.MISSING_INPUT
    assert [*progress([1], "steps")] == [1] and say("x") is ("stdout" not in names)
    assert budget.size_of(ROOT / "eval.py") and data


@pytest.mark.parametrize("launched", [False, True])
def test_an_interrupted_tool_ends_with_130(capsys, launched):
    def interrupted():
        raise KeyboardInterrupt
    assert with_exit_code(interrupted)() == errors.INTERRUPTED and capsys.readouterr().err == "interrupted\n"
