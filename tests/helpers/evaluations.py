"""Runs to evaluate, and what evaluate.py prints and writes of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from helpers.commands import call, evaluate, sample, train_toy
from helpers.workplaces import write_workplace
from minialign.model.transformer import CausalLM

FAST = ("--n", "1", "--max-new-tokens", "4", "--general", "0", "--judges", "", "--show", "0")
NATS = "nats per token (lower is better)"


def write_runs(folder: Path) -> Path:
    """A workplace with runs of all three methods, and answers in a file. Tests that evaluate them
    copy them first: see `copy`.
    """
    write_workplace(folder)
    train_toy(folder)
    train_toy(folder, "--method", "sft", "--out", "runs/sft")
    train_toy(folder, "--method", "spin", "--out", "runs/demos-spin")
    asked = ("--prompts", "demos_test.jsonl", "--out", "mine.jsonl", "--n", "2", "--seed", "9")
    outcome = call(sample, "--adapter", "runs/sft", *asked, "--max-new-tokens", "9", cwd=folder)
    assert outcome.code == 0, outcome.err
    return folder


def evaluation(cwd: Path, run: str = "runs/demos") -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = (cwd / run / "evaluation.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=refuse)


def run_evaluation(cwd: Path, *arguments: str) -> dict[str, Any]:
    outcome = call(evaluate, *arguments, cwd=cwd)
    assert outcome.code == 0, outcome.err
    return evaluation(cwd, arguments[0])


def row(out: str, title: str, occurrence: int = 0) -> list[str]:
    lines = [line for line in out.split("\n") if line.strip().startswith(title)]
    return lines[occurrence].strip().removeprefix(title).split()


@torch.no_grad()
def naive_score(model: CausalLM, prompt: tuple[int, ...], completion: tuple[int, ...]) -> float:
    ids = torch.tensor(prompt + completion)
    logps = model.logits(ids[None])[0].log_softmax(-1)
    return sum(float(logps[i - 1, ids[i]]) for i in range(len(prompt), len(ids)))
