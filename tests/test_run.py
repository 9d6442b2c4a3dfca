"""The life of a run: signals, the lock, what it resumes and refuses, losses that are not finite, too little memory, and
exit.json."""

import atexit
import errno
import fcntl
import json
import math
import os
import shlex
import shutil
import signal
import sys
import termios
import time
from pathlib import Path

import pytest
import torch
from test_checkpoint import begin, contents, end, in_child, in_tmp, outcome, small
from test_scripts import SMALL_RL, metrics, start

import train_rl
import train_sft
from nanoqwenlong import errors, generate, group_pass, optim, parallel
from nanoqwenlong.errors import ConfigError, ModelError
from nanoqwenlong.ops import checkpoint, exits, run
from nanoqwenlong.ops.directory import Directory
from nanoqwenlong.ops.log import Log
from nanoqwenlong.ops.settings import free_names
from nanoqwenlong.pretrained import weights

__all__ = ["in_tmp", "small"]                                 # fixtures
DIRECTORY = Path("runs/sft")


@pytest.fixture
def expected(in_tmp, small) -> tuple:
    """What an undisturbed run of four steps becomes."""
    assert sft(small, "--steps", 4, "--name", "undisturbed") == 0
    return outcome(Path("runs/undisturbed"))


def argv(small, *flags) -> list[str]:
    """The flags of `small` and these, which win."""
    kept = [word for flag, value in zip(small[::2], small[1::2]) if flag not in flags for word in (flag, value)]
    return [str(word) for word in (*kept, *flags)]


def sft(small, *flags) -> int:
    return start(train_sft, *argv(small, *flags))


def exit_json() -> dict:
    return json.loads((DIRECTORY / "exit.json").read_text())


def steps_of(directory: Path = DIRECTORY) -> list[int]:
    return [row["step"] for row in metrics(directory)]


def checkpoints_of(directory: Path = DIRECTORY) -> list[str]:
    return [path.name for path in checkpoint.all_of(directory / "checkpoints")]


def at_step(patch, number: int, act, after: bool = False) -> None:
    """act() in the middle of step `number` (counted in this process): before, or after its update."""
    step, calls = optim.step, []

    def acted(*args):
        calls.append(0)
        if len(calls) == number and not after:
            act()
        norm = step(*args)
        if len(calls) == number and after:
            act()
        return norm
    patch.setattr(optim, "step", acted)


def send(*names: str):
    return lambda: [os.kill(os.getpid(), getattr(signal, name)) for name in names]


def resume(word: dict, *more, module=train_sft) -> int:
    """Run the command of exit.json, in this process."""
    python, script, *flags = shlex.split(word["resume_command"])
    assert (python, script) == ("python", module.__file__)
    return start(module, *flags, *more)


