"""What the judges say of a contest, in one form: win rates with intervals, and how far to trust it.

* style: an authorship scorer, built here and now, without a network or a model (style.py);
* model: any model that answers questions, asked as in the DITTO paper (judge.py).
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceABC
from dataclasses import dataclass

import numpy as np

from minialign.evaluation.judges.model import Comparison, ModelJudge
from minialign.evaluation.judges.style import StyleJudge
from minialign.evaluation.judges.winrates import (
    Interval,
    WinRate,
    pairs_of,
    shares_by_score,
    win_rates,
)
from minialign.feedback.teacher import OnDone

Texts = dict[str, list[list[str]]]  # contestant -> prompt -> answers


@dataclass(frozen=True)
class Judgement:
    """One judge's word; `note` is a line for a person, and says so where it cannot judge."""

    name: str
    can_judge: bool
    note: str
    wins: list[WinRate]
    mean: dict[str, Interval]


def judge_by_style(judge: StyleJudge, texts: Texts, seed: int = 0) -> Judgement:
    """Every answer against every answer to the same prompt, by its score."""
    scores = {
        name: np.array([judge.scores(group) for group in groups]) for name, groups in texts.items()
    }
    shares = {(a, b): shares_by_score(scores[a], scores[b]) for a, b in pairs_of(list(texts))}
    return Judgement("style", judge.can_judge, judge.describe(), *win_rates(shares, seed))


def judge_by_model(
    judge: ModelJudge,
    texts: Texts,
    examples: SequenceABC[str],
    seed: int = 0,
    on_done: OnDone | None = None,
) -> Judgement:
    """The first answers against the first, the second against the second, and so on: each costs two
    questions. `examples` are the person's own texts, a prompt each.
    """
    pairs = pairs_of(list(texts))
    asked = [
        Comparison(example, texts[a][place][i], texts[b][place][i])
        for a, b in pairs
        for place, example in enumerate(examples)
        for i in range(_each(texts, a, b))
    ]
    report = judge.compare(asked, on_done)
    verdicts = iter(
        np.nan if verdict.share is None else verdict.share for verdict in report.verdicts
    )
    shares = {}
    for a, b in pairs:
        size = (len(examples), _each(texts, a, b), 1)
        shares[a, b] = np.array([next(verdicts) for _ in range(size[0] * size[1])]).reshape(size)
    usable = any(verdict.share is not None for verdict in report.verdicts)
    return Judgement("model", usable, judge.describe(report), *win_rates(shares, seed))


def comparisons_of(texts: Texts) -> int:
    """How many comparisons `judge_by_model` will make."""
    prompts = len(next(iter(texts.values())))
    return sum(prompts * _each(texts, a, b) for a, b in pairs_of(list(texts)))


def _each(texts: Texts, a: str, b: str) -> int:
    return min(len(texts[a][0]), len(texts[b][0]))
