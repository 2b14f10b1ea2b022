"""Seconds, peak memory, and what a contestant hands back."""

from __future__ import annotations

import gc
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

# `seconds` of each run, `written` tokens of each run or the `computed_tokens` of one, `peak_bytes`,
# and what is compared with the others': `gradients` by name, or the `greedy` texts as token ids.
Result = dict[str, Any]

# Gets the command line and the folder in which the processes of a benchmark share files.
Contestant = Callable[[Namespace, Path], Result]


class Memory:
    """The most that this process held since it was created, above what it held then, in bytes."""

    STATUS = Path("/proc/self/status")

    def __init__(self) -> None:
        gc.collect()
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        except OSError:
            pass
        self.before = self._read("VmRSS")

    def peak(self) -> int | None:
        now = self._read("VmHWM")
        return None if now is None or self.before is None else now - self.before

    def _read(self, name: str) -> int | None:
        if not self.STATUS.exists():  # not Linux
            return None
        line = next(t for t in self.STATUS.read_text().splitlines() if t.startswith(name))
        return int(line.split()[1]) * 1024


def timed(work: Callable[[], Any], runs: int) -> list[float]:
    """Seconds of each run."""
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return seconds
