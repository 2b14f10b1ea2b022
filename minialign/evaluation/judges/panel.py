"""The three judges of style as one: what one kind of evidence misses, another may see."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from minialign.evaluation.judges.characters import CharacterJudge
from minialign.evaluation.judges.corpus import Array, Corpus
from minialign.evaluation.judges.delta import DeltaJudge
from minialign.evaluation.judges.pieces import HeldOut, PieceJudge, Scorer
from minialign.evaluation.judges.style import StyleJudge

MEMBERS: tuple[type[PieceJudge], ...] = (StyleJudge, CharacterJudge, DeltaJudge)


class PanelJudge(PieceJudge):
    """By the mean of the members' scores, each in units of its spread over held-out pieces."""

    name: ClassVar[str] = "panel"

    @classmethod
    def _learned(cls, corpus: Corpus) -> tuple[Scorer, HeldOut]:
        members = [member._learned(corpus) for member in MEMBERS]
        folds = corpus.folds()
        said = [] if folds is None else [held_out(folds) for _, held_out in members]
        units = [float(np.std(scores)) or 1.0 for scores in said] or [1.0] * len(members)

        def together(scores: list[Array]) -> Array:
            return np.mean([s / unit for s, unit in zip(scores, units, strict=True)], axis=0)

        return (
            lambda pieces: together([raw(pieces) for raw, _ in members]),
            lambda folds: together([held_out(folds) for _, held_out in members]),
        )
