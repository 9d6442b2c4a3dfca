"""A training run in a forked child that dies by SIGKILL at one of the points it passes, and what it left on the disk.

A point lies between two actions of a run: before every part of a step, around every optimizer step, before every
operation that changes the disk, and in the middle of every write. No list of them is needed. Python's audit events
report what is opened for writing, renamed or removed. fsync, write and safetensors' own writer are wrapped.
"""

import builtins
import gc
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy
import torch

import train_rl
from nanoqwenlong import errors, optim, rewards
from nanoqwenlong.analysis import evaluate
from nanoqwenlong.ops import run
from nanoqwenlong.ops.log import FILES
from nanoqwenlong.pretrained import weights

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod", "os.truncate", "os.link", "os.symlink"}
KILLED, FAULTY, SECONDS = -signal.SIGKILL, 99, 60


@dataclass(frozen=True)
class Case:
    """One run: a script, its settings, the steps whose loss is not finite, and the exit code it should end with."""

    script: ModuleType
    config: object
    bad_steps: frozenset[int] = frozenset()
    code: int = errors.DONE

    def start(self, directory: Path, die_at: int = 0, tamper: Callable = lambda: None,
              victims: Mapping[int, Sequence[int]] = {}) -> int:
        """The exit code of a child that runs it in `directory` and dies at its `die_at`-th point. The child calls
        `tamper` before the run. For `victims` see Points."""
        directory.mkdir(parents=True, exist_ok=True)
        child = os.fork()
        if child == 0:
            try:
                os._exit(self._live(directory, Points(die_at, victims), tamper))
            except BaseException:
                traceback.print_exc()
                os._exit(FAULTY)
        ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert ended == KILLED or 0 <= ended != FAULTY, f"{ended}\n{(directory / 'console').read_text()[-3000:]}"
        return ended

    def _live(self, directory: Path, points: "Points", tamper: Callable) -> int:
        gc.disable()
        signal.alarm(SECONDS)
        os.chdir(directory)
        sys.stdout = sys.stderr = open("console", "w", buffering=1)
        code, before = errors.DONE, generators()
        train_rl.score_all = evaluate.score_all = score_by_text
        run.time = SimpleNamespace(monotonic=itertools.count().__next__)       # every look at the clock: a second later
        points.watch(self.bad_steps)
        tamper()
        try:
            self.script.main(self.config)
        except Exception as error:
            traceback.print_exc()
            code = errors.exit_code(error)
        names = list(points.names)
        assert generators() == before, "a global random number generator was used"
        Path("points.json").write_text(json.dumps(names))
        return code


