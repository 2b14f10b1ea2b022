"""Reading and writing files: JSON Lines, JSON, and files that are written whole or not at all.

Whatever is wrong with a file is one line that names the file, the line and what to do.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minialign.data.formats import not_json_lines
from minialign.errors import InputError

# Bytes of a text that is read: more is no text that a person wrote.
LARGEST = 2**30
PARTIAL = ".partial"


def read_bytes(path: str | Path, limit: int = LARGEST) -> bytes:
    """A plain file's content, of at most `limit` bytes.

    Raises InputError for what is missing, too large, or never ends: a pipe, a device.
    """
    try:
        found = os.stat(path)
        if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
            raise InputError(f"{path}: not a plain file: save its content as one")
        with open(path, "rb") as file:
            # Python makes room for all that is asked for, so no more is than the file has.
            content = file.read(found.st_size + 1) if found.st_size <= limit else b""
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(path)!r}: not a name of a file") from None
    if max(found.st_size, len(content)) > limit:
        raise InputError(f"{path}: has more than {limit:,} bytes: give a smaller one")
    return content


def read_text(path: str | Path, limit: int = LARGEST) -> str:
    """As `read_bytes`, of UTF-8."""
    return _decoded(read_bytes(path, limit), path)


def _decoded(content: bytes, path: str | Path) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: not UTF-8 at byte {error.start}: save the file as UTF-8"
        ) from None


def read_jsonl(path: str | Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSON Lines file with their line numbers; blank lines are skipped."""
    content = read_bytes(path)
    if content.strip() and (other := not_json_lines(path, content)):
        raise InputError(other)
    records = []
    for number, line in enumerate(_decoded(content, path).split("\n"), start=1):
        if line.strip():
            record = _parsed(line, where := f"{path}, line {number}")
            if not isinstance(record, dict):
                raise InputError(
                    f'{where}: expected a JSON object like {{"prompt": ..., "completion": ...}}'
                )
            records.append((number, record))
    if not records:
        raise InputError(f"{path}: the file is empty: write one JSON object a line")
    return records


def read_json(path: str | Path) -> dict[str, Any]:
    """The object that a JSON file holds. Raises InputError, naming the file, for all else."""
    found = _parsed(read_text(path), str(path))
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object")
    return found


def _parsed(text: str, where: str) -> Any:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column" if error.lineno > 1 else "column"
        raise InputError(f"{where}: not valid JSON: {error.msg}, {place} {error.colno}") from None
    # A number or a nesting beyond all bounds.
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not valid JSON: {error}") from None
    try:
        json.dumps(found, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{where}: holds half a character (a lone \\ud...): delete it") from None
    return found


def require_fields(found: dict[str, Any], kinds: dict[str, type], where: str) -> None:
    """Raises InputError, naming the field, unless each is there and of its type.

    An int stands for a float, a bool for neither.
    """
    for name, kind in kinds.items():
        value = found.get(name)
        fits = isinstance(value, (int, float) if kind is float else kind)
        if not fits or (isinstance(value, bool) and kind is not bool):
            raise InputError(f"{where}: {name} must be of type {kind.__name__}")


def replace_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes a file whole or not at all, also where the machine loses power."""
    partial = path.with_name(path.name + PARTIAL)
    try:
        write(partial)
        sync(partial)
        os.replace(partial, path)
    except BaseException:
        # On a full disk it would stand in the way of the next attempt.
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def replace_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all."""
    replace_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def sync(path: Path) -> None:
    """Waits until a file, or a folder's list of files, is on the disk itself."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
