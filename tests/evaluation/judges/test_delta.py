"""Burrows' Delta by hand."""

from __future__ import annotations

import numpy as np
import pytest

from minialign.evaluation.judges.corpus import Corpus
from minialign.evaluation.judges.delta import DeltaJudge, _Centres
from minialign.evaluation.judges.features import Bag


def test_a_piece_is_nearer_by_the_difference_of_mean_absolute_differences() -> None:
    """Two words of equal spread: the centres lie at +-1 and a piece of 50 letters counts half."""
    corpus = Corpus.build(["a a a b"] * 2, [["b b b a"] * 2])
    bag = Bag.of(str.split, corpus.pieces)
    centres = _Centres.fit(bag, corpus, np.arange(4))
    half = len("a a a b") / (len("a a a b") + 50)
    assert centres.own == pytest.approx(np.array([half, -half]))
    assert centres.others == pytest.approx(np.array([-half, half]))
    assert centres.nearer(bag) == pytest.approx([2 * half, 2 * half, -2 * half, -2 * half])


def test_it_knows_the_commonest_words_alone() -> None:
    own = [f"well the cat of the house w{i} was there" for i in range(40)]
    others = [f"so a cat in a house v{i} was there" for i in range(160)]
    judge = DeltaJudge.fit(own, [others])
    plain, rare = judge.scores(
        ["the cat of the house v1 was there", "a cat in a house w1 was there"]
    )
    assert plain > 0 > rare


def test_texts_without_any_word_are_undecided() -> None:
    judge = DeltaJudge.fit(["\u200b"], [["\u200b"]])
    assert abs(judge.scores(["\u200b"])[0]) < 1e-9
