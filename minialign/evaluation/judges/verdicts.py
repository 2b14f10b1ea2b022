"""What every judge is given, what it offers, and what it says of a contest, in one form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from minialign.data.records import Demonstration
from minialign.data.votes import Vote
from minialign.evaluation.contestants import Progress
from minialign.evaluation.judges.winrates import Interval, WinRate, win_rates
from minialign.evaluation.names import BASE
from minialign.feedback.teacher import Teacher
from minialign.model.transformer import CausalLM
from minialign.policy.knobs import SamplingConfig
from minialign.policy.reference import reference_policy
from minialign.policy.sample import sample
from minialign.weights.tokenizer import Tokenizer

BASE_ANSWERS = 4  # a prompt, of the base model, which judges of style learn from
Texts = dict[str, list[list[str]]]  # contestant -> prompt -> answers
# (first, second) -> (prompts, answers of the first, of the second): 1 where the first wins, 0 where
# the second does, NaN without a verdict
Shares = dict[tuple[str, str], np.ndarray]


@dataclass(frozen=True)
class Trial:
    """All that a judge may learn from, or ask, before it judges.

    The answers that are compared are to the prompts of `held_out`, in their order.
    """

    model: CausalLM
    tokenizer: Tokenizer
    learned: list[Demonstration]  # the person's, which the run was trained on
    held_out: list[Demonstration]  # the person's, which nothing was trained on
    others: list[str]  # other people's texts
    sampling: SamplingConfig  # of the answers
    seed: int
    teacher: Callable[[], Teacher]
    writing: Progress
    asking: Callable[[int], Callable[[], None]]  # questions -> what is called after each
    votes: Sequence[Vote] = ()  # the person's, on pairs of these answers

    @property
    def examples(self) -> list[str]:
        """The person's own text to each prompt that is judged."""
        return [d.completion for d in self.held_out]

    @cached_property
    def base_answers(self) -> list[list[str]]:
        """The base model's, to every prompt of the person's: `learned`, then `held_out`."""
        asked = [*self.learned, *self.held_out]
        prompts = [tuple(self.tokenizer.encode_prompt(d.messages)) for d in asked]
        on_token = self.writing(f"{BASE}, for the judges", len(prompts) * BASE_ANSWERS)
        with reference_policy(self.model, None):
            groups = sample(
                self.model,
                prompts,
                BASE_ANSWERS,
                self.sampling,
                seed=self.seed + 1,
                on_token=on_token,
            )
        return [[self.tokenizer.decode(c.ids) for c in group] for group in groups]


class Judge(Protocol):
    """`can_judge` and `describe()`, a line for a person, are asked for after `compare`."""

    @property
    def name(self) -> str: ...

    @property
    def can_judge(self) -> bool: ...

    def describe(self) -> str: ...

    def compare(self, texts: Texts) -> Shares:
        """For each pair of `winrates.pairs_of`."""


@dataclass(frozen=True)
class Judgement:
    """One judge's word; `note` is a line for a person, and says so where it cannot judge."""

    name: str
    can_judge: bool
    note: str
    wins: list[WinRate]
    mean: dict[str, Interval]
    outcomes: list[Any] = field(default_factory=list)  # of each win, as in Shares


def judgement_of(judge: Judge, texts: Texts) -> Judgement:
    shares = judge.compare(texts)
    wins, means = win_rates(shares)
    outcomes = [shares[win.first, win.second].tolist() for win in wins]
    return Judgement(judge.name, judge.can_judge, judge.describe(), wins, means, outcomes)
