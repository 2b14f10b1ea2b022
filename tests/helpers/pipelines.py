"""Small runs of the pipeline, and what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from helpers.teachers import Scripted
from minialign.data.feedback import SCOPES
from minialign.feedback.knobs import PipelineConfig
from minialign.feedback.pipeline import (
    FILES,
    PipelineReport,
    complete_responses,
    make_feedback_data,
)
from minialign.feedback.stages import Stage

FEEDBACK = "Use no exclamation marks in e-mails to my boss."
CHECK = {"kind": "contains_none", "texts": ["!"]}
SMALL = PipelineConfig(categories=3, prompts_per_category=4, out_of_scope=5, tries=2)


def make(folder: Path, config: PipelineConfig = SMALL, **changes: Any) -> PipelineReport:
    given = {"teacher": Scripted(), "student": Scripted(), "say": lambda line: None}
    feedback = changes.pop("feedback", FEEDBACK)
    return make_feedback_data(feedback, folder, config, **{**given, **changes})


def stage(report: PipelineReport, name: str) -> Stage:
    (found,) = [stage for stage in report.stages if stage.name == name]
    return found


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def contents(folder: Path) -> dict[str, str]:
    """The result, without the kept answers and who wrote them."""
    described = json.loads((folder / "feedback.json").read_text())
    described.pop("written_by", None)
    files = {name: (folder / name).read_text() for name in FILES.values()}
    return {"feedback.json": json.dumps(described), **files}


def by_hand(folder: Path, **changes: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    described = {"feedback": FEEDBACK, "domain": "d", "effect": "e", "check": CHECK}
    (folder / "feedback.json").write_text(json.dumps(described))
    for scope in SCOPES:
        lines = [
            {"prompt": f"{scope} number {i}", "split": "test" if i == 2 else "train"}
            for i in range(3)
        ]
        text = "".join(json.dumps(line) + "\n" for line in changes.get(scope, lines))
        (folder / FILES[scope]).write_text(text)
    return folder


def complete(folder: Path, student: Scripted, config: PipelineConfig = SMALL) -> PipelineReport:
    return complete_responses(folder, config, student=student, say=lambda line: None)
