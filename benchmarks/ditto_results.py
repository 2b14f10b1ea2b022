"""The files of a study of DITTO: a line an arm, a line a judge, and the answers, which stay out."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from minialign.data.files import replace_whole

MAIN = ("zero-shot", "few-shot", "SFT", "DITTO", "SPIN")
SAME = ("author", "texts", "seed", "words", "samples", "model", "label", "config")


def read_lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.open(encoding="utf-8")] if file.exists() else []


def append(file: Path, line: dict[str, Any]) -> None:
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")


def judged_beside(results: Path) -> Path:
    return results.with_name(f"{results.stem}_judged.jsonl")


def key_of(line: dict[str, Any]) -> str:
    """One author, seed and setting."""
    return hashlib.sha256(json.dumps([line[part] for part in SAME]).encode()).hexdigest()[:16]


def answers_file(folder: Path, fixed: dict[str, Any], arm: str) -> Path:
    return folder / f"{key_of(fixed)}-{arm.replace(' ', '-')}.json"


def read_answers(folder: Path, fixed: dict[str, Any]) -> dict[str, dict[str, list[str]]]:
    """Arm (its words joined by hyphens) -> prompt -> answers."""
    key = key_of(fixed)
    return {
        path.stem.removeprefix(f"{key}-"): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(folder.glob(f"{key}-*.json"))
    }


def replace_judged(file: Path, fixed: dict[str, Any], lines: list[dict[str, Any]]) -> None:
    """The judges' lines of one author, seed and setting, in place of earlier ones."""
    kept = [line for line in read_lines(file) if line["key"] != key_of(fixed)] + lines
    text = "".join(json.dumps(line) + "\n" for line in kept)
    replace_whole(file, lambda path: path.write_text(text, encoding="utf-8"))
