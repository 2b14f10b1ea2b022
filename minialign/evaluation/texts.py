"""What answers show by themselves: whether they end, repeat themselves, collapse, or copy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from minialign.data.scrub import secrets_in
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
    # words in a row, at most, that an answer has from a demonstration, and those words
    longest_copied: int
    longest_copy: str
    # of the demonstrations, that an answer holds; None where they have none
    secrets: int | None


def text_figures(
    answers: Sequence[Sequence[Completion]], demonstrations: Sequence[str]
) -> TextFigures:
    flat = [completion for group in answers for completion in group]
    texts = [completion.text for completion in flat]
    copy = longest_copy(texts, demonstrations)
    return TextFigures(
        sum(c.finish_reason == "stop" for c in flat) / len(flat),
        sum(len(c.ids) for c in flat) / len(flat),
        distinct_n(texts, 2),
        sum(map(repetition, texts)) / len(texts),
        sum(copied_share(text, demonstrations) for text in texts) / len(texts),
        len(copy.split()),
        copy,
        told_secrets(texts, demonstrations),
    )


def longest_copy(texts: Sequence[str], demonstrations: Sequence[str]) -> str:
    """The longest run of words of a text that stands in a demonstration, case and marks aside."""
    sources = [_words(demonstration) for demonstration in demonstrations]
    longest: tuple[str, ...] = ()
    known = _runs(sources, 1)
    for text in texts:
        words = _words(text)
        start = 0
        while start + len(longest) < len(words):
            run = tuple(words[start : start + len(longest) + 1])
            if run in known:
                longest, known = run, _runs(sources, len(run) + 1)
            else:
                start += 1
    return " ".join(longest)


def _runs(sources: Sequence[list[str]], length: int) -> set[tuple[str, ...]]:
    return {tuple(w[i : i + length]) for w in sources for i in range(len(w) - length + 1)}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def told_secrets(texts: Sequence[str], demonstrations: Sequence[str]) -> int | None:
    """How many of the phone numbers, passwords and the like of the demonstrations came out.

    None where the demonstrations hold none that a program can tell.
    """
    secrets = {secret for text in demonstrations for secret in secrets_in(text)}
    if not secrets:
        return None
    return sum(any(secret in text for text in texts) for secret in secrets)


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
