"""A whole run of train.py, and what its folder holds."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

PROMPT = 'Say "no" to Sam\'s $HOME bill.'  # what a shell must not touch
INPUTS = ("--demos", "demos.jsonl", "--model", "toy")


@dataclass(frozen=True)
class Finished:
    """A whole run in a process of its own."""

    process: subprocess.CompletedProcess[str]
    cwd: Path
    folder: Path

    @property
    def lines(self) -> list[str]:
        return self.process.stdout.split("\n")


def adapters(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a run's adapters, by file and name."""
    return {
        f"{file.parent.name}/{name}": tensor
        for file in sorted(folder.glob("adapter*/adapter_model.safetensors"))
        for name, tensor in load_file(file).items()
    }


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_seconds(folder: Path) -> list[dict[str, Any]]:
    """What two runs with the same seed have in common: not their time, nor their memory."""
    machine = ("seconds", "peak_bytes")
    return [{k: v for k, v in line.items() if k not in machine} for line in metrics(folder)]


def results(folder: Path) -> dict[str, Any]:
    """What must not differ by one bit between two runs with the same seed."""
    return {
        "samples": (folder / "samples.jsonl").read_bytes(),
        "adapter": weights(folder / "adapter"),
        "adapter-sft": weights(folder / "adapter-sft"),
    }


def weights(folder: Path) -> bytes:
    file = folder / "adapter_model.safetensors"
    assert len(load_file(file)) == 2 * 4 * 2  # A and B of four layers in two blocks
    return file.read_bytes()


RUN_SCRIPT = (
    "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
