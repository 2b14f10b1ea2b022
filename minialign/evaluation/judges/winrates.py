"""Who wins against whom, how often, and how sure is that?

A judge says of two answers to one prompt which is more like the person's: 1 the first, 0 the
second, .5 a tie. The win rate is the mean over prompts of the mean over their comparisons. Its
interval (intervals.py) goes by the prompts, whose comparisons are not independent.

Shape letters: P prompts, A and B answers of the two contestants.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from minialign.evaluation.judges.intervals import SURE, rate_interval

__all__ = ["SURE", "Interval", "WinRate", "pairs_of", "shares_by_score", "win_rates"]


@dataclass(frozen=True)
class Interval:
    """A mean over rivals; NaN for both ends says that there are too few prompts."""

    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class WinRate:
    """How often `first` beat `second`; `per_prompt` is NaN where nothing could be judged.

    `low` and `high` are NaN if fewer than MIN_PROMPTS prompts could be judged.
    """

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
    shares: dict[tuple[str, str], np.ndarray],
) -> tuple[list[WinRate], dict[str, Interval]]:
    """Each pair's win rate, and each contestant's mean over its rivals, with intervals.

    `shares` holds, for a pair (first, second), the outcomes (P, A, B) in [0, 1], NaN where there is
    none. Comparisons that were not made crosswise are (P, C, 1).
    """
    wins = [_win(first, second, outcomes) for (first, second), outcomes in shares.items()]
    return wins, _means(wins, shares)


def pairs_of(names: list[str]) -> list[tuple[str, str]]:
    """Every two, the later name first: it is the one that is asked about."""
    return [(second, first) for first, second in itertools.combinations(names, 2)]


def _win(first: str, second: str, outcomes: np.ndarray) -> WinRate:
    judged = outcomes[~np.isnan(outcomes)]
    per_prompt = _mean(outcomes.reshape(len(outcomes), -1))
    low, high = rate_interval(per_prompt, _independent(outcomes))
    return WinRate(
        first,
        second,
        float(_mean(per_prompt)),
        low,
        high,
        float((judged == 0.5).mean()) if len(judged) else 0.0,
        len(judged),
        per_prompt.tolist(),
    )


def _means(wins: list[WinRate], shares: dict[tuple[str, str], np.ndarray]) -> dict[str, Interval]:
    """Rivals meet a contestant on the same prompts, so a prompt's rate is the mean over them."""
    rates = {(w.first, w.second): np.array(w.per_prompt) for w in wins}
    rates |= {(w.second, w.first): 1 - np.array(w.per_prompt) for w in wins}
    names = list(dict.fromkeys(name for w in wins for name in (w.second, w.first)))
    found = {}
    for name in names:
        against = np.array([rate for (first, _), rate in rates.items() if first == name])
        each = max(_independent(o) for pair, o in shares.items() if name in pair)
        found[name] = Interval(
            float(np.mean(_mean(against))), *rate_interval(_mean(against.T), each)
        )
    return found


def _independent(outcomes: np.ndarray) -> float:
    """How many independent comparisons a prompt's are worth at most.

    Of m answers each, compared crosswise, 3 m^2 / (2 m + 1): Mann and Whitney's variance.
    """
    _, a, b = outcomes.shape
    return 3 * a * b / (a + b + 1) if min(a, b) > 1 else float(max(a, b))


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the last axis, without NaN; NaN where there is nothing else."""
    count = (~np.isnan(values)).sum(-1)
    total = np.nansum(values, axis=-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)
