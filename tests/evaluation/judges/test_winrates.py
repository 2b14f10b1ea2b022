"""Win rates and their intervals, against counting by hand and simulation."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from minialign.evaluation.judges.winrates import pairs_of, shares_by_score, win_rates


def test_every_answer_meets_every_answer_to_the_same_prompt_and_ties_count_half() -> None:
    first = np.array([[3.0, 1.0], [0.0, 0.0]])
    second = np.array([[2.0, 1.0, 5.0], [0.0, 1.0, -1.0]])
    shares = shares_by_score(first, second)
    assert shares.shape == (2, 2, 3)
    assert shares[0].tolist() == [[1, 1, 0], [0, 0.5, 0]]
    assert shares[1].tolist() == [[0.5, 0, 1], [0.5, 0, 1]]


def test_the_rate_is_the_mean_over_prompts_whatever_each_holds() -> None:
    """A prompt with one usable verdict weighs as much as one with four."""
    shares = np.array([[[1.0], [1.0], [1.0], [1.0]], [[0.0], [np.nan], [np.nan], [np.nan]]])
    (win,), _ = win_rates({("a", "b"): shares})
    assert win.rate == 0.5 and win.per_prompt == [1, 0]
    assert win.comparisons == 5 and win.ties == 0


def test_ties_and_comparisons_are_counted_without_what_is_missing() -> None:
    shares = np.array([[[0.5], [1.0]], [[0.5], [np.nan]]])
    (win,), _ = win_rates({("a", "b"): shares})
    assert win.ties == pytest.approx(2 / 3) and win.comparisons == 3


def test_where_nothing_could_be_judged_neither_rate_nor_interval_is_known() -> None:
    (win,), _ = win_rates({("a", "b"): np.full((2, 3, 1), np.nan)})
    assert np.isnan(win.rate) and win.comparisons == 0
    assert np.isnan(win.low) and np.isnan(win.high)


def test_means_are_over_all_rivals_and_add_up_to_a_half() -> None:
    rng = np.random.default_rng(0)
    scores = {
        name: rng.normal(shift, 1, (5, 4)) for name, shift in zip("abc", (0, 1, 2), strict=True)
    }
    shares = {(x, y): shares_by_score(scores[x], scores[y]) for x, y in pairs_of(list("abc"))}
    wins, means = win_rates(shares)
    rates = {(w.first, w.second): w.rate for w in wins}
    assert list(rates) == [("b", "a"), ("c", "a"), ("c", "b")]
    assert means["c"].rate == pytest.approx((rates["c", "a"] + rates["c", "b"]) / 2)
    assert means["a"].rate == pytest.approx(1 - (rates["b", "a"] + rates["c", "a"]) / 2)
    assert np.mean([m.rate for m in means.values()]) == pytest.approx(0.5)
    assert all(m.low <= m.rate <= m.high for m in means.values())


def test_swapping_the_two_mirrors_rate_and_interval() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 6, 3))
    (ab,), _ = win_rates({("a", "b"): shares_by_score(a, b)})
    (ba,), _ = win_rates({("b", "a"): shares_by_score(b, a)})
    assert ab.rate == pytest.approx(1 - ba.rate)
    assert (ab.low, ab.high) == pytest.approx((1 - ba.high, 1 - ba.low))


@pytest.mark.parametrize(
    ("prompts", "answers"), [(3, 1), (3, 4), (4, 1), (4, 4), (4, 16), (8, 4), (20, 2)]
)
def test_the_interval_covers_the_truth_at_least_as_often_as_it_says(
    prompts: int, answers: int
) -> None:
    """200 contests each of five kinds, whose true rate is known.

    The first is better by `shift`, and some prompts suit it (`spread`).
    """
    rng = np.random.default_rng(100 * prompts + answers)
    kinds = [(0.0, 0.0), (0.5, 0.5), (1.5, 1.0), (1.5, 3.0), (3.0, 3.0)]
    covered = {}
    for shift, spread in kinds:
        truth = NormalDist().cdf(shift / (2 + spread**2) ** 0.5)
        hits = 0
        for _ in range(200):
            suits = rng.normal(0, spread, (prompts, 1))
            first = rng.normal(shift, 1, (prompts, answers)) + suits
            second = rng.normal(0, 1, (prompts, answers))
            (win,), _ = win_rates({("a", "b"): shares_by_score(first, second)})
            hits += win.low <= truth <= win.high
        covered[shift, spread] = hits / 200
    # 200 contests miss the true coverage by .015 or so
    assert min(covered.values()) >= 0.90 and np.mean(list(covered.values())) >= 0.95, covered


def test_the_interval_of_a_mean_over_rivals_covers_it_too() -> None:
    """Three rivals meet the same answers, so that their outcomes go up and down together."""
    rng = np.random.default_rng(5)
    hits = []
    for _ in range(200):
        suits = rng.normal(0, 1, (4, 1))
        scores = {name: rng.normal(0, 1, (4, 4)) for name in "abc"}
        scores["d"] = rng.normal(1, 1, (4, 4)) + suits
        shares = {(x, y): shares_by_score(scores[x], scores[y]) for x, y in pairs_of(list("abcd"))}
        mean = win_rates(shares)[1]["d"]
        hits.append(mean.low <= NormalDist().cdf(1 / 3**0.5) <= mean.high)
    assert np.mean(hits) >= 0.93


@pytest.mark.parametrize("outcome", [0.0, 1.0])
def test_outcomes_that_all_agree_leave_a_width(outcome: float) -> None:
    """Clopper and Pearson: four prompts of four that agree have .025 ** (1/4) at the far end."""
    (win,), means = win_rates({("a", "b"): np.full((4, 4, 4), outcome)})
    far = 0.025**0.25
    expected = (far, 1.0) if outcome else (0.0, 1 - far)
    assert win.rate == outcome and (win.low, win.high) == pytest.approx(expected)
    assert (means["a"].low, means["a"].high) == pytest.approx(expected)


@pytest.mark.parametrize(("prompts", "known"), [(1, False), (2, False), (3, True)])
def test_from_too_few_prompts_there_is_a_rate_and_no_interval(prompts: int, known: bool) -> None:
    outcomes = np.full((5, 2, 2), np.nan)
    outcomes[:prompts] = [[1.0, 0.0], [1.0, 1.0]]
    (win,), means = win_rates({("a", "b"): outcomes})
    assert win.rate == means["a"].rate == 0.75
    assert {np.isfinite(x) for x in (win.low, win.high, means["a"].low)} == {known}


def test_more_prompts_make_the_interval_narrower() -> None:
    rng = np.random.default_rng(3)
    widths = []
    for prompts in (4, 16, 64):
        a, b = rng.normal(size=(2, prompts, 4))
        (win,), _ = win_rates({("a", "b"): shares_by_score(a, b)})
        widths.append(win.high - win.low)
    assert widths[0] > widths[1] > widths[2]
