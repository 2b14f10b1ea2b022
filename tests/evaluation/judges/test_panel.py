"""The panel hears all three members, and no one of them drowns the others."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.voices import CASUAL, FORMAL, LISTING, write

from minialign.evaluation.judges.panel import MEMBERS, PanelJudge

OWN, OTHERS = write(CASUAL, 8), [write(FORMAL, 8), write(LISTING, 8)]


def test_the_panel_tells_voices_apart() -> None:
    judge = PanelJudge.fit(OWN, OTHERS)
    assert judge.can_judge and judge.auc > 0.9
    mine, theirs = judge.scores(write(CASUAL, 12)[8:]), judge.scores(write(FORMAL, 12)[8:])
    assert mine.min() > theirs.max()


@pytest.mark.parametrize("member", MEMBERS, ids=lambda kind: kind.name)
def test_every_member_changes_the_panels_scores(
    member: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = write(CASUAL, 10)[8:]
    before = PanelJudge.fit(OWN, OTHERS).scores(asked)
    rest = tuple(kind for kind in MEMBERS if kind is not member)
    monkeypatch.setattr("minialign.evaluation.judges.panel.MEMBERS", rest)
    assert not np.allclose(before, PanelJudge.fit(OWN, OTHERS).scores(asked))


def test_a_member_in_larger_units_weighs_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = write(CASUAL, 10)[8:]
    before = PanelJudge.fit(OWN, OTHERS).scores(asked)
    first = MEMBERS[0]
    learned = first._learned

    def louder(corpus):  # type: ignore[no-untyped-def]
        raw, held_out = learned(corpus)
        return (lambda pieces: 100 * raw(pieces)), (lambda folds: 100 * held_out(folds))

    monkeypatch.setattr(first, "_learned", louder)
    assert np.allclose(before, PanelJudge.fit(OWN, OTHERS).scores(asked))


def test_a_single_text_gives_a_panel_that_says_it_cannot_judge() -> None:
    judge = PanelJudge.fit(OWN[:1], OTHERS)
    assert not judge.can_judge
