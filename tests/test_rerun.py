"""Edit the source and run the same command again: what stops, what resumes, what starts again."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_checkpoint import end, in_tmp, outcome, small
from test_run import DIRECTORY, at_step, checkpoints_of, everything, exit_json, in_use, send, sft, steps_of

import train_sft
from nanoqwenlong import errors, parallel
from nanoqwenlong.ops import checkpoint, files
from nanoqwenlong.pretrained.digest import file_digest
from nanoqwenlong.pretrained.tokenizer import Tokenizer

__all__ = ["in_tmp", "small"]                                 # fixtures
CODE = files.code(Path(train_sft.__file__))
EDITED = "nanoqwenlong/grpo.py"


def edit(patch, changed=(EDITED,), removed=(), added=()) -> None:
    """From now on the source looks edited."""
    after = {**CODE, **dict.fromkeys([*changed, *added], "0" * 64)}
    patch.setattr(files, "code", lambda script: {path: after[path] for path in after if path not in removed})


def code_in(path: Path) -> dict:
    return json.loads(path.read_text())["code"]


def unlocked(directory: Path = DIRECTORY) -> dict[str, bytes]:
    return {path: data for path, data in everything(directory).items() if "lock" not in path}


def test_the_code_is_what_decides_results_and_nothing_else():
    assert {"train_sft.py", EDITED, "nanoqwenlong/ops/run.py", "kernels/grpo_loss.py"} <= CODE.keys()
    assert all(path == "train_sft.py" or path.startswith(("nanoqwenlong/", "kernels/")) for path in CODE)
    assert all(path.endswith(".py") and len(value) == 64 for path, value in CODE.items())
    assert "train_rl.py" in files.code(ROOT / "train_rl.py").keys() - CODE.keys()


def test_a_run_records_its_code(in_tmp, small):
    assert sft(small, "--steps", 2) == 0
    config = json.loads((DIRECTORY / "config.json").read_text())
    assert config.pop("code") == CODE == code_in(DIRECTORY / "checkpoints/step_000002/state.json")
    assert config.keys() == train_sft.Config.__dataclass_fields__.keys()


@pytest.mark.parametrize("steps", [2, 4])
def test_changed_code_stops_the_same_command_and_touches_nothing(in_tmp, small, monkeypatch, capsys, steps):
    """A complete run and one that is half done."""
    assert sft(small, "--steps", 2) == 0
    before = unlocked()
    edit(monkeypatch, ["kernels/logprob.py", EDITED], removed=["nanoqwenlong/toy.py"], added=["nanoqwenlong/x.py"])
    capsys.readouterr()
    assert sft(small, "--steps", steps) == errors.BAD_CONFIG == 78
    said = capsys.readouterr().err
    assert said.startswith("the code has changed since runs/sft made its 2 steps: kernels/logprob.py, "
                           "nanoqwenlong/grpo.py, nanoqwenlong/toy.py (removed) and 1 more; ")
    assert said.count("\n") == 1
    assert all(word in said for word in ("--resume changed", "--resume restart", "runs/sft.1", "--name"))
    assert unlocked() == before


def test_code_that_is_put_back_is_the_same_code(in_tmp, small, monkeypatch):
    assert sft(small, "--steps", 2) == 0
    with monkeypatch.context() as patch:
        edit(patch)
        assert sft(small, "--steps", 4) == errors.BAD_CONFIG
    assert sft(small, "--steps", 4) == 0 and steps_of() == [1, 2, 3, 4]


def test_resume_changed_continues_and_records_the_new_code(in_tmp, small, monkeypatch, capsys):
    assert sft(small, "--steps", 4, "--name", "undisturbed") == 0
    assert sft(small, "--steps", 2) == 0
    edit(monkeypatch)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        at_step(patch, 1, send("SIGTERM"))
        assert sft(small, "--steps", 4, "--resume", "changed") == errors.STOPPED
    assert f"resuming with changed code: {EDITED}\n" in capsys.readouterr().out
    assert "--resume" not in exit_json()["resume_command"]
    assert code_in(DIRECTORY / "config.json")[EDITED] == "0" * 64
    assert sft(small, "--steps", 4) == 0                       # the same code as last time
    assert code_in(DIRECTORY / "checkpoints/step_000004/state.json")[EDITED] == "0" * 64
    results = [outcome(Path("runs", name)) for name in ("sft", "undisturbed")]
    for _, state, _ in results:
        del state["code"]
    assert results[0] == results[1]


def test_resume_changed_counts_even_if_the_start_dies_before_its_first_checkpoint(in_tmp, small, monkeypatch):
    assert sft(small, "--steps", 2) == 0
    edit(monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr(train_sft.group_pass, "backward_all", lambda *args, **kwargs: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sft(small, "--steps", 4, "--resume", "changed")
    assert sft(small, "--steps", 4) == 0


def test_resume_changed_needs_no_change_and_no_run(in_tmp, small):
    assert sft(small, "--steps", 2, "--resume", "changed") == 0
    assert sft(small, "--steps", 4, "--resume", "changed") == 0 and steps_of() == [1, 2, 3, 4]


def test_the_checkpoint_knows_the_code_if_config_json_is_damaged(in_tmp, small, monkeypatch):
    assert sft(small, "--steps", 2) == 0
    edit(monkeypatch)
    for spoil in (Path.unlink, lambda path: path.write_text("{")):
        if not (DIRECTORY / "config.json").exists():
            (DIRECTORY / "config.json").touch()
        spoil(DIRECTORY / "config.json")
        assert sft(small, "--steps", 4) == errors.BAD_CONFIG


def test_a_run_of_an_older_version_counts_as_unchanged_and_says_so(in_tmp, small, capsys):
    assert sft(small, "--steps", 2) == 0
    config = json.loads((DIRECTORY / "config.json").read_text())
    shutil.rmtree(DIRECTORY / "checkpoints/step_000001")
    state = DIRECTORY / "checkpoints/step_000002/state.json"
    for path in (DIRECTORY / "config.json", state):
        content = json.loads(path.read_text())
        del content["code"]
        path.write_text(json.dumps(content))
    listed = json.loads((state.parent / "manifest.json").read_text().rpartition("}")[0] + "}")["files"]
    listed["state.json"] = {"bytes": state.stat().st_size, "sha256": file_digest(state)}
    (state.parent / "manifest.json").write_text(checkpoint.manifest_text(listed))
    capsys.readouterr()
    assert sft(small, "--steps", 4) == 0 and steps_of() == [1, 2, 3, 4]
    assert "runs/sft does not record its code" in capsys.readouterr().out
    assert code_in(DIRECTORY / "config.json") == config["code"]


def test_resume_never_refuses_as_before(in_tmp, small, monkeypatch, capsys):
    assert sft(small, "--steps", 2) == 0
    edit(monkeypatch)
    assert sft(small, "--steps", 4, "--resume", "never") == errors.BAD_CONFIG
    assert "runs/sft already holds a run" in capsys.readouterr().err


def test_a_dry_run_does_not_look(in_tmp, small, monkeypatch):
    assert sft(small, "--steps", 2) == 0
    before = everything(DIRECTORY)
    edit(monkeypatch)
    for resume in ("auto", "restart"):
        assert sft(small, "--dry-run", "--resume", resume) == 0 and everything(DIRECTORY) == before


# Starting again

@pytest.mark.parametrize("edited", [False, True])
def test_restart_moves_the_old_run_and_starts_again(in_tmp, small, monkeypatch, capsys, edited):
    assert sft(small, "--steps", 2, "--learning-rate", 0.5) == 0
    Path("runs/sft.1").mkdir()
    before = {path.replace("runs/sft/", "runs/sft.2/"): data for path, data in unlocked().items()}
    if edited:
        edit(monkeypatch)
    capsys.readouterr()
    assert sft(small, "--steps", 4, "--resume", "restart") == 0          # other settings are no hindrance
    assert "moved the old run to runs/sft.2\n" in capsys.readouterr().out
    assert unlocked(Path("runs/sft.2")) == before and steps_of() == [1, 2, 3, 4]
    assert code_in(DIRECTORY / "config.json")[EDITED] == ("0" * 64 if edited else CODE[EDITED])
    assert sft(small, "--steps", 5) == 0 and not Path("runs/sft.3").exists()


def test_restart_without_a_run_begins_one(in_tmp, small):
    DIRECTORY.mkdir(parents=True)
    (DIRECTORY / "notes.txt").write_text("no run")
    assert sft(small, "--steps", 2, "--resume", "restart") == 0
    assert (DIRECTORY / "notes.txt").exists() and not Path("runs/sft.1").exists()


def test_a_restarted_run_is_resumed_without_restarting_it(in_tmp, small, monkeypatch):
    assert sft(small, "--steps", 4, "--name", "undisturbed") == 0
    assert sft(small, "--steps", 4) == 0
    with monkeypatch.context() as patch:
        at_step(patch, 2, send("SIGTERM"))
        assert sft(small, "--steps", 4, "--resume", "restart") == errors.STOPPED
    command = exit_json()["resume_command"]
    assert "--resume" not in command and steps_of() == [1, 2]
    assert sft([], *shlex.split(command)[2:]) == 0
    assert outcome(DIRECTORY) == outcome(Path("runs/undisturbed")) and not Path("runs/sft.2").exists()


def test_restart_refuses_a_directory_that_another_job_uses(in_tmp, small, capsys):
    pid = in_use(small)
    before = everything(DIRECTORY)
    assert sft(small, "--steps", 4, "--resume", "restart") == errors.IO_ERROR
    assert "in use by another job" in capsys.readouterr().err
    assert everything(DIRECTORY) == before and not Path("runs/sft.1").exists()
    Path("go on").touch()
    assert end(pid) == 0


def test_a_restart_that_cannot_begin_leaves_the_old_run_in_its_place(in_tmp, small):
    assert sft(small, "--steps", 2) == 0
    before = unlocked()
    flags = [*small[:small.index("--data") + 1], "missing.jsonl", *small[small.index("--data") + 2:]]
    assert sft(flags, "--steps", 2, "--resume", "restart") == errors.MISSING_INPUT
    assert unlocked() == before and not Path("runs/sft.1").exists()


def test_torchrun_restarts_the_new_run_and_not_again_from_the_old_one(in_tmp, small, monkeypatch):
    """It runs the same command again when a process has died (--max-restarts)."""
    assert sft(small, "--steps", 2) == 0
    edit(monkeypatch)
    monkeypatch.setattr(parallel, "num_restarts", lambda: 1)
    assert sft(small, "--steps", 2, "--resume", "restart") == 0          # the first attempt died before it began
    assert Path("runs/sft.1").exists()
    assert sft(small, "--steps", 4, "--resume", "restart") == 0
    assert not Path("runs/sft.2").exists() and steps_of() == [1, 2, 3, 4]
    monkeypatch.setattr(parallel, "num_restarts", lambda: 0)
    assert sft(small, "--steps", 2, "--resume", "restart") == 0 and Path("runs/sft.2").exists()


# With real edits

@pytest.mark.full
def test_edits_of_a_copied_tree(in_tmp, small):
    for name in ("nanoqwenlong", "kernels"):
        shutil.copytree(ROOT / name, in_tmp / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train_sft.py", in_tmp)
    formula = in_tmp / "nanoqwenlong/optim.py"

    def start(*more) -> tuple[int, str]:
        words = [sys.executable, "train_sft.py", *small, *more]
        done = subprocess.run(words, cwd=in_tmp, capture_output=True, text=True,
                              env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
        return done.returncode, done.stderr
    assert start("--steps", "1") == (0, "")
    (in_tmp / "nanoqwenlong/notes.md").write_text("prose does not count")
    assert start("--steps", "2") == (0, "")
    formula.write_text(formula.read_text() + "\n# another formula\n")
    code, said = start("--steps", "3")
    assert code == 78 and "made its 2 steps: nanoqwenlong/optim.py; " in said
    assert start("--steps", "3", "--resume", "restart") == (0, "")
    assert checkpoints_of(Path("runs/sft"))[-1] == "step_000003"
    assert checkpoints_of(Path("runs/sft.1"))[-1] == "step_000002"


# A resumed run whose chat template now writes other prompts

def other_prompts(patch) -> None:
    """From now on transformers renders a template otherwise, as another version might."""
    render = Tokenizer._render
    patch.setattr(Tokenizer, "_render", lambda *args: render(*args).replace("<|im_start|>user", "<|im_start|> user"))


def test_changed_prompts_stop_the_same_command_and_touch_nothing(in_tmp, small, monkeypatch, capsys):
    assert sft(small, "--steps", 2) == 0
    assert len(json.loads((DIRECTORY / "checkpoints/step_000002/state.json").read_text())["prompts"]) == 1
    before = unlocked()
    with monkeypatch.context() as patch:
        other_prompts(patch)
        capsys.readouterr()
        assert sft(small, "--steps", 4) == errors.BAD_CONFIG
        said = capsys.readouterr().err
        assert said.startswith("the code has changed since runs/sft made its 2 steps: what the chat template writes; ")
        assert "--resume changed" in said and said.count("\n") == 1 and unlocked() == before
    assert sft(small, "--steps", 4) == 0, "the former version resumes it"


def test_resume_changed_takes_changed_prompts_and_keeps_them(in_tmp, small, monkeypatch, capsys):
    assert sft(small, "--steps", 2) == 0
    other_prompts(monkeypatch)
    assert sft(small, "--steps", 4, "--resume", "changed") == 0
    assert "resuming with changed code: what the chat template writes" in capsys.readouterr().out
    assert steps_of() == [1, 2, 3, 4]
    assert sft(small, "--steps", 5) == 0, "the new checkpoint records the new prompts"


def test_a_checkpoint_of_an_older_version_records_no_prompts(in_tmp, small):
    assert sft(small, "--steps", 2) == 0
    path = DIRECTORY / "checkpoints/step_000002"
    state = json.loads((path / "state.json").read_text())
    del state["prompts"]
    (path / "state.json").write_text(json.dumps(state))
    manifest = json.loads((path / "manifest.json").read_text().rpartition("\n")[0].rpartition("\n")[0])
    manifest["files"]["state.json"] = checkpoint._entry(path / "state.json")
    (path / "manifest.json").write_text(checkpoint.manifest_text(manifest["files"]))
    assert sft(small, "--steps", 4) == 0 and steps_of() == [1, 2, 3, 4]
