"""Areas, their luck, and log-odds, against counting by hand and known distributions."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.refusals import refusal
from hypothesis import given
from hypothesis import strategies as st

from minialign.evaluation.judges.corpus import Corpus, Text
from minialign.evaluation.judges.trust import (
    area_under_curve,
    areas_over_folds,
    calibrated,
    chance_error,
)


def test_more_texts_make_the_same_area_more_certain() -> None:
    """3 folds of 1 against 4: Mann and Whitney's (1 + 4 + 1) / (12 * 1 * 4), times 1/3 + 1/2."""
    few = chance_error(3, 3, [12])
    assert few == pytest.approx((6 / 48 * (1 / 3 + 1 / 2)) ** 0.5)
    assert chance_error(10, 10, [40, 40]) < few / 1.5


def test_a_small_group_is_not_worth_more_than_its_texts() -> None:
    """Kish: groups of 2 and 100 that weigh the same are worth 4 / (1/2 + 1/100) texts."""
    worth = 4 / (1 / 2 + 1 / 100)
    assert chance_error(5, 5, [2, 100]) == pytest.approx(chance_error(5, 5, [worth]))


def test_calibration_finds_the_log_odds_that_the_data_were_drawn_with() -> None:
    """Two normal distributions at +-1 with deviation 1: the log-odds at x are 2 x."""
    generator = np.random.default_rng(0)
    owned = np.arange(4000) < 2000
    raw = generator.normal(np.where(owned, 1.0, -1.0))
    slope, offset = calibrated(raw, owned, np.ones(4000))
    assert slope == pytest.approx(2, abs=0.15) and offset == pytest.approx(0, abs=0.15)


def test_perfect_separation_gives_finite_log_odds() -> None:
    owned = np.arange(12) < 4
    slope, offset = calibrated(np.where(owned, 0.9, -0.9), owned, np.ones(12))
    assert 0 < slope < 10 and abs(offset) < 5


def test_values_that_point_the_wrong_way_stay_as_they_are() -> None:
    owned = np.arange(12) < 4
    assert calibrated(np.where(owned, -0.9, 0.9), owned, np.ones(12)) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [
        ([1.0], [0.0], 1.0),
        ([0.0], [1.0], 0.0),
        ([1.0], [1.0], 0.5),
        ([3.0, 1.0], [2.0], 0.5),
        ([1.0, 2.0, 3.0], [2.0, 2.0], (0 + 1 + 2) / 6),
        ([float("inf")], [float("inf"), 0.0], 0.75),
    ],
)
def test_the_area_counts_ties_half(
    positive: list[float], negative: list[float], expected: float
) -> None:
    assert area_under_curve(positive, negative) == pytest.approx(expected)
    assert area_under_curve(np.array(positive), np.array(negative)) == pytest.approx(expected)


def test_the_area_without_a_side_is_refused() -> None:
    assert "add texts" in refusal(lambda: area_under_curve([], [1.0]))
    assert "add texts" in refusal(lambda: area_under_curve([1.0], []))


SCORES = st.lists(st.floats(-5, 5), min_size=1, max_size=8)


@given(SCORES, SCORES)
def test_the_area_the_other_way_round_is_the_rest(
    positive: list[float], negative: list[float]
) -> None:
    there, back = area_under_curve(positive, negative), area_under_curve(negative, positive)
    assert there + back == pytest.approx(1) and 0 <= there <= 1


def test_pieces_meet_those_that_answer_their_prompt_and_texts_weigh_the_same() -> None:
    """The person's two pieces to "a" beat one of two long and lose to a short text to it."""
    own = [Text("x" * 1000, "a"), Text("x", "b")]
    others = [Text("y" * 1000, "a"), Text("y", "a"), Text("y", "b")]
    corpus = Corpus.build(own, [others])
    assert corpus.text_of.tolist() == [0, 0, 1, 2, 2, 3, 4]
    folds = corpus.folds()
    assert folds is not None
    raw = np.array([1.0, 1.0, -9.0, 0.0, 2.0, 3.0, -9.0])
    assert areas_over_folds(raw, corpus, folds) == pytest.approx([(0.5 + 0 + 0.5) / 3])
