"""The style judge in a contest: it learns to tell the person's texts from the base model's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from minialign.evaluation.judges.style import StyleJudge
from minialign.evaluation.judges.verdicts import Shares, Texts, Trial
from minialign.evaluation.judges.winrates import pairs_of, shares_by_score
from minialign.evaluation.names import BASE
from minialign.policy.reference import reference_policy
from minialign.policy.sample import sample

STYLE_ANSWERS = 4  # of the base model to each demonstration's prompt, which the judge learns from


@dataclass(frozen=True)
class ByStyle:
    """Every answer against every answer to the same prompt, by its score."""

    scorer: StyleJudge
    name: str = "style"

    @property
    def can_judge(self) -> bool:
        return self.scorer.can_judge

    def describe(self) -> str:
        return self.scorer.describe()

    def compare(self, texts: Texts) -> Shares:
        scores = {
            name: np.array([self.scorer.scores(group) for group in groups])
            for name, groups in texts.items()
        }
        return {(a, b): shares_by_score(scores[a], scores[b]) for a, b in pairs_of(list(texts))}


def build(trial: Trial) -> ByStyle:
    """Against the base model's answers to the prompts that the person answered too."""
    tokenizer = trial.tokenizer
    prompts = [tuple(tokenizer.encode_prompt(d.messages)) for d in trial.learned]
    on_token = trial.writing(f"{BASE}, for the style judge", len(prompts) * STYLE_ANSWERS)
    with reference_policy(trial.model, None):
        groups = sample(
            trial.model,
            prompts,
            STYLE_ANSWERS,
            trial.sampling,
            seed=trial.seed + 1,
            on_token=on_token,
        )
    base = [tokenizer.decode(c.ids) for group in groups for c in group]
    own = [d.completion for d in trial.learned]
    return ByStyle(StyleJudge.fit(own, [base, trial.others], seed=trial.seed))
