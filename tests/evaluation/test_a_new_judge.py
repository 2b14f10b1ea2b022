"""A judge from outside is one file and one row: it judges, is printed and is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.commands import call, evaluate, train_toy
from helpers.workplaces import write_workplace

from minialign.errors import InputError
from minialign.evaluation import judges

LONGER = """
import numpy as np
from minialign.evaluation.judges.winrates import pairs_of, shares_by_score


class Longer:
    name, can_judge = "longer", True

    def __init__(self, own):
        self.own = own

    def describe(self):
        return f"the longer text wins; learned from {self.own} own texts"

    def compare(self, texts):
        sizes = {n: np.array([[len(t) for t in g] for g in gs]) for n, gs in texts.items()}
        return {(a, b): shares_by_score(sizes[a], sizes[b]) for a, b in pairs_of(list(texts))}


def build(trial):
    return Longer(len(trial.learned))
"""
FAST = ("--n", "1", "--max-new-tokens", "6", "--general", "0", "--show", "0", "--against", "base")


@pytest.fixture
def longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "longer_judge.py").write_text(LONGER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(judges.JUDGES, "longer", "longer_judge")


@pytest.mark.usefixtures("longer")
def test_it_judges_a_contest(tmp_path: Path) -> None:
    workplace = write_workplace(tmp_path / "workplace")
    train_toy(workplace)
    outcome = call(evaluate, "runs/demos", *FAST, "--judges", "longer", cwd=workplace)
    assert outcome.code == 0, outcome.err
    assert "win rates, judged by longer\n  the longer text wins; learned from 3 own" in outcome.out
    found = json.loads((workplace / "runs" / "demos" / "evaluation.json").read_text("utf-8"))
    (judgement,) = found["judges"]
    assert (judgement["name"], judgement["can_judge"]) == ("longer", True)
    lengths = {
        name: [len(group[0]) for group in c["answers"]] for name, c in found["contestants"].items()
    }
    (win,) = judgement["wins"]
    pairs = zip(lengths[win["first"]], lengths[win["second"]], strict=True)
    assert win["per_prompt"] == [(a > b) + (a == b) / 2 for a, b in pairs]
    assert f"  ditto against {'base':24} {win['rate']:4.0%}" in outcome.out


def test_a_row_is_checked() -> None:
    with pytest.raises(InputError, match="there is a judge called style already"):
        judges.register("style", "elsewhere")
    with pytest.raises(InputError, match="'stile': did you mean style"):
        judges.check_judge("stile")


def test_register_adds_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in ("JUDGES", "HELPS"):
        monkeypatch.setattr(judges, registry, dict(getattr(judges, registry)))
    judges.register("longer", "longer_judge")
    judges.check_judge("longer")
    assert judges.JUDGES["longer"] == "longer_judge"
