"""The judge in a contest that goes by which model of characters foresees a text better."""

from __future__ import annotations

from minialign.evaluation.judges import by_style
from minialign.evaluation.judges.characters import CharacterJudge
from minialign.evaluation.judges.verdicts import Trial


def build(trial: Trial) -> by_style.ByStyle:
    return by_style.build(trial, CharacterJudge)
