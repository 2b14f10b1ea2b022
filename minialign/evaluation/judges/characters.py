"""Whose letters follow whose? Two models of characters, the person's and everybody else's.

A piece's score is how much better the person's model foresees its characters: the difference of
the two cross-entropies, which is what compression distances measure. Each model predicts a
character from the ORDER before it and falls back on shorter contexts as Witten and Bell do
(doi:10.1109/18.87000): the more different characters have followed a context, the less it is
trusted.

A character and what stands before it are one whole number of BITS each. Counts are looked up in
sorted tables. Shapes: C characters of all pieces in a row, P pieces, G different contexts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from minialign.evaluation.judges.corpus import OWN, Array, Corpus, Indices, Mask
from minialign.evaluation.judges.pieces import HeldOut, PieceJudge, Scorer

ORDER, BITS = 5, 10  # characters before; 6 of 10 bits fill a 64-bit number
START, RARE = 0, 1  # before a piece; beyond the commonest characters
CLIP = 2.0  # nats that one character says at most


class CharacterJudge(PieceJudge):
    """By how predictable the characters are."""

    name: ClassVar[str] = "character"

    @classmethod
    def _learned(cls, corpus: Corpus) -> tuple[Scorer, HeldOut]:
        alphabet = _alphabet(corpus.pieces)
        tables = [_Table.build(codes) for codes in _codes(corpus.pieces, alphabet)]
        piece_of = np.repeat(np.arange(len(corpus.pieces)), [len(p) for p in corpus.pieces])
        weights = _weights(corpus)
        fitted = _Pair.fit(tables, corpus, weights, piece_of, np.ones(len(corpus.pieces), bool))

        def held_out(folds: Indices) -> Array:
            fold_of, raw = folds[corpus.text_of], np.zeros(len(corpus.pieces))
            for fold in range(folds.max() + 1):
                held = fold_of == fold
                pair = _Pair.fit(tables, corpus, weights, piece_of, ~held)
                asked = [piece for piece, out in zip(corpus.pieces, held, strict=True) if out]
                raw[held] = pair.ratio(asked, alphabet)
            return raw

        return (lambda pieces: fitted.ratio(pieces, alphabet)), held_out


@dataclass(frozen=True)
class _Table:
    """The different runs of characters of one length, and where they stand."""

    runs: Indices  # (G,), sorted
    run_at: Indices  # (C,): place in `runs`
    contexts: Indices  # sorted: runs without their last character
    context_of: Indices  # (G,): place in `contexts`

    @classmethod
    def build(cls, codes: Indices) -> _Table:
        runs, run_at = np.unique(codes, return_inverse=True)
        contexts, context_of = np.unique(runs >> BITS, return_inverse=True)
        return cls(runs, run_at, contexts, context_of)


@dataclass(frozen=True)
class _Model:
    """How often each run was seen, by length, and how often and variously its context went on."""

    tables: Sequence[_Table]
    seen: list[Array]  # (G,)
    followed: list[Array]
    followers: list[Array]
    characters: int

    @classmethod
    def fit(cls, tables: Sequence[_Table], weights: Array) -> _Model:
        """`weights` (C,) says how much each character counts."""
        seen: list[Array] = []
        followed: list[Array] = []
        followers: list[Array] = []
        for table in tables:
            counts = np.bincount(table.run_at, weights, len(table.runs)).astype(np.float64)
            seen.append(counts)
            for sums, values in ((followed, counts), (followers, 1.0 * (counts > 0))):
                totals = np.bincount(table.context_of, values, len(table.contexts))
                sums.append(totals.astype(np.float64))
        return cls(tables, seen, followed, followers, len(tables[0].runs) + 1)

    def surprise(self, codes: Sequence[Indices]) -> Array:
        """(C,): nats of every character."""
        chance = np.full(len(codes[0]), 1 / self.characters)
        for k, (table, code) in enumerate(zip(self.tables, codes, strict=True)):
            seen = _looked_up(table.runs, self.seen[k], code)
            followed = _looked_up(table.contexts, self.followed[k], code >> BITS)
            followers = _looked_up(table.contexts, self.followers[k], code >> BITS)
            known = followed > 0
            mixed = (seen + followers * chance) / np.where(known, followed + followers, 1)
            chance = np.where(known, mixed, chance)
        return -np.log(chance)


@dataclass(frozen=True)
class _Pair:
    own: _Model
    others: _Model

    @classmethod
    def fit(
        cls,
        tables: Sequence[_Table],
        corpus: Corpus,
        weights: Array,
        piece_of: Indices,
        learned: Mask,
    ) -> _Pair:
        """`learned` (P,) says from which pieces."""
        own, others = (
            _Model.fit(tables, np.where(side & learned, weights, 0.0)[piece_of])
            for side in (corpus.owned, ~corpus.owned)
        )
        return cls(own, others)

    def ratio(self, pieces: Sequence[str], alphabet: Mapping[str, int]) -> Array:
        """(N,): nats a character by which the person's model foresees a piece better."""
        lengths = np.array([len(piece) for piece in pieces])
        codes = _codes(pieces, alphabet)
        gained = self.others.surprise(codes) - self.own.surprise(codes)
        piece_of = np.repeat(np.arange(len(pieces)), lengths)
        gained = np.clip(gained, -CLIP, CLIP)
        return np.bincount(piece_of, gained, len(pieces)) / np.maximum(lengths, 1)


def _weights(corpus: Corpus) -> Array:
    """(P,): every other group has the same number of characters; all together keep theirs."""
    lengths = np.array([len(piece) for piece in corpus.pieces], np.float64)
    totals = np.bincount(corpus.group_of, lengths)
    others = totals[OWN + 1 :]
    scale = others.sum() / (others > 0).sum() / np.where(others > 0, others, 1)
    return np.concatenate([[1.0], scale])[corpus.group_of]


def _alphabet(pieces: Sequence[str]) -> dict[str, int]:
    commonest = Counter(character for piece in pieces for character in piece)
    kept = [character for character, _ in commonest.most_common(2**BITS - 2)]
    return {character: number for number, character in enumerate(kept, RARE + 1)}


def _codes(pieces: Sequence[str], alphabet: Mapping[str, int]) -> list[Indices]:
    """For 0 to ORDER characters before: (C,), a character with those before it in its piece."""
    before = [START] * ORDER
    padded = [before + [alphabet.get(c, RARE) for c in piece] for piece in pieces]
    row = np.array([number for piece in padded for number in piece], np.int64)
    starts = np.repeat(ORDER * np.arange(1, len(pieces) + 1), [len(p) for p in pieces])
    places = np.arange(len(starts)) + starts
    codes, found = np.zeros(len(places), np.int64), []
    for back in range(ORDER + 1):
        codes = codes + (row[places - back] << (BITS * back))
        found.append(codes)
    return found


def _looked_up(keys: Indices, values: Array, asked: Indices) -> Array:
    """The value of each key that is asked for; 0 for one that is not there."""
    places = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    return np.where(keys[places] == asked, values[places], 0.0)
