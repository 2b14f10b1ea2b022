"""Words and marks of any script, and how many of a text's words were copied."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set

import numpy as np

from minialign.errors import InputError

# a Chinese or Japanese character; a word with its apostrophes; a mark and its repeats; line breaks
_TOKEN = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff]"
    r"|[^\W\u3040-\u30ff\u3400-\u9fff]+(?:['’][^\W\u3040-\u30ff\u3400-\u9fff]+)*"
    r"|([^\w\s])\1*|\n+"
)


def tokens_of(text: str) -> list[str]:
    return [match.group().lower() for match in _TOKEN.finditer(text)]


def words_of(text: str) -> list[str]:
    return [token for token in tokens_of(text) if token[0].isalnum()]


def runs_of(tokens: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    """Every `n` in a row."""
    return zip(*(tokens[i:] for i in range(n)), strict=False)


def copied_share(text: str, demonstrations: Sequence[str], n: int = 8) -> float:
    """The share of the text's words that stand in `n` words in a row of a demonstration.

    From 0 to 1; 0 for a text of fewer than `n` words. Case and punctuation make no difference.
    Memorised text is not style. Raises InputError unless `n` is at least 1.
    """
    if n < 1:
        raise InputError(f"n is {n}: give the words in a row that count as copied, at least 1")
    copied = _copied(words_of(text), known_runs(demonstrations, n), n)
    return float(copied.mean()) if len(copied) else 0.0


def known_runs(demonstrations: Sequence[str], n: int = 8) -> set[tuple[str, ...]]:
    """Every `n` words in a row of the demonstrations."""
    return {run for written in demonstrations for run in runs_of(words_of(written), n)}


def copied_spans(text: str, known: Set[tuple[str, ...]], n: int = 8) -> list[tuple[int, int]]:
    """Where the words that `copied_share` counts stand in the text; neighbours are one span."""
    found = [match for match in _TOKEN.finditer(text) if match.group()[0].isalnum()]
    copied = _copied([match.group().lower() for match in found], known, n)
    spans: list[tuple[int, int]] = []
    for place in np.flatnonzero(copied):
        start, end = found[place].span()
        if place and copied[place - 1]:
            start = spans.pop()[0]
        spans.append((start, end))
    return spans


def _copied(words: Sequence[str], known: Set[tuple[str, ...]], n: int) -> np.ndarray:
    copied = np.zeros(len(words), bool)
    for start, run in enumerate(runs_of(words, n)):
        if run in known:
            copied[start : start + n] = True
    return copied
