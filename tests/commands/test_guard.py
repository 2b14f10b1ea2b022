"""--keep, --stop-on-collapse and --time-budget, from the flag to the page."""

from __future__ import annotations

import html
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import call, train, train_toy
from helpers.feedback_runs import KNOBS, write_data
from helpers.files import tree, write_jsonl
from helpers.runs import INPUTS, metrics, results, without_seconds
from helpers.workplaces import DEMOS, TINY

from minialign.methods import ditto
from minialign.training import collapse
from minialign.training.collapse import UNSEEN
from minialign.training.run import Run

# So fast that the loss rises before it falls.
BREAKING = (
    *("--method", "sft", "--sft-max-steps", "12", "--sft-learning-rate", "0.6"),
    *("--sft-warmup-ratio", "0.4"),
)


def page(run: Path) -> str:
    return html.unescape((run / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def rising(monkeypatch: pytest.MonkeyPatch) -> None:
    """The held-out loss is lower after DITTO's first round than after its second."""
    monkeypatch.setattr(
        ditto, "_held_out_metrics", lambda *given: {UNSEEN: 2.0 + given[-1].guard.taken / 10}
    )


def test_the_best_state_is_kept_resumed_or_not_and_every_page_says_so(
    workplace: Path, tmp_path: Path, rising: None, press_at: Callable[..., None]
) -> None:
    last = train_toy(workplace, "--out", tmp_path / "last")
    best = train_toy(workplace, "--out", tmp_path / "best", "--keep", "best")
    assert results(tmp_path / "best")["adapter"] != results(tmp_path / "last")["adapter"]
    said = "kept as it was after step 2: its held-out loss, 2.20 nats per token, was the lowest"
    assert f"       ditto  {said}\n" in best.out and said not in last.out
    (done,) = [line for line in best.out.split("\n") if line.startswith("done in ")]
    assert done.endswith(f"; ditto: {said}")
    assert f"DITTO: {said}." in page(tmp_path / "best")
    assert "2.200 after DITTO" in page(tmp_path / "best")
    assert "2.400 after DITTO" in page(tmp_path / "last")
    record = json.loads((tmp_path / "best" / "config.json").read_text())
    assert record["options"]["keep"] == "best"
    press_at("ditto", 2)
    flags = (*INPUTS, *TINY, "--keep", "best", "--out", tmp_path / "cut")
    assert call(train, *flags, cwd=workplace).code == 130
    assert call(train, "--resume", tmp_path / "cut", cwd=workplace).code == 0
    assert results(tmp_path / "cut") == results(tmp_path / "best")
    assert without_seconds(tmp_path / "cut") == without_seconds(tmp_path / "best")


def test_a_training_that_breaks_is_told_of_and_stopped_where_that_is_asked(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A toy learns within few steps whatever it is taught, so two steps count.
    monkeypatch.setattr(collapse, "STEPS", 2)
    plain = train_toy(workplace, *BREAKING, "--out", tmp_path / "plain")
    assert plain.out.count("     warning  the texts to learn cost more and more: ") == 1
    assert "warning: the texts to learn cost more" in page(tmp_path / "plain")
    flags = (*BREAKING, "--stop-on-collapse", "--out", tmp_path / "stopped")
    stopped = train_toy(workplace, *flags)
    lines = metrics(tmp_path / "stopped")
    assert 2 < sum("step" in line for line in lines) < 12
    assert "it collapses; sft: kept as it was after step " in stopped.out
    (kept,) = [line for line in lines if "kept/step" in line]
    lowest = min(line[UNSEEN] for line in lines if line.get(UNSEEN) is not None)
    assert kept[f"kept/{UNSEEN}"] == lowest
    assert "SFT: kept as it was after step " in page(tmp_path / "stopped")


def test_a_time_budget_ends_a_run_that_is_whole(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elapsed = property(lambda run: 10.0 * sum("step" in line for line in run.lines))
    monkeypatch.setattr(Run, "elapsed", elapsed)
    outcome = train_toy(workplace, "--out", tmp_path / "run", "--time-budget", "75s")
    plan = "  ends after  75s, in which about 6 of 6 SFT and 4 of 4 DITTO steps fit\n"
    assert plan in outcome.out
    said = "ditto: ended after step 2 of 4: --time-budget 75s is used up"
    assert f"; {said}\n" in outcome.out
    whole = {"adapter", "adapter-sft", "samples.jsonl", "preview.json", "report.html"}
    assert whole <= set(tree(tmp_path / "run")) and not (tmp_path / "run" / "state").exists()
    assert said.replace("ditto", "DITTO") in page(tmp_path / "run")
    again = call(train, "--resume", tmp_path / "run", cwd=workplace)
    assert again.code == 2 and "the run is finished" in again.err


def test_c3po_within_a_time_budget_measures_its_last_step(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_data(tmp_path / "sam")
    elapsed = property(lambda run: 10.0 * sum("step" in line for line in run.lines))
    monkeypatch.setattr(Run, "elapsed", elapsed)
    flags = ("--data", data, "--model", "toy", *KNOBS, "--out", tmp_path / "run")
    outcome = call(train, *flags, "--time-budget", "5s", cwd=workplace)
    assert outcome.code == 0, outcome.err
    steps = [line for line in metrics(tmp_path / "run") if "step" in line]
    assert len(steps) == 2 and "eval/loss" in steps[-1]
    assert "of 4 C3PO steps fit" in outcome.out


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--demos", "alone.jsonl", "--keep", "best"), "--keep best needs held-out demonstrations"),
        (("--data", "sam", "--keep", "best"), "--keep best needs held-out demonstrations"),
        (("--demos", "demos.jsonl", "--keep", "first"), "--keep"),
        (("--demos", "demos.jsonl", "--time-budget", "soon"), "time_budget 'soon': write it as"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_loads(
    workplace: Path, flags: tuple[str, ...], said: str
) -> None:
    write_jsonl(workplace / "alone.jsonl", DEMOS)
    if not (workplace / "sam").exists():
        write_data(workplace / "sam")
    before = tree(workplace)
    outcome = call(train, *flags, "--model", "toy", cwd=workplace)
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and said in outcome.err
    assert tree(workplace) == before
