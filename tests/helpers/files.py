"""Files that a test writes, and all that a folder holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minialign.data.records import Demonstration, load_demonstrations


def write_jsonl(file: Path, records: list[dict[str, Any]]) -> Path:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    file.write_text("".join(lines), encoding="utf-8")
    return file


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: contents of files, None for folders."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def load_one(folder: Path, record: dict[str, Any]) -> Demonstration:
    (demonstration,) = load_demonstrations(write_jsonl(folder / "demos.jsonl", [record]))
    return demonstration
