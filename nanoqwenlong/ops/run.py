"""The life of a run: its directory, its checkpoints, how it is stopped, how it ends, and how it goes on.

    with run.Run(config) as this:                       joins the other ranks, locks the directory, finds what to resume
        model = ... from this.source or config.model
        this.begin(model, tokenizer, optimizer, sampler=sampler)         the rest of the checkpoint goes into these
        for step in this.steps(last=100, ends={50}):                     saves between two steps, when it is time
            this.part("update", longest=...)                             what goes on, for the clock and for bad news

RUNS_DIR/NAME then holds config.json, metrics.jsonl, rollouts.jsonl, checkpoints/step_*, and exit.json: how the last
start ended, and the command to go on with. The same command goes on by itself, to the same bits.
"""

import errno
import inspect
import math
import os
import shlex
import signal
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NoReturn

import torch

from .. import errors, parallel
from ..errors import ConfigError, SamplingError
from ..pretrained.digest import file_digest
from ..pretrained.weights import read_json, write_json
from . import checkpoint, flags
from .log import FILES, Log, progress, tell
from .presets import SOURCES
from .settings import free_names

try:
    import fcntl
except ImportError:                     # Windows: no locks
    fcntl = None

from ..errors import DONE, NonFinite, OutOfMemory, Stopped, exit_code

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
STATE = {"step", "ended", "streaks", "seconds", "logs", "config", "inputs", "states"}         # keys of state.json


def start(main: Callable, config_class, presets: dict[str, dict], argv: list[str]) -> int:
    """Parse the flags, call main(config), return the exit code. What a user can mend is told in one sentence."""
    try:
        main(flags.parse(config_class, argv, presets))
        parallel.stop()
        return DONE
    except (errors.UserError, OSError, KeyboardInterrupt) as error:
        own = isinstance(error, OutOfMemory | errors.LostRanks | SamplingError | OSError) and not (
            isinstance(error, errors.Elsewhere | FileNotFoundError))
        if parallel.rank() == 0 or own:                                        # else all ranks have the same to say
            tell(sentence(error), sys.stderr)
        return exit_code(error)


