"""Texts completed by a model behind an OpenAI-style HTTP server, which may be slow, broken, or not there.

    Server(url, model, key)(prompts) -> replies, None for those that did not come, all by a deadline

Nothing that a server does raises: what went wrong is counted, by reason.
"""

import io
import json
import random
import re
import ssl
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from urllib.parse import urlsplit

from .. import parallel
from ..errors import ConfigError

GIVE_UP = 10                            # prompts in a row without a reply, after which a call tries no more
LARGEST = 1_000_000                     # bytes of a response


class Failed(Exception):
    """A try without a reply, for `reason`. again: another one, after `wait` seconds at least, may do better."""

    def __init__(self, reason: str, again: bool = True, wait: float = 0.0):
        super().__init__(reason)
        self.reason, self.again, self.wait = reason, again, wait


class Server:
    """`complete` by a model behind an OpenAI-style HTTP server: POST url/chat/completions at temperature 0, many at
    once. Of several ranks the first one posts, and hands the replies round.

    deadline: seconds that a call takes at most, whatever the server does; what has no reply by then gets none.
    timeout: seconds of one try; a server that drips is as late as one that is silent. tries: of one prompt. Between
    them it waits `pause` seconds, then twice as long, and so on, less up to a half at random; or as long as Retry-After
    says. A pause that would outlast the deadline is not begun, what another try would not change (401, 404, a redirect)
    is tried once, and after GIVE_UP prompts in a row without a reply no further one is tried. `problems` counts the
    reasons of the last call: one for each prompt without a reply.

    Nobody but the host of `url` is contacted: no redirect is followed, no proxy of the environment used. The key goes
    into a header of the requests and nowhere else; it is not even an attribute. Raises ConfigError, which does not
    repeat them, for a url that is none or holds a secret, and for a key that cannot be sent."""

    def __init__(self, url: str, model: str, key: str = "", concurrency: int = 16, deadline: float = 300.0,
                 timeout: float = 60.0, tries: int = 5, pause: float = 1.0, max_new_tokens: int = 256):
        self.secure, self.host, self.port, self.path = read_url(url)
        if not model:
            raise ConfigError("a judge behind a URL needs the name of its model there")
        if not all("!" <= c <= "~" for c in key):
            raise ConfigError("the judge's key holds a space, a line break or another character that no key has")
        self.name = model                                      # wherever it is served
        self.model, self.max_new_tokens, self.problems = model, max_new_tokens, Counter()
        self.concurrency, self.deadline, self.timeout, self.tries, self.pause = (concurrency, deadline, timeout, tries,
                                                                                 pause)
        self.tls, self.random = ssl.create_default_context() if self.secure else None, random.Random()
        authorization = {"Authorization": f"Bearer {key}"} if key else {}
        self.headers = lambda: {"Content-Type": "application/json", "Connection": "close", **authorization}

    def __call__(self, prompts: Sequence[str]) -> list[str | None]:
        found = parallel.gather(self._ask_all(prompts) if parallel.rank() == 0 else None)[0]
        self.problems = Counter(reason for _, reason in found if reason)
        return [reply for reply, _ in found]

    def _ask_all(self, prompts: Sequence[str]) -> list[tuple[str | None, str]]:
        """For each prompt (reply, "") or (None, reason). The threads are daemons, so that none that hangs can hold the
        process; what they find after the deadline is dropped."""
        end, over, lock = time.monotonic() + self.deadline, threading.Event(), threading.Lock()
        waiting, found, in_a_row, bugs = deque(range(len(prompts))), {}, 0, []

        def work() -> None:
            nonlocal in_a_row
            try:
                while not over.is_set():
                    with lock:
                        if not waiting or in_a_row >= GIVE_UP:
                            return
                        number = waiting.popleft()
                    reply, reason = self._ask(prompts[number], end, over)
                    with lock:
                        found[number] = reply, reason
                        in_a_row = in_a_row + 1 if reply is None else 0
            except Exception as error:                         # ours, not the server's: raised where it is seen
                bugs.append(error)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(self.concurrency, len(prompts)))]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(max(0.0, end - time.monotonic()))
        finally:
            over.set()
        if bugs:
            raise bugs[0]
        with lock:
            late = f"no reply within {self.deadline:g} s"
            rest = f"not tried after {GIVE_UP} failures in a row" if in_a_row >= GIVE_UP else late
            return [found.get(number, (None, rest if number in waiting else late)) for number in range(len(prompts))]

    def _ask(self, prompt: str, end: float, over: threading.Event) -> tuple[str | None, str]:
        """(reply, "") or, all tries having failed, (None, the last one's reason)."""
        for number in range(self.tries):
            try:
                return self._post(prompt, min(end, time.monotonic() + self.timeout)), ""
            except Failed as failed:
                why, pause = failed, max(failed.wait, self.pause * 2**number * self.random.uniform(0.5, 1))
            if not why.again or number + 1 == self.tries or time.monotonic() + pause >= end or over.wait(pause):
                break
        return None, why.reason

    def _post(self, prompt: str, end: float) -> str:
        """One try, which ends by `end`. What the server says of an error is not repeated: it may repeat the key."""
        body = json.dumps({"model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0,
                           "max_tokens": self.max_new_tokens})
        left = max(1e-3, end - time.monotonic())
        connection = (HTTPSConnection(self.host, self.port, timeout=left, context=self.tls) if self.secure else
                      HTTPConnection(self.host, self.port, timeout=left))
        try:
            connection.request("POST", self.path, body, self.headers())
            response = HTTPResponse(Reader(connection.sock, end), method="POST")
            response.begin()
            if response.status // 100 != 2:
                raise refusal(response.status, response.headers.get("Retry-After", ""))
            reply = content(response.read(LARGEST))            # not read(): a length of a terabyte would be believed
        except OSError as error:
            raise Failed(parallel.reason(error)) from None
        except (HTTPException, ValueError):                    # ValueError: of a chunk of -5 bytes, say
            raise Failed("a response that is no HTTP") from None
        finally:
            connection.close()
        if reply is None:
            raise Failed("a response without a reply in it")
        return reply


