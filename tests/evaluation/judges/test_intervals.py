"""Quantiles against published tables, clustered errors against simulation."""

from __future__ import annotations

import numpy as np
import pytest

from minialign.evaluation.judges.intervals import (
    beta_quantile,
    clopper_pearson,
    clustered_mean,
    rate_interval,
    t_quantile,
)


@pytest.mark.parametrize(
    ("freedom", "expected"), [(1, 12.706), (2, 4.303), (4, 2.776), (10, 2.228), (120, 1.980)]
)
def test_students_quantiles_are_those_of_the_tables(freedom: int, expected: float) -> None:
    assert t_quantile(freedom) == pytest.approx(expected, abs=0.001)


@pytest.mark.parametrize("share", [0.025, 0.3, 0.5, 0.975])
def test_beta_quantiles_are_those_of_their_closed_forms(share: float) -> None:
    """Beta(a, 1) has x ** a below x, Beta(1, b) has 1 - (1 - x) ** b."""
    assert beta_quantile(share, 7, 1) == pytest.approx(share ** (1 / 7))
    assert beta_quantile(share, 1, 0.3) == pytest.approx(1 - (1 - share) ** (1 / 0.3))


def test_beta_quantiles_are_those_of_draws() -> None:
    drawn = np.random.default_rng(0).beta(2.5, 6.5, 200_000)
    assert beta_quantile(0.9, 2.5, 6.5) == pytest.approx(np.quantile(drawn, 0.9), abs=0.003)


@pytest.mark.parametrize(
    ("hits", "trials", "expected"),
    [(1, 10, (0.0025, 0.4450)), (5, 10, (0.1871, 0.8129)), (0, 10, (0.0, 0.3085))],
)
def test_the_exact_interval_is_that_of_the_tables(
    hits: int, trials: int, expected: tuple[float, float]
) -> None:
    assert clopper_pearson(hits / trials, trials) == pytest.approx(expected, abs=0.0001)


def test_more_comparisons_of_prompts_that_agree_make_it_narrower_up_to_their_number() -> None:
    rates = np.array([0.5, 0.6, 0.4, 0.55, 0.45, 0.5, 0.5, 0.5])
    widths = [np.diff(rate_interval(rates, each))[0] for each in (1, 4, 16)]
    assert widths[0] > 1.2 * widths[1] > 1.2 * widths[2]
    assert rate_interval(rates, 1) == clopper_pearson(rates.mean(), 8)


def test_prompts_that_are_all_or_nothing_count_as_one_comparison_each() -> None:
    rates = np.array([0.0, 1.0] * 4)
    assert rate_interval(rates, 16) == clopper_pearson(0.5, 8)


def test_the_error_of_a_mean_counts_prompts_and_not_answers() -> None:
    """24 prompts with 4 answers, which share their prompt's effect: against 4000 such means."""
    rng = np.random.default_rng(0)
    found, means, naive = [], [], []
    for _ in range(4000):
        values = rng.normal(0, 0.45, (24, 1)) + rng.normal(0, 0.4, (24, 4))
        mean, error = clustered_mean(values.tolist())
        means.append(mean)
        found.append(error)
        naive.append(values.std(ddof=1) / values.size**0.5)
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(np.std(means), rel=0.04)
    assert np.mean(naive) < 0.65 * np.std(means)


def test_every_value_counts_the_same_and_empty_prompts_not() -> None:
    mean, error = clustered_mean([[1.0, 1.0, 1.0], [], [0.0]])
    assert mean == 0.75
    # the prompts' sums of deviations are .75 and -.75
    assert error == pytest.approx((2 * (0.75**2 + 0.75**2)) ** 0.5 / 4)


def test_one_prompt_has_a_mean_and_no_error() -> None:
    mean, error = clustered_mean([[1.0, 2.0]])
    assert mean == 1.5 and np.isnan(error)
    assert np.isnan(clustered_mean([[]])[0])
