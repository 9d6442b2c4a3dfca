"""Are two mathematical expressions the same? math-verify says so, in a process of its own. No torch.

    Worker().ask(["\\\\frac{1}{2}", "0.5"])  --a line of JSON-->  this file run as a program  --a line of JSON-->  True

A short text ("100000000!") keeps sympy busy for hours or fills the memory, and math-verify's own guard is an alarm
signal, which only a main thread may use. A process can simply be killed. One is kept for the life of the program: to
start it takes about a second, a comparison mostly some hundredths.
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
MEMORY = 4 << 30                        # bytes the worker may have, where the system can hold it to that


def installed() -> bool:
    return find_spec("math_verify") is not None


class Worker:
    """A process that replies to questions: started when first asked, killed when it takes too long, and started again
    when next asked. Threads take turns; a forked child starts one of its own."""

    def __init__(self, command=(sys.executable, __file__), deadline: float = DEADLINE):
        self.command, self.deadline = command, deadline
        self.process, self.lock = None, threading.Lock()
        atexit.register(self.stop)
        os.register_at_fork(after_in_child=self.leave)

    def ask(self, question):
        """The reply; None if the worker died or took too long, or if the question takes more than PIPE_BUF bytes (4,096
        on Linux): shorter ones pass through a pipe in one piece, so that nobody waits in the middle of a line."""
        line = json.dumps(question).encode() + b"\n"
        if len(line) > select.PIPE_BUF:
            return None
        with self.lock:
            reply = b""
            try:
                self.start()
                self.process.stdin.write(line)
                reply = self.read(self.deadline)
            except BrokenPipeError:
                pass
            finally:                                           # on Ctrl-C too: a late reply is not the next one's
                if not reply:
                    self.stop()
        return json.loads(reply) if reply else None

    def start(self) -> None:
        """See to it that it runs."""
        if self.process is None or self.process.poll() is not None:
            self.stop()
            self.process = subprocess.Popen(self.command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                            stderr=subprocess.DEVNULL)
            if not self.read(START):
                raise RuntimeError(f"`{' '.join(self.command)}`, which compares expressions, does not start")

    def read(self, seconds: float) -> bytes:
        """The line it writes next; b"" if it is gone or has not written one in time."""
        line, end, arrivals = b"", time.monotonic() + seconds, select.poll()
        arrivals.register(self.process.stdout, select.POLLIN)
        while not line.endswith(b"\n"):
            in_time = arrivals.poll(max(0, 1000 * (end - time.monotonic())))
            more = in_time and self.process.stdout.read(select.PIPE_BUF)
            if not more:
                return b""
            line += more
        return line

    def stop(self) -> None:
        """Kill it, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.forget()

    def leave(self) -> None:
        """What a forked child does: the process is its parent's, and so is the thread that may be asking."""
        self.lock = threading.Lock()
        if self.process is not None:
            self.process.returncode = 0                        # or Popen would wait for it
            self.forget()

    def forget(self) -> None:
        process, self.process = self.process, None
        process.stdin.close()
        process.stdout.close()


# The other side

def serve() -> None:
    """Reply to what comes in until there is no more. What is meant for the main program (Ctrl-C, a scheduler's SIGTERM)
    is not for this one, and it outlives nobody by more than a comparison: its alarm clock ends it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        import resource
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY if most == resource.RLIM_INFINITY else min(MEMORY, most), most))
    sys.path[:] = [folder for folder in sys.path if folder != os.path.dirname(os.path.abspath(__file__))]
    sys.stdout = sys.stderr                                    # what the other side reads is ours alone
    from math_verify import LatexExtractionConfig, parse, verify

    def expression(text: str) -> list:
        """What math-verify makes of it in a box; nothing, if it does not understand it."""
        return parse(rf"\boxed{{{text}}}", [LatexExtractionConfig()], fallback_mode="no_fallback", parsing_timeout=None)

    def reply(value) -> None:
        os.write(1, json.dumps(value).encode() + b"\n")        # in one piece

    reply("ready")
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, 2 * DEADLINE)
        gold, answer = map(expression, json.loads(line))
        reply(bool(verify(gold, answer, timeout_seconds=None)))
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    serve()
