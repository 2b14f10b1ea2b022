"""Judges that have not seen what they judge: one for each prompt that the person answered.

A judge that learned from the texts that a model was trained on takes the model's copies of them for
style. So a judge learns from texts that no model was trained on, where there are enough. Those are
the texts that answers are compared with as well: what answers a prompt is scored by the judge from
which the prompt was kept, whoever wrote the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from minialign.errors import InputError
from minialign.evaluation.judges.corpus import PIECE, Array, Given, Text, as_text, cleaned
from minialign.evaluation.judges.pieces import MIN_OWN, FittedOn, PieceJudge

Kind = TypeVar("Kind", bound=PieceJudge)


@dataclass(frozen=True)
class CrossFitted(Generic[Kind]):
    """A judge for each prompt, and one of all texts for prompts that the person did not answer."""

    whole: Kind
    judges: Mapping[str, Kind]  # prompt -> the judge that saw no answer to it

    @classmethod
    def fit(
        cls,
        kind: type[Kind],
        own: Sequence[Text],
        others: Sequence[Sequence[Given]],
        *,
        seed: int = 0,
        piece: int = PIECE,
    ) -> CrossFitted[Kind]:
        """From the person's unseen texts. Raises InputError unless they answer two prompts."""
        prompts = list(dict.fromkeys(t.prompt for t in own if t.prompt and cleaned(t.text)))
        if len(prompts) < 2:
            raise InputError("one prompt cannot be left out of itself: give texts to two or more")

        def fitted(left_out: str | None) -> Kind:
            sides = [own, *others] if left_out is None else _without(left_out, own, others)
            return kind.fit(sides[0], sides[1:], seed=seed, piece=piece, fitted_on="unseen texts")

        return cls(fitted(None), {prompt: fitted(prompt) for prompt in prompts})

    def judge_for(self, prompt: str) -> Kind:
        return self.judges.get(prompt, self.whole)

    def scores(self, texts: Sequence[str], prompt: str) -> Array:
        """(N,): of answers to one prompt, by the judge that has not seen it."""
        return self.judge_for(prompt).scores(texts)

    @property
    def name(self) -> str:
        return self.whole.name

    @property
    def auc(self) -> float:
        """Over prompts that were held out, as they are here."""
        return self.whole.auc

    @property
    def areas(self) -> tuple[float, ...]:
        return self.whole.areas

    @property
    def fitted_on(self) -> FittedOn:
        return self.whole.fitted_on

    @property
    def can_judge(self) -> bool:
        return self.whole.can_judge

    def describe(self) -> str:
        return f"{self.whole.describe()}; each prompt is judged by one that has not seen it"


def fit_unseen(
    kind: type[Kind],
    unseen: Sequence[Text],
    training: Sequence[Text],
    others: Sequence[Sequence[Given]],
    *,
    seed: int = 0,
    piece: int = PIECE,
) -> CrossFitted[Kind]:
    """From the person's unseen texts if they are enough, else from the training texts.

    Enough are those of more than MIN_OWN prompts: each judge is left with MIN_OWN of them.
    `fitted_on` says which it was. In either case no judge has seen the prompt that it is asked
    about.
    """
    prompts = {text.prompt for text in unseen if cleaned(text.text)}
    if len(prompts) > MIN_OWN:
        return CrossFitted.fit(kind, unseen, others, seed=seed, piece=piece)
    return fit_on_training(kind, unseen, training, others, seed=seed, piece=piece)


def fit_on_training(
    kind: type[Kind],
    unseen: Sequence[Text],
    training: Sequence[Text],
    others: Sequence[Sequence[Given]],
    *,
    seed: int = 0,
    piece: int = PIECE,
) -> CrossFitted[Kind]:
    """From the training texts, without what answers a prompt of `unseen` that is asked about."""
    judges = {}
    for prompt in dict.fromkeys(text.prompt for text in unseen if text.prompt):
        own, *rest = _without(prompt, training, others)
        if own:
            judges[prompt] = kind.fit(own, rest, seed=seed, piece=piece)
    return CrossFitted(kind.fit(training, others, seed=seed, piece=piece), judges)


def _without(
    prompt: str, own: Sequence[Given], others: Sequence[Sequence[Given]]
) -> list[list[Given]]:
    return [[t for t in side if as_text(t).prompt != prompt] for side in (own, *others)]
