"""Scores by scope, with their errors and intervals, as an evaluation of feedback has them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from minialign.evaluation.judges.winrates import SURE
from minialign.evaluation.names import AGAIN, COT, IN_CONTEXT
from minialign.evaluation.report.run_files import Json, RunFiles, figure

LABELS = {"s_in": "S_in", "s_near": "S_near", "s_far": "S_far", "s_out": "S_out"}
# standard errors to either side
ERRORS = NormalDist().inv_cdf((1 + SURE) / 2)


@dataclass(frozen=True)
class Score:
    """A mean over answers, its standard error, and how far its interval goes to either side.

    Where all answers have one score the error is 0, which says only that they are few: the margin
    is then 3 / count, at most what may hide behind none in `count` ("rule of three").
    """

    value: float
    error: float
    margin: float

    @classmethod
    def of(cls, record: Json) -> Score | None:
        """One of evaluation.json's figures; None where nothing was scored."""
        value, error, count = (figure(record.get(key)) for key in ("value", "error", "count"))
        if value is None or error is None or not count:
            return None
        return cls(value, error, ERRORS * error or 3 / count)

    def bounds(self, least: float) -> tuple[float, float]:
        """Of the interval, within what the score can be: `least` to 1."""
        return max(least, self.value - self.margin), min(1.0, self.value + self.margin)

    def minus(self, other: Score | None) -> Score:
        if other is None:
            return self
        return Score(
            self.value - other.value,
            math.hypot(self.error, other.error),
            math.hypot(self.margin, other.margin),
        )

    @property
    def sign(self) -> int:
        """1 or -1 where the interval is above or below 0, else 0."""
        return (self.value > self.margin) - (self.value < -self.margin)

    def __str__(self) -> str:
        return f"{hundredths(self.value)}\u00a0±\u00a0{hundredths(self.error)}"


def hundredths(value: float) -> str:
    """Two decimals, with a minus sign."""
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def scores_of(run: RunFiles, method: str) -> dict[str, Score]:
    """S_in, S_near, S_far, S_out and S_overall of one method; those that are known."""
    record = run.evaluation.get("methods", {}).get(method) or {}
    parts = {name: Score.of(record.get(name) or {}) for name in LABELS}
    found = {name: score for name, score in parts.items() if score}
    overall, error = figure(record.get("overall")), figure(record.get("overall_error"))
    if overall is not None and error is not None and {"s_in", "s_out"} <= set(found):
        margin = math.hypot(found["s_in"].margin, found["s_out"].margin) / 2
        found["overall"] = Score(overall, error, margin)
    return found


def method_of(run: RunFiles) -> str:
    """The method that the run is about, as its evaluation calls it."""
    # a run's folder may be called like one of them
    rivals = (IN_CONTEXT, COT, AGAIN)
    trained = [name for name in run.evaluation.get("methods", {}) if name not in rivals]
    known = [name for name in (run.name, run.method) if name in trained]
    return [*known, *trained, run.method][0]
