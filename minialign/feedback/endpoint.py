"""A teacher behind an address: OpenAI's chat completions, as llama.cpp, vLLM, Ollama and most
services speak them.

The key comes from the environment and leaves in the Authorization header alone, for the address
that was named and no other; no file, message or name holds it, though the server send it back.
Without one there is no such header: a token of the Hugging Face hub that lies on this computer is
never sent.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from queue import SimpleQueue
from typing import Any
from urllib.parse import urlsplit

from minialign.data.knobs import require
from minialign.errors import InputError
from minialign.feedback.dialect import Dialect, without_thoughts
from minialign.feedback.teacher import Answer, Ask, Failure, OnDone, Reply
from minialign.feedback.wire import Broken, Received, Wire

FIRST_WAIT = 1.0  # seconds before the second try; doubled each time, give or take a half
LONGEST_WAIT = 120.0  # seconds between two tries at most; an endpoint that asks for more has failed
ROUTE = "/chat/completions"


@dataclass(frozen=True)
class _Problem:
    """Why one request gave no answer. `wait`: None, asking again is no use; else the seconds that
    the server wants, 0 where it names none.
    """

    reason: str
    wait: float | None = None
    in_order: bool = False  # nothing is wrong with the endpoint: it is busy, or wrote no text
    learned: bool = False  # how to ask otherwise, which is to be done at once


class EndpointTeacher:
    """A model behind an OpenAI-compatible address.

    Up to `concurrency` requests run at a time, begun evenly if `requests_per_minute` is not 0.
    Too many requests (429), timeouts, broken connections and a server's own errors (5xx) are tried
    again, after a wait that doubles or that the server names; all other refusals are final. A
    parameter that the model refuses is left out from then on, and one that thinks before it answers
    gets `thinking_tokens` more; `learned` says so.

    Raises InputError for an address that is none, or a key that cannot be one.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_env: str = "MINIALIGN_API_KEY",
        concurrency: int = 4,
        requests_per_minute: float = 0,
        timeout: float = 180.0,
        thinking_tokens: int = 2048,
        tries: int = 5,
    ) -> None:
        for what, number in (("concurrency", concurrency), ("tries", tries)):
            require(number >= 1, f"{what} must be at least 1, not {number}")
        require(timeout > 0, f"timeout must be positive, not {timeout}")
        require(requests_per_minute >= 0, "requests_per_minute must not be negative")
        require(thinking_tokens >= 0, "thinking_tokens must not be negative")
        self.url, self.model = parse_url(url), model.strip()
        require(bool(self.model), f"{self.url}: name the model that the endpoint is to use")
        self.name = f"{self.model} at {self.url}"
        self.key_env, self._key = key_env, _read_key(key_env)
        self.concurrency, self.timeout, self.tries = concurrency, timeout, tries
        self._pace = _Pace(60 / requests_per_minute if requests_per_minute else 0.0)
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        self._wire = Wire(self.url + ROUTE, headers, timeout)
        self._dialect = Dialect(thinking_tokens)
        self._jitter = random.Random()  # its own: the run's random streams stay as they are

    @property
    def learned(self) -> list[str]:
        """How requests differ from what was asked for, a line each."""
        return self._dialect.learned

    def check(self) -> None:
        """One short request, before anything long.

        Raises InputError if the endpoint cannot be reached, is none, refuses or lacks the key, or
        does not know the model.
        """
        outcome = self._once(Ask((("user", "Say yes."),), 16, 0.0))
        if isinstance(outcome, _Problem) and not outcome.in_order:
            raise InputError(f"{self.url}: {outcome.reason}")

    def answer(self, asks: Sequence[Ask], on_done: OnDone | None = None) -> list[Answer]:
        answers: dict[int, Answer] = {}
        waiting: SimpleQueue[int | None] = SimpleQueue()
        done: SimpleQueue[tuple[int, Answer]] = SimpleQueue()
        stopped = threading.Event()

        def work() -> None:
            while (index := waiting.get()) is not None and not stopped.is_set():
                done.put((index, self._ask(asks[index], stopped)))

        def hand_over() -> None:
            index, answer = done.get()
            answers[index] = answer
            if on_done:
                on_done(index, answer)

        workers = min(self.concurrency, len(asks))
        for index in (*range(len(asks)), *[None] * workers):
            waiting.put(index)
        try:
            for _ in range(workers):
                # Daemons: after Ctrl-C nobody waits for requests that are still on their way.
                threading.Thread(target=work, daemon=True).start()
            while len(answers) < len(asks):
                hand_over()
        except KeyboardInterrupt:
            while not done.empty():
                hand_over()
            raise
        finally:
            stopped.set()
        return [answers[index] for index in range(len(asks))]

    def _ask(self, ask: Ask, stopped: threading.Event) -> Answer:
        tried = 0
        while True:
            _wait(self._pace.next_slot(), stopped)
            if stopped.is_set():
                return Failure("stopped")
            outcome = self._once(ask)
            if isinstance(outcome, Reply):
                return outcome
            if outcome.wait is None or outcome.wait > LONGEST_WAIT:
                return Failure(outcome.reason)
            tried += 1
            if tried == self.tries:
                return Failure(f"{outcome.reason} (tried {tried} times)")
            if outcome.wait:
                self._pace.hold(outcome.wait)  # the other threads would be refused as well
            else:
                wait = FIRST_WAIT * 2 ** (tried - 1) * self._jitter.uniform(0.5, 1.5)
                _wait(min(wait, LONGEST_WAIT), stopped)

    def _once(self, ask: Ask) -> Reply | _Problem:
        """One answer, asked for anew whenever a refusal taught how."""
        while True:
            sent = self._dialect.parameters(ask)
            try:
                outcome = self._read(ask, sent, self._post(ask, sent))
            except Broken as error:
                return _Problem(self._shown(error.reason), wait=0.0 if error.may_pass else None)
            except Exception as error:  # whatever a server can do to its reader costs one item
                return _Problem(self._shown(f"{type(error).__name__}: {error}"))
            if not (isinstance(outcome, _Problem) and outcome.learned):
                return outcome

    def _post(self, ask: Ask, sent: dict[str, Any]) -> Received:
        body = {"model": self.model, "messages": ask.chat, "stream": False, **sent}
        return self._wire.post(body)

    def _read(self, ask: Ask, sent: dict[str, Any], received: Received) -> Reply | _Problem:
        if received.status in (400, 422):
            if "output limit was reached" in received.text:
                return self._all_thoughts(ask, sent)
            if self._dialect.learn_refusal(sent, received.text):
                return _Problem("", learned=True)
        if not 200 <= received.status < 300:
            return self._refusal(received)
        try:
            output = json.loads(received.text)
        except ValueError:
            kind = "HTML" if received.text.lstrip().startswith("<") else "no JSON"
            return _Problem(f"answers {kind}: no chat completions here; most addresses end in /v1")
        reply = self._reply(output)
        is_cut_off = isinstance(reply, Reply) and reply.finish_reason == "length"
        if is_cut_off and isinstance(reply, Reply) and not reply.text:
            return self._all_thoughts(ask, sent)
        return reply

    def _all_thoughts(self, ask: Ask, sent: dict[str, Any]) -> _Problem:
        if self._dialect.learn_thoughts(ask, sent):
            return _Problem("", learned=True)
        reason = "the answer holds no text (finish_reason length): raise the limit for thoughts"
        return _Problem(reason, in_order=True)

    def _reply(self, output: Any) -> Reply | _Problem:
        """The first choice's text. Servers leave parts out, or put an error in their place."""
        try:
            choice = output["choices"][0]
            text, finish_reason = choice["message"]["content"], choice.get("finish_reason")
        except (AttributeError, IndexError, KeyError, TypeError):
            return _Problem(self._shown(f"the answer holds no choices{_said(output)}"))
        finish_reason = self._without_key(str(finish_reason or "unknown"))
        if text is None and finish_reason == "length":
            text = ""
        if not isinstance(text, str):
            reason = self._shown(f"the answer holds no text (finish_reason {finish_reason})")
            return _Problem(reason, in_order=True)
        text = without_thoughts(self._without_key(text))
        # Half a character (a lone surrogate) could not be written to any file.
        return Reply(text.encode("utf-8", "replace").decode(), finish_reason)

    def _refusal(self, received: Received) -> _Problem:
        status, text, why, wait = received.status, received.text, "", None
        spent = "insufficient_quota" in text  # a 429 too, but no wait refills it
        if status in (401, 403):
            key = f"refuses the key in {self.key_env}"
            why = f": {key if self._key else f'asks for a key, {self.key_env} is not set'}"
        elif 300 <= status < 400:
            target = received.headers.get("location", "").partition("?")[0]
            why = f": sends on to {target}, which is not followed: give that address"
        elif status == 404:
            why = f": no such path, or no model {self.model!r} there"
        elif (status in (408, 429) or status >= 500) and not spent:
            wait = _seconds(received.headers.get("retry-after", ""))
            why = f": not before {wait:.0f} s have passed" if wait > LONGEST_WAIT else ""
        try:
            said = _said(json.loads(text))
        except ValueError:
            said = f": {text}" if text.strip()[:1] not in ("", "<") else ""
        in_order = status == 429 and not spent
        return _Problem(self._shown(f"HTTP {status}{why}{said}"), wait, in_order)

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[the key]") if self._key else text

    def _shown(self, text: str) -> str:
        """One line of bounded length. A server may send the key back; it goes no further."""
        line = " ".join(self._without_key(text).split())
        return line if len(line) <= 300 else line[:297] + "..."


