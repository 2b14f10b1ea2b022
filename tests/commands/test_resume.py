"""Ctrl-C in a training, and going on: the run ends as if nothing had happened."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import call, train
from helpers.files import tree
from helpers.processes import ROOT, run_python, run_script
from helpers.runs import INPUTS, PROMPT, RUN_SCRIPT, Finished, metrics, results, without_seconds
from helpers.workplaces import LOADING, TINY, write_workplace

from minialign.commands import session
from minialign.training.run import Run

PRESS_AT_DITTO_2 = f"""
import signal, sys
from minialign.training.run import Run
log = Run.log
def log_and_press(run, stage, step, metrics):
    log(run, stage, step, metrics)
    if (stage, step) == ("ditto", 2):
        signal.raise_signal(signal.SIGINT)
Run.log = log_and_press
{RUN_SCRIPT}
"""


def test_ctrl_c_in_a_process_says_how_to_go_on_and_going_on_ends_the_same(
    workplace: Path, finished: Finished
) -> None:
    out = ["--out", "runs/cut short", "--prompt", PROMPT]
    script = str(ROOT / "train.py")
    stopped = run_python(["-c", PRESS_AT_DITTO_2, script, *INPUTS, *TINY, *out], workplace)
    assert stopped.returncode == 130
    assert "--- after" not in stopped.stdout
    lines = stopped.stderr.removeprefix(LOADING).strip().split("\n")
    assert lines[0] == "finishing this step, then saving (Ctrl-C again: stop at once)"
    assert lines[1:] == [
        "saved; go on with: python train.py --resume 'runs/cut short'"
    ]  # and no traceback
    command = shlex.split(lines[1].split("go on with: ")[1])
    resumed = run_script(command[1], command[2:], workplace)
    assert (resumed.returncode, resumed.stderr) == (0, LOADING)
    folder = workplace / "runs" / "cut short"
    assert results(folder) == results(finished.folder)
    assert without_seconds(folder) == without_seconds(finished.folder)
    assert not (folder / "state").exists()
    assert (folder / "report.html").exists()
    previews = [(f / "preview.json").read_bytes() for f in (folder, finished.folder)]
    assert previews[0] == previews[1]
    tail = finished.process.stdout.split("--- prompt ---")[1].split("all of it")[0]
    assert tail in resumed.stdout  # the same before and after


@pytest.mark.parametrize("when", [("sft", 0), ("sft", 2), ("sft", 5), ("ditto", 0), ("ditto", 1)])
def test_a_run_interrupted_at_any_step_ends_the_same(
    workplace: Path,
    finished: Finished,
    tmp_path: Path,
    press_at: Callable[..., None],
    when: tuple[str, int],
) -> None:
    press_at(*when)
    stopped = call(train, *INPUTS, *TINY, "--out", tmp_path / "run", cwd=workplace)
    assert stopped.code == 130
    assert set(tree(tmp_path / "run" / "state")) == {"state.safetensors"}
    assert not (tmp_path / "run" / "report.html").exists()
    resumed = call(train, "--resume", tmp_path / "run", cwd=workplace)
    assert resumed.code == 0, resumed.err
    assert (tmp_path / "run" / "report.html").exists()
    assert results(tmp_path / "run") == results(finished.folder)
    assert without_seconds(tmp_path / "run") == without_seconds(finished.folder)


def test_a_run_interrupted_while_it_writes_answers_ends_the_same(
    workplace: Path, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Run.sampling_progress
    written = []

    def press_at_fifth_token(run: Run, number: int, count: int) -> Callable[[int, int, int], None]:
        on_token = progress(run, number, count)

        def on_token_and_press(*what: int) -> None:
            if number == 1:
                written.append(what)
            if len(written) == 5:
                signal.raise_signal(signal.SIGINT)
            on_token(*what)

        return on_token_and_press

    monkeypatch.setattr(Run, "sampling_progress", press_at_fifth_token)
    stopped = call(train, *INPUTS, *TINY, "--out", tmp_path / "run", cwd=workplace)
    monkeypatch.undo()
    assert stopped.code == 130
    assert len(written) == 5  # it does not wait for the round to end
    resumed = call(train, "--resume", tmp_path / "run", cwd=workplace)
    assert resumed.code == 0, resumed.err
    assert results(tmp_path / "run") == results(finished.folder)


def test_a_run_can_be_interrupted_twice(
    workplace: Path, finished: Finished, tmp_path: Path, press_at: Callable[..., None]
) -> None:
    press_at("sft", 3)
    assert call(train, *INPUTS, *TINY, "--out", tmp_path / "run", cwd=workplace).code == 130
    press_at("ditto", 1)
    assert call(train, "--resume", tmp_path / "run", cwd=workplace).code == 130
    assert call(train, "--resume", tmp_path / "run", cwd=workplace).code == 0
    assert results(tmp_path / "run") == results(finished.folder)


def test_a_second_ctrl_c_stops_at_once_and_the_last_state_goes_on(
    workplace: Path, finished: Finished, tmp_path: Path, press_at: Callable[..., None]
) -> None:
    press_at("ditto", 1, times=2)
    stopped = call(train, *INPUTS, *TINY, "--out", tmp_path / "run", cwd=workplace)
    assert stopped.code == 130
    kept = "stopped; what came before step 0 of ditto is kept"
    assert stopped.err.endswith(
        f"\n{kept}; go on with: python train.py --resume {tmp_path / 'run'}\n"
    )
    assert metrics(tmp_path / "run")[-1]["step"] == 1
    assert call(train, "--resume", tmp_path / "run", cwd=workplace).code == 0
    assert results(tmp_path / "run") == results(finished.folder)


def test_a_run_that_was_killed_goes_on_from_its_last_save(
    workplace: Path,
    finished: Finished,
    tmp_path: Path,
    press_at: Callable[..., None],
) -> None:
    press_at("ditto", 1, times=2)
    flags = (*INPUTS, *TINY, "--save-every", "0")
    stopped = call(train, *flags, "--out", tmp_path / "run", cwd=workplace)
    assert stopped.code == 130 and "before step 1 of ditto is kept" in stopped.err
    assert metrics(tmp_path / "run")[-1]["step"] == 1  # written after the save, to be redone
    resumed = call(train, "--resume", tmp_path / "run", cwd=workplace)
    assert resumed.code == 0, resumed.err
    assert results(tmp_path / "run") == results(finished.folder)
    assert without_seconds(tmp_path / "run") == without_seconds(finished.folder)


def test_ctrl_c_before_training_leaves_nothing_behind(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*_: object) -> None:  # while the model answers for the first time
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "answer", press)
    stopped = call(train, *INPUTS, *TINY, "--out", tmp_path / "run", cwd=workplace)
    assert (stopped.code, stopped.err) == (130, LOADING + "\ntrain.py: stopped\n")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def interrupted(tmp_path: Path, press_at: Callable[..., None]) -> Path:
    """A workplace of its own with an interrupted run in runs/demos."""
    write_workplace(tmp_path)
    press_at("ditto", 1)
    assert call(train, *INPUTS, *TINY, cwd=tmp_path).code == 130
    return tmp_path


@pytest.mark.parametrize(
    "flags",
    [
        ("--max-steps", "9"),
        ("--lora-rank", "2"),
        ("--seed", "5"),
        ("--demos", "demos.jsonl"),
        ("--data", "data/sam"),
        ("--feedback", "Sign as Sam"),
        ("--out", "elsewhere"),
        ("--overwrite",),
    ],
)
def test_resume_refuses_other_knobs(interrupted: Path, flags: tuple[str, ...]) -> None:
    before = tree(interrupted)
    outcome = call(train, "--resume", "runs/demos", *flags, cwd=interrupted)
    assert outcome.code == 2
    assert outcome.err == (f"train.py: --resume keeps the knobs of the run: leave out {flags[0]}\n")
    assert tree(interrupted) == before


def test_resume_refuses_demonstrations_that_changed(interrupted: Path) -> None:
    demos = interrupted / "demos.jsonl"
    text = demos.read_text(encoding="utf-8")
    demos.write_text(text.replace("nine", "ten"), encoding="utf-8")
    before = tree(interrupted)
    outcome = call(train, "--resume", "runs/demos", cwd=interrupted)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert "demos.jsonl: has changed" in outcome.err and "start a new run" in outcome.err
    assert tree(interrupted) == before
    demos.write_text(text, encoding="utf-8")
    assert call(train, "--resume", "runs/demos", cwd=interrupted).code == 0


def test_resume_of_a_finished_run_says_so_at_once(finished: Finished) -> None:
    before = tree(finished.cwd)
    outcome = call(train, "--resume", finished.folder, cwd=finished.cwd)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1 and "the run is finished" in outcome.err
    assert tree(finished.cwd) == before


def test_resume_refuses_a_damaged_state(interrupted: Path) -> None:
    state = interrupted / "runs" / "demos" / "state" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    before = tree(interrupted)
    outcome = call(train, "--resume", "runs/demos", cwd=interrupted)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert str(state.parent.relative_to(interrupted)) in outcome.err
    assert tree(interrupted) == before
