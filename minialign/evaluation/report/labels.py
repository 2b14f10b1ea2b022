"""Contestants, methods and stages as a person reads them: their names and their colours."""

from __future__ import annotations

from minialign.evaluation.names import AGAIN, BASE, COT, FEW_SHOT, IN_CONTEXT, REVISION
from minialign.evaluation.report.run_files import RunFiles
from minialign.methods.cards import color_of, title_of, warm_starts

# What no method trained has no card.
NAMES = {BASE: "base model", AGAIN: "base model, again", REVISION: "the revision itself"}
COLORS = {BASE: 0, AGAIN: 0, FEW_SHOT: 3, IN_CONTEXT: 3, COT: 7, REVISION: 1}
OTHER_COLOR = 5


def shown(name: str) -> str:
    """A contestant's name; one that is not known is a folder's, and stays as it is."""
    return NAMES.get(name) or title_of(name)


def said(name: str) -> str:
    """The name within a sentence."""
    return "the base model" if name == BASE else shown(name)


def color(name: str) -> int:
    own = COLORS.get(name, color_of(name))
    return OTHER_COLOR if own is None else own


def stage_title(run: RunFiles, stage: str) -> str:
    """As the run's method calls it: one stage has other titles in other methods."""
    known = run.stage(stage)
    return known.title if known else shown(stage)


def rank(rival: str) -> int:
    """First the methods that others start from, then the base model, then whoever is left."""
    if rival in warm_starts():
        return 0
    return 1 if rival == BASE else 2
