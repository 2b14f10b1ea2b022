"""What every judge is given, what it offers, and what it says of a contest, in one form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from minialign.data.records import Demonstration
from minialign.evaluation.contestants import Progress
from minialign.evaluation.judges.winrates import Interval, WinRate, win_rates
from minialign.feedback.teacher import Teacher
from minialign.model.transformer import CausalLM
from minialign.policy.knobs import SamplingConfig
from minialign.weights.tokenizer import Tokenizer

Texts = dict[str, list[list[str]]]  # contestant -> prompt -> answers
# (first, second) -> (prompts, answers of the first, of the second): 1 where the first wins, 0 where
# the second does, NaN without a verdict
Shares = dict[tuple[str, str], np.ndarray]


@dataclass(frozen=True)
class Trial:
    """All that a judge may learn from, or ask, before it judges."""

    model: CausalLM
    tokenizer: Tokenizer
    learned: list[Demonstration]  # the person's, which the run was trained on
    examples: list[str]  # the person's own text to each prompt that is judged
    others: list[str]  # other people's texts
    sampling: SamplingConfig  # of the answers
    seed: int
    teacher: Callable[[], Teacher]
    writing: Progress
    asking: Callable[[int], Callable[[], None]]  # questions -> what is called after each


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


def judgement_of(judge: Judge, texts: Texts, seed: int = 0) -> Judgement:
    shares = judge.compare(texts)
    return Judgement(judge.name, judge.can_judge, judge.describe(), *win_rates(shares, seed))
