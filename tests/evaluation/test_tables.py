"""What is printed of several judges together."""

from __future__ import annotations

import numpy as np
import pytest

from minialign.evaluation.judges.verdicts import Judgement
from minialign.evaluation.judges.winrates import win_rates
from minialign.evaluation.tables import contest_table


def judgement(name: str, share: float, able: bool = True) -> Judgement:
    """Of a run against the base model: 8 prompts with 3 answers a side."""
    outcomes = np.full((8, 3, 3), share)
    wins, means = win_rates({("run", "base"): outcomes})
    return Judgement(name, able, "", wins, means, [outcomes.tolist()])


def together(*judgements: Judgement) -> str:
    figures = {name: {"margins": {}} for name in ("base", "run")}
    _, found, text = contest_table("", figures, list(judgements)).partition("together (")
    return found and text


def test_judges_that_agree_say_so_and_how_sure_they_are() -> None:
    said = together(judgement("style", 1.0), judgement("delta", 1.0))
    assert said.startswith("style, delta)") and "all prefer run, each beyond its interval" in said
    assert "each beyond" not in together(judgement("style", 1.0), judgement("delta", 0.6))


@pytest.mark.parametrize("other", [0.0, 0.5])
def test_judges_that_do_not_agree_say_so(other: float) -> None:
    assert "they do not agree" in together(judgement("style", 1.0), judgement("delta", other))


def test_one_judge_alone_agrees_with_nobody() -> None:
    assert together(judgement("style", 1.0)) == ""
    assert together(judgement("style", 1.0), judgement("delta", 1.0, able=False)) == ""
    assert together(judgement("style", 1.0), judgement("panel", 1.0)) == ""
    assert together(judgement("style", 1.0), judgement("quality", 1.0)) == ""
