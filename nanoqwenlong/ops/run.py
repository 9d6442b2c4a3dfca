"""The life of a training run: its directory, its checkpoints, how it stops, ends and resumes.

    with Run(config) as run:                            joins the other ranks, locks the directory, finds a checkpoint
        model = ... from run.source or config.model
        run.begin(model, tokenizer, optimizer, sampler=sampler)          loads the rest of the checkpoint into these
        for step in run.steps(last=100, ends={50}):                      saves a checkpoint between two steps when due
            run.part("update", longest=...)                              names the next part, for times and for errors

exit.json says how the last start ended. The same command resumes a run to the same bits.
"""

import inspect
import math
import os
import re
import shlex
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from .. import errors, parallel
from ..pretrained import hub
from ..pretrained.template import read_template
from . import checkpoint, exits, files, flags
from .directory import Directory
from .log import Log, progress
from .precision import bfloat16_pays
from .settings import computing_dtype

# RuntimeErrors of torch on a CPU and of cuBLAS
OUT_OF_MEMORY = re.compile("can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED")


class Run:
    """One run. source: the checkpoint that is resumed, later the newest, or None. dtype: what the model computes in.
    times: seconds of this step's parts. error: raised once this step is saved. All ranks set it alike."""

    def __init__(self, config):
        self.config, self.script = config, Path(inspect.getfile(type(config)))
        self.log, self.directory, self.source, self.state = Log(None), None, None, {}
        self.step, self.done, self.ended, self.streaks = 0, 0, False, {}       # done: the last complete step
        self.signal, self.error, self.unsaved = "", None, True  # unsaved: whether a second Ctrl-C stops at once
        self.started = time.monotonic()                        # less the seconds of earlier starts
        self.times, self.part_name, self.part_began, self.longest = Counter(), "", 0.0, 0
        self.last, self.begins = 0, deque(maxlen=50)           # the last step. When the newest steps began

    def __enter__(self) -> "Run":
        cfg = self.config
        if cfg.name in ("", ".", "..") or Path(cfg.name).name != cfg.name:
            raise errors.ConfigError(f"--name {cfg.name!r} should be a plain name; --runs-dir says where it is kept")
        self.device = parallel.start(cfg.device, cfg.timeout_minutes)
        self.num_hosts = parallel.num_hosts()
        torch.set_num_threads(cfg.threads)
        directory = None if cfg.dry_run or parallel.rank() > 0 else Path(cfg.runs_dir, cfg.name)
        self.log = Log(directory, quiet=parallel.rank() > 0)
        places = {name: hub.directory(getattr(cfg, name)) for name in ("model", "judge") if hasattr(cfg, name)}
        # What a run records is a snapshot of the hub and the template's text, so that others are noticed
        self.config = cfg = replace(cfg, **places, prompt_template=read_template(cfg.prompt_template))
        settings = flags.as_json(cfg)
        try:
            if not cfg.dry_run:
                # Record what runs. Later edits of the source do not count: Python has read it
                code = parallel.gather(files.code(self.script))[0]
                self.directory = Directory(cfg, settings, code, self.log)
                self._listen()                                 # verifying a checkpoint can take minutes
                self.source, self.state = self.directory.find_source()
            if settings["dtype"] == "auto" and cfg.device == "cpu" and bfloat16_pays(cfg.model, self.log.say):
                settings["dtype"] = "bfloat16"
            self.dtype = computing_dtype(replace(cfg, dtype=settings["dtype"]))
            self.weights_dtype = torch.promote_types(self.dtype, torch.float32)
            settings["dtype"] = str(self.dtype).removeprefix("torch.")
        except BaseException:
            if self.directory:
                self.directory.unlock()
            raise
        return self

    def prepare(self, model) -> None:
        """Split a new model over the ranks, computing in `dtype`. Qwen.from_pretrained calls it."""
        parallel.shard(model, model.model.layers, self.dtype, self.device, self.config.offload)

    def begin(self, model, tokenizer, optimizer, **states) -> None:
        """Make the directory, or load the checkpoint into the optimizer and `states`. The model is loaded.
        Each of `states` has state_dict and load_state_dict, of values that JSON can hold."""
        self.model, self.tokenizer, self.optimizer, self.states = model, tokenizer, optimizer, states
        if self.directory is None:
            return
        self.prompts = {"what the chat template writes": tokenizer.digest()}   # by its version of transformers
        if self.source:
            checkpoint.load_optimizer(self.source, model, optimizer)
            if missing := sorted(states.keys() - self.state["states"].keys()):
                raise errors.CheckpointError(f"{self.source} has no {missing[0]} (another version wrote it): "
                                             "start again from its weights, with --model and another --name")
            for name, each in states.items():
                each.load_state_dict(self.state["states"][name])
            self.step = self.done = self.state["step"]
            self.directory.compare_code(self.state.get("prompts", self.prompts), self.prompts, self.step)
            self.ended, self.streaks = self.state["ended"], self.state["streaks"]
            self.started -= self.state["seconds"]
        sizes = self.state.get("logs", {})
        parallel.on_all_ranks(lambda: parallel.rank() == 0 and self.directory.begin(sizes), "cannot begin the run")
        self.directory.begun = True                            # on all ranks
        if self.source:
            self.log.say(f"resuming from {self.source}")

    def steps(self, last: int, ends: Collection[int] = ()) -> Iterator[int]:
        """The numbers of the steps that remain, up to `last`. A checkpoint is saved every --save-every steps, after the
        steps in `ends` (never pruned), after the last step and after a signal. All ranks agree on that."""
        last = self.last = min(last, 1) if self.config.dry_run else last
        if self.source:
            self._prune(ends)                                  # the start before may have died while it pruned
        bar = progress(range(self.done, last), self.script.stem, quiet=self.log.quiet)
        if self.done >= last or self.ended:
            self.log.say(f"{self.directory.path} is complete: {self.done} steps")
        self._stop_if_signalled()
        while self.done < last and not self.ended:
            self.step, self.times, self.unsaved = self.done + 1, Counter(), True
            self.begins.append(time.monotonic())
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
        self.log.say(f"done. To evaluate this model: {self.evaluation()}" if self.source else
                     "dry run: one step, and nothing is kept")

    def line(self, values: dict, headline: dict[str, str], minutes: float = 0) -> None:
        """Print this step (headline: see Log.line) and the time left at the newest pace, up to `minutes` of the run."""
        left = (time.monotonic() - self.begins[0]) / len(self.begins) * (self.last - self.step)
        left = min(left, max(0, 60 * minutes - self.seconds)) if minutes else left
        self.log.line(f"step {self.step:{len(str(self.last))}} of {self.last}", values, headline, left)

    def stop(self, why: str) -> None:
        self.ended = True
        self.log.say(f"stopped: {why}")

    def part(self, name: str, longest: int = 0) -> None:
        """Begin a part of the step ("sample", "update", ...). longest: tokens of the longest sequence in it."""
        now = time.monotonic()
        if self.part_name:
            self.times[self.part_name] += now - self.part_began
        self.part_name, self.part_began, self.longest = name, now, longest

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started                 # over all its starts

    def watch(self, norm: float, ids: Sequence) -> bool:
        """Whether an update was made: `norm`, from optim.step, is finite. If not, the ids of its examples go to
        skipped.jsonl. Raises NonFinite after --max-bad-updates in a row."""
        bad_updates = self.in_a_row("bad updates", not math.isfinite(norm))
        if not bad_updates:
            return True
        self.log.append("skipped.jsonl", self.step, {"ids": list(ids)})
        self.log.say(f"    step {self.step}: the loss or its gradient is not finite; nothing was updated")
        if bad_updates >= self.config.max_bad_updates:
            raise errors.NonFinite(
                f"the loss or its gradient was not finite {bad_updates} times in a row, up to step {self.step}: see "
                "skipped.jsonl, or start from the last checkpoint under another --name with a lower --learning-rate")
        return False

    def in_a_row(self, event: str, happened: bool) -> int:
        """How many times in a row `event` has happened, over all starts, this time included."""
        self.streaks[event] = self.streaks.get(event, 0) + 1 if happened else 0
        return self.streaks[event]

    def save(self, ends: Collection[int]) -> None:
        """Save a checkpoint of the steps so far, then prune older ones."""
        if self.directory is None:
            return
        self.unsaved, directory = False, self.directory
        sizes = parallel.on_all_ranks(self.log.sizes, "cannot sync the logs")[0]
        state = {"step": self.done, "ended": self.ended, "streaks": self.streaks, "seconds": self.seconds,
                 "logs": sizes, "config": directory.settings, "code": directory.code, "inputs": directory.inputs,
                 "prompts": self.prompts, "states": {name: each.state_dict() for name, each in self.states.items()}}
        path = directory.checkpoints / checkpoint.name_of(self.done)
        checkpoint.save(path, self.model, self.tokenizer, self.optimizer, state)
        self._prune(ends)
        self.source = path
        self.log.say(f"saved {path}")

    def _prune(self, ends: Collection[int]) -> None:
        path, keep = self.directory.checkpoints, self.config.keep
        parallel.on_all_ranks(lambda: checkpoint.prune(path, keep, ends), "cannot remove")

    def _listen(self) -> None:
        """From now on a signal stops the run after its step is saved. exits.start puts the old handlers back."""
        def note(number, frame):
            if self.signal and number == signal.SIGINT and self.unsaved:
                lost = f", step {self.step} is not saved" if self.step > self.done else ""
                raise KeyboardInterrupt(f"stopped at once{lost}")
            if not self.signal:
                self.signal = signal.Signals(number).name
                more = " (Ctrl-C once more: at once, without saving it)" if number == signal.SIGINT else ""
                with suppress(OSError, AttributeError):        # the terminal is closed. print is not safe here
                    text = f"{self.signal}: stopping after step {self.step}{more}\n"
                    os.write(sys.stderr.fileno(), text.encode())
        for name in exits.SIGNALS:
            if signal.getsignal(signal.Signals[name]) != signal.SIG_IGN:       # nohup ignores SIGHUP
                signal.signal(signal.Signals[name], note)

    def _stop_if_signalled(self) -> None:
        if name := next(filter(None, parallel.gather(self.signal)), ""):
            raise errors.Stopped(f"stopped by {name} after step {self.done}; resume with: {self.command()}")

    def command(self) -> str:
        words = [here(sys.executable, "python")]
        if parallel.size() > 1:
            nodes = f"--nnodes={self.num_hosts} --rdzv-backend=c10d --rdzv-endpoint=HOST:29500"
            words = [str(Path(words[0]).with_name("torchrun")),
                     *(nodes.split() if self.num_hosts > 1 else ["--standalone"]),
                     f"--nproc_per_node={parallel.size() // self.num_hosts}"]
        return shlex.join([*words, here(self.script), *flags.flags(replace(self.config, resume="auto"))])

    def evaluation(self) -> str:
        """The command that evaluates the newest checkpoint: on the held-out files, else on the data."""
        cfg, data = self.config, getattr(self.config, "data", ())
        chosen = {"data": getattr(cfg, "heldout", data) or data and ("HELDOUT.jsonl",),
                  **{name: getattr(cfg, name, ()) for name in ("task", "device", "dtype", "max_new_tokens")}}
        words = [here(sys.executable, "python"), here(self.script.with_name("eval.py")), "--model", str(self.source)]
        for name, value in chosen.items():
            words += flags.flag_words(name, value) if value != getattr(type(cfg), name, ()) else []
        return shlex.join(words)

    def __exit__(self, kind, error, traceback) -> None:
        self.signal, self.unsaved = self.signal or "over", False               # from now on signals change nothing
        raised, error = error, parallel.lost_ranks(error) or error
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or (
                isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error))):
            error = errors.OutOfMemory(exits.memory_sentence(self.config, self.step, self.part_name, self.longest))
        try:
            if self.directory and self.directory.begun:
                self._write_exit(error)
        finally:
            if self.directory:
                self.directory.unlock()
        if error is not raised:
            raise error from raised

    def _write_exit(self, error: BaseException | None) -> None:
        """Write exit.json, on the first rank or one that failed. A rank that lost another does not overwrite it."""
        path, lost = self.directory.path / "exit.json", isinstance(error, errors.LostRanks)
        failed = error is not None and not lost and not isinstance(error, errors.Stopped)
        if not failed and (parallel.rank() > 0 or lost and path.exists()):
            return
        content = {"code": errors.exit_code(error), "reason": "done" if error is None else exits.sentence(error),
                   "step": self.done, "checkpoint": str(self.source) if self.source else None,
                   "resume_command": None if error is None else self.command()}
        with suppress(OSError):                                # the disk may be the reason
            files.put(path, content)


def here(path: Path | str, elsewhere: str = "") -> str:
    """The path from the current directory if it is below it, else `elsewhere`, else the path as it is."""
    shortest = os.path.relpath(path)
    return elsewhere or str(path) if shortest.startswith("..") else shortest
