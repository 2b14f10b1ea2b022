"""The three commands, called in this process."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from pathlib import Path
from types import ModuleType

import pytest

from helpers.workplaces import TINY, TINY_SFT
from minialign.commands import evaluate as evaluate
from minialign.commands import sample as sample
from minialign.commands import train as train
from minialign.commands.cli import run_main


@dataclasses.dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def call(script: ModuleType, *arguments: str | Path, cwd: Path, stdin: str = "") -> Outcome:
    """Calls a command in this process, as its door does."""
    program = f"{script.__name__.split('.')[-1]}.py"
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as left,
    ):
        patch.setattr(sys, "argv", [program, *map(str, arguments)])
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        run_main(program, lambda: script.main([*map(str, arguments)]))
    return Outcome(int(left.value.code or 0), out.getvalue(), err.getvalue())


def train_toy(cwd: Path, *arguments: str | Path) -> Outcome:
    """Trains the toy model of a workplace; fails the test unless that succeeds."""
    knobs = TINY_SFT if "sft" in arguments else TINY
    outcome = call(train, "--demos", "demos.jsonl", "--model", "toy", *knobs, *arguments, cwd=cwd)
    assert outcome.code == 0, outcome.err
    return outcome
