"""The directory of a run: its lock, the checkpoint that is resumed, and what may not have changed since."""

import errno
import fcntl
import os
import socket
from itertools import count
from pathlib import Path

from .. import parallel
from ..errors import CheckpointError, ConfigError, ModelError
from ..pretrained.weights import read_json
from . import checkpoint, files
from .flags import flag_of
from .log import FILES, Log
from .settings import free_names


class Directory:
    """RUNS_DIR/NAME of one run. settings, code, inputs: what runs now. begun: whether this start has taken it over."""

    def __init__(self, config, settings: dict, code: dict[str, str], log: Log):
        self.path = Path(config.runs_dir) / config.name
        self.checkpoints = self.path / "checkpoints"
        self.resume, self.log, self.say = config.resume, log, log.say
        self.settings, self.code, self.inputs = settings, code, files.inputs(config)
        self.free_names = free_names(config)
        self.restarts, self.begun, self.lock_file = False, False, None

    def find_source(self) -> tuple[Path | None, dict]:
        """The newest intact checkpoint and its state, else (None, {}). Locks the directory. Raises ConfigError if
        settings, code or files have changed, CheckpointError if none is intact, OSError if another job uses it."""
        # 1. One job per directory
        parallel.on_all_ranks(lambda: parallel.rank() == 0 and self.path.is_dir() and self.lock(), "cannot lock")
        for path in (self.path, self.checkpoints):
            if os.path.lexists(path) and not path.is_dir():
                raise ConfigError(f"{path} is a file or a broken link, but the run needs a directory there; choose "
                                  "another --name")
        if not parallel.gather(self.holds_run())[0]:
            return None, {}
        # 2. What the user wants
        try:
            recorded = read_json(self.path / "config.json")
        except (ModelError, OSError):                          # missing or damaged. Checkpoints hold the settings, too
            recorded = {}
        if self.resume == "never":
            raise ConfigError(f"{self.path} already holds a run: choose another --name, or give --resume auto")
        # If torchrun starts its processes again, they resume the run that has replaced the old one
        if self.resume == "restart" and not (recorded.get("resume") == "restart" and parallel.num_restarts()):
            self.restarts = True
            return None, {}
        # 3. The newest intact checkpoint
        source, problems = checkpoint.newest(self.checkpoints)
        for problem in problems:
            self.say(f"passed over {problem}")
        state = checkpoint.read_state(source) if source else {}
        # 4. The same settings, files and code
        settings = state.get("config", recorded)
        if self.settings["dtype"] == "auto":                   # on another processor, too
            self.settings["dtype"] = settings.get("dtype", "auto")
        self._compare(settings, state.get("inputs", {}))
        self.compare_code(recorded.get("code") or state.get("code"), self.code, state.get("step", 0))
        if not source and (problems or self._num_steps() > recorded.get("save_every", 0)):
            raise CheckpointError(f"no checkpoint of {self.path} is intact, was it removed? Choose another --name")
        parallel.on_all_ranks(lambda: checkpoint.set_aside(self.checkpoints, source), "cannot set a checkpoint aside")
        return source, state

    def _compare(self, settings: dict, inputs: dict[str, str]) -> None:
        """Raises ConfigError if a fixed setting or an input file is not what the checkpoint recorded."""
        pairs = {flag_of(name): (settings.get(name, now), now) for name, now in self.settings.items()
                 if name not in self.free_names}
        pairs |= {path: (f"sha256 {digest}", f"sha256 {self.inputs.get(path, 'missing')}")
                  for path, digest in inputs.items()}
        for name, (then, now) in sorted(pairs.items()):
            same_judge = name == "--judge" and "://" in then and "://" in now   # on another server
            if then != now and not same_judge:
                raise ConfigError(f"{self.path} was begun with {name} {then!r}, now it is {now!r}: give the same to "
                                  "resume it, or choose another --name")

    def compare_code(self, before: dict[str, str] | None, now: dict[str, str], step: int) -> None:
        if before is None:
            self.say(f"{self.path} does not record its code (an older version began it): taken as unchanged")
            return
        changed = files.changes(before, now)
        if changed and self.resume == "changed":
            self.say(f"resuming with changed code: {changed}")
        elif changed:
            raise ConfigError(f"the code has changed since {self.path} made its {step} steps: {changed}; give "
                              "--resume changed to continue with the new code, --resume restart to move the old run to "
                              f"{self.free_path()} and start again, or another --name")

    def _num_steps(self) -> int:
        """The number of steps in the log that has most of them. Each line begins with its step."""
        logs = [path for name in FILES if (path := self.path / name).exists()]
        return max((len({line.partition(b",")[0] for line in path.open("rb")}) for path in logs), default=0)

    def lock(self) -> None:
        """Lock it for one job, on the first rank. The operating system drops the lock when the process ends. Raises
        OSError if a link or a directory is in the place of a file: the run could overwrite a file elsewhere."""
        for path in (self.path / name for name in (".lock", "config.json", "exit.json", *FILES)):
            if path.is_symlink() or path.exists() and not (path.is_file() and path.stat().st_nlink == 1):
                text = ("this is not a plain file, or it has another name, but the run writes it: move it away, or "
                        "choose another --name")
                raise OSError(errno.EINVAL, text, str(path))
        path = self.path / ".lock"
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(handle, 200).decode(errors="replace").strip()
            os.close(handle)
            text = f"in use by another job ({holder or 'which has just begun'}): wait for it, or choose another --name"
            raise OSError(error.errno, text, str(self.path)) from None
        except OSError as error:                               # some network file systems have no locks
            self.say(f"{path}: no lock ({error.strerror}); take care that no other job uses this directory")
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        self.lock_file = handle

    def unlock(self) -> None:
        if self.lock_file is not None:
            os.close(self.lock_file)
            self.lock_file = None

    def begin(self, log_sizes: dict[str, int]) -> None:
        """Make the directory, lock it, write config.json and cut the logs to the checkpoint's sizes. --resume restart
        renames the old run first. Raises OSError if another job was faster."""
        if self.restarts:
            old = self.free_path()
            self.path.rename(old)
            files.sync(old.parent)
            self.unlock()
            self.say(f"moved the old run to {old}")
        new = [path for path in (self.path, *self.path.parents) if not path.exists()]
        self.path.mkdir(parents=True, exist_ok=True)
        for path in new:
            files.sync(path.parent)
        if self.lock_file is None:                             # it did not exist
            self.lock()
            if self.holds_run():
                raise OSError(errno.EEXIST, "another job has just begun it: choose another --name", str(self.path))
        self.begun = True
        (self.path / "exit.json").unlink(missing_ok=True)      # of the start before
        files.put(self.path / "config.json", {**self.settings, "code": self.code})
        self.log.cut(log_sizes)

    def holds_run(self) -> bool:
        return any((self.path / name).exists() for name in (*FILES, "checkpoints"))

    def free_path(self) -> Path:
        """The first of NAME.1, NAME.2, ... that does not exist."""
        paths = (self.path.with_name(f"{self.path.name}.{number}") for number in count(1))
        return next(path for path in paths if not os.path.lexists(path))
