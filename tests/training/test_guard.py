"""States that are kept, runs that end early: to the last bit, resumed or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.refusals import refusal
from helpers.toys import HELD_OUT, Outcome, outcome, small_config, small_training

from minialign.methods import ditto
from minialign.methods.sft import train as train_sft
from minialign.training.collapse import KEPT_UNSEEN, NOTE, UNSEEN, Watch
from minialign.training.guard import Guard
from minialign.training.knobs import TrainOptions, seconds_of
from minialign.training.run import Interrupted, Run

# Of toys' small_config: after each of three rounds of two steps.
ROUNDS = {1: 3.0, 3: 2.5, 5: 2.9}


@pytest.fixture
def rising(monkeypatch: pytest.MonkeyPatch) -> None:
    """The held-out loss is lowest after the second round of three."""

    def measured(model: Any, held_out: Any, reference: Any, knobs: Any, run: Run) -> dict[str, Any]:
        return {UNSEEN: ROUNDS[run.guard.taken - 1]} if held_out else {}

    monkeypatch.setattr(ditto, "_held_out_metrics", measured)


@pytest.fixture
def collapsing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fifth step of DPO warns."""

    def see(watch: Watch, line: dict[str, Any]) -> list[str]:
        return ["it breaks"] if (line["stage"], line.get("step")) == ("ditto", 4) else []

    monkeypatch.setattr(Watch, "see", see)


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves 10 seconds a step."""
    elapsed = property(lambda run: 10.0 * sum("step" in line for line in run.lines))
    monkeypatch.setattr(Run, "elapsed", elapsed)


def trained(folder: Path, guard: Guard, **options: Any) -> tuple[Outcome, dict[int, Any]]:
    """What a run comes to, and the adapter that was trained after each step of DPO."""
    states: dict[int, Any] = {}
    runs: list[Run] = []
    before = options.pop("prepare", lambda run: None)

    def prepare(run: Run) -> None:
        before(run)
        runs.append(run)
        offer = run.guard.offer

        def note_state(loss: float | None) -> None:
            offer(loss)
            model = run.guard._model
            assert model is not None
            name = "ditto" if run.guard._stage == "ditto" else "sft"
            states[run.guard.taken] = outcome(folder, model).adapters[name]

        run.guard.offer = note_state  # type: ignore[method-assign]

    found = small_training(folder, guard=guard, prepare=prepare, **options)
    runs[0].end_training(found.model)
    return outcome(folder, found.model), states


def stop_after(step: int) -> Callable[[Run], None]:
    """As a person would: Ctrl-C while a step is at work."""

    def prepare(run: Run) -> None:
        log = run.log

        def log_and_stop(stage: str, at: int, metrics: dict[str, Any]) -> None:
            log(stage, at, metrics)
            run.interrupted |= (stage, at) == ("ditto", step)

        run.log = log_and_stop  # type: ignore[method-assign]

    return prepare


def notes(found: Outcome) -> list[str]:
    return [line[NOTE] for line in found.metrics if NOTE in line]


# ---- the state that is kept ----


def test_the_best_state_is_kept_by_the_held_out_loss(tmp_path: Path, rising: None) -> None:
    last, _ = trained(tmp_path / "last", Guard(), held_out=HELD_OUT)
    best, states = trained(tmp_path / "best", Guard("best", held_out=HELD_OUT), held_out=HELD_OUT)
    assert best.adapters["ditto"] == states[4] != states[6]
    assert last.adapters["ditto"] == states[6]
    (line,) = [line for line in best.metrics if NOTE in line]
    assert (line["stage"], line["kept/step"], line[KEPT_UNSEEN]) == ("ditto", 4, 2.5)
    assert "step 4: its held-out loss, 2.50 nats per token, was the lowest" in line[NOTE]
    # Nothing else differs, and the warm start is what it was.
    assert best.samples == last.samples and notes(last) == []
    assert best.adapters["sft"] == last.adapters["sft"]


@pytest.mark.parametrize("step", [0, 2, 3, 4])
def test_a_resumed_run_keeps_the_same_state(tmp_path: Path, rising: None, step: int) -> None:
    def guard() -> Guard:
        return Guard("best", held_out=HELD_OUT)

    whole, _ = trained(tmp_path / "whole", guard(), held_out=HELD_OUT)
    options: dict[str, Any] = {"held_out": HELD_OUT}
    with pytest.raises(Interrupted):
        trained(tmp_path / "cut", guard(), prepare=stop_after(step), **options)
    cut, _ = trained(tmp_path / "cut", guard(), resume=True, **options)
    assert cut.same_as(whole)


def test_a_method_without_rounds_is_measured_four_times(tmp_path: Path) -> None:
    guard = Guard("best", held_out=HELD_OUT)
    found, states = trained(tmp_path / "a", guard, held_out=HELD_OUT, method=train_sft)
    unseen = [line[UNSEEN] for line in found.steps("sft")]
    assert len(unseen) == 4
    (line,) = [line for line in found.metrics if NOTE in line]
    assert line["kept/step"] == 1 + unseen.index(min(unseen))
    assert found.adapters["sft"] == states[line["kept/step"]]
    plain, _ = trained(tmp_path / "b", Guard(), held_out=HELD_OUT, method=train_sft)
    assert [line["loss"] for line in plain.steps("sft")] == [
        line["loss"] for line in found.steps("sft")
    ]
    assert not any(UNSEEN in line for line in plain.steps("sft"))


# ---- a collapse ----


def test_a_collapse_is_told_and_only_ends_a_run_that_asked_for_it(
    tmp_path: Path, collapsing: None, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, _ = trained(tmp_path / "plain", Guard())
    assert "     warning  it breaks\n" in capsys.readouterr().out
    assert [line.get("warnings") for line in plain.steps("ditto")][4] == ["it breaks"]
    assert len(plain.steps("ditto")) == 6 and notes(plain) == []
    stopped, states = trained(tmp_path / "stopped", Guard(stop_on_collapse=True))
    assert len(stopped.steps("ditto")) == 5
    # The third quarter had the warning, and what it began with is not known to be sound.
    assert stopped.adapters["ditto"] == states[2]
    assert notes(stopped) == [
        "ended after step 5 of 6: it collapses",
        "kept as it was after step 2: a quarter of the steps without a warning followed",
    ]


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_collapse_ends_a_resumed_run_the_same(
    tmp_path: Path, collapsing: None, step: int
) -> None:
    def guard() -> Guard:
        return Guard(stop_on_collapse=True)

    whole, _ = trained(tmp_path / "whole", guard())
    with pytest.raises(Interrupted):
        trained(tmp_path / "cut", guard(), prepare=stop_after(step))
    if step == 4:
        # It was over already: the result is what was saved.
        assert whole.metrics == outcome(tmp_path / "cut", whole.model).metrics
        return
    cut, _ = trained(tmp_path / "cut", guard(), resume=True)
    assert cut.same_as(whole)


def test_what_was_held_out_decides_which_state_is_kept(
    tmp_path: Path, collapsing: None, rising: None
) -> None:
    guard = Guard(stop_on_collapse=True, held_out=HELD_OUT)
    found, states = trained(tmp_path / "r", guard, held_out=HELD_OUT)
    assert found.adapters["ditto"] == states[4]
    assert [line.get(KEPT_UNSEEN) for line in found.metrics if "kept/step" in line] == [2.5]


def test_after_a_collapse_no_other_stage_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def see(watch: Watch, line: dict[str, Any]) -> list[str]:
        return ["it breaks"] if (line["stage"], line.get("step")) == ("sft", 2) else []

    monkeypatch.setattr(Watch, "see", see)
    found, states = trained(tmp_path / "r", Guard(stop_on_collapse=True))
    assert (len(found.steps("sft")), len(found.steps("ditto"))) == (3, 0)
    assert found.adapters["ditto"] == states[1] and found.samples == []


# ---- a time budget ----


def test_a_time_budget_ends_a_run_in_order(tmp_path: Path, ticking: None) -> None:
    """The four steps of SFT take 40 seconds, so that the time is up in DPO's second step."""
    guard, config = Guard(time_budget="45s"), small_config(resample_every=3)
    found, states = trained(tmp_path / "r", guard, config=config, held_out=HELD_OUT)
    assert len(found.steps("ditto")) == 2
    assert notes(found) == ["ended after step 2 of 6: --time-budget 45s is used up"]
    # The last step is measured as a whole run's is, and the samples are all written.
    assert UNSEEN in found.steps("ditto")[-1]
    assert {line["round"] for line in found.samples} == {0}
    assert found.adapters["ditto"] == states[2]


