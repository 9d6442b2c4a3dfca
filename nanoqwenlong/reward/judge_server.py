"""Texts completed by a model behind an OpenAI-style HTTP server, which may be slow, broken, or down."""

import json
import random
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Sequence
from urllib.parse import urlsplit

import httpx

from .. import parallel
from ..errors import ConfigError
from .judge import TRUNCATED

GIVE_UP = 10                            # failed prompts in a row, after which a call tries no more
LARGEST = 1_000_000                     # bytes of a response


class Server:
    """server(prompts) -> replies, None if missing, by POST url/chat/completions at temperature 0. Rank 0 posts for all.
    deadline, timeout: seconds for a whole call and for one try. Nothing that the server does raises an error.
    tries, pause: per prompt. Pauses start at `pause` seconds and double, less up to a half at random, but last at least
    as long as Retry-After says. A prompt fails when the next pause would end after the deadline.
    problems: the reasons of the last call, one for each prompt without a reply. A truncated reply counts as empty.
    Raises ConfigError for an invalid model, key or URL, without repeating it."""

    def __init__(self, url: str, model: str, key: str = "", concurrency: int = 16, deadline: float = 300.0,
                 timeout: float = 60.0, tries: int = 5, pause: float = 1.0, max_new_tokens: int = 4096):
        if not model:
            raise ConfigError("a judge behind a URL needs the name of its model there: --judge-model")
        if not all("!" <= c <= "~" for c in key):
            raise ConfigError("the judge's key holds a space, a line break or another character that no key has")
        self.url, self.name, self.max_new_tokens = chat_url(url), model, max_new_tokens
        self.concurrency, self.deadline, self.timeout = concurrency, deadline, timeout
        self.tries, self.pause, self.problems = tries, pause, Counter()
        self.tls = ssl.create_default_context()
        authorization = {"Authorization": f"Bearer {key}"} if key else {}
        self.headers = lambda: {"Content-Type": "application/json", "Connection": "close", **authorization}

    def __call__(self, prompts: Sequence[str]) -> list[str | None]:
        results = parallel.gather(self._ask_all(prompts) if parallel.rank() == 0 else None)[0]
        self.problems = Counter(reason for _, reason in results if reason)
        return [reply for reply, _ in results]

    def _ask_all(self, prompts: Sequence[str]) -> list[tuple[str | None, str]]:
        """(reply, "") or (None, reason) for each prompt. The threads are daemons: none can hold up the process."""
        end, over = time.monotonic() + self.deadline, threading.Event()
        results = [(None, f"no reply within {self.deadline:g} s")] * len(prompts)
        numbers, replied, bugs = iter(range(len(prompts))), [], []             # shared by the threads

        def work() -> None:
            try:
                for number in numbers:
                    if len(replied) >= GIVE_UP and not any(replied[-GIVE_UP:]):
                        results[number] = None, f"not tried after {GIVE_UP} failures in a row"
                    else:
                        results[number] = reply, _ = self._ask(client, prompts[number], end, over)
                        replied.append(reply is not None)
            except Exception as error:                         # a bug of ours: raised in the main thread
                bugs.append(error)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(self.concurrency, len(prompts)))]
        with httpx.Client(headers=self.headers(), verify=self.tls, trust_env=False,
                          limits=httpx.Limits(max_connections=None)) as client:        # its end cuts off late threads
            try:
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join(max(0.0, end - time.monotonic()))
            finally:
                over.set()
            in_time = list(results)                            # late threads fail when the client closes, then write
        if bugs:
            raise bugs[0]
        return in_time

    def _ask(self, client: httpx.Client, prompt: str, end: float, over: threading.Event) -> tuple[str | None, str]:
        """(reply, ""), or (None, the reason of the last try) if all tries failed."""
        for number in range(self.tries):
            reply, reason, wait = self._post(client, prompt, min(end, time.monotonic() + self.timeout))
            pause = max(wait, self.pause * 2**number * random.uniform(0.5, 1))
            if reply is not None or number + 1 == self.tries or time.monotonic() + pause >= end or over.wait(pause):
                break
        return reply, reason

    def _post(self, client: httpx.Client, prompt: str, end: float) -> tuple[str | None, str, float]:
        """(reply, reason, seconds before another try may help). The server's words may hold the key: never repeated."""
        messages = [{"role": "user", "content": prompt}]
        body = {"model": self.name, "messages": messages, "temperature": 0, "max_tokens": self.max_new_tokens}
        received, seconds = bytearray(), max(1e-3, end - time.monotonic())
        try:
            with client.stream("POST", self.url, content=json.dumps(body), timeout=seconds) as response:
                if not response.is_success:
                    return None, *refusal(response.status_code, response.headers.get("Retry-After", ""))
                for chunk in response.iter_raw():
                    received += chunk
                    if len(received) > LARGEST:
                        return None, f"a response of more than {LARGEST} bytes", 0.0
                    if time.monotonic() > end:
                        raise httpx.ReadTimeout("a slow body")
        except httpx.TimeoutException:
            return None, "timed out", 0.0
        except httpx.RemoteProtocolError:
            return None, "an invalid or incomplete HTTP response", 0.0
        except httpx.TransportError as error:
            return None, re.sub(r"^\[Errno -?\d+\] ", "", str(error)), 0.0
        try:
            choice = json.loads(received)["choices"][0]
            reply = choice["message"]["content"]
            if choice.get("finish_reason") == "length":
                return "", TRUNCATED.format(self.max_new_tokens), 0.0
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            reply = None
        is_reply = isinstance(reply, str) and reply.strip()
        return (reply, "", 0.0) if is_reply else (None, "a response without a reply in it", 0.0)


def chat_url(url: str) -> str:
    """The URL to post to. Raises ConfigError, which does not repeat the URL: it may hold a secret."""
    try:
        parts = urlsplit(url)
        host, _ = (parts.hostname or "").encode("idna"), parts.port            # ValueError if invalid
    except ValueError:
        host = b""
    if not host or parts.scheme not in ("http", "https") or not re.fullmatch("[!-~]+", url) or re.search("[@?#]", url):
        raise ConfigError("the judge's URL is invalid: give one like http://localhost:8000/v1, without user, password, "
                          "query or fragment (the key is given apart, which keeps it out of names and logs)")
    return url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"


def refusal(status: int, retry_after: str) -> tuple[str, float]:
    """What a status other than success means, and the seconds before another try may help (inf: never)."""
    hints = {401: " (is the key right?)", 403: " (is the key right?)", 404: " (is the model's name right?)"}
    hint = ", a redirect, which is not followed" if status // 100 == 3 else hints.get(status, "")
    seconds = re.fullmatch(r"\s*(\d{1,9}(\.\d+)?)\s*", retry_after, re.ASCII)      # it may also be a date: ignored
    wait = float(seconds[1]) if seconds else 0.0
    return f"HTTP {status}{hint}", wait if status >= 500 or status in (408, 409, 425, 429) else float("inf")