def exit_process(code: int) -> NoReturn:
    """The end of a script. Under torchrun at once, without Python's and C++'s last rites: torch's caches of sharded
    layouts keep gloo's threads alive beyond destroy_process_group, and one run in thirty died of that, its work done,
    with SIGABRT ("terminate called without an active exception")."""
    if parallel.is_launched():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def sentence(error: BaseException) -> str:
    """What is told of an error; of a released model that is not there, also how to fetch it."""
    if isinstance(error, OSError):
        told = parallel.reason(error)
        for source in SOURCES.values():
            place = f"models/{source.split('/')[1]}"
            if isinstance(error, FileNotFoundError) and place in told.replace(":", "").split():
                told += f"; to fetch it: hf download {source} --local-dir {place}"
        return told
    return str(error) or ("interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__)


def computing_dtype(config) -> torch.dtype:
    """What a model computes in: bfloat16 on a GPU, float32 elsewhere, unless told."""
    if config.dtype == "auto":
        return torch.bfloat16 if config.device.startswith("cuda") else torch.float32
    return DTYPES[config.dtype]


class Run:
    """One run, from the moment its settings are known. `config` is a script's Config.

    source: the checkpoint it goes on from, or None. device: of this rank. dtype: what the model computes in.
    weights_dtype: of the weights and the optimizer, float32 at least. times: seconds of this step's parts."""

    def __init__(self, config):
        self.config, self.directory, self.source = config, None, None
        self.script = Path(inspect.getfile(type(config))).stem
        self.log, self.lock, self.existed, self.begun = Log(None), None, False, False
        self.step, self.done, self.ended, self.streaks = 0, 0, False, {}
        self.asked, self.leaving, self.saving, self.handlers = "", None, False, {}
        self.started, self.spent = time.monotonic(), 0.0       # now, and seconds of earlier starts
        self.times, self.doing, self.since, self.longest = Counter(), "", 0.0, 0

    # Before the first step

    def __enter__(self) -> "Run":
        cfg = self.config
        if cfg.name in ("", ".", "..") or Path(cfg.name).name != cfg.name:
            raise ConfigError(f"--name {cfg.name!r} should be a plain name; --runs-dir says where the run is kept")
        self.device = parallel.start(cfg.device, cfg.timeout_minutes)
        self.num_hosts = parallel.num_hosts()
        self.dtype = computing_dtype(cfg)
        self.weights_dtype = torch.promote_types(self.dtype, torch.float32)
        self.settings = {**flags.as_json(cfg), "dtype": str(self.dtype).removeprefix("torch.")}
        self.log = Log(None, quiet=parallel.rank() > 0)
        if not cfg.dry_run:
            self.directory = Path(cfg.runs_dir) / cfg.name
            try:
                self._find()
            except BaseException:
                self._unlock()
                raise
            self._listen()
        return self

    def _find(self) -> None:
        """Whether the directory holds a run already, and what of it is the newest that can be gone on from."""
        directory, cfg = self.directory, self.config
        self.existed = directory.is_dir()
        parallel.on_all_ranks(lambda: self.existed and self._lock(), "cannot use the directory")
        checkpoints = directory / "checkpoints"
        for path in (directory, checkpoints):
            if path.exists() and not path.is_dir():
                raise ConfigError(f"{path} is a file where a run wants a directory; choose another --name")
        if not parallel.gather(holds_run(directory))[0]:
            return
        if cfg.resume == "never":
            raise ConfigError(f"{directory} already holds a run; choose another --name, or remove it first, or let it "
                              "go on with --resume auto")
        self.source, spoilt = checkpoint.newest(checkpoints)
        for complaint in spoilt:
            self.log.say(f"passed over {complaint}")
        before = self.settings
        if self.source:
            state = checkpoint.read_state(self.source)
            if lacking := sorted(STATE - state.keys()):
                raise errors.CheckpointError(f"{self.source}/state.json lacks {lacking[0]!r}: start anew from its "
                                                 "weights, with --model and another --name")
            before = state["config"]
        elif (directory / "config.json").exists():
            before = read_json(directory / "config.json")
        self._compare(before)
        if not spoilt and self.source is None and num_lines(directory / "metrics.jsonl") > before.get("save_every", 0):
            raise errors.CheckpointError(f"{directory} has more steps in metrics.jsonl than are made without a "
                                             "checkpoint, and no checkpoint: was it removed? Remove the directory, or "
                                             "choose another --name")
        if spoilt and self.source is None:
            raise errors.CheckpointError(f"no checkpoint of {directory} can be gone on from; start anew with "
                                             f"another --name, or remove {checkpoints}")
        parallel.on_all_ranks(lambda: checkpoint.set_aside(checkpoints, self.source), "cannot set a checkpoint aside")
        if self.source:
            for path, then in state["inputs"].items():
                if (now := self.inputs.get(path)) != then:
                    raise ConfigError(f"{path} is not what it was when this run began (sha256 {then[:12]}... then, "
                                      f"{(now or 'missing')[:12]}... now): put it back, or choose another --name")

    @cached_property
    def inputs(self) -> dict[str, str]:
        """{path: sha256} of the files that every start of the run reads again; they are read once for it."""
        return inputs(self.config)

    def _compare(self, before: dict) -> None:
        """Going on with other settings would be another run."""
        now = self.settings
        for name in sorted(now.keys() - free_names(self.config)):
            if name == "judge" and is_url(now[name]) and is_url(before.get(name, "")):
                continue                                                       # the same model is served elsewhere now
            if name in before and before[name] != now[name]:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{self.directory} was begun with {flag} {before[name]!r}, now it is {now[name]!r}: "
                                  "give the same to go on with it, or choose another --name")

    def _lock(self) -> None:
        """One directory, one job. The lock goes with the process, however it ends."""
        if fcntl is None or parallel.rank() > 0:
            return
        path = self.directory / ".lock"
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(handle, 200).decode(errors="replace").strip()
            os.close(handle)
            raise OSError(error.errno, f"in use by another job ({holder or 'which has just begun'}): wait for it, or "
                                       "choose another --name", str(self.directory)) from None
        except OSError as error:                                               # some network file systems have none
            self.log.say(f"{path}: no lock ({error.strerror}); take care that no other job uses this directory")
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        self.lock = handle

    def _unlock(self) -> None:
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def prepare(self, model) -> None:
        """Split the model over the ranks, computing in `dtype`: for Qwen.from_pretrained."""
        parallel.shard(model, model.model.layers, self.dtype, self.device, self.config.offload)

    def begin(self, model, tokenizer, optimizer, **states) -> None:
        """From here on the run has a directory. What a checkpoint is made of: the model (which this run has read from
        `source`), and, filled in here, the optimizer and all of `states`, which have state_dict and load_state_dict
        (of what JSON can say)."""
        self.model, self.tokenizer, self.optimizer, self.states = model, tokenizer, optimizer, states
        if self.directory is None:
            return
        saved = {}
        if self.source:
            state = checkpoint.read_state(self.source)
            checkpoint.load_optimizer(self.source, model, optimizer)
            for name, thing in states.items():
                if name not in state["states"]:
                    raise errors.CheckpointError(f"{self.source}/state.json lacks {name!r}: another version of "
                                                     "this program wrote it; start anew from its weights, with --model "
                                                     "and another --name")
                thing.load_state_dict(state["states"][name])
            self.step = self.done = state["step"]
            self.ended, self.streaks, self.spent = state["ended"], state["streaks"], state["seconds"]
            saved = state["logs"]
        parallel.on_all_ranks(lambda: parallel.rank() == 0 and self._open(saved), "cannot begin the run")
        self.begun = True
        if self.source:
            self.log.say(f"going on from {self.source}")

    def _open(self, saved: dict[str, int]) -> None:
        new = [path for path in (self.directory, *self.directory.parents) if not path.exists()]
        self.directory.mkdir(parents=True, exist_ok=True)
        for path in new:                                                       # a lost directory loses what is in it
            checkpoint.sync(path.parent)
        if not self.existed:
            self._lock()
            if holds_run(self.directory):
                raise OSError(errno.EEXIST, "another job has just begun it: choose another --name", str(self.directory))
        self.log, self.begun = Log(self.directory), True
        self.log.cut(saved)
        (self.directory / "exit.json").unlink(missing_ok=True)
        put(self.directory / "config.json", self.settings)

    # Step by step

    def steps(self, last: int, ends: Collection[int] = ()) -> Iterator[int]:
        """The numbers of the steps yet to be done, up to `last`. Between two of them a checkpoint is saved if it is
        time: every --save-every steps, after the steps in `ends` (those checkpoints stay) and the last one, and when a
        signal asked the run to stop. That is agreed on by all ranks, so all stop after the same step."""
        last = min(last, 1) if self.config.dry_run else last
        if self.source:
            self._prune(ends)                                                  # the start before may have died at it
        bar = progress(range(self.done, last), self.script, quiet=self.log.quiet)
        if self.done >= last or self.ended:
            self.log.say(f"{self.directory} is complete: {self.done} steps")
        self._stop_if_asked()
        while self.done < last and not self.ended:
            self.step, self.times = self.done + 1, Counter()
            self.part("step")
            yield self.step
            self.part("")
            self.done = self.step
            bar.update()
            over, stop = self.done == last or self.ended, parallel.any_rank(bool(self.asked or self.leaving))
            if over or stop or self.done in ends or self.done % self.config.save_every == 0:
                self._save(ends)
                if self.leaving:
                    raise self.leaving
                if not over:                                                   # also if it was asked while saving
                    self._stop_if_asked()
        bar.close()

    def end(self, why: str) -> None:
        """This step is the last one."""
        self.ended = True
        self.log.say(f"stopped: {why}")

    def leave(self, error: Exception) -> None:
        """After this step, and saved, the run ends with `error`. All ranks must say so alike."""
        self.leaving = error

    def part(self, name: str, longest: int = 0) -> None:
        """A part of a step begins ("sample", "update", ...), and the one before it ends. longest: tokens of the longest
        sequence in it, for the sentence about too little memory."""
        now = time.monotonic()
        if self.doing:
            self.times[self.doing] += now - self.since
        self.doing, self.since, self.longest = name, now, longest

    @property
    def seconds(self) -> float:
        """That the run has taken, over all its starts."""
        return self.spent + time.monotonic() - self.started

    def is_late(self, minutes: float) -> bool:
        """Whether it has taken so many minutes (0: never), agreed on by all ranks."""
        return minutes > 0 and parallel.any_rank(self.seconds > minutes * 60)

    def watch(self, norm: float, ids: Sequence) -> bool:
        """Whether an update was made, `norm` being what optim.step returned. If not, the ids of its examples go to
        skipped.jsonl; raises NonFinite after --max-bad-updates of them in a row."""
        bad_updates = self.in_a_row("bad updates", not math.isfinite(norm))
        if not bad_updates:
            return True
        self.log.skipped(step=self.step, ids=list(ids))
        self.log.say(f"    step {self.step}: the loss or its gradient is not finite; nothing was updated")
        if bad_updates >= self.config.max_bad_updates:
            raise NonFinite(f"the loss or its gradient was not finite {bad_updates} times in a row, up to step "
                            f"{self.step}; nothing was updated (the examples are in skipped.jsonl): look at them, or "
                            "start from the last checkpoint under another --name with a lower --learning-rate")
        return False

    def in_a_row(self, what: str, happened: bool) -> int:
        """How many times in a row, this time included, `what` has happened; a resumed run counts on."""
        self.streaks[what] = self.streaks.get(what, 0) + 1 if happened else 0
        return self.streaks[what]

    def _save(self, ends: Collection[int]) -> None:
        if self.directory is None:
            return
        self.saving = True
        path = self.directory / "checkpoints" / checkpoint.name_of(self.done)
        sizes, = parallel.on_all_ranks(self.log.sizes, "cannot sync the logs")[:1]
        state = {"step": self.done, "ended": self.ended, "streaks": self.streaks, "seconds": self.seconds,
                 "logs": sizes, "config": self.settings, "inputs": self.inputs,
                 "states": {name: thing.state_dict() for name, thing in self.states.items()}}
        checkpoint.save(path, self.model, self.tokenizer, self.optimizer, state)
        self._prune(ends)
        self.source, self.saving = path, False
        self.log.say(f"saved {path}")

    def _prune(self, ends: Collection[int]) -> None:
        checkpoints = self.directory / "checkpoints"
        parallel.on_all_ranks(lambda: checkpoint.prune(checkpoints, self.config.keep, ends), "cannot remove")

    # How it ends

    def _listen(self) -> None:
        """From here on a signal only asks: the step is finished first, and saved."""
        def ask(number, frame):
            if self.asked and number == signal.SIGINT and not self.saving:
                raise KeyboardInterrupt(f"stopped at once, step {self.step} is not saved")
            if not self.asked:
                self.asked = signal.Signals(number).name
                more = " (Ctrl-C once more: at once, without saving it)" if number == signal.SIGINT else ""
                try:                                                           # print is not safe here
                    os.write(2, f"{self.asked}: stopping after step {self.step}{more}\n".encode())
                except OSError:                                                # the terminal is closed: SIGHUP
                    pass
        for name in SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:      # nohup stays nohup
                self.handlers[number] = signal.signal(number, ask)

    def _stop_if_asked(self) -> None:
        asked = next(filter(None, parallel.gather(self.asked)), "")
        if asked:
            raise Stopped(f"stopped by {asked} after step {self.done}; go on with: {self.command()}")

    def command(self) -> str:
        """The command line that goes on with this run."""
        words = ["python"]
        if parallel.size() > 1:
            nodes = [f"--nnodes={self.num_hosts}", "--rdzv-backend=c10d", "--rdzv-endpoint=HOST:29500"] if (
                self.num_hosts > 1) else ["--standalone"]
            words = ["torchrun", *nodes, f"--nproc_per_node={parallel.size() // self.num_hosts}"]
        return shlex.join([*words, f"{self.script}.py", *flags.flags(replace(self.config, resume="auto"))])

    def __exit__(self, kind, error, traceback) -> None:
        if error is not None and is_out_of_memory(error):
            told = OutOfMemory(self._memory_sentence())
        elif error is not None and parallel.is_loss(error):
            told = errors.LostRanks(parallel.loss(error))
        else:
            told = error
        try:
            if self.begun:
                self._leave_word(told)
        finally:
            self._unlock()
            for number, handler in self.handlers.items():      # only now: torchrun sends SIGTERM when one rank has left
                signal.signal(number, handler)
        if told is not error:
            raise told from error

    def _leave_word(self, error: BaseException | None) -> None:
        """exit.json: how it ended and how to go on. Of several ranks the first one writes it, and one that failed by
        itself; not those that only lost it."""
        path, mine = self.directory / "exit.json", parallel.rank() == 0
        if isinstance(error, errors.LostRanks):
            mine = mine and not path.exists()
        elif error is not None and not isinstance(error, Stopped):
            mine = True
        if not mine:
            return
        code = exit_code(error)
        content = {"code": code, "reason": "done" if error is None else sentence(error), "step": self.done,
                   "checkpoint": str(self.source) if self.source else None,
                   "resume_command": None if code == DONE else self.command()}
        try:
            put(path, content)
        except OSError:                                                        # the disk, which is the reason
            pass

    def _memory_sentence(self) -> str:
        cfg, longest, knob = self.config, self.longest, ""
        if not self.doing:
            return f"out of memory: give fewer --kv-blocks than {cfg.kv_blocks}, or --offload, or use more ranks"
        if self.doing in ("sample", "evaluate"):
            blocks = max(cfg.kv_blocks // 2, -(-longest // 16))
            knob = f"--kv-blocks {blocks}" if blocks < cfg.kv_blocks else ""
        elif not cfg.checkpointing:
            knob = "--checkpointing"
        elif cfg.max_tokens > max(1, longest):
            knob = f"--max-tokens {max(1, longest, cfg.max_tokens // 2)}"
        elif not cfg.offload:
            knob = "--offload"
        return (f"out of memory in step {self.step} ({self.doing}; the longest sequence there has "
                f"{longest} tokens): " + (f"go on with {knob}" if knob else "only shorter sequences would fit: start "
                                          f"anew under another --name with --max-prompt-tokens {longest * 3 // 4}"))


def is_url(where: str) -> bool:
    return where.startswith(("http://", "https://"))


def holds_run(directory: Path) -> bool:
    return any((directory / name).exists() for name in (*FILES, "checkpoints"))


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def inputs(config) -> dict[str, str]:
    """{path: sha256} of the files that every start of a run reads again."""
    paths = [path for name in ("data", "heldout", "difficulty") if (given := getattr(config, name, ()))
             for path in ([given] if isinstance(given, str) else given)]
    judge = getattr(config, "judge", "")
    reference = getattr(config, "kl_coef", 0) or getattr(config, "measure_kl", False)
    models = [config.model] * bool(reference) + [judge] * bool(judge)
    paths += [str(path) for directory in models for pattern in ("config.json", "*.safetensors")     # reference, judge
              for path in sorted(Path(directory).glob(pattern))]
    return {path: file_digest(Path(path)) for path in paths if Path(path).is_file()}


def put(path: Path, content: dict | str) -> None:
    """A file, of JSON or of text, that is there whole, or as it was."""
    partial = path.with_name(f".{path.name}.{parallel.rank()}.partial")       # several ranks may have a last word
    if isinstance(content, str):
        partial.write_text(content, encoding="utf-8")
    else:
        write_json(partial, content)
    checkpoint.sync(partial)
    partial.replace(path)
