"""What a person's votes say of a run that was evaluated before; no model is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from minialign.data.votes import Vote
from minialign.evaluation.judges import VOTES
from minialign.evaluation.judges.verdicts import Judgement, judgement_of
from minialign.evaluation.judges.votes import ByVotes, agreement, texts_of
from minialign.evaluation.tables import shown_rate


def judged_by(votes: Sequence[Vote], asked: str) -> tuple[Judgement, str]:
    """The votes' word, and the contestant who is asked about: `asked`, if it was voted on."""
    texts = texts_of(votes, asked)
    return judgement_of(ByVotes(votes), texts), list(texts)[-1]


def with_judgement(evaluation: dict[str, Any], judgement: Judgement) -> dict[str, Any]:
    """evaluation.json with the word of one more judge; an earlier one of that name is replaced."""
    others = [j for j in evaluation.get("judges") or [] if j.get("name") != judgement.name]
    return evaluation | {"judges": [*others, dataclasses.asdict(judgement)]}


def with_agreement(
    evaluation: dict[str, Any], votes: Sequence[Vote]
) -> tuple[dict[str, Any], list[str]]:
    """How far the other judges agree with the votes, in the evaluation and as lines to print.

    The votes come first there: the person knows best.
    """
    found = agreement(votes, evaluation)
    lines = [
        f"{name} prefers the same text in {' '.join(shown.split())} of {rate.comparisons} votes"
        for name, rate in found.items()
        for shown in [shown_rate(rate.rate, rate.low, rate.high)]
    ]
    heard = {name: dataclasses.asdict(rate) for name, rate in found.items()}
    own = [
        judge | {"note": "; ".join([judge["note"], *lines]), "agreement": heard}
        for judge in evaluation["judges"]
        if judge["name"] == VOTES
    ]
    others = [judge for judge in evaluation["judges"] if judge["name"] != VOTES]
    return evaluation | {"judges": [*own, *others]}, lines
