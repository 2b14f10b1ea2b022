"""The three commands, called in this process."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType

import pytest

from helpers.processes import ROOT
from helpers.workplaces import TINY
from minialign.commands.cli import run_main


@dataclasses.dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


def load_script(name: str) -> ModuleType:
    """A script of the repository as a module, wherever the tests are called from."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


train, sample, evaluate = map(load_script, ("train", "sample", "evaluate"))


def call(script: ModuleType, *arguments: str | Path, cwd: Path, stdin: str = "") -> Outcome:
    """Calls a command in this process, as its `if __name__ == "__main__"` does."""
    program, out, err = f"{script.__name__}.py", io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as left,
    ):
        patch.setattr(sys, "argv", [program, *map(str, arguments)])
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        run_main(program, script.main)
    return Outcome(int(left.value.code or 0), out.getvalue(), err.getvalue())


def train_toy(cwd: Path, *arguments: str | Path) -> Outcome:
    """Trains the toy model of a workplace; fails the test unless that succeeds."""
    outcome = call(train, "--demos", "demos.jsonl", "--model", "toy", *TINY, *arguments, cwd=cwd)
    assert outcome.code == 0, outcome.err
    return outcome
