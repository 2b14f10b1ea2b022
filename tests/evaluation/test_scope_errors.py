"""Answers to one prompt are not independent: a score's error counts prompts."""

from __future__ import annotations

import math

import pytest

from minialign.evaluation.scopes import Mean, ScopeScores


def test_four_equal_answers_to_a_prompt_are_worth_one() -> None:
    once = Mean.of([[0.0], [1.0], [1.0], [0.0]])
    again = Mean.of([[score] * 4 for score in (0.0, 1.0, 1.0, 0.0)])
    assert again.error == pytest.approx(once.error) and again.count == 16
    assert once.error == pytest.approx(math.sqrt(1 / 3 / 4))


def test_one_prompt_has_no_error() -> None:
    assert math.isnan(Mean.of([[0.0, 1.0]]).error)


def test_what_could_not_be_scored_leaves_the_others_with_their_prompts() -> None:
    answers = {scope: [["a", "b"], ["c", "d"]] for scope in ("in_scope", "near_scope")}
    scores: dict[str, list[float | None]] = {"in_scope": [1.0, None, 0.0, 0.0]}
    scores |= {"near_scope": [0.0] * 4, "out_of_scope": [-1.0, -1.0]}
    found = ScopeScores.of(scores, {**answers, "out_of_scope": [["e"], ["f"]]})
    assert found.s_in == Mean.of([[1.0], [0.0, 0.0]])
    assert (found.unscored, found.s_far.value, found.s_out.count) == (1, 1.0, 6)