def test_a_time_budget_goes_on_counting_in_a_resumed_run(tmp_path: Path, ticking: None) -> None:
    options: dict[str, Any] = {"config": small_config(resample_every=3)}
    whole, _ = trained(tmp_path / "whole", Guard(time_budget="65s"), **options)
    with pytest.raises(Interrupted):
        trained(tmp_path / "cut", Guard(time_budget="65s"), prepare=stop_after(1), **options)
    cut, _ = trained(tmp_path / "cut", Guard(time_budget="65s"), resume=True, **options)
    assert cut.same_as(whole) and len(whole.steps("ditto")) == 3


def test_no_stage_begins_after_the_time_is_up(tmp_path: Path, ticking: None) -> None:
    found, _ = trained(tmp_path / "r", Guard(time_budget="15s"))
    assert (len(found.steps("sft")), len(found.steps("ditto"))) == (2, 0)
    assert found.adapters["ditto"] == found.adapters["sft"]
    assert notes(found) == [
        f"ended after step {step}: --time-budget 15s is used up" for step in ("2 of 4", "0 of 6")
    ]


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_times_are_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["10", "ten minutes", "0m", "-1m", "1e9h", "nan", "10 m", "1d"])
def test_what_is_no_time_is_refused(text: str) -> None:
    said = refusal(lambda: TrainOptions(time_budget=text))
    assert said == f"time_budget {text!r}: write it as 90s, 10m or 2h"
