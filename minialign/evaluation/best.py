"""The best of several answers: most like the person, among those that are fluent and their own.

Like the person is what the panel of style judges says. Fluent is what does not surprise the base
model: of the answers that ended by themselves and copy no demonstration, the less surprising half
is chosen from, so that style is never bought with broken language.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch

from minialign.data.records import Demonstration, Example
from minialign.evaluation.judges.corpus import Text
from minialign.evaluation.judges.panel import PanelJudge
from minialign.evaluation.judges.verdicts import BASE_ANSWERS
from minialign.evaluation.judges.words import copied_share
from minialign.evaluation.measure import writing
from minialign.evaluation.names import BASE
from minialign.evaluation.voice import other_texts
from minialign.model.transformer import CausalLM
from minialign.policy.knobs import SamplingConfig
from minialign.policy.measure import scores
from minialign.policy.reference import reference_policy
from minialign.policy.sample import Completion, sample
from minialign.weights.tokenizer import Tokenizer

MOST_COPIED = 0.2  # the share of an answer's words from which on it is not the model's own
MICRO_BATCH = 1024  # tokens that are read at a time


@dataclass(frozen=True)
class Pick:
    """Which answer it is, and what was found of all."""

    place: int
    style: list[float]  # log-odds that the person wrote it
    surprise: list[float]  # of the base model, nats per token
    eligible: list[int]  # those that were chosen from
    can_judge: bool

    def why(self) -> str:
        """A line for a person."""

        def beside(values: list[float], form: str) -> str:
            others = [value for i, value in enumerate(values) if i != self.place]
            return f"{values[self.place]:{form}}, the others' mean {fmean(others):{form}}"

        count = len(self.style)
        most = "most like the person" if self.can_judge else "the most fluent"
        return (
            f"answer {self.place + 1} of {count}: {most} of the {len(self.eligible)} that are "
            f"fluent, whole and not copied; style {beside(self.style, '+.2f')}; "
            f"nats per token under the base model {beside(self.surprise, '.2f')}"
        )


def fit_judge(
    model: CausalLM,
    tokenizer: Tokenizer,
    learned: Sequence[Demonstration],
    sampling: SamplingConfig,
    seed: int,
) -> PanelJudge:
    """From the person's texts, the base model's answers to their prompts, and other people's."""
    prompts = [tuple(tokenizer.encode_prompt(d.messages)) for d in learned]
    on_token = writing(f"{BASE}, for the judge", len(prompts) * BASE_ANSWERS)
    with reference_policy(model, None):
        groups = sample(model, prompts, BASE_ANSWERS, sampling, seed=seed + 1, on_token=on_token)
    base = [
        Text(tokenizer.decode(c.ids), d.prompt)
        for d, group in zip(learned, groups, strict=True)
        for c in group
    ]
    own = [Text(d.completion, d.prompt) for d in learned]
    return PanelJudge.fit(own, [base, other_texts("")], seed=seed)


@dataclass(frozen=True)
class Measured:
    """What was found of each answer to one prompt; `whole` ended by themselves, and are new."""

    style: list[float]
    surprise: list[float]
    whole: set[int]
    can_judge: bool

    def best(self, places: Sequence[int]) -> Pick:
        """Of these answers; where none is whole, of all of them."""
        whole = [place for place in places if place in self.whole] or places
        eligible = _fluent(whole, self.surprise)
        best = max(eligible, key=self.style.__getitem__) if self.can_judge else eligible[0]
        return Pick(best, self.style, self.surprise, sorted(eligible), self.can_judge)


@torch.no_grad()
def measure(
    model: CausalLM,
    judge: PanelJudge,
    learned: Sequence[Demonstration],
    prompt_ids: Sequence[int],
    answers: Sequence[Completion],
) -> Measured:
    style = judge.scores([answer.text for answer in answers]).tolist()
    read = [Example(tuple(prompt_ids), answer.ids) for answer in answers]
    with reference_policy(model, None):
        total = scores(model, read, MICRO_BATCH).tolist()
    surprise = [-t / max(1, len(a.ids)) for t, a in zip(total, answers, strict=True)]
    texts = [d.completion for d in learned]
    whole = {place for place, answer in enumerate(answers) if _is_whole(answer, texts)}
    return Measured(style, surprise, whole, judge.can_judge)


def pick(
    model: CausalLM,
    judge: PanelJudge,
    learned: Sequence[Demonstration],
    prompt_ids: Sequence[int],
    answers: Sequence[Completion],
) -> Pick:
    """The best of at least two answers to one prompt."""
    return measure(model, judge, learned, prompt_ids, answers).best(range(len(answers)))


def _is_whole(answer: Completion, learned: Sequence[str]) -> bool:
    """Whether it ended by itself and is the model's own."""
    ended = answer.finish_reason == "stop" and bool(answer.text.strip())
    return ended and copied_share(answer.text, learned) < MOST_COPIED


def _fluent(places: Sequence[int], surprise: Sequence[float]) -> list[int]:
    """The less surprising half, the least surprising first."""
    return sorted(places, key=surprise.__getitem__)[: (len(places) + 1) // 2]
