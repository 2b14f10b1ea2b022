"""Does it write like this person? An authorship scorer that needs no model and no network.

It goes by character n-grams (casing, spaces, line breaks and punctuation stand in them) and the
commonest words and marks, as standard scores of their frequencies (Burrows' Delta,
doi:10.1093/llc/17.3.267) under a ridge classifier. Standard scores are clipped: a rare word that
happens to stand in a text decides nothing. What it shares with other judges is in pieces.py.

Shapes: P pieces of the corpus, F features; N pieces of whatever is asked about.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np

from minialign.evaluation.judges.corpus import Array, Corpus, Indices, balanced
from minialign.evaluation.judges.pieces import HeldOut, PieceJudge, Scorer, evidence
from minialign.evaluation.judges.trust import area_under_curve
from minialign.evaluation.judges.words import copied_share, tokens_of

__all__ = ["StyleJudge", "area_under_curve", "copied_share"]

Split = Callable[[str], list[str]]
NGRAMS, CHARACTER_FEATURES, WORD_FEATURES = (2, 3, 4), 4000, 500
CLIP, RIDGE = 3.0, 1.0  # standard scores; the classifier's penalty
REMEMBERED = 4096  # pieces whose features are remembered: judges of one person share most of theirs


class StyleJudge(PieceJudge):
    """By n-grams of characters and by words."""

    name: ClassVar[str] = "style"

    @classmethod
    def _learned(cls, corpus: Corpus) -> tuple[Scorer, HeldOut]:
        bags = _bags(corpus.pieces)
        classifier = _Classifier.fit(bags, corpus, np.arange(len(corpus.pieces)))
        return (
            lambda pieces: classifier(_bags(pieces)),
            lambda folds: _held_out(bags, corpus, folds),
        )


def _ngrams(text: str) -> list[str]:
    padded = f" {text} "
    return [padded[i : i + n] for n in NGRAMS for i in range(len(padded) - n + 1)]


SPLITS: tuple[tuple[Split, int], ...] = (
    (_ngrams, CHARACTER_FEATURES),
    (tokens_of, WORD_FEATURES),
)


@lru_cache(REMEMBERED)
def _counted(split: Split, piece: str) -> Counter[str]:
    return Counter(split(piece))


@dataclass(frozen=True)
class _Bag:
    """The features of one kind in N pieces: E entries, one for each feature of each piece."""

    evidence: Array  # (N,)
    features: list[str]  # sorted
    row: Indices  # (E,)
    feature: Indices  # (E,)
    frequency: Array  # (E,)

    @classmethod
    def of(cls, split: Split, pieces: Sequence[str]) -> _Bag:
        counted = [_counted(split, piece) for piece in pieces]
        features = sorted(set().union(*counted))
        number = {feature: place for place, feature in enumerate(features)}
        counts = np.array([n for counts in counted for n in counts.values()], np.float64)
        totals = np.array([max(1, counts.total()) for counts in counted], np.float64)
        row = np.repeat(np.arange(len(pieces)), [len(counts) for counts in counted])
        feature = np.array([number[part] for counts in counted for part in counts], np.intp)
        return cls(evidence(pieces), features, row, feature, counts / totals[row])

    def commonest(self, size: int, weights: Array) -> dict[str, int]:
        """Columns for the features that the most pieces have; `weights` (N,) says how they count.

        Of equally common ones the first of the alphabet.
        """
        commonness = np.bincount(self.feature, weights[self.row], len(self.features))
        ranked = np.argsort(-commonness, kind="stable")[: min(size, np.count_nonzero(commonness))]
        return {self.features[feature]: column for column, feature in enumerate(ranked.tolist())}

    def table(self, columns: Mapping[str, int]) -> Array:
        """(N, F): frequencies."""
        table = np.zeros((len(self.evidence), len(columns)))
        column = np.array([columns.get(name, -1) for name in self.features], np.intp)[self.feature]
        known = column >= 0
        table[self.row[known], column[known]] = self.frequency[known]
        return table


def _bags(pieces: Sequence[str]) -> list[_Bag]:
    return [_Bag.of(split, pieces) for split, _ in SPLITS]


@dataclass(frozen=True)
class _Family:
    """The commonest features of one kind, and how frequent they usually are."""

    columns: dict[str, int]
    mean: Array  # (F,)
    deviation: Array  # (F,); infinite for what never varies

    @classmethod
    def fit(cls, bag: _Bag, size: int, weights: Array) -> _Family:
        """`weights` (N,) says how much each piece counts; 0 is not learned from."""
        columns = bag.commonest(size, weights)
        share, frequencies = weights / weights.sum(), bag.table(columns)
        mean = share @ frequencies
        # rounding may leave less than nothing
        deviation = np.sqrt(np.maximum(share @ frequencies**2 - mean**2, 0.0))
        return cls(columns, mean, np.where(deviation > 1e-7, deviation, np.inf))

    def __call__(self, bag: _Bag) -> Array:
        """(N, F): clipped standard scores; a row's squares add up to about 1."""
        scores = (bag.table(self.columns) - self.mean) / self.deviation * bag.evidence[:, None]
        return np.clip(scores, -CLIP, CLIP) / np.sqrt(max(1, len(self.columns)))


@dataclass(frozen=True)
class _Classifier:
    """Ridge regression on the standard scores of all families, which have the same say."""

    families: list[_Family]
    coefficients: Array  # (F + 1,): the offset stands last

    @classmethod
    def fit(cls, bags: Sequence[_Bag], corpus: Corpus, learned: Indices) -> _Classifier:
        """From the pieces in the rows `learned` alone, in its dual: alpha = (K + RIDGE W^-1)^-1 y.

        Features and scales are learned from no others either. Were held-out pieces to choose
        features, those of the person's would choose what the rest of the person's texts lack, and
        areas would fall below chance.
        """
        weights = np.zeros(len(corpus.pieces))
        weights[learned] = balanced(corpus.group_of[learned], corpus.text_of[learned])
        families = [
            _Family.fit(bag, size, weights) for bag, (_, size) in zip(bags, SPLITS, strict=True)
        ]
        scores = _scores(families, bags)[learned]
        target = np.where(corpus.owned[learned], 1.0, -1.0)
        penalty = np.diag(RIDGE / weights[learned])
        return cls(families, scores.T @ np.linalg.solve(scores @ scores.T + penalty, target))

    def __call__(self, bags: Sequence[_Bag]) -> Array:
        return _scores(self.families, bags) @ self.coefficients


def _scores(families: Sequence[_Family], bags: Sequence[_Bag]) -> Array:
    """(N, F + 1): the last column is the offset's."""
    scores = [
        family(bag) / np.sqrt(len(families)) for family, bag in zip(families, bags, strict=True)
    ]
    return np.concatenate([*scores, np.ones((len(scores[0]), 1))], axis=1)


def _held_out(bags: Sequence[_Bag], corpus: Corpus, folds: Indices) -> Array:
    """(P,): what a classifier that has not learned from a piece's fold says of the piece."""
    fold_of, raw = folds[corpus.text_of], np.zeros(len(corpus.pieces))
    for fold in range(folds.max() + 1):
        held = fold_of == fold
        raw[held] = _Classifier.fit(bags, corpus, np.flatnonzero(~held))(bags)[held]
    return raw
