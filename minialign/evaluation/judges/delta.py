"""How does the person use the commonest words? Burrows' Delta (doi:10.1093/llc/17.3.267).

Nobody chooses how often to write "the", "of" or a comma. A piece's score is how much nearer its
standard scores are to the person's mean than to everybody else's: the difference of the mean
absolute differences. It knows no rare word, so that no topic and no phrase convinces it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from minialign.evaluation.judges.corpus import Array, Corpus, Indices, balanced
from minialign.evaluation.judges.features import Bag, Family
from minialign.evaluation.judges.pieces import HeldOut, PieceJudge, Scorer
from minialign.evaluation.judges.words import tokens_of

WORDS = 150  # and marks, the commonest


class DeltaJudge(PieceJudge):
    """By the frequencies of common words."""

    name: ClassVar[str] = "delta"

    @classmethod
    def _learned(cls, corpus: Corpus) -> tuple[Scorer, HeldOut]:
        bag = Bag.of(tokens_of, corpus.pieces)
        centres = _Centres.fit(bag, corpus, np.arange(len(corpus.pieces)))

        def held_out(folds: Indices) -> Array:
            fold_of, raw = folds[corpus.text_of], np.zeros(len(corpus.pieces))
            for fold in range(folds.max() + 1):
                held = fold_of == fold
                raw[held] = _Centres.fit(bag, corpus, np.flatnonzero(~held)).nearer(bag)[held]
            return raw

        return (lambda pieces: centres.nearer(Bag.of(tokens_of, pieces))), held_out


@dataclass(frozen=True)
class _Centres:
    family: Family
    own: Array  # (F,): mean standard scores
    others: Array

    @classmethod
    def fit(cls, bag: Bag, corpus: Corpus, learned: Indices) -> _Centres:
        """From the pieces in the rows `learned` alone."""
        weights = np.zeros(len(corpus.pieces))
        weights[learned] = balanced(corpus.group_of[learned], corpus.text_of[learned])
        family = Family.fit(bag, WORDS, weights)
        scores = family(bag)
        own, others = (
            np.average(scores, axis=0, weights=weights * side)
            for side in (corpus.owned, ~corpus.owned)
        )
        return cls(family, own, others)

    def nearer(self, bag: Bag) -> Array:
        """(N,): by how many standard scores a word, in the mean."""
        scores = self.family(bag)
        if not scores.shape[1]:
            return np.zeros(len(scores))
        near, far = (np.abs(scores - centre).mean(1) for centre in (self.own, self.others))
        return far - near
