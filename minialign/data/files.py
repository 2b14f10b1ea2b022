"""Reading and writing files: JSON Lines, JSON, and files that are written whole or not at all.

Whatever is wrong with a file is one line that names the file, the line and what to do.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minialign.data.formats import not_json_lines
from minialign.errors import InputError


def read_jsonl(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSON Lines file with their line numbers; blank lines are skipped."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    if content.strip() and (other := not_json_lines(path, content)):
        raise InputError(other)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 at byte {error.start}: save the file as UTF-8"
        ) from None
    records = [
        (number, _object(line, f"{path}, line {number}"))
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
    if not records:
        raise InputError(f"{path}: the file is empty: write one JSON object a line")
    return records


def read_json(path: str | Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises InputError, naming the file, for all else."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond all bounds
        raise InputError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object")
    return found


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON: {error.msg}, column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number or a nesting beyond all bounds
        raise InputError(f"{where}: not valid JSON: {error}") from None
    try:
        json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{where}: holds half a character (a lone \\ud...): delete it") from None
    if not isinstance(record, dict):
        raise InputError(
            f'{where}: expected a JSON object like {{"prompt": ..., "completion": ...}}'
        )
    return record


def replace_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    write(partial)
    os.replace(partial, path)
