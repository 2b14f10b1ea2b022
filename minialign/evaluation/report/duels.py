"""Who won against whom: a judge's figures, seen from one contestant's side."""

from __future__ import annotations

from dataclasses import dataclass

from minialign.evaluation.judges.winrates import SURE
from minialign.evaluation.report.axes import percent
from minialign.evaluation.report.labels import rank
from minialign.evaluation.report.run_files import Json, RunFiles, figure

INTERVAL = f"{percent(SURE)} interval"


@dataclass(frozen=True)
class Duel:
    """The share of comparisons that one contestant won against another, in one judge's eyes."""

    rate: float
    low: float | None
    high: float | None

    @property
    def interval(self) -> str:
        if self.low is None or self.high is None:
            return ""
        return f"{100 * self.low:.0f} to {percent(self.high)}"

    def __str__(self) -> str:
        return percent(self.rate) + (f" ({self.interval})" if self.interval else "")


def duel(record: Json, turned: bool = False) -> Duel | None:
    """A judge's figures; None where there is no rate. `turned` gives them from the other side."""
    rate, low, high = (figure(record.get(key)) for key in ("rate", "low", "high"))
    if rate is None:
        return None
    if not turned:
        return Duel(rate, low, high)
    return Duel(1 - rate, None if high is None else 1 - high, None if low is None else 1 - low)


def duels_of(judge: Json, own: str) -> dict[str, tuple[Duel, Json]]:
    """rival -> the figures of `own` against it, and the record that they are from."""
    found = {}
    for win in judge.get("wins") or []:
        sides = (win.get("first"), win.get("second"))
        if own in sides and (own_duel := duel(win, turned=sides[1] == own)):
            found[sides[sides[0] == own]] = (own_duel, win)
    return dict(sorted(found.items(), key=lambda item: rank(item[0])))


def contestant_of(run: RunFiles) -> str:
    """The contestant that the run is about."""
    names = list(run.evaluation.get("contestants", {}))
    return run.method if run.method in names or not names else names[-1]
