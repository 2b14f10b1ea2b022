"""Is this folder a checkpoint?"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from minialign.data.files import read_json
from minialign.errors import InputError


def checkpoints_folder() -> Path:
    return Path(os.environ.get("MINIALIGN_CHECKPOINTS") or "checkpoints").expanduser()


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def checked_folder(folder: Path) -> Path:
    missing = missing_file(folder)
    if missing:
        raise InputError(
            f"{folder}: {missing} is missing, so this is not a whole checkpoint;"
            " complete the folder, or move it away to have the model fetched"
        )
    return folder


def missing_file(folder: Path) -> str | None:
    """The first file that a whole checkpoint has and this folder lacks."""
    for name in ("config.json", "tokenizer.json", *weight_files(folder)):
        if not (folder / name).is_file():
            return name
    return None


def weight_files(folder: Path) -> list[str]:
    """The files that the weights are split over; one unless an index names several.

    Raises InputError for an index that is none, or that names a file elsewhere.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return ["model.safetensors"]
    found = read_json(index).get("weight_map")
    names = list(found.values()) if isinstance(found, dict) else []
    if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
        raise InputError(f"{index}: not a readable index of weights; fetch it again")
    return sorted(set(names))
