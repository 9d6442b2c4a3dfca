"""What a script prints, and its exit code. Every script and tool prints with `say` and `tell`. It needs only
the standard library, because a missing package is reported here."""

import os
import sys
import unicodedata
from collections.abc import Callable
from functools import wraps

from .. import errors

KEPT = "\n\t\u200c\u200d"                                      # joiners: Persian, Hindi and emoji need them
TO_ASCII = str.maketrans({**dict(zip("─│┌┐└┘├┤┬┴┼┊█", "-|+++++++++:#")), "«": "<<", "»": ">>"})


def printable(text: str) -> str:
    """The text, but it cannot change a terminal: control characters and changes of direction become their codes."""
    return "".join(c if c.isprintable() or c in KEPT or unicodedata.category(c) == "Zs"        # Zs: spaces
                   else c.encode("unicode_escape").decode() for c in text)


def say(text: str, end: str = "\n") -> bool:
    return tell(text, sys.stdout, end)


def tell(text: str, stream, end: str = "\n") -> bool:
    """Print text on stdout or stderr, made printable. A character that the stream cannot write becomes its code.
    Returns False if the stream's reader has ended or its terminal is closed."""
    if stream is None:                                         # closed before Python started
        return False
    text, encoding = printable(text), getattr(stream, "encoding", None) or "utf-8"
    if text.encode(encoding, "ignore").decode(encoding) != text:
        text = text.translate(TO_ASCII).encode(encoding, "backslashreplace").decode(encoding)
    try:
        write = sys.modules["tqdm"].tqdm.write if "tqdm" in sys.modules else print     # it hides a progress bar
        write(text, file=stream, end=end)
        stream.flush()
        return True
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())     # else Python complains when it exits
        return False


def with_exit_code(work: Callable[..., int | None]) -> Callable[..., int]:
    """A function that calls work(...) and returns an exit code. A user's error prints one sentence, a bug raises.
    What other libraries print meanwhile fails neither at a strange character nor at a closed pipe."""
    @wraps(work)
    def call(*args) -> int:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            return work(*args) or errors.DONE
        except (errors.UserError, OSError, KeyboardInterrupt) as error:
            tell(errors.reason(error), sys.stderr)
            return errors.exit_code(error)
        finally:
            for stream in (sys.stdout, sys.stderr):
                tell("", stream, end="")
    return call
