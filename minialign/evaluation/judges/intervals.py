"""How sure is a mean whose values come in groups, several answers to each of a few prompts?

Answers to one prompt are not independent, so an error is that of the prompts' means. The interval
of a rate is that of Clopper and Pearson (1934) for as many trials as its values are worth, found as
by Korn and Graubard (1998): the variance of a coin over that of the prompts' means, less what so
few prompts leave unknown, and never fewer than the prompts. Where all outcomes agree it is wide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

SURE = 0.95
MIN_PROMPTS = 3  # from fewer there is no interval that covers and says anything
HALVINGS, TERMS = 40, 300  # of a quantile's bracket; of the continued fraction
UNSURE = 0.05  # of a coin's variance: how little a prior knows of how alike a prompt's values are
TINY = 1e-300


def clustered_mean(values_by_prompt: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The mean of all values, and its standard error, which counts prompts and not values.

    Empty prompts are left out. The error of fewer than two prompts is NaN.
    """
    groups = [np.asarray(group, np.float64) for group in values_by_prompt if len(group)]
    if not groups:
        return math.nan, math.nan
    values = np.concatenate(groups)
    mean, count = float(values.mean()), len(groups)
    if count < 2:
        return mean, math.nan
    sums = np.array([(group - mean).sum() for group in groups])
    return mean, math.sqrt(count / (count - 1) * float(sums @ sums)) / len(values)


def rate_interval(per_prompt: NDArray[np.float64], each: float) -> tuple[float, float]:
    """The 95 % interval of the mean of the prompts' rates in [0, 1]; NaN is a prompt without one.

    `each` is how many independent comparisons a prompt has, at most. With fewer than MIN_PROMPTS
    prompts both ends are NaN.
    """
    rates = per_prompt[~np.isnan(per_prompt)]
    if len(rates) < MIN_PROMPTS:
        return math.nan, math.nan
    rate = min(1.0, max(0.0, float(rates.mean())))
    return clopper_pearson(rate, _worth(rates, rate, max(1.0, each)))


def clopper_pearson(rate: float, trials: float) -> tuple[float, float]:
    """Of a rate found in `trials` independent trials, which need not be a whole number."""
    hits, misses, tail = rate * trials, (1 - rate) * trials, (1 - SURE) / 2
    # less than a billionth of a trial is rounding
    low = beta_quantile(tail, hits, misses + 1) if hits > 1e-9 else 0.0
    high = beta_quantile(1 - tail, hits + 1, misses) if misses > 1e-9 else 1.0
    return low, high


def _worth(rates: NDArray[np.float64], rate: float, each: float) -> float:
    """How many trials of a coin the prompts' rates are worth: from one to `each` a prompt."""
    prompts = len(rates)
    most, spread = prompts * each, float(((rates - rate) ** 2).sum())
    # 1 where every prompt is all or nothing; near a rate of 0 or 1 there is little to tell it by
    alike = (spread + UNSURE) / ((prompts - 1) * rate * (1 - rate) + UNSURE)
    unknown = (t_quantile(max(most, 2) - 1) / t_quantile(prompts - 1)) ** 2
    found = prompts / max(alike, 1 / each) * unknown
    return min(max(found, float(prompts)), most)


@cache
def t_quantile(freedom: float) -> float:
    """The 97.5 % quantile of Student's distribution."""

    def below(t: float) -> float:
        return 1 - beta_share(freedom / (freedom + t * t), freedom / 2, 0.5) / 2

    return _solved(below, (1 + SURE) / 2, 0.0, 1000.0)


def beta_quantile(share: float, a: float, b: float) -> float:
    return _solved(lambda x: beta_share(x, a, b), share, 0.0, 1.0)


def _solved(rising: Callable[[float], float], value: float, low: float, high: float) -> float:
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < value else (low, middle)
    return (low + high) / 2


def beta_share(x: float, a: float, b: float) -> float:
    """How much of the beta distribution lies below x: Lentz's continued fraction."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - beta_share(1 - x, b, a)
    scale = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(scale + a * math.log(x) + b * math.log1p(-x)) / a
    numerator, denominator = 1.0, 1 / _kept(1 - (a + b) * x / (a + 1))
    fraction = denominator
    for m in range(1, TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            denominator = 1 / _kept(1 + term * denominator)
            numerator = _kept(1 + term / numerator)
            fraction *= numerator * denominator
        if abs(numerator * denominator - 1) < 1e-12:
            break
    return front * fraction


def _kept(value: float) -> float:
    """Away from zero, by which is divided."""
    return value if abs(value) > TINY else TINY