def everything(directory: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# Signals

@pytest.mark.parametrize("name", exits.SIGNALS)
def test_a_signal_ends_the_run_after_its_step_and_it_resumes_to_the_same_bits(in_tmp, small, expected, monkeypatch,
                                                                              capfd, name):
    handlers = [signal.getsignal(getattr(signal, each)) for each in exits.SIGNALS]
    capfd.readouterr()
    with monkeypatch.context() as patch:
        at_step(patch, 2, send(name))
        assert sft(small, "--steps", 4, "--save-every", 100) == errors.STOPPED
    said, word = capfd.readouterr().err.splitlines(), exit_json()
    assert said[0].startswith(f"{name}: stopping after step 2") and len(said) == 2 and word["resume_command"] in said[1]
    assert steps_of() == [1, 2] and checkpoints_of() == ["step_000002"]
    assert word.keys() == {"code", "reason", "step", "checkpoint", "resume_command"}
    assert (word["code"], word["step"], word["checkpoint"]) == (75, 2, "runs/sft/checkpoints/step_000002")
    assert word["reason"].startswith(f"stopped by {name} after step 2")
    assert handlers == [signal.getsignal(getattr(signal, each)) for each in exits.SIGNALS]
    assert resume(word) == 0 and outcome(DIRECTORY) == expected
    assert exit_json() == {"code": 0, "reason": "done", "step": 4, "checkpoint": "runs/sft/checkpoints/step_000004",
                           "resume_command": None}


def test_the_resume_command_of_train_rl_leads_to_the_same_answers(in_tmp, toy_directory, monkeypatch, capsys):
    monkeypatch.setattr(train_rl, "score_all", learnable)
    flags = ["--model", toy_directory, *SMALL_RL, "--save-every", "2", "--runs-dir", "a place"]
    assert start(train_rl, *flags, "--name", "whole") == 0
    sample, codes = generate.Generator.sample, []
    monkeypatch.setattr(generate.Generator, "sample", lambda *a, **k: (send("SIGTERM")(), sample(*a, **k))[1])
    codes.append(start(train_rl, *flags, "--name", "parts"))
    for _ in range(2):                                          # a signal in every step
        codes.append(resume(json.loads(Path("a place/parts/exit.json").read_text()), module=train_rl))
    assert codes == [75, 75, 0]                                 # the last step was over when it could have stopped
    words = [Path("a place", name, "rollouts.jsonl").read_text() for name in ("whole", "parts")]
    assert words[0] == words[1] and outcome(Path("a place/whole")) == outcome(Path("a place/parts"))


def test_a_signal_in_the_last_step_changes_nothing(in_tmp, small, monkeypatch):
    at_step(monkeypatch, 2, send("SIGTERM"))
    assert sft(small, "--steps", 2) == 0 and exit_json()["code"] == 0


def test_a_signal_before_the_first_step_is_heeded_too(in_tmp, small, expected, monkeypatch):
    with monkeypatch.context() as patch:
        by_document = train_sft.by_document
        patch.setattr(train_sft, "by_document", lambda *args: (send("SIGUSR1")(), by_document(*args))[1])
        assert sft(small, "--steps", 4) == errors.STOPPED
    word = exit_json()
    assert word["step"] == 0 and word["checkpoint"] is None and not (DIRECTORY / "checkpoints").exists()
    assert resume(word) == 0 and outcome(DIRECTORY) == expected


def test_a_second_signal_while_saving_is_ignored(in_tmp, small, expected, monkeypatch):
    write_file = weights.write_file
    with monkeypatch.context() as patch:
        at_step(patch, 2, send("SIGINT"))
        patch.setattr(weights, "write_file", lambda *args: (exit_codes.append(send(*exits.SIGNALS)()),
                                                            write_file(*args)) and None)
        exit_codes = []
        assert sft(small, "--steps", 4, "--save-every", 100) == errors.STOPPED
        assert len(exit_codes) == 2                             # in both files of the one save
    assert checkpoints_of() == ["step_000002"] and exit_json()["reason"].startswith("stopped by SIGINT")
    assert resume(exit_json()) == 0 and outcome(DIRECTORY) == expected


def test_a_signal_while_saving_lets_the_save_finish(in_tmp, small, expected, monkeypatch):
    write_file, sent = weights.write_file, []
    with monkeypatch.context() as patch:
        patch.setattr(weights, "write_file", lambda *args: (sent or sent.append(send("SIGTERM")()), write_file(*args))
                      and None)
        assert sft(small, "--steps", 4, "--save-every", 2) == errors.STOPPED
    assert checkpoints_of() == ["step_000002"] and exit_json()["step"] == 2    # which it had been about to do
    assert resume(exit_json()) == 0 and outcome(DIRECTORY) == expected


def test_ctrl_c_twice_stops_at_once_and_the_last_checkpoint_is_whole(in_tmp, small, expected, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        at_step(patch, 3, send("SIGINT", "SIGINT"))
        assert sft(small, "--steps", 4, "--save-every", 2) == errors.INTERRUPTED == 130
    said, word = capfd.readouterr().err, exit_json()
    assert "Ctrl-C once more" in said and said.endswith("stopped at once, step 3 is not saved\n")
    assert (word["code"], word["step"], word["checkpoint"]) == (130, 2, "runs/sft/checkpoints/step_000002")
    assert checkpoint.newest(DIRECTORY / "checkpoints") == (DIRECTORY / "checkpoints/step_000002", [])
    assert resume(word) == 0 and outcome(DIRECTORY) == expected


def test_other_signals_after_a_ctrl_c_do_not_stop_at_once(in_tmp, small, monkeypatch):
    at_step(monkeypatch, 2, send("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"))
    assert sft(small, "--steps", 4) == errors.STOPPED and exit_json()["step"] == 2


def test_a_signal_while_a_checkpoint_is_verified_is_heeded(in_tmp, small, expected, monkeypatch):
    assert sft(small, "--steps", 2) == 0
    verify = checkpoint.verify
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "verify", lambda path: (send("SIGTERM")(), verify(path))[1])
        assert sft(small, "--steps", 4) == errors.STOPPED and exit_json()["step"] == 2
        assert sft(small, "--steps", 4, "--seed", 3) == errors.BAD_CONFIG      # and the handlers are back
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert sft(small, "--steps", 4) == 0 and outcome(DIRECTORY) == expected


def test_nohup_stays_nohup(in_tmp, small, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        at_step(monkeypatch, 1, send("SIGHUP"))
        assert sft(small, "--steps", 2) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_put_back_however_the_run_ends(in_tmp, small, monkeypatch):
    def mine(number, frame):
        raise AssertionError
    before = {number: signal.signal(number, mine) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        for error in (OSError(errno.EIO, "no"), RuntimeError("a bug")):
            with monkeypatch.context() as patch:
                at_step(patch, 1, lambda: (_ for _ in ()).throw(error))
                try:
                    sft(small, "--steps", 2)
                except RuntimeError:
                    pass
            assert signal.getsignal(signal.SIGTERM) == signal.getsignal(signal.SIGINT) == mine
        assert sft(small, "--dry-run") == 0 and signal.getsignal(signal.SIGTERM) == mine
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("streams", [("stdout",), ("stdout", "stderr")])
def test_a_reader_that_has_gone_does_not_end_the_run(in_tmp, small, expected, streams):
    """`python train_sft.py 2>&1 | tee log`, and Ctrl-C, which ends tee first."""
    def piped():
        reader, writer = os.pipe()
        os.close(reader)
        for name in streams:
            number = {"stdout": 1, "stderr": 2}[name]
            os.dup2(writer, number)
            setattr(sys, name, open(number, "w"))
        if "stderr" in streams:
            at_step(pytest.MonkeyPatch(), 2, send("SIGINT"))
        code = sft(small, "--steps", 4, "--print-every", 1)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()                                      # as Python does at its end, which would make it 120
        return code
    code = in_child(piped)
    if "stderr" in streams:
        assert code == errors.STOPPED and exit_json()["step"] == 2 and resume(exit_json()) == 0
    else:
        assert code == 0
    assert outcome(DIRECTORY) == expected


def test_a_terminal_that_is_closed_does_not_cost_a_step(in_tmp, small, expected):
    """SIGHUP arrives when the terminal can no longer be written to."""
    master, slave = os.openpty()

    def on_terminal():
        os.close(master)
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        for number in (1, 2):
            os.dup2(slave, number)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w")
        os.close(slave)

        def wait():
            Path("reached").touch()
            until(lambda: not is_alive(1))
        at_step(pytest.MonkeyPatch(), 2, wait)
        return sft(small, "--steps", 4, "--print-every", 1)

    def is_alive(number):
        try:
            os.write(number, b".")
            return True
        except OSError:
            return False
    pid = begin(on_terminal)
    os.close(slave)
    until(Path("reached").exists)
    os.close(master)
    assert end(pid) == errors.STOPPED and exit_json()["reason"].startswith("stopped by SIGHUP after step 2")
    assert resume(exit_json()) == 0 and outcome(DIRECTORY) == expected


# One directory, one job

def until(ready) -> None:
    deadline = time.monotonic() + 60
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def in_use(small) -> int:
    """The process id of another job. It holds the directory and waits in its second step for a file "go on"."""
    def work():
        at_step(pytest.MonkeyPatch(), 2, lambda: (Path("waiting").touch(), until(Path("go on").exists)))
        return sft(small, "--steps", 4)
    pid = begin(work)
    until(Path("waiting").exists)
    return pid


def test_a_second_job_in_a_directory_is_refused_and_touches_nothing(in_tmp, small, expected, capsys):
    pid = in_use(small)
    before = everything(DIRECTORY)
    capsys.readouterr()
    assert sft(small, "--steps", 4) == errors.IO_ERROR
    said = capsys.readouterr().err
    assert f"runs/sft: in use by another job (process {pid} on " in said and "--name" in said and said.count("\n") == 1
    assert everything(DIRECTORY) == before
    assert sft(small, "--steps", 4, "--name", "other") == 0      # elsewhere it may
    Path("go on").touch()
    assert end(pid) == 0 and outcome(DIRECTORY) == expected


def test_the_lock_goes_with_its_process(in_tmp, small, expected):
    pid = in_use(small)
    os.kill(pid, signal.SIGKILL)
    assert end(pid) == -signal.SIGKILL and not (DIRECTORY / "exit.json").exists()
    assert sft(small, "--steps", 4) == 0 and outcome(DIRECTORY) == expected


@pytest.mark.parametrize("how", ["running", "over"])
def test_a_directory_that_another_job_has_begun_meanwhile_is_refused(in_tmp, small, monkeypatch, capsys, how):
    """Both were started before it existed."""
    by_document, pids, before = train_sft.by_document, [], []

    def meanwhile(examples):
        if not pids:
            pids.append(0)
            pids.append(in_use(small))
            if how == "over":
                Path("go on").touch()
                assert end(pids[1]) == 0
            before.append(everything(DIRECTORY))
        return by_document(examples)
    monkeypatch.setattr(train_sft, "by_document", meanwhile)
    assert sft(small, "--steps", 4) == errors.IO_ERROR
    said = capsys.readouterr().err
    assert "another job" in said and "--name" in said and said.count("\n") == 1
    after = everything(DIRECTORY)
    assert {name: data for name, data in after.items() if "lock" not in name} == {
        name: data for name, data in before[0].items() if "lock" not in name}
    Path("go on").touch()
    assert how == "over" or end(pids[1]) == 0


# What is resumed and what is refused

def test_resume_never_refuses_what_holds_a_run(in_tmp, small, capsys):
    assert sft(small, "--steps", 2, "--resume", "never") == 0
    before = everything(DIRECTORY)
    assert sft(small, "--steps", 2, "--resume", "never") == errors.BAD_CONFIG
    said = capsys.readouterr().err
    assert "runs/sft already holds a run" in said and "--resume auto" in said and said.count("\n") == 1
    assert {k: v for k, v in everything(DIRECTORY).items() if "lock" not in k} == {
        k: v for k, v in before.items() if "lock" not in k}
    shutil.rmtree(DIRECTORY)
    DIRECTORY.mkdir()
    (DIRECTORY / "notes.txt").write_text("no run")
    assert sft(small, "--steps", 2, "--resume", "never") == 0


@pytest.mark.parametrize("flag, values", [
    ("--learning-rate", ("0.001", "0.5")), ("--seed", ("0", "3")), ("--weight-decay", ("0.1", "0.25")),
    ("--minutes", ("0.0", "9.0")), ("--dtype", ("'float32'", "'float64'"))])
def test_other_settings_are_refused_with_both_values(in_tmp, small, capsys, flag, values):
    assert sft(small, "--steps", 2) == 0
    before = everything(DIRECTORY)
    assert sft(small, "--steps", 4, flag, values[1].strip("'")) == errors.BAD_CONFIG
    said = capsys.readouterr().err
    assert f"was begun with {flag} {values[0]}, now it is {values[1]}: " in said and said.count("\n") == 1
    assert {k: v for k, v in everything(DIRECTORY).items() if "lock" not in k} == {
        k: v for k, v in before.items() if "lock" not in k}
    assert sft(small, "--steps", 2) == 0


def test_free_settings_may_change_and_more_steps_may_follow(in_tmp, small, expected, capsys):
    assert sft(small, "--steps", 2) == 0
    assert sft(small, "--steps", 4, "--save-every", 3, "--keep", 5, "--max-bad-updates", 7,
                 "--threads", 1, "--checkpointing", "--kv-blocks", 100, "--timeout-minutes", 3, "--check-finite",
                 "--max-tokens", 5000) == 0
    assert "resuming from runs/sft/checkpoints/step_000002" in capsys.readouterr().out
    assert outcome(DIRECTORY) == expected and json.loads((DIRECTORY / "config.json").read_text())["keep"] == 5


def test_a_run_whose_checkpoints_were_removed_keeps_its_lines(in_tmp, small, capsys):
    assert sft(small, "--steps", 4) == 0
    shutil.rmtree(DIRECTORY / "checkpoints")
    before = everything(DIRECTORY)
    assert sft(small, "--steps", 4) == errors.IO_ERROR
    said = capsys.readouterr().err
    assert "no checkpoint" in said and "was it removed?" in said and everything(DIRECTORY) == before


def test_a_complete_run_says_so(in_tmp, small, capsys):
    assert sft(small, "--steps", 2) == 0
    before = everything(DIRECTORY)
    for steps in (2, 1):
        capsys.readouterr()
        assert sft(small, "--steps", steps) == 0
        assert "runs/sft is complete: 2 steps\n" in capsys.readouterr().out
    after = everything(DIRECTORY)
    assert {path for path in after if before.get(path) != after[path]} <= {f"runs/sft/{name}" for name in (
        ".lock", "config.json")}
    assert exit_json() == {"code": 0, "reason": "done", "step": 2, "checkpoint": "runs/sft/checkpoints/step_000002",
                           "resume_command": None}


def test_other_data_are_refused(in_tmp, small, expected, capsys):
    rows = Path("rows.jsonl")
    original = Path(small[small.index("--data") + 1]).read_bytes()
    rows.write_bytes(original)
    flags = [*small[:small.index("--data")], "--data", rows, *small[small.index("--data") + 2:]]
    assert sft(flags, "--steps", 2) == 0
    before = contents(DIRECTORY / "checkpoints/step_000002")
    for change in (lambda: rows.write_bytes(original + b"\n"), rows.unlink):
        change()
        capsys.readouterr()
        assert sft(flags, "--steps", 4) == errors.BAD_CONFIG
        said = capsys.readouterr().err
        assert "was begun with rows.jsonl 'sha256 " in said and "--name" in said and said.count("\n") == 1
        assert "missing" in said or said.count("'sha256 ") == 2
    assert contents(DIRECTORY / "checkpoints/step_000002") == before
    rows.write_bytes(original)
    assert sft(flags, "--steps", 4) == 0 and outcome(DIRECTORY) == expected


def killed_at(step: int, start_it) -> None:
    def work():
        at_step(pytest.MonkeyPatch(), step, send("SIGKILL"))
        return start_it()
    assert in_child(work) == -signal.SIGKILL


def test_lines_after_the_last_checkpoint_are_cut_and_written_again(in_tmp, small, expected):
    killed_at(4, lambda: sft(small, "--steps", 4, "--save-every", 2))
    assert steps_of() == [1, 2, 3]
    with open(DIRECTORY / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    (DIRECTORY / "skipped.jsonl").write_text('{"step": 3, "i')
    assert sft(small, "--steps", 4) == 0 and outcome(DIRECTORY) == expected
    assert steps_of() == [1, 2, 3, 4] and (DIRECTORY / "skipped.jsonl").read_text() == ""


def learnable(texts, examples, judge=None):
    """Replaces the rule, so that groups disagree."""
    from nanoqwenlong import rewards
    return [[rewards.Score(float(i % 2), 0.0, None, text) for i, text in enumerate(group)] for group in texts]


def test_half_a_line_of_answers_is_cut(in_tmp, toy_directory, monkeypatch):
    monkeypatch.setattr(train_rl, "score_all", learnable)
    flags = ["--model", toy_directory, *SMALL_RL]
    assert start(train_rl, *flags, "--name", "whole") == 0
    killed_at(3, lambda: start(train_rl, *flags))
    with open("runs/rl/rollouts.jsonl", "a") as file:
        file.write('{"step": 3, "id": "half a')
    assert start(train_rl, *flags) == 0
    assert outcome(Path("runs/rl")) == outcome(Path("runs/whole")) and steps_of(Path("runs/rl")) == [1, 2, 3]
    assert Path("runs/rl/rollouts.jsonl").read_text() == Path("runs/whole/rollouts.jsonl").read_text()


def test_a_log_that_lost_lines_is_told(in_tmp, small, expected, capsys):
    assert sft(small, "--steps", 2) == 0
    os.truncate(DIRECTORY / "metrics.jsonl", 10)
    assert sft(small, "--steps", 4) == 0
    assert "runs/sft/metrics.jsonl is shorter than it was" in capsys.readouterr().out
    assert contents(DIRECTORY / "checkpoints/step_000004").keys() and checkpoints_of()[-1] == "step_000004"


# Deleted log files go unnoticed

def edit(path: Path) -> None:
    """The first line made longer: where the file ended, there is now the middle of a line."""
    path.write_text('{"step": 1, "note": "' + "x" * path.stat().st_size + '"}\n' + path.read_text())


SPOILED = {"removed": (Path.unlink, []), "emptied": (lambda path: path.write_text(""), []),
           "half a line": (lambda path: os.truncate(path, 10), []),
           "cut after a line": (lambda path: os.truncate(path, path.read_bytes().index(b"\n") + 1), [1]),
           "cut before the end of a line": (lambda path: os.truncate(path, path.stat().st_size - 1), [1]),
           "longer": (edit, [])}


def said_of_losses(capsys) -> list[str]:
    out, err = capsys.readouterr()
    return [line for line in (out + err).splitlines() if "the run continues" in line]


@pytest.mark.parametrize("how", SPOILED)
def test_a_log_that_lost_lines_between_two_starts_is_told_once(in_tmp, small, expected, capsys, how):
    spoil, left = SPOILED[how]
    assert sft(small, "--steps", 2) == 0
    spoil(DIRECTORY / "metrics.jsonl")
    assert sft(small, "--steps", 4) == 0
    said, = said_of_losses(capsys)
    problem = "was removed" if how == "removed" else "is shorter than it was"
    assert said.startswith(f"runs/sft/metrics.jsonl {problem}") and steps_of() == [*left, 3, 4]
    assert outcome(DIRECTORY)[:2] == expected[:2]
    assert sft(small, "--steps", 5) == 0 and said_of_losses(capsys) == [] and steps_of() == [*left, 3, 4, 5]


@pytest.mark.parametrize("how", SPOILED)
def test_a_log_that_loses_lines_during_a_run_is_told_once(in_tmp, small, expected, monkeypatch, capsys, how):
    spoil, left = SPOILED[how]
    at_step(monkeypatch, 3, lambda: spoil(DIRECTORY / "metrics.jsonl"))
    assert sft(small, "--steps", 4, "--save-every", 4) == 0
    assert len(said_of_losses(capsys)) == (how != "longer")    # then its end is as before
    assert steps_of() == ([1, 1, 2, 3, 4] if how == "longer" else [*left, 3, 4])
    assert sft(small, "--steps", 5) == 0 and said_of_losses(capsys) == []


@pytest.mark.parametrize("change", [lambda: None, lambda: (DIRECTORY / "skipped.jsonl").write_text(""),
                                    lambda: open(DIRECTORY / "metrics.jsonl", "a").write('{"step": 3, "lo')])
def test_logs_that_lost_nothing_are_not_told(in_tmp, small, capsys, change):
    assert sft(small, "--steps", 2) == 0
    change()
    assert sft(small, "--steps", 4) == 0 and said_of_losses(capsys) == [] and steps_of() == [1, 2, 3, 4]


def test_half_a_surrogate_pair_is_written_as_json_writes_it(tmp_path):
    Log(tmp_path).append("rollouts.jsonl", 1, {"text": "\ud83d and \U0001f600 é"})
    assert json.loads((tmp_path / "rollouts.jsonl").read_text())["text"] == "\ud83d and \U0001f600 é"


@pytest.mark.parametrize("name", ["metrics.jsonl", "rollouts.jsonl"])
def test_a_log_that_was_removed_or_shortened_between_two_starts_is_told(in_tmp, toy_directory, capsys, name):
    flags = ["--model", toy_directory, *SMALL_RL, "--save-every", 1, "--name", "sft"]
    for spoil, told in ((Path.unlink, "was removed"), (lambda path: os.truncate(path, 30), "is shorter than it was"),
                        (lambda path: path.write_text(""), "is shorter than it was")):
        shutil.rmtree(DIRECTORY, ignore_errors=True)
        assert start(train_rl, *flags, "--steps", 2) == 0 and "lost" not in capsys.readouterr().out
        spoil(DIRECTORY / name)
        assert start(train_rl, *flags, "--steps", 3) == 0
        said = capsys.readouterr().out
        assert f"runs/sft/{name} {told}" in said and said.count("lost") == 1
        lines = [json.loads(line) for line in (DIRECTORY / name).read_text().splitlines()]      # no half line
        assert {line["step"] for line in lines} == {3}
        assert start(train_rl, *flags, "--steps", 3) == 0 and "lost" not in capsys.readouterr().out    # said once


def test_a_log_that_is_removed_while_the_run_goes_on_is_told(in_tmp, small, monkeypatch, capsys):
    at_step(monkeypatch, 3, lambda: (DIRECTORY / "metrics.jsonl").unlink())
    assert sft(small, "--steps", 4, "--save-every", 1) == 0 and steps_of() == [3, 4]
    said = capsys.readouterr().out
    assert said.count("metrics.jsonl was removed") == 1 and said.count("lost") == 1


def test_a_run_without_checkpoints_and_metrics_keeps_its_answers(in_tmp, toy_directory, capsys):
    flags = ["--model", toy_directory, *SMALL_RL, "--save-every", 1]
    assert start(train_rl, *flags, "--steps", 2) == 0
    shutil.rmtree("runs/rl/checkpoints")
    Path("runs/rl/metrics.jsonl").unlink()
    before = Path("runs/rl/rollouts.jsonl").read_bytes()
    assert start(train_rl, *flags, "--steps", 3) == errors.IO_ERROR and "was it removed?" in capsys.readouterr().err
    assert Path("runs/rl/rollouts.jsonl").read_bytes() == before


# Symbolic links in a run directory are followed

OWN = [".lock", "config.json", "exit.json", "metrics.jsonl", "rollouts.jsonl", "skipped.jsonl"]


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize("name", OWN)
def test_what_is_no_plain_file_in_a_run_directory_is_refused_and_nothing_elsewhere_is_written(in_tmp, small, capsys,
                                                                                              name, begun):
    if begun:
        assert sft(small, "--steps", 2) == 0
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    Path("mine").write_text("mine, and longer than a lock")
    for make in (lambda path: path.symlink_to(Path("mine").resolve()), lambda path: path.symlink_to("nowhere"),
                 lambda path: os.link("mine", path), os.mkfifo, Path.mkdir):
        path = DIRECTORY / name
        path.unlink(missing_ok=True)
        make(path)
        assert sft(small, "--steps", 4) == errors.IO_ERROR
        said = capsys.readouterr().err
        assert f"runs/sft/{name}: this is not a plain file" in said and said.count("\n") == 1
        assert Path("mine").read_text() == "mine, and longer than a lock" and not Path("runs/sft/nowhere").exists()
    assert path.is_dir()


def test_links_in_the_place_of_partial_files_are_replaced_not_followed(in_tmp, small, expected):
    Path("elsewhere").mkdir()
    Path("elsewhere/mine").write_text("mine")
    (DIRECTORY / "checkpoints").mkdir(parents=True)
    for name, target in ((".config.json.0.partial", "mine"), (".exit.json.0.partial", "mine"),
                         ("checkpoints/.partial-step_000002", ""), ("checkpoints/.removed-.partial-step_000002", ""),
                         ("checkpoints/.partial-step_000004", "nowhere")):
        (DIRECTORY / name).symlink_to((Path("elsewhere") / target).resolve())
    os.mkfifo(DIRECTORY / "checkpoints/.removed-x")
    assert sft(small, "--steps", 4) == 0 and outcome(DIRECTORY) == expected
    assert everything(Path("elsewhere")) == {"elsewhere/mine": b"mine"} and not Path("elsewhere/nowhere").exists()
    assert not [path for path in DIRECTORY.rglob("*") if path.is_symlink()]
    # A checkpoint that is a link is removed as a link
    shutil.copytree(DIRECTORY / "checkpoints/step_000003", "elsewhere/step")
    before = everything(Path("elsewhere"))
    (DIRECTORY / "checkpoints/step_000001").symlink_to(Path("elsewhere/step").resolve())
    checkpoint.prune(DIRECTORY / "checkpoints", 2)
    assert checkpoints_of() == ["step_000003", "step_000004"] and everything(Path("elsewhere")) == before


def test_a_run_is_moved_to_no_name_that_a_broken_link_has(in_tmp, small):
    assert sft(small, "--steps", 1) == 0
    Path("runs/sft.1").symlink_to("nowhere")
    assert sft(small, "--steps", 1, "--resume", "restart") == 0
    assert Path("runs/sft.1").is_symlink() and Path("runs/sft.2/metrics.jsonl").exists()


def test_a_run_directory_or_its_checkpoints_may_be_links_to_another_disk(in_tmp, small, expected, capsys):
    for path in (DIRECTORY, DIRECTORY / "checkpoints"):
        shutil.rmtree("runs", ignore_errors=True)
        shutil.rmtree("disk", ignore_errors=True)
        Path("disk").mkdir()
        path.parent.mkdir(parents=True)
        path.symlink_to(Path("disk").resolve())
        assert sft(small, "--steps", 2) == 0 and sft(small, "--steps", 4) == 0
        assert outcome(DIRECTORY) == expected and path.is_symlink() and any(Path("disk").iterdir())
        shutil.rmtree("disk")                                  # not mounted
        capsys.readouterr()
        assert sft(small, "--steps", 4) == errors.BAD_CONFIG and "broken link" in capsys.readouterr().err


def test_killed_before_the_first_checkpoint_it_starts_over(in_tmp, small, expected):
    killed_at(3, lambda: sft(small, "--steps", 4, "--save-every", 100))
    assert steps_of() == [1, 2] and not (DIRECTORY / "checkpoints").exists()
    assert sft(small, "--steps", 4) == 0
    assert steps_of() == [1, 2, 3, 4] and outcome(DIRECTORY) == expected


@pytest.mark.full
def test_killed_anywhere_and_again_it_ends_the_same(in_tmp, small, expected):
    for first in range(1, 5):
        for second in range(1, 6 - first):
            shutil.rmtree(DIRECTORY, ignore_errors=True)
            killed_at(first, lambda: sft(small, "--steps", 4))
            killed_at(second, lambda: sft(small, "--steps", 4))
            assert sft(small, "--steps", 4) == 0 and outcome(DIRECTORY) == expected, (first, second)


# Losses that are not finite

def poison(patch, bad_steps, what: str) -> list:
    """Put NaN into these updates (counted in this process): into the gradient of one weight, or into the loss alone.
    Returns a list of (weights and optimizer state before, the same after), one pair per update."""
    calls, found, backward_all, step = [], [], group_pass.backward_all, optim.step

    def state(optimizer, parameters):
        return [tensor.clone() for parameter in parameters for tensor in (
            parameter.detach(), *optimizer.state.get(parameter, {}).values())]

    def bad_backward(model, *args, **kwargs):
        backward_all(model, *args, **kwargs)
        calls.append(0)
        if len(calls) in bad_steps and what != "loss":
            model.model.norm.weight.grad[3] = float(what)

    def watched(optimizer, parameters, learning_rate, max_grad_norm, loss):
        before = state(optimizer, parameters)
        if len(calls) in bad_steps and what == "loss":
            loss = math.nan
        norm = step(optimizer, parameters, learning_rate, max_grad_norm, loss)
        if len(calls) in bad_steps:
            found.append((before, state(optimizer, parameters)))
            assert all(parameter.grad is None for parameter in parameters)
        return norm
    patch.setattr(group_pass, "backward_all", bad_backward)
    patch.setattr(optim, "step", watched)
    return found


@pytest.mark.parametrize("what", ["nan", "inf", "loss"])
def test_an_update_that_is_not_finite_is_not_made_and_the_run_continues(in_tmp, small, monkeypatch, capsys, what):
    found = poison(monkeypatch, {2, 3}, what)
    assert sft(small, "--steps", 5) == 0
    for before, after in found:
        assert len(before) == len(after) and all(map(torch.equal, before, after))
    assert len(found) == 2 and len(found[0][0]) > 40            # weights, two moments and a count of each
    rows, skipped = metrics(DIRECTORY), [json.loads(line) for line in open(DIRECTORY / "skipped.jsonl")]
    assert [row["loss"] is None for row in rows] == [row["grad_norm"] is None for row in rows] == [
        False, True, True, False, False]
    assert [row["step"] for row in skipped] == [2, 3] and all(
        len(row["ids"]) == 2 and all(name.startswith("train-") for name in row["ids"]) for row in skipped)
    assert capsys.readouterr().out.count("is not finite; nothing was updated") == 2
    state = json.loads((DIRECTORY / "checkpoints/step_000005/state.json").read_text())
    assert state["streaks"]["bad updates"] == 0


def test_too_many_in_a_row_end_the_run(in_tmp, small, monkeypatch, capsys):
    poison(monkeypatch, {2, 4, 5, 6}, "nan")
    assert sft(small, "--steps", 9) == errors.INTERNAL
    said = capsys.readouterr().err
    assert "not finite 3 times in a row, up to step 6" in said and "--learning-rate" in said and said.count("\n") == 1
    assert checkpoints_of()[-1] == "step_000005" and exit_json()["code"] == 70 and exit_json()["step"] == 5
    assert [json.loads(line)["step"] for line in open(DIRECTORY / "skipped.jsonl")] == [2, 4, 5, 6]


def test_the_count_of_bad_updates_survives_a_resume(in_tmp, small, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        poison(patch, {2}, "nan")
        at_step(patch, 2, send("SIGTERM"))
        assert sft(small, "--steps", 5, "--max-bad-updates", 2) == errors.STOPPED
    with monkeypatch.context() as patch:
        poison(patch, {1}, "nan")
        assert sft(small, "--steps", 5, "--max-bad-updates", 2) == errors.INTERNAL
    assert "2 times in a row, up to step 3" in capsys.readouterr().err
    assert sft(small, "--steps", 5, "--max-bad-updates", 2) == 0          # it was not the data
    assert steps_of() == [1, 2, 3, 4, 5]


def test_reinforcement_learning_skips_an_update_too(in_tmp, toy_directory, monkeypatch):
    monkeypatch.setattr(train_rl, "score_all", learnable)
    found = poison(monkeypatch, {3}, "nan")                     # the first of the second step's two
    assert start(train_rl, "--model", toy_directory, *SMALL_RL, "--updates-per-step", 2) == 0
    rows = metrics(Path("runs/rl"))
    assert [row["updates"] for row in rows] == [2, 1, 2] and all(math.isfinite(row["loss"]) for row in rows)
    (before, after), = found
    assert all(map(torch.equal, before, after))
    skipped, = (json.loads(line) for line in open("runs/rl/skipped.jsonl"))
    assert skipped["step"] == 2 and len(skipped["ids"]) == 2


# Too little memory

MEMORY = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"), MemoryError(),
          RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried ..."),
          RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")]


def raising(error):
    def fail(*args, **kwargs):
        raise error
    return fail


@pytest.mark.parametrize("error", MEMORY, ids=["cuda", "python", "torch", "cublas"])
def test_too_little_memory_names_the_part_and_a_flag_that_helps(in_tmp, small, expected, monkeypatch, capsys, error):
    """The test follows each advice until there is no more."""
    assert sft(small, "--steps", 2) == 0
    given, knobs = [], []
    for _ in range(20):
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(group_pass, "backward", raising(error))
            assert sft(small, "--steps", 4, *given) == errors.INTERNAL
        said, word = capsys.readouterr().err, exit_json()
        assert said.startswith("out of memory in step 3 (update; the longest sequence has ")
        assert said.count("\n") == 1
        assert word["code"] == 70 and word["reason"] == said.strip() and word["step"] == 2
        assert word["checkpoint"] == "runs/sft/checkpoints/step_000002"
        longest = int(said.split(" has ")[1].split()[0])
        if "resume with" not in said:
            break
        knob = said.split("resume with ")[1].split()
        assert knob[0][2:].replace("-", "_") in free_names(train_sft.Config) and said not in knobs
        knobs.append(said)
        flag = knob[0]
        if flag in given:
            given[given.index(flag) + 1] = knob[1]
        else:
            given += knob
    assert set(given) > {"--checkpointing", "--max-tokens", "--offload"} and 100 < longest < 400
    assert int(given[given.index("--max-tokens") + 1]) == longest and "--name" in said and "--max-prompt-tokens" in said
    assert sft(small, "--steps", 4, *given) == 0
    assert steps_of() == [1, 2, 3, 4]


@pytest.mark.parametrize("part", ["sample", "update"])
def test_too_little_memory_in_reinforcement_learning(in_tmp, toy_directory, monkeypatch, capsys, part):
    monkeypatch.setattr(train_rl, "score_all", learnable)
    flags = ["--model", toy_directory, *SMALL_RL]
    with monkeypatch.context() as patch:
        if part == "sample":
            patch.setattr(generate.Generator, "sample", raising(MEMORY[0]))
        else:
            patch.setattr(group_pass, "backward", raising(MEMORY[0]))
        assert start(train_rl, *flags) == errors.INTERNAL
    said, word = capsys.readouterr().err, json.loads(Path("runs/rl/exit.json").read_text())
    knob = {"sample": "--kv-blocks 256", "update": "--checkpointing"}[part]
    assert said.startswith(f"out of memory in step 1 ({part}; ") and said.endswith(f"resume with {knob}\n")
    assert word["code"] == 70 and word["reason"] == said.strip() and word["checkpoint"] is None
    if part == "sample":
        flags[flags.index("--kv-blocks") + 1] = "256"
    assert start(train_rl, *flags, *(["--checkpointing"] if part == "update" else [])) == 0


def test_too_little_memory_while_measuring_or_loading(in_tmp, small, monkeypatch, capsys):
    rows = small[small.index("--data") + 1]
    with monkeypatch.context() as patch:
        patch.setattr(generate.Generator, "sample", raising(MEMORY[0]))
        assert sft(small, "--heldout", rows, "--steps", 2, "--eval-every", 1, "--max-new-tokens", 2) == errors.INTERNAL
    said = capsys.readouterr().err
    assert "in step 1 (evaluate; the longest sequence" in said and "--kv-blocks 2048" in said
    monkeypatch.setattr(train_sft, "by_document", raising(MEMORY[0]))
    assert sft(small, "--name", "other") == errors.INTERNAL
    assert "--kv-blocks than 4096" in capsys.readouterr().err and not Path("runs/other").exists()


# exit.json

@pytest.mark.parametrize("error, code", [
    (ConfigError("no"), 78), (errors.DataError("no"), 65), (ModelError("no"), 65),
    (FileNotFoundError(2, "No such file", "x"), 66), (errors.OutOfBlocks("no"), 78), (MEMORY[0], 70),
    (errors.NonFinite("no"), 70), (errors.LostRanks("no"), 70), (OSError(errno.EIO, "no", "x"), 74),
    (errors.JudgeUnavailable("no"), 69), (KeyboardInterrupt(), 130),
    (errors.CheckpointError("no"), 74)], ids=lambda x: type(x).__name__)
def test_every_exit_code_is_in_exit_json_with_a_command_to_resume(in_tmp, small, monkeypatch, capsys, error, code):
    with monkeypatch.context() as patch:
        at_step(patch, 3, raising(error))
        assert sft(small, "--steps", 4) == code
    said, word = capsys.readouterr().err, exit_json()
    assert word["code"] == code and word["reason"] == said.strip() != "" and said.count("\n") == 1
    assert word["step"] == 2 and word["checkpoint"] == "runs/sft/checkpoints/step_000002"
    assert resume(word) == 0 and exit_json()["code"] == 0 and steps_of() == [1, 2, 3, 4]


def test_every_kind_of_exit_is_tried_above():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.UserError)]
    codes = {kind.exit_code for kind in kinds} | {errors.MISSING_INPUT, errors.INTERRUPTED}
    assert codes == {65, 66, 69, 70, 74, 75, 78, 130}


def test_a_bug_leaves_exit_json_and_its_traceback(in_tmp, small, monkeypatch):
    at_step(monkeypatch, 2, raising(ZeroDivisionError("a bug")))
    with pytest.raises(ZeroDivisionError):
        sft(small, "--steps", 4)
    assert exit_json()["code"] == 70 and exit_json()["reason"] == "a bug"


def test_exit_json_of_an_earlier_start_is_gone_once_the_next_has_begun(in_tmp, small, monkeypatch):
    assert sft(small, "--steps", 2) == 0 and exit_json()["code"] == 0
    seen = []
    at_step(monkeypatch, 1, lambda: seen.append((DIRECTORY / "exit.json").exists()))
    assert sft(small, "--steps", 3) == 0 and seen == [False]


def test_settings_of_a_run_that_make_no_sense(in_tmp, small, capsys):
    for flags in (["--keep", 0], ["--max-bad-updates", 0], ["--timeout-minutes", 0], ["--timeout-minutes", "nan"]):
        assert sft(small, *flags) == errors.BAD_CONFIG, flags
        assert flags[0] in (said := capsys.readouterr().err) and said.count("\n") == 1
    assert not Path("runs").exists()


# What somebody did to its directory

def test_settings_are_compared_with_the_checkpoints_own(in_tmp, small, capsys):
    """Without config.json, or with a damaged one, the checkpoint still has them."""
    assert sft(small, "--steps", 2) == 0
    for spoil in (Path.unlink, lambda path: path.write_text("{")):
        spoil(DIRECTORY / "config.json")
        assert sft(small, "--steps", 4, "--seed", 3) == errors.BAD_CONFIG
        assert "--seed 0, now it is 3" in capsys.readouterr().err
        assert sft(small, "--steps", 2) == 0 and json.loads((DIRECTORY / "config.json").read_text())["seed"] == 0


def test_a_checkpoint_under_another_ones_name_is_passed_over(in_tmp, small, expected, capsys):
    assert sft(small, "--steps", 2, "--save-every", 1) == 0
    shutil.copytree(DIRECTORY / "checkpoints/step_000002", DIRECTORY / "checkpoints/step_000009")
    assert sft(small, "--steps", 4) == 0 and outcome(DIRECTORY) == expected
    assert "step_000009: state.json is of step 2" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["runs/sft", "runs/sft/checkpoints"])
def test_a_file_in_the_place_of_a_directory_is_told(in_tmp, small, capsys, place):
    Path(place).parent.mkdir(parents=True)
    Path(place).write_text("")
    assert sft(small) == errors.BAD_CONFIG
    assert f"{place} is a file" in capsys.readouterr().err and Path(place).read_text() == ""
    Path(place).unlink()
    Path(place).symlink_to("nowhere")
    assert sft(small) == errors.BAD_CONFIG and "broken link" in capsys.readouterr().err and not Path("nowhere").exists()


@pytest.mark.parametrize("flags", [("--timeout-minutes", "inf"), ("--timeout-minutes", "nan"), ("--keep", 0),
                                   ("--save-every", 0), ("--max-bad-updates", 0), ("--device", "nowhere"),
                                   *([] if torch.cuda.is_available() else [("--device", "cuda")])])
def test_a_setting_that_cannot_be_is_named(in_tmp, small, capsys, flags):
    assert sft(small, *flags) == errors.BAD_CONFIG
    error = capsys.readouterr().err
    assert error.startswith(flags[0]) and error.count("\n") == 1 and not Path("runs").exists()


def test_a_console_that_never_was(in_tmp, small, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert sft(small, "--steps", 1) == 0 and exit_json()["code"] == 0


# A repeated signal loses exit code 75

def as_script(small, *flags) -> int:
    """Start train_sft.py as its last line does. It does not return."""
    return exits.start(train_sft.main, train_sft.Config, {}, argv(small, *flags), leave=exits.exit_process)


@pytest.mark.parametrize("name", exits.SIGNALS)
def test_a_signal_that_comes_all_the_time_until_the_process_is_gone(in_tmp, small, expected, name):
    """Ctrl-C, too, but then a second one may stop the run at once: exit.json and the exit code agree."""
    pid = begin(lambda: as_script(small, "--steps", 4000), stdout="told", stderr="told")
    until((DIRECTORY / "metrics.jsonl").exists)
    sent, (ended, status) = 0, (0, 0)
    while not ended:
        os.kill(pid, getattr(signal, name))
        sent += 1
        time.sleep(0.002)
        ended, status = os.waitpid(pid, os.WNOHANG)
    code, word = os.waitstatus_to_exitcode(status), exit_json()
    assert code == word["code"] and code in ((75, 130) if name == "SIGINT" else (75,)) and sent > 1
    assert checkpoint.newest(DIRECTORY / "checkpoints")[0].name == f"step_{word['step']:06d}" or code == 130


PLACES = {"the save": (checkpoint, "save"), "the removal of older ones": (checkpoint, "prune"),
          "the last look at signals": (run.Run, "_stop_if_signalled"), "exit.json": (run.Run, "_write_exit"),
          "the lock": (Directory, "unlock"), "the roll call": (parallel, "lost_ranks"),
          "the last sentence": (exits, "sentence"), "the exit": (os, "_exit")}


@pytest.mark.parametrize("place", PLACES)
def test_ctrl_c_again_and_again_after_a_step_is_saved_changes_nothing(in_tmp, small, expected, place):
    """Once the save has begun, it is too late to stop at once: the code is 75, and the sentence does not say 130."""
    def work():
        owner, name = PLACES[place]
        work = getattr(owner, name)
        at_step(pytest.MonkeyPatch(), 2, lambda: (send("SIGINT")(), setattr(owner, name, lambda *args: (
            send("SIGINT", "SIGTERM", "SIGINT")(), work(*args), send("SIGINT", "SIGHUP", "SIGINT")())[1])))
        return as_script(small, "--steps", 4, "--save-every", 100)
    assert in_child(work, stderr="told") == 75
    assert "not saved" not in Path("told").read_text() and (exit_json()["code"], exit_json()["step"]) == (75, 2)
    assert resume(exit_json()) == 0 and outcome(DIRECTORY) == expected


def test_ctrl_c_a_third_time_while_the_run_leaves_at_once_changes_nothing(in_tmp, small, monkeypatch):
    write = run.Run._write_exit
    monkeypatch.setattr(run.Run, "_write_exit", lambda *args: (send("SIGINT", "SIGINT")(), write(*args)))
    at_step(monkeypatch, 2, send("SIGINT", "SIGINT"))
    assert sft(small, "--steps", 4) == 130 == exit_json()["code"] and "step 2 is not saved" in exit_json()["reason"]


@pytest.mark.parametrize("begun", [False, True])
def test_ctrl_c_twice_before_the_first_step_of_a_start_does_not_say_that_a_step_is_lost(in_tmp, small, monkeypatch,
                                                                                        capfd, begun):
    assert not begun or sft(small, "--steps", 1) == 0
    by_document = train_sft.by_document
    monkeypatch.setattr(train_sft, "by_document", lambda *args: (send("SIGINT", "SIGINT")(), by_document(*args))[1])
    assert sft(small, "--steps", 4) == errors.INTERRUPTED
    assert capfd.readouterr().err.endswith("stopped at once\n")


def test_a_signal_writes_into_no_file_that_took_the_place_of_stderr(in_tmp, small):
    """Started with 2>&-, so that the next file that is opened has number 2."""
    def work():
        os.close(2)
        sys.stderr = None
        assert os.open("data", os.O_RDWR | os.O_CREAT) == 2
        at_step(pytest.MonkeyPatch(), 2, send("SIGTERM"))
        return sft(small, "--steps", 4)
    pid = os.fork()
    if pid == 0:
        os._exit(work())
    assert end(pid) == errors.STOPPED and Path("data").read_bytes() == b""


@pytest.mark.parametrize("error, code", [(ZeroDivisionError("a bug"), 70), (ConfigError("no"), 78), (None, 0)])
def test_a_script_ends_at_once_with_its_code(in_tmp, small, error, code):
    """A shutdown of the interpreter would take away the handlers of signals, and what torch keeps of processes."""
    def work():
        atexit.register(lambda: os._exit(99))
        if error:
            at_step(pytest.MonkeyPatch(), 2, raising(error))
        return as_script(small, "--steps", 2)
    assert in_child(work, stderr="told") == code == exit_json()["code"]
    assert ("Traceback" in Path("told").read_text()) == (code == 70)
