"""What answers show by themselves: whether they end, repeat themselves, collapse, or copy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from minialign.evaluation.judges.style import copied_share
from minialign.policy.sample import Completion

# Of a repetition.
WORDS_IN_A_ROW = 4
WORD = re.compile(r"[^\W\d_]+")
# A capitalised word within a sentence, or in the line below a comma, as a letter is signed.
NAME = re.compile(r"(?<=[\w,;:])\s[A-ZÀ-ÖØ-Þ][^\W\d_]+")


@dataclass(frozen=True)
class TextFigures:
    # the share of answers that ended by themselves
    stops: float
    mean_tokens: float
    # of all pairs of neighbouring words, over all answers: collapse shows
    distinct_2: float
    # the mean share of an answer's word 4-grams that stood in it before
    repetition: float
    # the mean share of words that stand 8 in a row in a demonstration
    copied: float


def text_figures(
    answers: Sequence[Sequence[Completion]], demonstrations: Sequence[str]
) -> TextFigures:
    flat = [completion for group in answers for completion in group]
    texts = [completion.text for completion in flat]
    return TextFigures(
        sum(c.finish_reason == "stop" for c in flat) / len(flat),
        sum(len(c.ids) for c in flat) / len(flat),
        distinct_n(texts, 2),
        sum(map(repetition, texts)) / len(texts),
        sum(copied_share(text, demonstrations) for text in texts) / len(texts),
    )


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Different word n-grams over all word n-grams (Li et al. 2016, arXiv 1510.03055)."""
    grams = [gram for text in texts for gram in _grams(text, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(text: str) -> float:
    grams = _grams(text, WORDS_IN_A_ROW)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def new_names(text: str, given: Sequence[str]) -> int:
    """How many names the text has that none of the texts `given` holds, in any case.

    A name is a capitalised word within a sentence that the text never writes in small letters.
    """
    known = {word.lower() for other in given for word in WORD.findall(other)}
    known |= {word for word in WORD.findall(text) if word.islower()}
    return len({name.strip().lower() for name in NAME.findall(text)} - known)


def _grams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return list(zip(*(words[i:] for i in range(n)), strict=False))
