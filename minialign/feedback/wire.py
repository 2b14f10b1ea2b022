"""One request over HTTP, bounded in time and size. It is never sent on to another address.

The client is the one that huggingface_hub brings, without what the hub's requests do besides.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

# A hundred thousand tokens are half a megabyte; whoever sends more sends no answer.
MOST_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Received:
    """What a server answered, whatever its status."""

    status: int
    headers: Mapping[str, str]
    text: str


class Broken(Exception):
    """No whole answer came. `may_pass`: another try may fare better."""

    def __init__(self, reason: str, may_pass: bool) -> None:
        super().__init__(reason)
        self.reason, self.may_pass = reason, may_pass


class Wire:
    """Requests to one address from any thread, over one client in a loop of its own."""

    def __init__(self, url: str, headers: Mapping[str, str], seconds: float) -> None:
        self.url, self.seconds = url, seconds
        self._headers = {"accept-encoding": "identity", **headers}
        self._loop = _running_loop()

    def post(self, body: dict[str, Any]) -> Received:
        """Sends JSON and reads the whole answer, `seconds` in all however it trickles.

        Redirects are answers like others: nothing goes to an address that nobody named. Raises
        Broken.
        """
        from huggingface_hub.errors import HTTPError

        try:
            return asyncio.run_coroutine_threadsafe(self._post(body), self._loop).result()
        except TimeoutError:
            raise Broken(f"no answer within {self.seconds:g} s", may_pass=True) from None
        except HTTPError as error:
            why = f"cannot be reached: {str(error) or type(error).__name__}"
            raise Broken(why, may_pass=True) from None

    async def _post(self, body: dict[str, Any]) -> Received:
        # What building the client takes is no part of the answer's time.
        client = self._client
        how: dict[str, Any] = {"headers": self._headers, "json": body, "follow_redirects": False}
        async with (
            asyncio.timeout(self.seconds),
            client.stream("POST", self.url, **how) as response,
        ):
            return Received(response.status_code, response.headers, await _read(response))

    @cached_property
    def _client(self) -> Any:
        from huggingface_hub import get_async_session

        client = get_async_session()
        # The hub's hooks obey its offline switch and may log headers.
        client.event_hooks = {}
        return client


@cache
def _running_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="requests", daemon=True).start()
    return loop


async def _read(response: Any) -> str:
    # Unpacking what was packed against our wish could fill the memory at once.
    if response.headers.get("content-encoding", "identity") != "identity":
        raise Broken("answers compressed, which was not asked for", may_pass=False)
    content = bytearray()
    async for part in response.aiter_raw():
        content += part
        if len(content) > MOST_BYTES:
            size = f"{MOST_BYTES / 2**20:g} MB"
            raise Broken(f"answers more than {size}: no chat completion", may_pass=False)
    return content.decode("utf-8", "replace")
