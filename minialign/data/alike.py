"""Texts as counts of their words and characters: which are nearly the same, and which are typical.

Plain counting, deterministic, without a model.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
# Texts that share more of their runs of three words are nearly the same.
NEARLY_SAME = 0.6
# A text's runs are compared by the smallest of their hashes (Broder 1997).
SKETCH = 64
COLUMNS = 1024


def near_duplicates(texts: Sequence[str]) -> dict[int, int]:
    """The place of each text that an earlier one nearly repeats, and the place of that one."""
    sketches = [_sketch(text) for text in texts]
    holders: dict[int, list[int]] = defaultdict(list)
    found: dict[int, int] = {}
    for place, sketch in enumerate(sketches):
        shared = Counter(other for run in sketch for other in holders[run])
        for other, _ in sorted(shared.items(), key=lambda item: (-item[1], item[0]))[:20]:
            if _resemblance(sketch, sketches[other]) >= NEARLY_SAME:
                found[place] = other
                break
        else:
            for run in sketch:
                # A run in so many texts tells nothing, and would make this slow.
                if len(holders[run]) < 200:
                    holders[run].append(place)
    return found


def _sketch(text: str) -> frozenset[int]:
    words = re.findall(r"\w+", text.lower())
    runs = {" ".join(words[i : i + 3]) for i in range(max(1, len(words) - 2))}
    return frozenset(sorted(zlib.crc32(run.encode()) for run in runs)[:SKETCH])


def _resemblance(one: frozenset[int], other: frozenset[int]) -> float:
    smallest = sorted(one | other)[:SKETCH]
    return sum(run in one and run in other for run in smallest) / max(1, len(smallest))


def topics(texts: Sequence[str]) -> Array:
    """(N, columns), rows of length 1: words, those that few texts have counting more."""
    counts = _counts([re.findall(r"[^\W\d_]{3,}", text.lower()) for text in texts])
    rarity = np.log((1 + len(texts)) / (1 + (counts > 0).sum(axis=0)))
    return _unit(np.log1p(counts) * rarity)


def typicality(texts: Sequence[str]) -> Array:
    """(N,): from 0 to 1, how near a text's runs of three characters are to those of all others."""
    runs = [[text[i : i + 3].lower() for i in range(len(text) - 2)] for text in texts]
    rows = _unit(np.sqrt(_counts(runs)))
    others = rows.sum(axis=0) - rows
    near = (rows * _unit(others)).sum(axis=1)
    order: Array = near.argsort(kind="stable").argsort(kind="stable") / max(1, len(texts) - 1)
    return order


def _counts(parts: Sequence[Sequence[str]]) -> Array:
    """(N, columns): how often each part stands in each text; parts share columns by their hash."""
    counts = np.zeros((len(parts), COLUMNS))
    for row, own in enumerate(parts):
        for part, count in Counter(own).items():
            counts[row, zlib.crc32(part.encode()) % COLUMNS] += count
    return counts


def _unit(rows: Array) -> Array:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Array = rows / np.maximum(lengths, 1e-12)
    return unit
