"""Many ranks for the tests. They are forked from this process, so torch is imported once. gloo joins them over a file.

A `Ranks` stays alive and runs one function after the other, by name, so most tests share one. Arguments and results are
JSON.
"""

import contextlib
import faulthandler
import io
import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from nanoqwenlong import parallel
from nanoqwenlong.ops import exits


class Ranks:
    """`size` processes. wait: seconds that they wait for each other. joined=False: they have not met yet. With size 1
    there is no process group at all."""

    open: list["Ranks"] = []

    def __init__(self, size: int, directory: Path, wait: float = 40.0, joined: bool = True):
        import transformers  # noqa: F401
        self.size, self.directory, self.wait, self.joined = size, directory, wait, joined and size > 1
        directory.mkdir(parents=True)
        pairs, self.pids = [socket.socketpair() for _ in range(size)], []
        for rank, (_, theirs) in enumerate(pairs):
            self.pids.append(os.fork())
            if not self.pids[-1]:
                for other in [*sum(pairs, ()), *(ours for ranks in Ranks.open for ours in ranks.ends)]:
                    if other is not theirs:
                        other.close()                           # so that an end is seen when its process ends
                self._serve(rank, theirs)
        for _, theirs in pairs:
            theirs.close()
        self.ends = [ours for ours, _ in pairs]
        Ranks.open.append(self)

    def _serve(self, rank: int, end: socket.socket) -> None:
        """One rank, to its end."""
        try:
            os.dup2(os.open(self.directory / f"rank{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
            os.dup2(1, 2)
            sys.stdin, sys.stdout, sys.stderr = (open(fd, mode, buffering=1, closefd=False)
                                                 for fd, mode in ((0, "r"), (1, "w"), (2, "w")))
            faulthandler.register(signal.SIGUSR2, sys.stderr)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            parallel.stop = lambda: None                        # a script ends, the ranks stay together
            if self.joined:
                self.join(rank)
            lines = end.makefile("rw")
            for line in lines:
                module, name, args = json.loads(line)
                try:
                    answer = {"value": getattr(sys.modules[module], name)(**args)}
                except BaseException:                           # also what pytest raises
                    answer = {"error": traceback.format_exc()}
                lines.write(json.dumps(answer) + "\n")
                lines.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)

    def join(self, rank: int) -> None:
        torch.distributed.init_process_group("gloo", init_method=f"file://{self.directory}/store", rank=rank,
                                             world_size=self.size, timeout=timedelta(seconds=self.wait))

    def call(self, function, seconds: float = 60, mortal: bool = False, **args) -> list:
        """What `function(**args)`, a function of a module, returns on each rank. If a rank fails or does not return in
        time, the test fails with all output of the ranks. mortal: a rank that died returns None."""
        for end in self.ends:
            end.sendall((json.dumps([function.__module__, function.__name__, args]) + "\n").encode())
        told, waiting, end = [b""] * self.size, set(range(self.size)), time.monotonic() + seconds
        while waiting and (left := end - time.monotonic()) > 0:
            for ready in select.select([self.ends[rank] for rank in waiting], [], [], left)[0]:
                rank = self.ends.index(ready)
                try:
                    piece = ready.recv(1 << 20)
                except ConnectionResetError:
                    piece = b""
                told[rank] += piece
                if not piece or told[rank].endswith(b"\n"):
                    waiting.discard(rank)
                if b'{"error"' in told[rank]:                   # the others may wait for it in vain
                    end = min(end, time.monotonic() + 1)
        found = [json.loads(line) if line.endswith(b"\n") else {} for line in told]
        if waiting or any("value" not in x for x in found) and not (mortal and all("error" not in x for x in found)):
            words = self.kill(ask=waiting)
            errors = "\n".join(f"rank {rank}: {x.get('error', 'no answer')}" for rank, x in enumerate(found))
            pytest.fail(f"{function.__name__}({args}) on {self.size} ranks\n{errors}\n{words}", pytrace=False)
        return [x.get("value") for x in found]

    def kill(self, ask=()) -> str:
        """End all of them. Returns their output. Those in `ask` print their stacks first."""
        for rank in ask:
            os.kill(self.pids[rank], signal.SIGUSR2)
            time.sleep(0.2)
        if self in Ranks.open:
            Ranks.open.remove(self)
            for pid, end in zip(self.pids, self.ends):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                end.close()
        paths = sorted(self.directory.glob("rank*"))
        return "\n".join(f"--- {path.name}\n{path.read_text()[-4000:]}" for path in paths)


@contextlib.contextmanager
def ranks(size: int, directory: Path, **settings):
    """Ranks for one test."""
    found = Ranks(size, directory, **settings)
    try:
        yield found
    finally:
        found.kill()


def start(script, argv: list[str]) -> tuple[int, str]:
    """Start a script in this process as the shell would. Returns its exit code and its stderr."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        code = exits.start(script.main, script.Config, script.PRESETS, argv)
    print(said.getvalue(), file=sys.stderr)
    return code, said.getvalue()
