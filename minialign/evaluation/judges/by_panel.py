"""The judge in a contest that goes by all three kinds of evidence at once."""

from __future__ import annotations

from minialign.evaluation.judges import by_style
from minialign.evaluation.judges.panel import PanelJudge
from minialign.evaluation.judges.verdicts import Trial


def build(trial: Trial) -> by_style.ByStyle:
    return by_style.build(trial, PanelJudge)
