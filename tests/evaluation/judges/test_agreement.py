"""Scales and agreements by hand."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.refusals import refusal

from minialign.evaluation.judges.agreement import Scale, agreements

PAIR = ("a", "b")


def shares(*rates: float) -> dict[tuple[str, str], np.ndarray]:
    """Eight prompts a rate, all comparisons alike."""
    return {PAIR: np.repeat(np.array(rates), 8)[:, None, None] * np.ones((1, 2, 2))}


def test_other_people_are_at_zero_and_the_persons_unseen_texts_at_one() -> None:
    scale = Scale.of([3.0, 5.0], [-1.0, 1.0])
    assert scale([0.0, 4.0, 2.0, 6.0]).tolist() == [0, 1, 0.5, 1.5]


def test_a_ceiling_below_the_floor_is_no_scale() -> None:
    assert np.isnan(Scale.of([0.0], [1.0])([0.5])).all()
    assert "unseen" in refusal(lambda: Scale.of([], [1.0]))


@pytest.mark.parametrize(
    ("one", "two", "winner", "sure"),
    [
        (shares(1, 1, 1), shares(1, 1, 0.9), "a", True),
        (shares(1, 1, 1), shares(0.8, 0.3, 0.5), "a", False),
        (shares(0, 0, 0), shares(0, 0.2, 0), "b", True),
        (shares(1, 1, 1), shares(0, 0, 0), None, False),
        (shares(1, 1, 1), shares(0.5, 0.5, 0.5), None, False),
        (shares(1, 1, 1), shares(np.nan, np.nan, np.nan), None, False),
    ],
)
def test_two_judges_must_see_the_same_one_ahead(
    one: dict[tuple[str, str], np.ndarray],
    two: dict[tuple[str, str], np.ndarray],
    winner: str | None,
    sure: bool,
) -> None:
    found = agreements({"style": one, "character": two})[PAIR]
    assert (found.winner, found.sure) == (winner, sure)


def test_one_judge_agrees_with_nobody() -> None:
    found = agreements({"style": shares(1)})[PAIR]
    assert found.winner is None and not found.sure and found.rates == {"style": 1.0}
    assert agreements({}) == {}


def test_comparisons_that_are_decided_alike_are_counted_where_all_judged() -> None:
    one = {PAIR: np.array([[[1.0, 0.0]], [[0.5, np.nan]], [[1.0, 1.0]]])}
    two = {PAIR: np.array([[[1.0, 1.0]], [[0.5, 1.0]], [[1.0, 0.0]]])}
    assert agreements({"x": one, "y": two})[PAIR].alike == pytest.approx(3 / 5)
    other = {PAIR: np.ones((3, 2, 1))}
    assert np.isnan(agreements({"x": one, "y": other})[PAIR].alike)


def test_pairs_that_one_judge_did_not_compare_are_left_out() -> None:
    more = shares(1) | {("c", "d"): np.ones((3, 1, 1))}
    assert list(agreements({"x": more, "y": shares(1)})) == [PAIR]
