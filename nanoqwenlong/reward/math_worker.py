"""Are two formulas the same? math-verify decides, in processes of its own: this file, run as a program.

A short text ("100000000!") can keep sympy busy for hours or fill the memory. A process can simply be killed. So the
program imports math-verify once, and forks a child for each pair of formulas. A child that is killed costs no import.
Each child has one second of a CPU, and all pairs of a step share one budget. No torch.
"""

import atexit
import json
import os
import re
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from hashlib import blake2b
from importlib.util import find_spec

CPU_SECONDS = 1.0                       # for a pair. A usual pair takes 0.05 s, a slow one 0.4 s
BUDGET = 120.0                          # seconds for all pairs of a step
NUM_CHILDREN = max(2, min(8, (os.cpu_count() or 2) // 2))                      # at the same time
START = 120.0                           # seconds for the program's imports, which may come from a slow disk
MEMORY = 2 << 30                        # bytes of memory for a child, on Linux
MOST_VERDICTS = 100_000                 # that are kept in a checkpoint, the newest
HUGE = re.compile(r"\d{6}[)}]*\s*!|\^[{(]*\d{6}")           # factorials and powers that sympy would multiply out
Pair = tuple[str, str]                  # gold, answer
# compared before the first child: sympy imports and caches
WARM_UP = (("x+1", "2x"), (r"\frac{\sin(x)}{2}", r"\sqrt{x}"), ("(1,2)", "[1,2]"), ("x<1", "x>1"),
           ("x^{2y}", "x^{2+y}"), (r"\frac{x^2}{4}+y^2=1", r"x^2-\frac{y^2}{3}=1"), (r"\int_0^1 x^2 dx", "e^{-x}"),
           (r"A\cos(\omega t)", "A"), (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\x\end{pmatrix}"))


def installed() -> bool:
    return find_spec("math_verify") is not None


class Verifier:
    """The verdicts of math-verify about pairs of formulas, each pair asked about once. Verdicts are kept, also in
    checkpoints, so a resumed run gives the same rewards. None: the pair took too long, or the budget was spent."""

    def __init__(self, worker: "Worker | None" = None):
        self.worker = worker or Worker()
        self.verdicts: dict[str, bool | None] = {}             # by key_of(pair), in the order of the questions

    def ask(self, pairs: Iterable[Pair]) -> dict[str, bool | None]:
        """The verdicts on those of the pairs that are new, by their keys. They are not kept yet."""
        new = {key: pair for pair in pairs if (key := key_of(pair)) not in self.verdicts}
        replies = self.worker.ask(list(new.values())) if new else []
        return dict(zip(new, replies or [None] * len(new)))

    def verdict(self, pair: Pair) -> bool | None:
        self.verdicts |= self.ask([pair])
        return self.verdicts[key_of(pair)]

    def state_dict(self) -> dict[str, bool | None]:
        return dict(list(self.verdicts.items())[-MOST_VERDICTS:])

    def load_state_dict(self, state: dict[str, bool | None]) -> None:
        self.verdicts = dict(state)


def key_of(pair: Pair) -> str:
    return blake2b(json.dumps(pair).encode(), digest_size=16).hexdigest()


class Worker:
    """A process that answers questions. A question starts it if it does not run, and kills it if it takes too long."""

    def __init__(self, command=(sys.executable, __file__), deadline: float = BUDGET + 30):
        self.command, self.deadline = command, deadline
        self.process, self.lock = None, threading.Lock()       # threads take turns
        atexit.register(self.stop)
        os.register_at_fork(after_in_child=self.leave)

    def ask(self, question):
        """The reply. None if the process died or took too long. Raises RuntimeError if the process does not start."""
        line, reply = json.dumps(question).encode() + b"\n", b""
        with self.lock:
            try:
                if self.process is None or self.process.poll() is not None:
                    self.start()
                while line:                                    # a signal may interrupt a long write
                    line = line[self.process.stdin.write(line):]
                reply = self.read(self.deadline)
            except BrokenPipeError:
                pass
            finally:                                           # also on Ctrl-C: a late reply would answer the next one
                if not reply:
                    self.stop()
        return json.loads(reply) if reply else None

    def start(self) -> None:
        self.stop()
        self.process = subprocess.Popen(self.command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, start_new_session=True)     # without Ctrl-C
        if not self.read(START):
            raise RuntimeError(f"`{' '.join(self.command)}`, which compares expressions, does not start")

    def read(self, seconds: float) -> bytes:
        """The next line that the process writes, b"" if it died or did not write one in time."""
        line, end, pipe, arrivals = b"", time.monotonic() + seconds, self.process.stdout, select.poll()
        arrivals.register(pipe, select.POLLIN)
        while not line.endswith(b"\n"):
            more = pipe.read(select.PIPE_BUF) if arrivals.poll(max(0, 1000 * (end - time.monotonic()))) else b""
            if not more:
                return b""
            line += more
        return line

    def stop(self) -> None:
        """Kill the process, if there is one, and close its pipes."""
        if self.process is not None:
            with self.process as process:
                process.kill()
            self.process = None

    def leave(self) -> None:
        """In a forked child: close the pipes, but leave the parent's process and lock alone."""
        self.lock = threading.Lock()
        if self.process is not None:
            self.process.returncode = 0                        # Popen kills and waits for a running process only
            self.stop()


def serve() -> None:
    """The program. It ignores signals for the main program."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with suppress(ValueError, OSError):                        # not on every system
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    sys.stdout = sys.stderr                                    # what others print must not reach the main program
    for pair in WARM_UP:
        equal(*pair)
    os.write(1, b'"ready"\n')
    for line in sys.stdin:
        os.write(1, json.dumps(equal_pairs(json.loads(line))).encode() + b"\n")


def equal_pairs(pairs: list[Pair]) -> list[bool | None]:
    """Whether the formulas of each pair are equal. None: the child died over this pair, or there was no time."""
    verdicts, running, end = [None] * len(pairs), {}, time.monotonic() + BUDGET
    waiting = list(reversed(range(len(pairs))))
    while True:
        while waiting and len(running) < NUM_CHILDREN and time.monotonic() < end:
            place = waiting.pop()
            running[fork(*pairs[place])] = place
        if not running:
            return verdicts
        ready, _, _ = select.select([sys.stdin, *running], [], [])
        if sys.stdin in ready:                                 # the main program is gone
            sys.exit()
        for pipe in ready:
            reply = os.read(pipe, 1)
            verdicts[running.pop(pipe)] = reply == b"1" if reply else None
            os.close(pipe)
            os.wait()


def fork(gold: str, answer: str) -> int:
    """A pipe from a new child that writes 1 or 0. Its alarms end it, also within one long product."""
    pipe, writing = os.pipe()
    if os.fork() == 0:
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, 10 * CPU_SECONDS)
        try:
            os.write(writing, b"1" if equal(gold, answer) else b"0")
        finally:
            os._exit(0)
    os.close(writing)
    return pipe


def equal(gold: str, answer: str) -> bool:
    from latex2sympy2_extended import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify
    latex = NormalizationConfig(units=False, malformed_operators=True, nits=True)          # units: any last word
    settings = dict(extraction_config=[LatexExtractionConfig(normalization_config=latex)],
                    fallback_mode="no_fallback", parsing_timeout=None)
    if HUGE.search(gold + " " + answer):
        raise MemoryError
    try:
        return bool(verify(*(parse(rf"\boxed{{{text}}}", **settings) for text in (gold, answer)), timeout_seconds=None))
    except (MemoryError, RecursionError):                      # too large: the child dies over it
        raise
    except Exception:                                          # it is no formula
        return False


if __name__ == "__main__":
    serve()
