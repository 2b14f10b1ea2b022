"""The judges of style in a contest: they learn to tell the person's texts from other texts.

They learn from texts that no contestant was trained on if these are enough, and leave out the
prompt that is judged. Only where such judges cannot judge do they learn from the training texts:
a contestant that repeats what it was trained on then looks more like the person than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minialign.evaluation.judges.corpus import Given, Text
from minialign.evaluation.judges.crossfit import CrossFitted, fit_on_training, fit_unseen
from minialign.evaluation.judges.pieces import PieceJudge
from minialign.evaluation.judges.style import StyleJudge
from minialign.evaluation.judges.verdicts import Shares, Texts, Trial
from minialign.evaluation.judges.winrates import pairs_of, shares_by_score


@dataclass(frozen=True)
class ByStyle:
    """Every answer against every answer to the same prompt, by its score."""

    scorer: CrossFitted[PieceJudge]
    prompts: list[str]  # of the answers

    @property
    def name(self) -> str:
        return self.scorer.name

    @property
    def can_judge(self) -> bool:
        return self.scorer.can_judge

    def describe(self) -> str:
        return self.scorer.describe()

    def compare(self, texts: Texts) -> Shares:
        scores = {
            name: np.array(
                [
                    self.scorer.scores(g, prompt)
                    for g, prompt in zip(groups, self.prompts, strict=True)
                ]
            )
            for name, groups in texts.items()
        }
        return {(a, b): shares_by_score(scores[a], scores[b]) for a, b in pairs_of(list(texts))}


def build(trial: Trial, kind: type[PieceJudge] = StyleJudge) -> ByStyle:
    """Against the base model's answers to the same prompts, and other people's texts."""
    asked = [*trial.learned, *trial.held_out]
    base = [
        Text(answer, d.prompt)
        for d, group in zip(asked, trial.base_answers, strict=True)
        for answer in group
    ]
    learned, unseen = (
        [Text(d.completion, d.prompt) for d in texts] for texts in (trial.learned, trial.held_out)
    )
    others: list[Sequence[Given]] = [base, trial.others]
    scorer = fit_unseen(kind, unseen, learned, others, seed=trial.seed)
    if scorer.fitted_on == "unseen texts" and not scorer.can_judge:
        scorer = fit_on_training(kind, unseen, learned, others, seed=trial.seed)
    return ByStyle(scorer, [d.prompt for d in trial.held_out])
