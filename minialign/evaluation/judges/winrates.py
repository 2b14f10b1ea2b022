"""Who wins against whom, how often, and how sure is that?

A judge says of two answers to one prompt which is more like the person's: 1 the first, 0 the
second, .5 a tie. The win rate is the mean over prompts of the mean over their comparisons. Its
interval is a bootstrap's (Efron and Tibshirani 1993, chapter 13): prompts are drawn anew with
replacement, and so are each contestant's answers within a prompt, since both are samples; 2.5 % of
the win rates found so lie below the interval and 2.5 % above.

Shape letters: P prompts, A and B answers of the two contestants, R replicates.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

REPLICATES = 2000
SURE = 0.95


@dataclass(frozen=True)
class Interval:
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class WinRate:
    """How often `first` beat `second`; `per_prompt` is NaN where nothing could be judged."""

    first: str
    second: str
    rate: float
    low: float
    high: float
    ties: float  # the share of comparisons
    comparisons: int
    per_prompt: list[float]


def shares_by_score(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Every answer against every answer to the same prompt: scores (P, A), (P, B) -> (P, A, B)."""
    difference = first[:, :, None] - second[:, None, :]
    return (difference > 0) + 0.5 * (difference == 0)


def win_rates(
    shares: dict[tuple[str, str], np.ndarray], seed: int = 0
) -> tuple[list[WinRate], dict[str, Interval]]:
    """Each pair's win rate, and each contestant's mean over its rivals, with intervals.

    `shares` holds, for a pair (first, second), the outcomes (P, A, B) in [0, 1], NaN where there is
    none. Comparisons that were not made crosswise are (P, C, 1).
    """
    wins, draws = [], {}
    for (first, second), outcomes in shares.items():
        draws[first, second] = _bootstrap(outcomes, seed)
        draws[second, first] = 1 - draws[first, second]
        low, high = _quantiles(draws[first, second])
        judged = outcomes[~np.isnan(outcomes)]
        per_prompt = _mean(outcomes.reshape(len(outcomes), -1))
        wins.append(
            WinRate(
                first,
                second,
                float(_mean(per_prompt)),
                low,
                high,
                float((judged == 0.5).mean()) if len(judged) else 0.0,
                len(judged),
                per_prompt.tolist(),
            )
        )
    return wins, _means(wins, draws)


def pairs_of(names: list[str]) -> list[tuple[str, str]]:
    """Every two, the later name first: it is the one that is asked about."""
    return [(second, first) for first, second in itertools.combinations(names, 2)]


def _means(wins: list[WinRate], draws: dict[tuple[str, str], np.ndarray]) -> dict[str, Interval]:
    rates = {(w.first, w.second): w.rate for w in wins}
    rates |= {(w.second, w.first): 1 - w.rate for w in wins}
    names = list(dict.fromkeys(name for w in wins for name in (w.second, w.first)))
    found = {}
    for name in names:
        rivals = [pair for pair in rates if pair[0] == name]
        low, high = _quantiles(np.mean([draws[pair] for pair in rivals], axis=0))
        found[name] = Interval(float(np.mean([rates[pair] for pair in rivals])), low, high)
    return found


def _bootstrap(outcomes: np.ndarray, seed: int) -> np.ndarray:
    """Win rates (R,) of resampled prompts and answers.

    The same seed draws the same prompts for every pair, so that means over rivals stay paired.
    """
    prompts, a, b = outcomes.shape
    chosen = np.random.default_rng(seed).integers(prompts, size=(REPLICATES, prompts))
    rng = np.random.default_rng([seed, 1])
    firsts = rng.integers(a, size=(REPLICATES, prompts, a, 1))
    seconds = rng.integers(b, size=(REPLICATES, prompts, 1, b))
    drawn = outcomes[chosen[:, :, None, None], firsts, seconds]  # (R, P, A, B)
    rates = _mean(_mean(drawn.reshape(REPLICATES, prompts, -1)))
    return np.where(np.isnan(rates), 0.5, rates)


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the last axis, without NaN; NaN where there is nothing else."""
    count = (~np.isnan(values)).sum(-1)
    total = np.nansum(values, axis=-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _quantiles(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - SURE) / 2, (1 + SURE) / 2])
    return float(low), float(high)
