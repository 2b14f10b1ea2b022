"""The memory of the process: its peak, and giving back what was freed."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# What a container may take, where the system limits it.
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


def peak_bytes() -> int:
    """The most memory that was held since the start: a GPU's, else the process's; 0 if unknown."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def total_bytes(device: torch.device) -> float:
    """The memory that there is at all: a GPU's, else the machine's; infinite if unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    found = [math.inf]
    with suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):
        found.append(int(CONTAINER_LIMIT.read_text()))
    return min(found)


def release_memory() -> None:
    """Gives the system back what was freed.

    glibc keeps it where it lies between pieces in use. Steps are of unlike sizes, so over a run
    that adds up to more than a step needs.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
