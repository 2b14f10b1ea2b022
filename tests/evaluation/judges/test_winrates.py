"""Win rates and their intervals, against counting by hand and against simulation."""

from __future__ import annotations

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


def test_where_nothing_could_be_judged_the_rate_is_unknown_and_the_interval_says_nothing() -> None:
    (win,), _ = win_rates({("a", "b"): np.full((2, 3, 1), np.nan)})
    assert np.isnan(win.rate) and win.comparisons == 0
    assert win.low == win.high == 0.5


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
    assert (ab.low, ab.high) == pytest.approx((1 - ba.high, 1 - ba.low), abs=0.05)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """300 contests of 12 prompts, whose true rate is known: 95 % intervals of so few prompts cover
    a little less than that.
    """
    rng = np.random.default_rng(2)
    covered = []
    for seed in range(300):
        prompt_effect = rng.normal(0, 1, (12, 1))  # some prompts suit the first one
        first = rng.normal(0.5, 1, (12, 4)) + prompt_effect
        second = rng.normal(0, 1, (12, 4))
        (win,), _ = win_rates({("a", "b"): shares_by_score(first, second)}, seed)
        covered.append(win.low <= 0.6136 <= win.high)  # Phi(.5 / sqrt(3))
    assert 0.88 <= np.mean(covered) <= 0.99


def test_more_prompts_make_the_interval_narrower() -> None:
    rng = np.random.default_rng(3)
    widths = []
    for prompts in (4, 16, 64):
        a, b = rng.normal(size=(2, prompts, 4))
        (win,), _ = win_rates({("a", "b"): shares_by_score(a, b)})
        widths.append(win.high - win.low)
    assert widths[0] > widths[1] > widths[2]


def test_the_same_seed_gives_the_same_interval_and_another_one_nearly() -> None:
    rng = np.random.default_rng(4)
    shares = {("a", "b"): shares_by_score(*rng.normal(size=(2, 8, 4)))}
    one, again, other = (win_rates(shares, seed)[0][0] for seed in (0, 0, 1))
    assert one == again
    assert one != other and one.low == pytest.approx(other.low, abs=0.05)
