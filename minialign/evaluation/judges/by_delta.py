"""The judge in a contest that goes by how often the commonest words are used."""

from __future__ import annotations

from minialign.evaluation.judges import by_style
from minialign.evaluation.judges.delta import DeltaJudge
from minialign.evaluation.judges.verdicts import Trial


def build(trial: Trial) -> by_style.ByStyle:
    return by_style.build(trial, DeltaJudge)
