"""The fixtures of the commands' tests; a file may have a workplace of its own."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import run_script
from helpers.runs import INPUTS, PROMPT, Finished
from helpers.workplaces import TINY, write_workplace

from minialign.training.run import Run


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_workplace(tmp_path_factory.mktemp("workplace"))


@pytest.fixture(scope="module")
def finished(workplace: Path) -> Finished:
    arguments = [*INPUTS, *TINY, "--out", "runs/the first", "--prompt", PROMPT]
    process = run_script("train.py", arguments, workplace)
    return Finished(process, workplace, workplace / "runs" / "the first")


@pytest.fixture
def press_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`press_at("sft", 2)`: Ctrl-C is pressed once that step was logged."""

    def press_at(*when: object, times: int = 1) -> None:
        log = Run.log

        pressed = []

        def log_and_press(run: Run, stage: str, step: int, measured: dict[str, Any]) -> None:
            log(run, stage, step, measured)
            if (stage, step) == when and not pressed:
                pressed.append(when)
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(Run, "log", log_and_press)

    before = signal.getsignal(signal.SIGINT)
    yield press_at
    assert signal.getsignal(signal.SIGINT) is before


@pytest.fixture
def copy(workplace: Path, tmp_path: Path) -> Path:
    """A workplace with its own run folders, to be evaluated or spoiled."""
    return shutil.copytree(workplace, tmp_path / "workplace")
