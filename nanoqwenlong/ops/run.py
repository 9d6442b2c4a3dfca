"""The life of a training run: its directory, its checkpoints, how it stops, ends and resumes.

    with Run(config) as run:                            joins the other ranks, locks the directory, finds a checkpoint
        model = ... from run.source or config.model
        run.begin(model, tokenizer, optimizer, sampler=sampler)          loads the rest of the checkpoint into these
        for step in run.steps(last=100, ends={50}):                      saves a checkpoint between two steps when due
            run.part("update", longest=...)                              names the next part, for times and for errors

RUNS_DIR/NAME then holds config.json, metrics.jsonl, rollouts.jsonl, checkpoints/step_* and exit.json: how the last
start ended, and the command that resumes it. The same command resumes a run to the same bits.
"""

import inspect
import math
import os
import shlex
import signal
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from .. import errors, parallel
from . import checkpoint, exits, files, flags
from .directory import Directory
from .log import Log, progress
from .settings import computing_dtype

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")


class Run:
    """One run. `config` is the Config of a training script. source: the checkpoint that is resumed, later the newest
    one, or None. dtype: what the model computes in. weights_dtype: of the weights and the optimizer, float32 at least.
    times: seconds of this step's parts. error: raised once this step is saved. All ranks set it alike."""

    def __init__(self, config):
        self.config, self.script = config, Path(inspect.getfile(type(config)))
        self.log, self.directory, self.source, self.state = Log(None), None, None, {}
        self.step, self.done, self.ended, self.streaks = 0, 0, False, {}       # done: the last complete step
        self.signal, self.error, self.saving, self.handlers = "", None, False, {}
        self.started = time.monotonic()                        # less the seconds of earlier starts
        self.times, self.part_name, self.part_began, self.longest = Counter(), "", 0.0, 0

    # Before the first step

    def __enter__(self) -> "Run":
        cfg = self.config
        if cfg.name in ("", ".", "..") or Path(cfg.name).name != cfg.name:
            raise errors.ConfigError(f"--name {cfg.name!r} should be a plain name; --runs-dir says where it is kept")
        # 1. Join the other ranks
        self.device = parallel.start(cfg.device, cfg.timeout_minutes)
        self.num_hosts = parallel.num_hosts()
        directory = None if cfg.dry_run or parallel.rank() > 0 else Path(cfg.runs_dir, cfg.name)
        self.log = Log(directory, quiet=parallel.rank() > 0)
        self.dtype = computing_dtype(cfg)
        self.weights_dtype = torch.promote_types(self.dtype, torch.float32)
        if cfg.dry_run:
            return self
        # 2. Record what runs. Later edits of the source do not count: Python has read it
        settings = {**flags.as_json(cfg), "dtype": str(self.dtype).removeprefix("torch.")}
        code = parallel.gather(files.code(self.script))[0]
        # 3. Lock the directory and find what to resume
        self.directory = Directory(cfg, settings, code, self.log)
        try:
            self.source, self.state = self.directory.find_source()
        except BaseException:
            self.directory.unlock()
            raise
        self._listen()
        return self

    def prepare(self, model) -> None:
        """Split a new model over the ranks, computing in `dtype`. Qwen.from_pretrained calls it."""
        parallel.shard(model, model.model.layers, self.dtype, self.device, self.config.offload)

    def begin(self, model, tokenizer, optimizer, **states) -> None:
        """Make the directory, or load the checkpoint into the optimizer and `states`. The model's weights are already
        those of `source`. Each of `states` has state_dict and load_state_dict, of values that JSON can hold."""
        self.model, self.tokenizer, self.optimizer, self.states = model, tokenizer, optimizer, states
        if self.directory is None:
            return
        if self.source:
            checkpoint.load_optimizer(self.source, model, optimizer)
            if missing := sorted(states.keys() - self.state["states"].keys()):
                raise errors.CheckpointError(f"{self.source} has no {missing[0]} (another version wrote it): "
                                             "start again from its weights, with --model and another --name")
            for name, each in states.items():
                each.load_state_dict(self.state["states"][name])
            self.step = self.done = self.state["step"]
            self.ended, self.streaks = self.state["ended"], self.state["streaks"]
            self.started -= self.state["seconds"]
        log_sizes = self.state["logs"] if self.source else {}
        parallel.on_all_ranks(lambda: parallel.rank() == 0 and self.directory.begin(log_sizes), "cannot begin the run")
        self.directory.begun = True                            # on all ranks
        if self.source:
            self.log.say(f"resuming from {self.source}")

    # Step by step

    def steps(self, last: int, ends: Collection[int] = ()) -> Iterator[int]:
        """The numbers of the steps that remain, up to `last`.

        A checkpoint is saved between two steps: every --save-every steps, after the steps in `ends` (these checkpoints
        are never pruned), after the last step, and when a signal asked the run to stop. All ranks agree on that."""
        last = min(last, 1) if self.config.dry_run else last
        if self.source:
            self._prune(ends)                                  # the start before may have died while it pruned
        bar = progress(range(self.done, last), self.script.stem, quiet=self.log.quiet)
        if self.done >= last or self.ended:
            self.log.say(f"{self.directory.path} is complete: {self.done} steps")
        self._stop_if_signalled()
        while self.done < last and not self.ended:
            self.step, self.times = self.done + 1, Counter()
            self.part("step")
            yield self.step
            self.part("")
            self.done = self.step
            bar.update()
            over = self.done == last or self.ended
            stops = any(parallel.gather(bool(self.signal or self.error)))
            if over or stops or self.done in ends or self.done % self.config.save_every == 0:
                self.save(ends)
                if self.error:
                    raise self.error
                if not over:                                   # a signal that came while saving counts too
                    self._stop_if_signalled()
        bar.close()

    def stop(self, why: str) -> None:
        """Make this step the last one."""
        self.ended = True
        self.log.say(f"stopped: {why}")

    def part(self, name: str, longest: int = 0) -> None:
        """A part of the step begins ("sample", "update", ...) and the one before it ends. longest: tokens of the
        longest sequence in it, for the sentence about too little memory."""
        now = time.monotonic()
        if self.part_name:
            self.times[self.part_name] += now - self.part_began
        self.part_name, self.part_began, self.longest = name, now, longest

    @property
    def seconds(self) -> float:
        """How long the run has taken, over all its starts."""
        return time.monotonic() - self.started

    def watch(self, norm: float, ids: Sequence) -> bool:
        """Whether an update was made. norm: what optim.step returned. If it is not finite, the ids of the update's
        examples go to skipped.jsonl. Raises NonFinite after --max-bad-updates in a row."""
        bad_updates = self.in_a_row("bad updates", not math.isfinite(norm))
        if not bad_updates:
            return True
        self.log.append("skipped.jsonl", self.step, {"ids": list(ids)})
        self.log.say(f"    step {self.step}: the loss or its gradient is not finite; nothing was updated")
        if bad_updates >= self.config.max_bad_updates:
            raise errors.NonFinite(f"the loss or its gradient was not finite {bad_updates} times in a row, up to step "
                                   f"{self.step}: look at the examples in skipped.jsonl, or start from the last "
                                   "checkpoint under another --name with a lower --learning-rate")
        return False

    def in_a_row(self, event: str, happened: bool) -> int:
        """How many times in a row `event` has happened, this time included. A resumed run keeps counting."""
        self.streaks[event] = self.streaks.get(event, 0) + 1 if happened else 0
        return self.streaks[event]

    def save(self, ends: Collection[int]) -> None:
        """Save a checkpoint of the steps so far, then prune older ones."""
        if self.directory is None:
            return
        self.saving = True
        path = self.directory.checkpoints / checkpoint.name_of(self.done)
        log_sizes = parallel.on_all_ranks(self.log.sizes, "cannot sync the logs")[0]
        state = {"step": self.done, "ended": self.ended, "streaks": self.streaks, "seconds": self.seconds,
                 "logs": log_sizes, "config": self.directory.settings, "code": self.directory.code,
                 "inputs": self.directory.inputs,
                 "states": {name: each.state_dict() for name, each in self.states.items()}}
        checkpoint.save(path, self.model, self.tokenizer, self.optimizer, state)
        self._prune(ends)
        self.source, self.saving = path, False
        self.log.say(f"saved {path}")

    def _prune(self, ends: Collection[int]) -> None:
        parallel.on_all_ranks(lambda: checkpoint.prune(self.directory.checkpoints, self.config.keep, ends),
                              "cannot remove")

    # How it ends

    def _listen(self) -> None:
        """From now on a signal is a request: the step is finished and saved first."""
        def note(number, frame):
            if self.signal and number == signal.SIGINT and not self.saving:
                raise KeyboardInterrupt(f"stopped at once, step {self.step} is not saved")
            if not self.signal:
                self.signal = signal.Signals(number).name
                more = " (Ctrl-C once more: at once, without saving it)" if number == signal.SIGINT else ""
                with suppress(OSError):                        # the terminal is closed. print is not safe here
                    os.write(2, f"{self.signal}: stopping after step {self.step}{more}\n".encode())
        for name in SIGNALS:
            number = signal.Signals[name]
            if signal.getsignal(number) != signal.SIG_IGN:     # nohup ignores SIGHUP
                self.handlers[number] = signal.signal(number, note)

    def _stop_if_signalled(self) -> None:
        name = next(filter(None, parallel.gather(self.signal)), "")
        if name:
            raise errors.Stopped(f"stopped by {name} after step {self.done}; resume with: {self.command()}")

    def command(self) -> str:
        """The command line that resumes this run."""
        words = ["python"]
        if parallel.size() > 1:
            nodes = f"--nnodes={self.num_hosts} --rdzv-backend=c10d --rdzv-endpoint=HOST:29500"
            words = ["torchrun", *(nodes.split() if self.num_hosts > 1 else ["--standalone"]),
                     f"--nproc_per_node={parallel.size() // self.num_hosts}"]
        return shlex.join([*words, self.script.name, *flags.flags(replace(self.config, resume="auto"))])

    def __exit__(self, kind, error, traceback) -> None:
        raised = error
        if exits.is_out_of_memory(error):
            error = errors.OutOfMemory(exits.memory_sentence(self.config, self.step, self.part_name, self.longest))
        else:
            error = parallel.lost_ranks(error) or error
        try:
            if self.directory and self.directory.begun:
                self._write_exit(error)
        finally:
            if self.directory:
                self.directory.unlock()
            for number, handler in self.handlers.items():      # not before: torchrun sends SIGTERM when a rank has left
                signal.signal(number, handler)
        if error is not raised:
            raise error from raised

    def _write_exit(self, error: BaseException | None) -> None:
        """exit.json: how the run ended and how to resume it. The first rank writes it, or a rank that failed by itself.
        A rank that only lost another one does not overwrite it."""
        path, lost = self.directory.path / "exit.json", isinstance(error, errors.LostRanks)
        failed = error is not None and not lost and not isinstance(error, errors.Stopped)
        if not failed and (parallel.rank() > 0 or lost and path.exists()):
            return
        code = errors.exit_code(error)
        content = {"code": code, "reason": "done" if error is None else exits.sentence(error), "step": self.done,
                   "checkpoint": str(self.source) if self.source else None,
                   "resume_command": None if code == errors.DONE else self.command()}
        with suppress(OSError):                                # the disk may be the reason
            files.put(path, content)
