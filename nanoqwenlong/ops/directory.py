"""The directory of a run: its lock, the checkpoint that is resumed, and what may not have changed since.

--resume says what happens to a run that the directory holds:

    auto      resume it if settings, source code and input files are the same, else refuse
    changed   the same, but continue with changed source code
    restart   move it to NAME.1 (the first free number) and start again
    never     refuse
"""

import errno
import os
import socket
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from .. import errors, parallel
from ..errors import CheckpointError, ConfigError
from ..pretrained.weights import read_json
from . import checkpoint, files
from .log import FILES
from .settings import free_names

try:
    import fcntl
except ImportError:                     # Windows has no file locks
    fcntl = None

STATE = {"step", "ended", "streaks", "seconds", "logs", "config", "inputs", "states"}  # state.json, and "code" if new


class Directory:
    """RUNS_DIR/NAME of one run. settings, code: what runs now, as config.json records it."""

    def __init__(self, config, settings: dict, code: dict[str, str], say: Callable):
        self.path = Path(config.runs_dir) / config.name
        self.checkpoints = self.path / "checkpoints"
        self.config, self.settings, self.code, self.say = config, settings, code, say
        self.existed, self.restarts, self.lock_file = False, False, None

    def find_source(self) -> tuple[Path | None, dict]:
        """The newest checkpoint that can be resumed and its state, or (None, {}) if there is none. Locks the directory.

        Raises ConfigError if the run was begun with other settings, code or files, CheckpointError if what is there
        cannot be resumed, OSError if another job uses the directory."""
        # 1. One job per directory
        self.existed = self.path.is_dir()
        parallel.on_all_ranks(lambda: self.existed and self.lock(), "cannot use the directory")
        for path in (self.path, self.checkpoints):
            if path.exists() and not path.is_dir():
                raise ConfigError(f"{path} is a file, but the run needs a directory there; choose another --name")
        if not parallel.gather(holds_run(self.path))[0]:
            return None, {}
        # 2. What the user wants
        recorded = read_config(self.path)
        resume = self.config.resume
        if resume == "restart" and recorded.get("resume") == "restart" and parallel.num_restarts() > 0:
            resume = "auto"                                    # torchrun starts the run that has replaced the old one
        if resume == "never":
            raise ConfigError(f"{self.path} already holds a run; choose another --name, or remove it first, or resume "
                              "it with --resume auto")
        if resume == "restart":
            self.restarts = True
            return None, {}
        # 3. The newest whole checkpoint
        source, problems = checkpoint.newest(self.checkpoints)
        for problem in problems:
            self.say(f"passed over {problem}")
        state = {}
        if source:
            state = checkpoint.read_state(source)
            if missing := sorted(STATE - state.keys()):
                raise CheckpointError(f"{source}/state.json lacks {missing[0]!r}: start again from its weights, "
                                      "with --model and another --name")
        # 4. The same settings, code and files
        self._compare_settings(state.get("config", recorded))
        self._compare_code(recorded.get("code") or state.get("code"), state.get("step", 0), resume)
        if not source and problems:
            raise CheckpointError(f"no checkpoint of {self.path} can be resumed; start again with another --name, or "
                                  f"remove {self.checkpoints}")
        if not source and num_lines(self.path / "metrics.jsonl") > recorded.get("save_every", 0):
            raise CheckpointError(f"{self.path} has no checkpoint, but metrics.jsonl has more steps than are made "
                                  "without one: was it removed? Remove the directory, or choose another --name")
        for path, before in state.get("inputs", {}).items():
            now = self.inputs.get(path, "missing")
            if now != before:
                raise ConfigError(f"{path} is not what it was when this run began (sha256 {before[:12]}... then, "
                                  f"{now[:12]}... now): put it back, or choose another --name")
        parallel.on_all_ranks(lambda: checkpoint.set_aside(self.checkpoints, source), "cannot set a checkpoint aside")
        return source, state

    @cached_property
    def inputs(self) -> dict[str, str]:
        return files.inputs(self.config)

    def _compare_settings(self, before: dict) -> None:
        for name in sorted(self.settings.keys() - free_names(self.config)):
            now, then = self.settings[name], before.get(name, self.settings[name])
            if name == "judge" and is_url(now) and is_url(then):               # the same model on another server
                continue
            if now != then:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{self.path} was begun with {flag} {then!r}, now it is {now!r}: give the same "
                                  "to resume it, or choose another --name")

    def _compare_code(self, before: dict[str, str] | None, step: int, resume: str) -> None:
        if before is None:
            self.say(f"{self.path} does not record its code (an older version began it): taken as unchanged")
            return
        changed = files.changes(before, self.code)
        if changed and resume == "changed":
            self.say(f"resuming with changed code: {changed}")
        elif changed:
            raise ConfigError(f"the code has changed since {self.path} made its {step} steps: {changed}; give "
                              "--resume changed to continue with the new code, --resume restart to move the old run to "
                              f"{free_name(self.path)} and start again, or another --name")

    def lock(self) -> None:
        """One job per directory. The operating system drops the lock when the process ends."""
        if fcntl is None or parallel.rank() > 0:
            return
        path = self.path / ".lock"
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(handle, 200).decode(errors="replace").strip()
            os.close(handle)
            raise OSError(error.errno, f"in use by another job ({holder or 'which has just begun'}): wait for it, or "
                                       "choose another --name", str(self.path)) from None
        except OSError as error:                                               # some network file systems have no locks
            self.say(f"{path}: no lock ({error.strerror}); take care that no other job uses this directory")
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        self.lock_file = handle

    def unlock(self) -> None:
        if self.lock_file is not None:
            os.close(self.lock_file)
            self.lock_file = None

    def make(self) -> None:
        """Make the directory and lock it, if it does not exist yet. Raises OSError if another job was faster."""
        # 1. --resume restart: the old run gets another name
        if self.restarts:
            old = free_name(self.path)
            self.path.rename(old)
            files.sync(old.parent)
            self.unlock()
            self.existed = False
            self.say(f"moved the old run to {old}")
        # 2. The directory, with its name on the disk
        new = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        for path in new:
            files.sync(path.parent)
        if not self.existed:
            self.lock()
            if holds_run(self.path):
                raise OSError(errno.EEXIST, "another job has just begun it: choose another --name", str(self.path))

    def record(self) -> None:
        """Write config.json. exit.json of the start before goes."""
        (self.path / "exit.json").unlink(missing_ok=True)
        files.put(self.path / "config.json", {**self.settings, "code": self.code})


def read_config(directory: Path) -> dict:
    """config.json of a run, or {} if it is missing or damaged: the checkpoints hold the settings, too."""
    try:
        return read_json(directory / "config.json")
    except (errors.ModelError, OSError):
        return {}


def is_url(where: str) -> bool:
    return where.startswith(("http://", "https://"))


def holds_run(directory: Path) -> bool:
    return any((directory / name).exists() for name in (*FILES, "checkpoints"))


def free_name(directory: Path) -> Path:
    """The first of NAME.1, NAME.2, ... that does not exist."""
    number = 1
    while directory.with_name(f"{directory.name}.{number}").exists():
        number += 1
    return directory.with_name(f"{directory.name}.{number}")


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
