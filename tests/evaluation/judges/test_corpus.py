"""What is learned from is cut, weighed and dealt into folds by prompt."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minialign.evaluation.judges.corpus import (
    KEPT,
    MAX_PIECES,
    PIECE,
    Corpus,
    Text,
    balanced,
    cut,
)

ANYTHING = st.text(st.characters(), max_size=60)


def test_every_group_weighs_the_same() -> None:
    """40 formal texts do not drown 2 listings: per text, a listing counts 20 times as much."""
    groups = np.array([0] * 4 + [1] * 40 + [2] * 2)
    weights = balanced(groups, np.arange(len(groups)))
    shares = np.bincount(groups, weights) / len(groups)
    assert shares == pytest.approx([0.5, 0.25, 0.25])


def test_a_text_of_many_pieces_weighs_no_more_than_one_of_few() -> None:
    groups, text_of = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 1, 1, 1, 2, 3])
    weights = balanced(groups, text_of)
    assert np.bincount(text_of, weights) == pytest.approx([1.5, 1.5, 1.5, 1.5])


@given(ANYTHING, st.integers(1, 40))
def test_pieces_are_the_text(text: str, times: int) -> None:
    whole = text * times
    pieces = cut(whole)
    assert "".join(pieces) == whole
    assert all(len(piece) < 1.5 * PIECE + 1 for piece in pieces)


@given(st.integers(2, 14), st.lists(st.integers(1, 25), min_size=1, max_size=4))
def test_every_fold_holds_out_and_keeps_texts_of_both_sides(own: int, groups: list[int]) -> None:
    corpus = Corpus.build(["x"] * own, [["y"] * size for size in groups])
    folds = corpus.folds()
    if folds is None:
        assert sum(groups) == 1
        return
    for side in (corpus.groups == 0, corpus.groups != 0):
        held = set(folds[side].tolist())
        assert held == set(folds.tolist()) and len(held) >= 2


def test_one_very_long_text_is_learned_from_in_part() -> None:
    corpus = Corpus.build(["x " * 10], [["y " * PIECE * 1000]])
    assert len(corpus.pieces) <= MAX_PIECES + 1


def dealt(own: str, *others: str) -> tuple[Corpus, list[int]]:
    """A letter is a prompt and a dot none; each stands for one text."""
    sides = [[Text("x", None if p == "." else p) for p in side] for side in (own, *others)]
    corpus = Corpus.build(sides[0], sides[1:])
    folds = corpus.folds()
    assert folds is not None
    return corpus, folds.tolist()


def test_texts_to_one_prompt_are_held_out_together_whoever_wrote_them() -> None:
    _, folds = dealt("abc", "aaabcc")
    assert folds == [0, 1, 2, 0, 0, 0, 1, 2, 2]


def test_several_texts_of_the_persons_to_one_prompt_are_too() -> None:
    corpus, folds = dealt("abab", "abab")
    assert folds == [0, 1, 0, 1] * 2 and corpus.own_prompts == 2


def test_what_a_paired_group_answered_beside_is_never_held_out() -> None:
    corpus, folds = dealt("ab", "abcd", "ee")
    assert corpus.paired.tolist() == [True, True, False]
    assert folds[:6] == [0, 1, 0, 1, KEPT, KEPT] and KEPT not in folds[6:]


def test_one_shared_prompt_does_not_make_a_pair() -> None:
    corpus, folds = dealt("abc", "adef")
    assert corpus.paired.tolist() == [True, False] and KEPT not in folds


def test_a_side_with_one_prompt_cannot_be_held_out() -> None:
    assert Corpus.build([Text("x", "a")] * 3, [[Text("y", "a")] * 3]).folds() is None


@given(st.text("abcdef.", min_size=2, max_size=9), st.text("abcdefgh.", min_size=2, max_size=20))
def test_folds_keep_prompts_whole_and_have_both_sides(own: str, others: str) -> None:
    corpus = Corpus.build(
        [Text("x", None if p == "." else p) for p in own],
        [[Text("y", None if p == "." else p) for p in others]],
    )
    folds = corpus.folds()
    if folds is None:
        return
    for prompt in np.unique(corpus.prompts):
        assert len(set(folds[corpus.prompts == prompt])) == 1
    for side in (corpus.groups == 0, corpus.groups != 0):
        held = set(folds[side].tolist()) - {KEPT}
        assert held == set(range(folds.max() + 1)) and len(held) >= 2
