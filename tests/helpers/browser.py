"""A headless Chromium that a test drives through the pipes of its debugging protocol."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "mute-audio"),
    *("disable-sync", "disable-background-networking", "disable-component-update"),
    "remote-debugging-pipe",
)
KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "ArrowDown": 40, "z": 90, "a": 65, "b": 66, "n": 78}


class Tab:
    """One page: what it shows, what it asked of the network, and what it said on the console."""

    def __init__(self, sending: int, receiving: int) -> None:
        self._sending, self._receiving, self._rest = sending, receiving, b""
        self._calls = 0
        self._session = ""
        self.events: list[dict[str, Any]] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._sending, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._calls:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._receiving, 1 << 16)
            assert part, "the browser is gone"
            self._rest += part
        line, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def size(self, width: int, height: int = 844, *, dark: bool = False) -> None:
        self._call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str) -> None:
        self._loaded("Page.navigate", url=address)

    def reload(self) -> None:
        self._loaded("Page.reload")

    def _loaded(self, method: str, **parameters: Any) -> None:
        seen = len(self.events)
        self._call(method, **parameters)
        while not any(e["method"] == "Page.loadEventFired" for e in self.events[seen:]):
            self._read()

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page, awaited."""
        found = self._call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str) -> None:
        code = {"key": key, "windowsVirtualKeyCode": KEYS[key]}
        self._call("Input.dispatchKeyEvent", type="rawKeyDown", **code)
        self._call("Input.dispatchKeyEvent", type="keyUp", **code)

    def click(self, selector: str) -> None:
        """With the mouse, where the element is to be seen."""
        box = self.ask(
            f"(e => {{ e.scrollIntoView(); const b = e.getBoundingClientRect();"
            f" return [b.x + b.width / 2, b.y + b.height / 2]; }})"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        for kind in ("mousePressed", "mouseReleased"):
            place = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
            self._call("Input.dispatchMouseEvent", type=kind, **place)

    def save_downloads(self, folder: Path) -> None:
        self._call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

    def picture(self, file: Path) -> None:
        shot = self._call("Page.captureScreenshot", captureBeyondViewport=False)
        file.write_bytes(base64.b64decode(shot["data"]))

    @property
    def requests(self) -> list[str]:
        """Every address that was asked for."""
        sent = [e["params"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in sent]

    @property
    def complaints(self) -> list[str]:
        """What stands on the console, and what was thrown."""
        names = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [json.dumps(e["params"]) for e in self.events if e["method"] in names]


@contextmanager
def browser(folder: Path) -> Iterator[Tab]:
    """A fresh browser, whose profile lies in `folder`."""
    down, up = os.pipe(), os.pipe()

    def hand_over() -> None:
        # The browser reads from 3 and writes to 4.
        ends = os.dup(down[0]), os.dup(up[1])
        os.dup2(ends[0], 3)
        os.dup2(ends[1], 4)

    command = [str(CHROMIUM), *(f"--{flag}" for flag in FLAGS), f"--user-data-dir={folder / 'p'}"]
    process = subprocess.Popen(
        command, preexec_fn=hand_over, close_fds=False, stderr=subprocess.DEVNULL
    )
    for end in (down[0], up[1]):
        os.close(end)
    try:
        yield Tab(down[1], up[0])
    finally:
        process.terminate()
        process.wait(20)
        for end in (down[1], up[0]):
            os.close(end)


def wait_for(file: Path, seconds: float = 10) -> Path:
    """Until the browser has written a download."""
    end = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < end, f"{file} never came"
        time.sleep(0.02)
    return file
