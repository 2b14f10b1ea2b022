"""minialign: align a language model to one person, in plain PyTorch.

DITTO (arXiv 2406.00888) learns a voice from a handful of demonstrations. See README.md for a first
run, and `model/`, `fused.py`, `losses.py`, `policy/` and `methods/ditto.py` for how it works.

The names below are imported on first use, so that `import minialign` and every `--help` are
instant.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "load": "minialign.weights.load",
    "generate": "minialign.policy.sample",
    "score": "minialign.policy.score",
    "Completion": "minialign.policy.sample",
    "Example": "minialign.data.records",
    "InputError": "minialign.errors",
}
# Earlier names that are still understood.
_ALIASES = {"Sequence": "Example"}
__all__ = [
    "Completion",
    "Example",
    "InputError",
    "Sequence",
    "__version__",
    "generate",
    "load",
    "score",
]


def __getattr__(name: str) -> Any:
    name = _ALIASES.get(name, name)
    if name not in _HOMES:
        raise AttributeError(f"module 'minialign' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
