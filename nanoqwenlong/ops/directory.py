"""The directory of a run: its lock, the checkpoint that is resumed, and what may not have changed since."""

import errno
import fcntl
import os
import socket
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from .. import parallel
from ..errors import CheckpointError, ConfigError, ModelError
from ..pretrained.weights import read_json
from . import checkpoint, files
from .flags import flag_of
from .log import FILES
from .settings import free_names


class Directory:
    """RUNS_DIR/NAME of one run. settings, code: what runs now, as config.json records it. begun: whether this start
    has taken it over."""

    def __init__(self, config, settings: dict, code: dict[str, str], say: Callable):
        self.path = Path(config.runs_dir) / config.name
        self.checkpoints = self.path / "checkpoints"
        self.config, self.settings, self.code, self.say = config, settings, code, say
        self.existed, self.restarts, self.begun, self.lock_file = self.path.is_dir(), False, False, None

    def find_source(self) -> tuple[Path | None, dict]:
        """The newest checkpoint that can be resumed and its state, or (None, {}) if there is none. Locks the directory.

        Raises ConfigError if the run was begun with other settings, code or files, CheckpointError if what is there
        cannot be resumed, OSError if another job uses the directory."""
        # 1. One job per directory
        parallel.on_all_ranks(lambda: self.existed and self.lock(), "cannot use the directory")
        for path in (self.path, self.checkpoints):
            if path.exists() and not path.is_dir():
                raise ConfigError(f"{path} is a file, but the run needs a directory there; choose another --name")
        if not parallel.gather(self.holds_run())[0]:
            return None, {}
        # 2. What the user wants
        try:
            recorded = read_json(self.path / "config.json")
        except (ModelError, OSError):                          # missing or damaged. Checkpoints hold the settings, too
            recorded = {}
        if self.config.resume == "never":
            raise ConfigError(f"{self.path} already holds a run; choose another --name, remove it, or resume it with "
                              "--resume auto")
        # If torchrun starts its processes again, they resume the run that has replaced the old one
        if self.config.resume == "restart" and not (recorded.get("resume") == "restart" and parallel.num_restarts()):
            self.restarts = True
            return None, {}
        # 3. The newest intact checkpoint
        source, problems = checkpoint.newest(self.checkpoints)
        for problem in problems:
            self.say(f"passed over {problem}")
        state = checkpoint.read_state(source) if source else {}
        # 4. The same settings, code and files
        self._compare_settings(state.get("config", recorded))
        self._compare_code(recorded.get("code") or state.get("code"), state.get("step", 0))
        metrics = self.path / "metrics.jsonl"
        num_steps = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        if not source and (problems or num_steps > recorded.get("save_every", 0)):
            raise CheckpointError(f"no checkpoint of {self.path} can be resumed, was it removed? Remove the directory, "
                                  "or choose another --name")
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
            if name == "judge" and "://" in now and "://" in then:     # the same model on another server
                continue
            if now != then:
                raise ConfigError(f"{self.path} was begun with {flag_of(name)} {then!r}, now it is {now!r}: give the "
                                  "same to resume it, or choose another --name")

    def _compare_code(self, before: dict[str, str] | None, step: int) -> None:
        if before is None:
            self.say(f"{self.path} does not record its code (an older version began it): taken as unchanged")
            return
        changed = files.changes(before, self.code)
        if changed and self.config.resume == "changed":
            self.say(f"resuming with changed code: {changed}")
        elif changed:
            raise ConfigError(f"the code has changed since {self.path} made its {step} steps: {changed}; give "
                              "--resume changed to continue with the new code, --resume restart to move the old run to "
                              f"{self.free_path()} and start again, or another --name")

    def lock(self) -> None:
        """One job per directory. The operating system drops the lock when the process ends."""
        if parallel.rank() > 0:
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
        except OSError as error:                               # some network file systems have no locks
            self.say(f"{path}: no lock ({error.strerror}); take care that no other job uses this directory")
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        self.lock_file = handle

    def unlock(self) -> None:
        if self.lock_file is not None:
            os.close(self.lock_file)
            self.lock_file = None

    def begin(self) -> None:
        """Make the directory, if it does not exist, lock it and write config.json. Raises OSError if another job was
        faster. --resume restart: the old run gets another name."""
        if self.restarts:
            old = self.free_path()
            self.path.rename(old)
            files.sync(old.parent)
            self.unlock()
            self.existed = False
            self.say(f"moved the old run to {old}")
        new = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        for path in new:
            files.sync(path.parent)
        if not self.existed:
            self.lock()
            if self.holds_run():
                raise OSError(errno.EEXIST, "another job has just begun it: choose another --name", str(self.path))
        self.begun = True
        (self.path / "exit.json").unlink(missing_ok=True)      # of the start before
        files.put(self.path / "config.json", {**self.settings, "code": self.code})

    def holds_run(self) -> bool:
        return any((self.path / name).exists() for name in (*FILES, "checkpoints"))

    def free_path(self) -> Path:
        """The first of NAME.1, NAME.2, ... that does not exist."""
        number = 1
        while (path := self.path.with_name(f"{self.path.name}.{number}")).exists():
            number += 1
        return path
