"""Serves the blind page to this machine alone, and saves each vote.

Only 127.0.0.1 is listened on. The page lies under a name that nobody can guess, and requests that
name another host are refused, so that no other page of the browser can read or write the votes.
"""

from __future__ import annotations

import secrets
import tempfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from minialign.data.files import replace_whole
from minialign.data.votes import Vote, read_votes
from minialign.errors import InputError
from minialign.evaluation.blind import Blind, blind_page

LOOPBACK = "127.0.0.1"
MOST_BYTES = 64 << 20  # of the votes in one request


class VoteServer(ThreadingHTTPServer):
    """One page, and the file in which its votes are kept."""

    daemon_threads = True

    def __init__(self, blind: Blind, file: Path, port: int = 0) -> None:
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            raise InputError(f"--port {port}: cannot be listened on: {error.strerror}") from None
        self.blind, self.file = blind, file
        self.path = f"/{secrets.token_urlsafe(16)}/"

    @property
    def host(self) -> str:
        return f"{LOOPBACK}:{self.server_port}"

    @property
    def address(self) -> str:
        return f"http://{self.host}{self.path}"

    def votes(self) -> list[Vote]:
        return read_votes(self.file) if self.file.exists() else []

    def page(self) -> bytes:
        return blind_page(self.blind, self.votes(), live=True).encode()

    def save(self, sent: bytes) -> None:
        """Puts the page's votes in the place of its earlier ones; those of other pages stay.

        Raises InputError, and leaves the file as it is, for what no page sends.
        """
        with tempfile.TemporaryDirectory() as folder:
            received = Path(folder) / "votes.jsonl"
            received.write_bytes(sent)
            votes = read_votes(received) if sent.strip() else []
        if any(vote.page != self.blind.page for vote in votes):
            raise InputError("these votes are another page's: load this page anew")
        kept = self.file.read_bytes().splitlines(keepends=True) if self.file.exists() else []
        others = [
            line
            for line, vote in zip((k for k in kept if k.strip()), self.votes(), strict=True)
            if vote.page != self.blind.page
        ]
        replace_whole(self.file, lambda path: path.write_bytes(b"".join(others) + sent))


class _Handler(BaseHTTPRequestHandler):
    server: VoteServer

    def do_GET(self) -> None:
        if self._is_ours():
            self._answer(200, self.server.page(), "text/html")

    def do_POST(self) -> None:
        if not self._is_ours():
            return
        size = self.headers.get("Content-Length", "")
        if not size.isdecimal() or int(size) > MOST_BYTES:
            self._answer(413, b"how many votes these are is not said, or they are too many")
            return
        try:
            self.server.save(self.rfile.read(int(size)))
        except (InputError, OSError) as error:
            self._answer(400, str(error).encode())
            return
        self._answer(204)

    def _is_ours(self) -> bool:
        ours = self.path == self.server.path and self.headers.get("Host") == self.server.host
        if not ours:
            self._answer(404)
        return ours

    def _answer(self, status: int, body: bytes = b"", kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Frame-Options", "DENY")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *values: object) -> None:
        """Says nothing: the address is a secret."""


def serve(blind: Blind, file: Path, port: int) -> None:
    """Until Ctrl-C."""
    with VoteServer(blind, file, port) as server:
        server.votes()  # refuses a broken file before anybody votes
        print(f"{len(blind.pairs)} pairs: {server.address}")
        print(f"every vote is saved in {file}; Ctrl-C ends", flush=True)
        server.serve_forever()
