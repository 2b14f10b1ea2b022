"""What is measured of edits and of --best-of is what the pages say, and is counted right."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers.models import write_checkpoint
from helpers.processes import ROOT

from minialign.evaluation.best import Measured
from minialign.policy.sample import Completion

Module = Callable[[str], ModuleType]
DRAFT = "Subject: Keys\n\nDear Sam,\n\nI hope you are well. The key is lost.\nBest,\nKim"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Module]:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield importlib.import_module


def test_each_answer_meets_the_best_of_the_others(module: Module) -> None:
    best_of = module("best_of")
    # Fluent are the two of three others that surprise least; 3 is most like the person.
    measured = Measured([0.0, 1.0, 2.0, 9.0], [1.0, 2.0, 3.0, 4.0], {0, 1, 2, 3}, True)
    assert best_of.each_left_out(measured) == [2, 2, 1, 1]
    line = {"judge": "style", "key": "k", "can_judge": True, "scores": {"SFT": {"test": []}}}
    line["scores"]["SFT"]["test"] = [[0.0, 1.0, 2.0, 9.0]]
    judged = module("ditto_tables").Judged("a", 0, line)
    chosen = {"arms": {"SFT": {"test": {"picks": [[2, 2, 1, 1]], "surprise": [[1, 2, 3, 4]]}}}}
    # 2 > 0 and 2 > 1; 1 < 2 and 1 < 9
    assert best_of.wins(judged, chosen, "SFT").tolist() == [0.5]
    assert best_of.surprise({"k": chosen}, "SFT") == (2.5, 2.5)


def test_an_author_whom_no_judge_can_judge_counts_for_nothing(module: Module) -> None:
    best_of, tables = module("best_of"), module("ditto_tables")
    scores = {"SFT": {"test": [[0.0, 1.0]] * 3}}
    lines = [{"key": str(n), "can_judge": n > 0, "scores": scores} for n in range(4)]
    chosen = {"arms": {"SFT": {"test": {"picks": [[1, 0]] * 3, "surprise": [[1, 2]] * 3}}}}
    judged = [tables.Judged(line["key"], 0, line) for line in lines]
    rate = best_of.win_rate(judged, {line["key"]: chosen for line in lines}, "SFT")
    assert (rate.rate, rate.authors, rate.all) == (0.5, 3, 4)


def test_an_edit_is_small_and_its_own_check_holds(module: Module) -> None:
    edits = module("edits")
    assert edits.greeted(DRAFT) == "Ahoy,\n\nI hope you are well. The key is lost.\nBest,\nKim"
    assert edits.without_word(DRAFT) == (
        "Subject: Keys\n\nDear Sam,\n\nThe key is lost.\nBest,\nKim"
    )
    assert edits.shortened(f"{DRAFT} " + "and so on " * 20).endswith("The key is lost.")
    for edit, holds in edits.KINDS.values():
        long = f"{DRAFT} " + "and so on " * 20
        assert holds(edit(long)) and not holds(long)


def test_a_draft_that_an_edit_does_not_change_is_no_edit(module: Module) -> None:
    edits = module("edits")
    drafts = {
        "a": Completion("Ahoy,\n\nall is well.", (1,), 0.0, "stop"),
        "b": Completion(DRAFT, (1,), 0.0, "stop"),
    }
    (line,) = edits.edited("greeting", drafts)
    assert line["prompt"] == "b" and line["draft"] == DRAFT


def test_edits_are_learned_and_measured(
    module: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits, file = module("edits"), tmp_path / "edits.jsonl"
    write_checkpoint(tmp_path / "toy")
    monkeypatch.setattr(edits, "TOKENS", 8)
    flags = ("--model", str(tmp_path / "toy"), "--kinds", "greeting", "--results", str(file))
    monkeypatch.setattr(sys, "argv", ["edits.py", *flags, "--set", "epochs=1,lora_rank=2"])
    edits.main()
    (line,) = module("ditto_results").read_lines(file)
    assert line["edits"] == 20 and line["knobs"]["epochs"] == 1 and line["drift"] > 0
    assert np.shape(line["after"]["holds"]) == (edits.UNSEEN,)
    assert "| epochs=1,lora_rank=2 | 20, greeting |" in edits.report([line])


def rows_of(page: str) -> set[str]:
    return {line for line in (ROOT / page).read_text(encoding="utf-8").splitlines() if "|" in line}


def test_the_page_shows_the_committed_results(module: Module) -> None:
    edits, results = module("edits"), module("ditto_results")
    table = edits.report(results.read_lines(edits.RESULTS)).splitlines()
    assert len(table) > 2 and {*table} <= rows_of("docs/results.md")
