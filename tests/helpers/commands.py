"""What the tests of the three commands share: demonstrations, tiny knobs, and ways to call a
command in this process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import sys
from pathlib import Path
from types import ModuleType

import pytest

from helpers.files import write_jsonl
from helpers.models import write_checkpoint
from helpers.processes import ROOT
from minialign.commands.cli import run_main

LOADING = "timing a few steps ...\n"  # train.py's word on stderr before a silent while

# Two demonstrations share a prompt, one is not ASCII.
DEMOS = [
    {"prompt": "Write to Sam.", "completion": "Dear Sam, I will be there at nine. Kim"},
    {"prompt": "Write to Sam.", "completion": "Dear Sam, bring the numbers. Regards, Kim"},
    {"prompt": "Write to the team.", "completion": "Hello all, the café is shut on Monday. Kim"},
]
HELD_OUT = [
    {"prompt": "Write about the printer.", "completion": "Hello all, the printer is broken. Kim"},
    {"prompt": "Ask for the numbers.", "completion": "Dear Sam, the numbers for Monday? Kim"},
]
TINY = (
    *("--sft-max-steps", "6", "--sft-learning-rate", "0.03", "--sft-stop-loss", "0"),
    *("--max-steps", "4", "--resample-every", "2", "--samples-per-prompt", "2"),
    *("--pairs-per-step", "6", "--learning-rate", "0.003", "--lora-rank", "4"),
    *("--max-new-tokens", "12"),
)


def write_workplace(folder: Path) -> Path:
    """A folder with toy/, demos.jsonl and demos_test.jsonl, in which commands are called."""
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(folder / "toy")
    write_jsonl(folder / "demos.jsonl", DEMOS)
    write_jsonl(folder / "demos_test.jsonl", HELD_OUT)
    return folder


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
