"""Several judges, each weak in its own way: on one scale, and where they agree.

A judge's scores say little by themselves. On the person's own scale 0 is what other people's texts
get and 1 what the person's own unseen texts get: more is an exaggeration.

Shapes: P prompts, A and B answers of two contestants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from minialign.errors import InputError
from minialign.evaluation.judges.corpus import Array
from minialign.evaluation.judges.winrates import win_rates

Shares = Mapping[tuple[str, str], Array]  # pair -> (P, A, B), as `win_rates` takes them
MIN_JUDGES = 2


@dataclass(frozen=True)
class Scale:
    """A judge's floor and ceiling for one person."""

    floor: float  # mean score of other people's texts
    ceiling: float  # mean score of the person's own unseen texts

    @classmethod
    def of(cls, own: Sequence[float] | Array, others: Sequence[float] | Array) -> Scale:
        """From scores. Raises InputError without both."""
        if len(own) == 0 or len(others) == 0:
            raise InputError("no scale without the person's unseen texts and other people's")
        return cls(float(np.mean(others)), float(np.mean(own)))

    def __call__(self, scores: Sequence[float] | Array) -> Array:
        """0 at the floor, 1 at the ceiling; NaN where the ceiling is no higher."""
        height = self.ceiling - self.floor
        return (np.asarray(scores, np.float64) - self.floor) / (height if height > 0 else math.nan)


@dataclass(frozen=True)
class Agreement:
    """What judges say of one pair together."""

    rates: dict[str, float]  # judge -> how often the first beat the second
    winner: str | None  # whom at least two judges, and no judge otherwise, see ahead
    sure: bool  # every judge's interval leaves out a half
    alike: float  # share of comparisons that all decide alike; NaN where they compared otherwise


def agreements(verdicts: Mapping[str, Shares]) -> dict[tuple[str, str], Agreement]:
    """For every pair that all judges compared. Hand in only those that can judge."""
    if not verdicts:
        return {}
    wins = {
        judge: {(win.first, win.second): win for win in win_rates(dict(shares))[0]}
        for judge, shares in verdicts.items()
    }
    first, *rest = wins.values()
    found = {}
    for pair in [pair for pair in first if all(pair in other for other in rest)]:
        rates = {judge: won[pair].rate for judge, won in wins.items()}
        ahead = {np.sign(rate - 0.5) for rate in rates.values()}
        agreed = len(rates) >= MIN_JUDGES and ahead in ({1.0}, {-1.0})
        found[pair] = Agreement(
            rates,
            pair[ahead == {-1.0}] if agreed else None,
            agreed and all(w[pair].low > 0.5 or w[pair].high < 0.5 for w in wins.values()),
            _alike([shares[pair] for shares in verdicts.values()]),
        )
    return found


def _alike(outcomes: Sequence[Array]) -> float:
    if len({outcome.shape for outcome in outcomes}) != 1:
        return math.nan
    stacked = np.stack(outcomes)
    judged = ~np.isnan(stacked).any(0)
    return float((stacked == stacked[0]).all(0)[judged].mean()) if judged.any() else math.nan
