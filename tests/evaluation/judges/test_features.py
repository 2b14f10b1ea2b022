"""Frequencies and standard scores by hand."""

from __future__ import annotations

import numpy as np

from minialign.evaluation.judges.features import CLIP, Bag, Family


def family(pieces: list[str]) -> Family:
    return Family.fit(Bag.of(str.split, pieces), 10, np.ones(len(pieces)))


def test_one_rare_feature_has_bounded_weight() -> None:
    """Standard scores end at CLIP, however often somebody writes "zz"."""
    known = family(["a b c d"] * 30 + ["a b c zz"])
    column = known.columns["zz"]
    asked = Bag.of(str.split, ["zz " * 1 + "a " * 9, "zz " * 300])
    once, often = known(asked)[:, column]
    assert often == CLIP
    assert 0 < once <= often


def test_a_short_piece_is_drawn_towards_everybody() -> None:
    asked = Bag.of(str.split, ["a b b b ", "a b b b " * 100])
    short, long = family(["a a b b", "a a a b"] * 5)(asked)
    assert np.all(np.abs(short) < 0.2 * np.abs(long)) and np.all(short * long > 0)


def test_frequencies_are_counts_over_all_features_of_a_piece() -> None:
    bag = Bag.of(str.split, ["b a a c", "", "c c"])
    columns = bag.commonest(2, np.array([1.0, 1.0, 0.5]))
    assert columns == {"c": 0, "a": 1}
    assert bag.table(columns).tolist() == [[0.25, 0.5], [0, 0], [1, 0]]


def test_pieces_that_are_not_learned_from_choose_no_features() -> None:
    bag = Bag.of(str.split, ["a", "b b"])
    assert bag.commonest(5, np.array([1.0, 0.0])) == {"a": 0}