class Points:
    """Counts the points that a run passes, each with its name, and dies at the `die_at`-th.

    victims: {point: later points}. At that point the run forks a copy of itself for each later point. The copy
    continues in a copy of the directory, ../NUMBER, and dies at its later point. So many die, but the way there is run
    only once."""

    def __init__(self, die_at: int, victims: Mapping[int, Sequence[int]]):
        self.names, self.die_at, self.victims, self.where, self.muted = [], die_at, victims, "start", False

    def reach(self, name: str, last_words: Callable = lambda: None) -> None:
        """`last_words` is called before dying, if this is the point to die at."""
        if not self.muted:
            self.names.append(f"{self.where}: {name}")
            for place in self.victims.get(len(self.names), ()):
                if self._fork(place):
                    break
            if len(self.names) == self.die_at:
                self.muted = True
                last_words()
                os.kill(os.getpid(), signal.SIGKILL)

    def _fork(self, place: int) -> bool:
        """Fork a copy that dies at that place. Returns True in the copy. The run itself waits for the copy's end."""
        self.muted = True
        directory = shutil.copytree(".", f"../{place}")
        self.muted, child = False, os.fork()
        if child == 0:
            signal.alarm(SECONDS)
            os.chdir(directory)
            self.die_at, self.victims = place, {}
            return True
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED
        signal.alarm(SECONDS)
        return False

    def watch(self, bad_steps: frozenset[int]) -> None:
        """Put a point wherever one belongs. This cannot be undone, so it is for a process that ends soon."""
        part, save, step, save_file = (run.Run.part, run.Run.save, optim.step,
                                                weights.save_file)

        def named_part(this, name, longest=0):
            self.where = f"step {this.step}" if name == "step" else self.where
            self.reach(name or "over")
            part(this, name, longest)

        def named_save(this, ends):
            self.where = f"save {this.done}"
            save(this, ends)
            self.where = "end"

        def around_step(*args):
            self.reach("before the update")
            bad = int(self.where.split()[1]) in bad_steps
            norm = step(*args[:4], float("nan") if bad else args[4])
            self.reach("after the update")
            return norm

        def fsync(handle):                                     # a kill loses nothing of what was written
            self.reach(f"fsync {Path(os.readlink(f'/proc/self/fd/{handle}')).name}")

        def half_of_tensors(tensors, path, **settings):
            self.reach(f"save_file {path.name}")
            save_file(tensors, path, **settings)
            self.reach(f"half of {path.name}", lambda: os.truncate(path, path.stat().st_size // 2))

        run.Run.part, run.Run.save, optim.step = named_part, named_save, around_step
        os.fsync, weights.save_file = fsync, half_of_tensors
        builtins.open = io.open = self._half_writes(io.open)
        sys.addaudithook(self._audit)

    def _audit(self, event: str, args: tuple) -> None:
        if event in CHANGES or event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR):
            self.reach(f"{event} {Path(str(args[0])).name}")

    def _half_writes(self, real_open: Callable) -> Callable:
        """An `open` whose files may be left half written."""
        def opened(path, *args, **kwargs):
            file = real_open(path, *args, **kwargs)
            if file.writable():
                whole = file.write

                def write(content):
                    self.reach(f"half of {Path(str(path)).name}",
                               lambda: (whole(content[:len(content) // 2]), file.flush()))
                    return whole(content)
                file.write = write
            return file
        return opened


def score_by_text(texts, examples, judge=None):
    """Replaces the rule: a function of the text, so that answers to one question disagree."""
    return [[rewards.Score(float(sum(map(ord, text)) % 2), 0.0, None, text) for text in group] for group in texts]


def generators() -> str:
    """The state of every global random number generator, as a digest."""
    state = repr((random.getstate(), numpy.random.get_state(), torch.get_rng_state().tolist()))
    return sha256(state.encode()).hexdigest()


def contents(directory: Path) -> dict:
    """Everything that a run left, by path: files byte for byte, without dates and durations."""
    found = {}
    for path in (directory / "runs").rglob("*"):
        if path.name != ".lock":
            found[str(path.relative_to(directory))] = None if path.is_dir() else timeless(path)
    for path in (directory / "runs").glob("*/metrics.jsonl"):
        elapsed = [float(number) for number in re.findall(rb'"elapsed": ([^,}]+)', path.read_bytes())]
        found["elapsed rises"] = elapsed == sorted(set(elapsed))
    return found


def timeless(path: Path):
    """A file without times, and without what depends on them."""
    content = path.read_bytes()
    try:
        if path.name == "state.json":
            state = json.loads(content)
            del state["seconds"]
            state["logs"] = {name: without_elapsed((path.parents[2] / name).read_bytes()[:size])
                             for name, size in state["logs"].items()}
            return state
        if path.name == "manifest.json":
            manifest = json.loads(content[:-65])
            del manifest["files"]["state.json"]
            return manifest
    except (ValueError, KeyError):
        pass                                                   # half a file: compared as it is
    return without_elapsed(content) if path.name in FILES else content


def without_elapsed(lines: bytes) -> bytes:
    return re.sub(rb'"elapsed": [^,}]+', b"", lines)


class Reference:
    """An undisturbed run: the names of the points it passed, and what it left."""

    def __init__(self, case: Case, directory: Path):
        assert case.start(directory) == case.code, (directory / "console").read_text()
        self.case, self.left = case, contents(directory)
        self.points = json.loads((directory / "points.json").read_text())

    def places(self, *kinds: str) -> list[int]:
        """The numbers of the points whose names begin with one of these words, from 1."""
        return [place for place, name in enumerate(self.points, start=1) if name.startswith(kinds)]

    def kill(self, directory: Path, place: int) -> Path:
        """Start it in `directory` and kill it at a point."""
        assert self.case.start(directory, place) == KILLED, f"it passed fewer than {place} points"
        return directory

    def missed(self, directory: Path, tamper: Callable = lambda: None) -> list[str]:
        """Finish the run in `directory`. Returns the paths in which it differs from the undisturbed run."""
        ended, left = self.case.start(directory, tamper=tamper), contents(directory)
        return [f"exit code {ended}"] * (ended != self.case.code) + sorted(
            path for path in {*left, *self.left} if left.get(path, "") != self.left.get(path, ""))

    def all_missed(self, scratch: Path, places: Sequence[int], again: Mapping[int, int] = {}) -> dict:
        """{point: paths that differ} for runs killed at each of these points. `again` maps a point to one at which the
        next start is killed, too."""
        begins = [place for place, name in enumerate(self.points, start=1)
                  if place == 1 or name.split(":")[0] != self.points[place - 2].split(":")[0]]
        victims = {begin: [place for place in places if begin <= place < end]
                   for begin, end in zip(begins, [*begins[1:], len(self.points) + 1])}
        assert self.case.start(scratch / "whole", victims=victims) == self.case.code
        found = {}
        for place in places:
            directory = scratch / str(place)
            if place in again:
                self.kill(directory, again[place])
            if missed := self.missed(directory):
                found[place, self.points[place - 1]] = missed
            shutil.rmtree(directory)
        return found
