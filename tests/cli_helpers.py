"""What the tests of the three commands share: a toy checkpoint, demonstrations, tiny knobs, and
ways to call a command in this process or in one of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import (
    CHAT_TEMPLATE,
    TOY_CONFIG,
    make_byte_level_backend,
    make_model,
    write_tokenizer,
)
from safetensors.torch import save_file

from minialign.commands.cli import run_main
from minialign.data.records import DEMONSTRATIONS
from minialign.methods.cards import card_of

ROOT = Path(__file__).parents[1]
LOADING = "timing a few steps ...\n"  # train.py's word on stderr before a silent while
CONFIG = TOY_CONFIG

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


def write_checkpoint(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A toy model of random weights as a folder in the Hugging Face layout; `changes` go into its
    config.json.
    """
    write_tokenizer(
        folder,
        make_byte_level_backend(),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )
    description = {"model_type": "mistral", "eos_token_id": 2, **dataclasses.asdict(CONFIG)}
    (folder / "config.json").write_text(json.dumps({**description, **changes}))
    model = make_model(CONFIG, seed=seed)
    state = {name: parameter.data for name, parameter in model.named_parameters()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_jsonl(file: Path, records: list[dict[str, Any]]) -> Path:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    file.write_text("".join(lines), encoding="utf-8")
    return file


def write_workplace(folder: Path) -> Path:
    """A folder with toy/, demos.jsonl and demos_test.jsonl, in which commands are called."""
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(folder / "toy")
    write_jsonl(folder / "demos.jsonl", DEMOS)
    write_jsonl(folder / "demos_test.jsonl", HELD_OUT)
    return folder


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: contents of files, None for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def run_python(
    arguments: list[str], cwd: Path, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """A process of its own, its output in pipes, decoded without touching line ends."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(),
        input=None if stdin is None else stdin.encode(),
        capture_output=True,
        timeout=120,
        check=False,
    )
    out, err = (text.decode("utf-8") for text in (result.stdout, result.stderr))
    return subprocess.CompletedProcess(result.args, result.returncode, out, err)


def environment() -> dict[str, str]:
    """One thread: a toy model is slower on several, and results could differ in their last bit."""
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return {**os.environ, **threads, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}


def run_script(script: str, arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_python([str(ROOT / script), *arguments], cwd)


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
        run_main(program, lambda: script.main([*map(str, arguments)]))
    return Outcome(int(left.value.code or 0), out.getvalue(), err.getvalue())


def train_toy(cwd: Path, *arguments: str | Path) -> Outcome:
    """Trains the toy model of a workplace; fails the test unless that succeeds."""
    method = arguments[arguments.index("--method") + 1] if "--method" in arguments else ""
    unread = card_of(str(method), DEMONSTRATIONS).unread
    tiny = [
        text
        for flag, value in zip(TINY[::2], TINY[1::2], strict=True)
        for text in (flag, value)
        if flag[2:].replace("-", "_") not in unread
    ]
    outcome = call(train, "--demos", "demos.jsonl", "--model", "toy", *tiny, *arguments, cwd=cwd)
    assert outcome.code == 0, outcome.err
    return outcome
