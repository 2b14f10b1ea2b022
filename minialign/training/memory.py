"""The memory of the process: its peak, and giving back what was freed."""

from __future__ import annotations

import ctypes
import sys

import torch

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


def peak_bytes() -> int:
    """The most memory that was held since the start: a GPU's, else the process's; 0 if unknown."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    if resource is None:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def release_memory() -> None:
    """Gives the system back what was freed.

    glibc keeps it where it lies between pieces in use. Steps are of unlike sizes, so over a run
    that adds up to more than a step needs.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)
