"""An OpenAI-compatible server on the loopback interface whose answers a test scripts.

A script is a list of moves, one per request in the order of arrival; when it is used up, `default`
answers. Every request is recorded with its path, headers and body.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]  # names in lower case
    body: dict[str, Any]

    @property
    def question(self) -> str:
        return self.body["messages"][-1]["content"]


@dataclass
class Loopback:
    """`busiest` is the largest number of requests that were in progress at the same time."""

    default: Move
    script: list[Move] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    busy: int = 0
    busiest: int = 0
    poured: int = 0  # bytes of an answer without an end
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def questions(self) -> list[str]:
        return [request.question for request in self.requests]


Move = Callable[["Handler", Request], None]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    loopback: Loopback

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.path, headers, json.loads(body))
        server = self.loopback
        with server.lock:
            server.requests.append(request)
            move = server.script.pop(0) if server.script else server.default
            server.busy += 1
            server.busiest = max(server.busiest, server.busy)
        try:
            move(self, request)
        finally:
            with server.lock:
                server.busy -= 1

    def send(self, status: int, body: bytes, kind: str, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Tests read `requests`; the terminal stays quiet."""


# ---- moves ----


def raw(status: int, body: Any, kind: str = "application/json", **headers: str) -> Move:
    text = body if isinstance(body, str) else json.dumps(body)
    return lambda handler, request: handler.send(status, text.encode(), kind, **headers)


def completion(text: str | None, finish_reason: str | None = "stop") -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {
        "id": "x",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": message, "finish_reason": finish_reason}],
    }


def says(text: str | None, finish_reason: str | None = "stop") -> Move:
    return raw(200, completion(text, finish_reason))


def says_by(write: Callable[[str], str]) -> Move:
    """What `write` makes of the question."""
    return lambda handler, request: says(write(request.question))(handler, request)


def fails(status: int, message: str = "", **headers: str) -> Move:
    return raw(status, {"error": {"message": message}}, **headers)


def html(status: int = 200) -> Move:
    return raw(status, "<!DOCTYPE html><html><body>Welcome</body></html>", "text/html")


def wants_key(key: str, then: Move) -> Move:
    """Refuses every other key, and sends it back as careless servers do."""

    def move(handler: Handler, request: Request) -> None:
        given = request.headers.get("authorization", "nothing")
        right = given == f"Bearer {key}"
        (then if right else fails(401, f"no good: {given}"))(handler, request)

    return move


def hangs(handler: Handler, request: Request) -> None:
    """Says nothing until the server is shut down."""
    handler.loopback.closing.wait(30)
    handler.close_connection = True


def cuts(handler: Handler, request: Request) -> None:
    """Closes the connection in the middle of the body."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [{"mess')
    handler.close_connection = True


def together(count: int, then: Move) -> Move:
    """Answers only once `count` requests are in progress: proof that they are sent at a time."""
    barrier = threading.Barrier(count)

    def move(handler: Handler, request: Request) -> None:
        barrier.wait(10)
        then(handler, request)

    return move


# ---- the server ----


@contextmanager
def serve(default: Move) -> Iterator[Loopback]:
    loopback = Loopback(default)
    handler = type("ScriptedHandler", (Handler,), {"loopback": loopback})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    loopback.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield loopback
    finally:
        loopback.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No proxy, key, token or offline switch of the environment has a say in these tests."""
    import huggingface_hub

    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("MINIALIGN_API_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()  # it remembers the proxies it was opened with
    yield
    huggingface_hub.close_session()


@pytest.fixture
def server(direct: None) -> Iterator[Loopback]:
    """A server that answers every question with "yes"."""
    with serve(says("yes")) as loopback:
        yield loopback
