"""The curves of a run: those that its method's card names."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from report_helpers import (
    Page,
    check_well_formed,
    config,
    feedback_config,
    feedback_metrics,
    make_run,
)

from minialign.data.records import DEMONSTRATIONS
from minialign.evaluation.report.page import write_comparison, write_report
from minialign.methods import cards
from minialign.methods.cards import Card, Curve, Overlay, PairKind, Stage
from minialign.methods.knobs import DittoConfig


def test_the_curves_of_a_run_from_feedback_are_those_of_its_loss(
    feedback_page: Callable[..., Page],
) -> None:
    titles = [label.split(":")[1].strip() for label in feedback_page().labels()[3:]]
    drawn = ["loss", "DPO", "kept answers", "revised answers", "rewards", "margins", "accuracies"]
    assert titles[:8] == [*drawn, "learning rate"]
    labels = " ".join(feedback_page().labels())
    assert "C3PO: DPO: DPO from 0.693 at step 1" in labels
    assert "unseen prompts 2.50 at step 4" in labels
    kl = [
        {re.sub("^nll/(out|near)", r"kl/\1", key): value for key, value in line.items()}
        for line in feedback_metrics()
    ]
    labels = " ".join(feedback_page(metrics=kl).labels())
    assert "C3PO: divergence: near its scope from 0.625" in labels and "kept answers" not in labels


@pytest.mark.parametrize(
    ("method", "shown"), [("dpo", "DPO"), ("sft", "SFT"), ("sft-weighted", "SFT with constraints")]
)
def test_the_baselines_of_c3po_go_by_their_own_names(
    feedback_page: Callable[..., Page], method: str, shown: str
) -> None:
    page = feedback_page(config=feedback_config(method), evaluation=None)
    assert f"Trained on a sentence of feedback: 4 {shown} steps." in page.headline
    assert f"{shown}: loss" in " ".join(page.labels()) and "C3PO" not in page.text


# ---- a method that the package does not bring ----

MIMIC = Card(
    name="mimic",
    title="MIMIC",
    help="one stage of its own",
    learns_from=(DEMONSTRATIONS,),
    recipes={"laptop": DittoConfig(max_steps=9)},
    stages=(
        Stage(
            "copying",
            "Copying",
            lambda knobs, source: (
                Curve("likeness", source, (("like", "like", 6),), percent=True),
                Curve("doubt", "of pairs", (("loss", "loss", 4),), undecided=True),
                Curve("never measured", "", (("nowhere", "nothing", 1),)),
            ),
            lambda knobs, source: (
                Overlay("like", "Likeness", f"beta {knobs['beta']}"),
                Overlay("loss", "SFT loss", "nats per token"),
            ),
            ("max_steps",),
            (PairKind("own", "home-made", "own text over a copy", 7),),
        ),
    ),
    module="nowhere",
    color=6,
)


@pytest.fixture
def mimic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An unfinished run of a method from outside."""
    monkeypatch.setattr(cards, "CARDS", [*cards.CARDS])
    cards.register(MIMIC)
    record = config()
    record["options"]["method"] = "mimic"
    lines = [
        {"stage": "copying", "step": i, "loss": 0.75, "like": 0.5 + i / 4}
        | {"pairs/own": 2, "pairs/other_kind": 1}
        for i in range(2)
    ]
    missing = dict.fromkeys(("samples", "preview", "evaluation", "adapter"))
    return make_run(tmp_path / "mimic", config=record, metrics=lines, **missing)


def test_a_method_from_outside_has_the_curves_of_its_card(mimic: Path) -> None:
    page = Page(write_report(mimic).read_text(encoding="utf-8"))
    check_well_formed(page)
    assert page.headline == "This run is not finished: it came to Copying step 2 of 4."
    assert [label.replace("\u00a0", " ") for label in page.labels()[:3]] == [
        "Copying: likeness: like from 50 % at step 1 to 75 % at step 2, between 50 % and 75 %.",
        "Copying: doubt: loss from 0.750 at step 1 to 0.750 at step 2, between 0.750 and 0.750.",
        "Pairs a step: home-made 4, other-kind 2 in 2 steps.",
    ]
    assert "ln 2: undecided" in page.texts and DEMONSTRATIONS in page.texts
    assert "What each step compared. Home-made: own text over a copy." in page.text
    assert '<li class="k7"><i></i>home-made' in page.source
    assert "MIMIC, laptop recipe" in page.text


def test_overlays_of_one_title_and_unit_are_one_chart(mimic: Path, tmp_path: Path) -> None:
    runs = [mimic, make_run(tmp_path / "plain")]
    page = Page(write_comparison(runs, tmp_path / "all.html").read_text(encoding="utf-8"))
    assert [label.split(":")[0] for label in page.labels()] == [
        *("Likeness", "SFT loss", "Preference loss", "Margins", "Unseen texts")
    ]
    assert "mimic" in page.labels()[1] and "plain" in page.labels()[1]
    assert "beta 0.05" in page.texts
    for name, color in (("mimic", 0), ("plain", 1)):
        assert f'<li class="k{color}"><i></i>{name}</li>' in page.source


def test_a_method_that_no_card_knows_gets_a_page_with_its_losses(
    run_page: Callable[..., Page],
) -> None:
    record = config()
    record["options"]["method"] = "forgotten"
    page = run_page(config=record, evaluation=None)
    check_well_formed(page)
    assert [label.split(": ")[:2] for label in page.labels()[:2]] == [
        ["SFT", "loss"],
        ["DITTO", "loss"],
    ]
    assert "forgotten, laptop recipe" in page.text
    assert "What each step compared. " in page.text and "expert 32" in " ".join(page.labels())
