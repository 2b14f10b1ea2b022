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


def answers(question: str) -> str:
    """What an able endpoint answers to each of the pipeline's questions."""
    number = sum(map(ord, question))
    if "DOMAIN:" in question:
        return "DOMAIN: notes\nEFFECT: end with Sam"
    if "categories of requests" in question:
        return "1. notes to the neighbours\n2. notes to the team"
    if "REVISED PROMPTS:" in question:
        listed = [line for line in question.splitlines() if line[:1].isdigit()]
        return "THOUGHTS: They are fine.\nREVISED PROMPTS:\n" + "\n".join(listed)
    if "numbered list with one request" in question:
        words = ["tea", "rain", "bins", "keys", "post", "cats", "oven", "lamp"]
        picked = [words[(number + step) % 8] for step in range(4)]
        return "\n".join(
            f"{i + 1}. leave word {number % 97} on the {word} of {word} street {number % 89}"
            for i, word in enumerate(picked)
        )
    if "REQUEST:" in question:
        return f"Revised note {number} Sam"
    if "THOUGHTS:" in question:
        return f"THOUGHTS: It applies.\nRESPONSE: note {number} Sam"
    return f"Plain note {number}"