class Reader(io.RawIOBase):
    """A socket as http.client reads a response from it: until the time `end`, however it drips, and no more than
    LARGEST bytes."""

    def __init__(self, socket, end: float):
        self.socket, self.end, self.room = socket, end, LARGEST

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError("timed out")
        self.socket.settimeout(left)
        count = self.socket.recv_into(buffer)
        self.room -= count
        if self.room < 0:
            raise Failed(f"a response of more than {LARGEST} bytes")
        return count


def read_url(url: str) -> tuple[bool, str, int, str]:
    """(whether it is https, host, port, path of the requests)"""
    try:
        parts = urlsplit(url)
        port, host = parts.port, (parts.hostname or "").encode("idna").decode()
    except ValueError:
        raise ConfigError("the judge's URL is none: give one like http://localhost:8000/v1") from None
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise ConfigError("the judge's URL holds a user, a password, a query or a fragment: give it without, and the "
                          "key as a key, which is kept out of names and logs")
    if parts.scheme not in ("http", "https") or not host or not all("!" <= c <= "~" for c in url):
        raise ConfigError("the judge's URL is none: give one like http://localhost:8000/v1")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
    return parts.scheme == "https", host, port or (443 if parts.scheme == "https" else 80), path


def refusal(status: int, retry_after: str) -> Failed:
    """What a status that is no success means; Retry-After counts if it is in seconds."""
    hint = {401: " (is the key right?)", 403: " (is the key right?)", 404: " (is the model's name right?)"}
    seconds = re.fullmatch(r"\s*(\d{1,9}(\.\d+)?)\s*", retry_after, re.ASCII)
    return Failed(f"HTTP {status}" + (", a redirect, which is not followed" if status // 100 == 3 else
                                      hint.get(status, "")),
                  again=status in (408, 409, 425, 429) or status >= 500, wait=float(seconds[1]) if seconds else 0.0)


def content(body: bytes) -> str | None:
    """The reply in a chat completion; None if there is none."""
    try:
        found = json.loads(body)["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return found if isinstance(found, str) and found.strip() else None