class _Pace:
    """When the next request may begin: `gap` seconds after the one before, and after any hold."""

    def __init__(self, gap: float) -> None:
        self._gap, self._free, self._lock = gap, 0.0, threading.Lock()

    def next_slot(self) -> float:
        """Takes the next slot and returns the seconds until then."""
        with self._lock:
            now = time.monotonic()
            begin = max(now, self._free)
            self._free = begin + self._gap
            return begin - now

    def hold(self, seconds: float) -> None:
        with self._lock:
            self._free = max(self._free, time.monotonic() + seconds)


def _wait(seconds: float, stopped: threading.Event) -> None:
    if seconds > 0:
        stopped.wait(seconds)


def parse_url(url: str) -> str:
    """The address that chat completions hang below: what OpenAI's clients call the base URL.

    A bare host gets /v1; /chat/completions is taken off. Raises InputError for what is no address,
    and for one with a password or a query, which names and files that people share would show.
    """
    try:
        parts = urlsplit(url.strip())
        host, _ = parts.hostname, parts.port  # a port that is no number is an error
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https"):
        shown = url.partition("?")[0].rpartition("@")[2]
        raise InputError(f"{shown}: not an address: write it like http://127.0.0.1:8080/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        where = f"{parts.scheme}://{host}"
        raise InputError(f"{where}: no user, password or query here; a key goes by the environment")
    path = parts.path.rstrip("/")
    path = path.removesuffix(ROUTE) if path.endswith(ROUTE) else path or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


def _read_key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"{variable}: holds characters that no key has: copy the key once more")
    return key


def _seconds(retry_after: str) -> float:
    """The Retry-After header, seconds or a date, as seconds from now; 0 where it says nothing."""
    try:
        if retry_after.strip().isdigit():
            return float(retry_after)
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):  # nonsense, or a date without a time zone
        return 0.0


def _said(body: Any) -> str:
    """What a server says went wrong: {"error": {"message"}}, {"error"}, {"message"}, {"detail"}."""
    if not isinstance(body, dict):
        return ""
    said = body.get("error") or body.get("message") or body.get("detail") or ""
    return _said(said) if isinstance(said, dict) else said and f": {said}"
