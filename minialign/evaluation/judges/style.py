"""Does it write like this person? An authorship scorer that needs no model and no network.

It goes by character n-grams (casing, spaces, line breaks and punctuation stand in them) and the
commonest words and marks, as standard scores of their frequencies (Burrows' Delta,
doi:10.1093/llc/17.3.267) under a ridge classifier. pieces.py has what it shares with other judges.

Shapes: P pieces of the corpus, F features; N pieces of whatever is asked about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from minialign.evaluation.judges.corpus import Array, Corpus, Indices, balanced
from minialign.evaluation.judges.features import Bag, Family, Split
from minialign.evaluation.judges.pieces import HeldOut, PieceJudge, Scorer
from minialign.evaluation.judges.trust import area_under_curve
from minialign.evaluation.judges.words import copied_share, tokens_of

__all__ = ["StyleJudge", "area_under_curve", "copied_share"]

NGRAMS, CHARACTER_FEATURES, WORD_FEATURES = (2, 3, 4), 4000, 500
RIDGE = 1.0  # the classifier's penalty


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


def _bags(pieces: Sequence[str]) -> list[Bag]:
    return [Bag.of(split, pieces) for split, _ in SPLITS]


@dataclass(frozen=True)
class _Classifier:
    """Ridge regression on the standard scores of all families, which have the same say."""

    families: list[Family]
    coefficients: Array  # (F + 1,): the offset stands last

    @classmethod
    def fit(cls, bags: Sequence[Bag], corpus: Corpus, learned: Indices) -> _Classifier:
        """From the pieces in the rows `learned` alone, in its dual: alpha = (K + RIDGE W^-1)^-1 y.

        Features and scales are learned from no others either. Were held-out pieces to choose
        features, those of the person's would choose what the rest of the person's texts lack, and
        areas would fall below chance.
        """
        weights = np.zeros(len(corpus.pieces))
        weights[learned] = balanced(corpus.group_of[learned], corpus.text_of[learned])
        families = [
            Family.fit(bag, size, weights) for bag, (_, size) in zip(bags, SPLITS, strict=True)
        ]
        scores = _scores(families, bags)[learned]
        target = np.where(corpus.owned[learned], 1.0, -1.0)
        penalty = np.diag(RIDGE / weights[learned])
        return cls(families, scores.T @ np.linalg.solve(scores @ scores.T + penalty, target))

    def __call__(self, bags: Sequence[Bag]) -> Array:
        return _scores(self.families, bags) @ self.coefficients


def _scores(families: Sequence[Family], bags: Sequence[Bag]) -> Array:
    """(N, F + 1): a row's squares add up to about 1; the last column is the offset's."""
    scores = [
        family(bag) / np.sqrt(len(families)) for family, bag in zip(families, bags, strict=True)
    ]
    return np.concatenate([*scores, np.ones((len(scores[0]), 1))], axis=1)


def _held_out(bags: Sequence[Bag], corpus: Corpus, folds: Indices) -> Array:
    """(P,): what a classifier that has not learned from a piece's fold says of the piece."""
    fold_of, raw = folds[corpus.text_of], np.zeros(len(corpus.pieces))
    for fold in range(folds.max() + 1):
        held = fold_of == fold
        raw[held] = _Classifier.fit(bags, corpus, np.flatnonzero(~held))(bags)[held]
    return raw
