"""Runs unknown code in a child process: in a copy of the project, with limits of time and memory.

The child is forked, so it has torch already. It forgets every module of the project and imports it anew from the copy.
What it finds out comes back through a pipe, one JSON value a line. A child that exits early, is killed, or prints
nonsense has sent no last line, so it cannot pass by accident.
"""

import gc
import json
import os
import resource
import secrets
import select
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
NOT_COPIED = shutil.ignore_patterns("__pycache__", ".*", "runs", "*.egg-info", "build")
GIGABYTES = 4
GIB = 2 ** 30


class Outcome(NamedTuple):
    events: list                        # what the job sent
    ended: str                          # "" if the job returned. Otherwise what stopped it, in words
    printed: str                        # its output


def copy_project(to: Path) -> Path:
    """A copy of the project, without what runs have written."""
    return Path(shutil.copytree(ROOT, to, ignore=NOT_COPIED, dirs_exist_ok=True))


def move_into(copy: Path) -> None:
    """From now on this process works in the copy: its directory, its imports. What is from elsewhere stays imported."""
    os.chdir(copy)
    for name, module in list(sys.modules.items()):
        path = getattr(module, "__file__", None) or ""
        if name != "__main__" and path.startswith(str(ROOT)) and "site-packages" not in path:
            del sys.modules[name]
    ours = (ROOT, ROOT / "tests")
    sys.path[:] = [str(copy), *(path for path in sys.path if Path(path or ".").resolve() not in (*ours, copy))]


def run(job: Callable[[Callable], None], copy: Path, seconds: float, gigabytes: float = GIGABYTES) -> Outcome:
    """Call job(send) in a child that works in the copy. send(value) hands over a JSON value."""
    end = secrets.token_hex(8)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(job, copy, writer, end, seconds, gigabytes)
    os.close(writer)
    data, in_time = _read(reader, time.monotonic() + seconds)
    try:
        os.killpg(child, signal.SIGKILL)                                       # also what it has started
    except ProcessLookupError:
        pass
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    events = []
    for line in data.decode("utf-8", "replace").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            events.append(None)
    printed = (copy / "printed.txt").read_text(encoding="utf-8", errors="replace")
    if events and events[-1] == end:
        return Outcome(events[:-1], "", printed)
    if not in_time:
        return Outcome(events, f"it did not finish in {seconds:.0f} seconds (is the machine busy?)", printed)
    return Outcome(events, f"it ended the process with code {status}", printed)


def _read(reader: int, deadline: float) -> tuple[bytes, bool]:
    """All bytes until the pipe is closed or time is up, and whether it was closed."""
    data = b""
    with open(reader, "rb", buffering=0) as pipe:
        while (left := deadline - time.monotonic()) > 0:
            if select.select([pipe], [], [], left)[0]:
                piece = pipe.read(65536)
                if not piece:
                    return data, True
                data += piece
    return data, False


def _child(job, copy: Path, writer: int, end: str, seconds: float, gigabytes: float) -> None:
    """Set the limits, call the job, and never return."""
    code = 99
    try:
        os.setsid()
        signal.alarm(int(seconds) + 10)                                        # if the parent is killed meanwhile
        tqdm.set_lock(threading.RLock())                                       # else a killed child could keep ours
        output = os.open(copy / "printed.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout = sys.stderr = open(1, "w", buffering=1, closefd=False, errors="backslashreplace")
        _limit_memory(gigabytes)
        gc.freeze()
        sys.dont_write_bytecode = True                                         # one file changes within a second
        move_into(copy)
        os.environ.pop("PYTEST_XDIST_WORKER", None)
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"

        def send(value) -> None:
            os.write(writer, (json.dumps(value) + "\n").encode())

        job(send)
        send(end)
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def _limit_memory(gigabytes: float) -> None:
    """Allow this much more address space than now. Where there is no /proc, nothing is limited."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return
    limit = pages * resource.getpagesize() + int(gigabytes * GIB)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
