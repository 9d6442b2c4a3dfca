"""Are two mathematical expressions the same? math-verify decides, in a process of its own: this file, run as a program.

A short text ("100000000!") can keep sympy busy for hours or fill the memory. math-verify guards itself by an alarm
signal, which works only in a main thread. A process can simply be killed. No torch.
"""

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec

DEADLINE = 5.0                          # seconds for a comparison
START = 120.0                           # seconds for the worker's imports, which may come from a slow disk
MEMORY = 4 << 30                        # bytes of memory for the worker, on Linux


def installed() -> bool:
    return find_spec("math_verify") is not None


class Worker:
    """A process that answers questions. A question starts it if it does not run, and kills it if it takes too long."""

    def __init__(self, command=(sys.executable, __file__), deadline: float = DEADLINE):
        self.command, self.deadline = command, deadline
        self.process, self.lock = None, threading.Lock()       # threads take turns
        atexit.register(self.stop)
        os.register_at_fork(after_in_child=self.leave)

    def ask(self, question):
        """The reply. None if the process died or took too long, or if the question is longer than PIPE_BUF, 4,096 bytes
        on Linux, which pass through a pipe in one piece. Raises RuntimeError if the process does not start."""
        line, reply = json.dumps(question).encode() + b"\n", b""
        if len(line) > select.PIPE_BUF:
            return None
        with self.lock:
            try:
                if self.process is None or self.process.poll() is not None:
                    self.start()
                self.process.stdin.write(line)
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
                                        stderr=subprocess.DEVNULL)
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
    """The process's program. It ignores signals for the main program, but an alarm ends it soon after that."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        import resource
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most), most))
    sys.stdout = sys.stderr                                    # what others print must not reach the main program
    from math_verify import LatexExtractionConfig, parse, verify
    settings = dict(extraction_config=[LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)
    os.write(1, b'"ready"\n')                                  # in one piece, as every reply
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, 2 * DEADLINE)
        gold, answer = (parse(rf"\boxed{{{text}}}", **settings) for text in json.loads(line))
        os.write(1, json.dumps(bool(verify(gold, answer, timeout_seconds=None))).encode() + b"\n")
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    serve()
