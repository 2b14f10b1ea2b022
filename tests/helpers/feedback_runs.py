"""What the tests of runs on feedback share: a small data folder, and tiny trainings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from helpers.commands import Outcome, call, train
from helpers.files import write_jsonl
from helpers.runs import without_seconds
from minialign.data.feedback import SCOPES

KNOBS = (
    *("--lora-rank", "4", "--lora-alpha", "8", "--learning-rate", "0.01", "--epochs", "2"),
    *("--pairs-per-step", "2"),
)


def write_data(folder: Path) -> Path:
    folder.mkdir(parents=True)
    check = {"kind": "ends_with", "text": "Sam"}
    description = {"feedback": "Sign as Sam", "domain": "notes", "effect": "end with Sam"}
    (folder / "feedback.json").write_text(json.dumps({**description, "check": check}))
    for scope in SCOPES:
        lines = []
        for number in range(6):
            line: dict[str, Any] = {
                "prompt": f"{scope} {number}",
                "baseline": f"the note {number}",
                "split": "train" if number < 4 else "test",
            }
            if scope == "in_scope":
                line["revised"] = f"the note {number} Sam"
            if number >= 4:
                line |= {"in_context": "a note Sam", "cot": "a note"}
            lines.append(line)
        write_jsonl(folder / f"{scope}.jsonl", lines)
    return folder


def train_toy(cwd: Path, *arguments: str | Path) -> Outcome:
    return call(train, "--data", "data/sam", "--model", "toy", *KNOBS, *arguments, cwd=cwd)


def record(run: Path) -> dict[str, Any]:
    return json.loads((run / "config.json").read_text(encoding="utf-8"))


def metrics(run: Path) -> list[dict[str, Any]]:
    return without_seconds(run)
