"""A DITTO run that was stopped or crashed goes on, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.toys import HELD_OUT, Outcome, small_training

from minialign.errors import InputError
from minialign.methods import sft as sft_module
from minialign.training.run import Interrupted, Run

Tamper = Callable[[Run], None]


def stop_after(stage: str, step: int) -> Tamper:
    """As a person would: Ctrl-C while a step is at work."""

    def prepare(run: Run) -> None:
        log = run.log

        def log_and_stop(at_stage: str, at_step: int, metrics: dict[str, Any]) -> None:
            log(at_stage, at_step, metrics)
            run.interrupted |= (at_stage, at_step) == (stage, step)

        run.log = log_and_stop  # type: ignore[method-assign]

    return prepare


def stop_in_round(number: int, token: int) -> Tamper:
    """Ctrl-C while a round of sampling is being written."""

    def prepare(run: Run) -> None:
        progress = run.sampling_progress

        def stopping(round_number: int, completions: int) -> Callable[[int, int, int], None]:
            on_token = progress(round_number, completions)
            written = iter(range(10**6))

            def count(prompt: int, sample: int, token_id: int) -> None:
                run.interrupted |= (round_number, next(written)) == (number + 1, token)
                on_token(prompt, sample, token_id)

            return count

        run.sampling_progress = stopping  # type: ignore[method-assign]

    return prepare


STOPS = {
    "in SFT": [stop_after("sft", 1)],
    "in SFT's last step": [stop_after("sft", 3)],
    "in round 0": [stop_in_round(0, 7)],
    "in DPO": [stop_after("ditto", 0)],
    "in the last step of a round": [stop_after("ditto", 3)],
    "in round 2": [stop_in_round(2, 20)],
    "again and again": [stop_after("sft", 0), stop_in_round(1, 3), stop_after("ditto", 4)],
}


@pytest.mark.parametrize("when", STOPS)
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(
    when: str, tmp_path: Path, baseline: Outcome
) -> None:
    folder = tmp_path / "r"
    for count, prepare in enumerate(STOPS[when]):
        with pytest.raises(Interrupted):
            small_training(folder, held_out=HELD_OUT, prepare=prepare, resume=count > 0)
    found = small_training(folder, held_out=HELD_OUT, resume=True)
    assert found.metrics == baseline.metrics
    assert found.samples == baseline.samples
    assert found.adapters == baseline.adapters


def test_after_a_crash_the_last_saved_state_goes_on_bit_for_bit(
    tmp_path: Path, baseline: Outcome
) -> None:
    """Lines that were written after the state was are taken back, half a line included."""

    def crash(run: Run) -> None:
        log = run.log

        def log_and_crash(stage: str, step: int, metrics: dict[str, Any]) -> None:
            log(stage, step, metrics)
            if (stage, step) == ("ditto", 2):
                raise MemoryError

        run.log = log_and_crash  # type: ignore[method-assign]

    folder = tmp_path / "r"
    with pytest.raises(MemoryError):
        small_training(folder, held_out=HELD_OUT, prepare=crash, save_every=0)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"stage": "di')
    assert small_training(folder, held_out=HELD_OUT, resume=True).same_as(baseline)


def test_sft_alone_resumes_bit_for_bit(tmp_path: Path) -> None:
    whole = small_training(tmp_path / "a", method=sft_module.train)
    with pytest.raises(Interrupted):
        small_training(tmp_path / "b", method=sft_module.train, prepare=stop_after("sft", 1))
    assert small_training(tmp_path / "b", method=sft_module.train, resume=True).same_as(whole)


def test_without_a_whole_state_there_is_nothing_to_resume(tmp_path: Path) -> None:
    folder = tmp_path / "r"
    with pytest.raises(Interrupted):
        small_training(folder, prepare=stop_after("ditto", 1))
    state = folder / "state" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    with pytest.raises(InputError, match="no state to go on from"):
        small_training(folder, resume=True)
