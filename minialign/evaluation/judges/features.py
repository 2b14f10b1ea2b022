"""How frequent each feature of a text is, and how far that is from what is usual.

Features are whatever a text splits into: n-grams, words. Standard scores are clipped: a rare word
that happens to stand in a text decides nothing.

Shapes: N pieces, E entries, F features.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from minialign.evaluation.judges.corpus import Array, Indices
from minialign.evaluation.judges.pieces import evidence

Split = Callable[[str], list[str]]
CLIP = 3.0  # standard scores
REMEMBERED = 4096  # pieces whose features are kept: judges of one person share most of theirs


@lru_cache(REMEMBERED)
def _counted(split: Split, piece: str) -> Counter[str]:
    return Counter(split(piece))


@dataclass(frozen=True)
class Bag:
    """The features of one kind in N pieces: E entries, one for each feature of each piece."""

    evidence: Array  # (N,)
    features: list[str]  # sorted
    row: Indices  # (E,)
    feature: Indices  # (E,)
    frequency: Array  # (E,)

    @classmethod
    def of(cls, split: Split, pieces: Sequence[str]) -> Bag:
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


@dataclass(frozen=True)
class Family:
    """The commonest features of one kind, and how frequent they usually are."""

    columns: dict[str, int]
    mean: Array  # (F,)
    deviation: Array  # (F,); infinite for what never varies

    @classmethod
    def fit(cls, bag: Bag, size: int, weights: Array) -> Family:
        """`weights` (N,) says how much each piece counts; 0 is not learned from."""
        columns = bag.commonest(size, weights)
        share, frequencies = weights / weights.sum(), bag.table(columns)
        mean = share @ frequencies
        # rounding may leave less than nothing
        deviation = np.sqrt(np.maximum(share @ frequencies**2 - mean**2, 0.0))
        return cls(columns, mean, np.where(deviation > 1e-7, deviation, np.inf))

    def __call__(self, bag: Bag) -> Array:
        """(N, F): clipped standard scores."""
        scores = (bag.table(self.columns) - self.mean) / self.deviation * bag.evidence[:, None]
        return np.clip(scores, -CLIP, CLIP)
