"""Reading run folders back: where a run's adapters are, and what they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minialign.data import read_json
from minialign.errors import InputError


def read_run_record(folder: str | Path) -> dict[str, Any]:
    """A run's config.json. Raises InputError where the folder is not a run's."""
    file = Path(folder) / "config.json"
    if not file.exists():
        raise InputError(f"{folder}: not a run folder (config.json is missing)")
    record = read_json(file)
    if "options" not in record or "knobs" not in record:
        raise InputError(f"{folder}: not a run folder (config.json is not a run's)")
    return record


def learned_from_feedback(folder: str | Path) -> bool:
    """Whether a run was trained on a folder of feedback; else it was on demonstrations."""
    return bool(read_run_record(folder)["options"].get("data"))


def learned_from_pairs(record: dict[str, Any]) -> bool:
    """Whether a run's record is of one on preference pairs: data, but no sentence."""
    return record.get("feedback") == ""


def adapter_folder(path: str) -> Path:
    """The adapter that a person means: a run's result, or the folder itself.

    Raises InputError if there is none.
    """
    folder = Path(path)
    for candidate in (folder / "adapter", folder):
        if (candidate / "adapter_config.json").exists():
            return candidate
    if (folder / "config.json").exists():
        raise InputError(f"{folder}: the run is not finished: python train.py --resume {folder}")
    raise InputError(f"{folder}: no adapter here (adapter_config.json is missing)")


def base_of(folder: Path) -> tuple[str, str | None]:
    """The model and revision that an adapter says it was trained on.

    Raises InputError if it does not say.
    """
    config = read_json(folder / "adapter_config.json")
    if not config.get("base_model_name_or_path"):
        raise InputError(f"{folder}: the adapter does not name its base model: give --model")
    return str(config["base_model_name_or_path"]), config.get("revision")
