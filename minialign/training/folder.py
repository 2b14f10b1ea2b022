"""Run folders: may one be written, and what was the run in it trained on?

No torch: a report and `--help` read run folders too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from minialign.data.files import read_json
from minialign.data.records import DEMONSTRATIONS, FEEDBACK, PAIRS
from minialign.errors import InputError

ENTRIES = {
    *("config.json", "metrics.jsonl", "samples.jsonl", "adapter", "state"),
    *("preview.json", "evaluation.json", "judge.jsonl", "report.html", "blind.html"),
}
STAGE_ADAPTER = "adapter-"  # and the name of a stage: what the result was trained from


def check_free(folder: Path, overwrite: bool) -> None:
    """Raises InputError unless a new run may be written to `folder`. Changes nothing."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"{existing}: is a file: choose another --out")
    if not os.access(existing, os.W_OK):
        raise InputError(f"{existing}: cannot be written to: choose another --out")
    entries = sorted(os.listdir(folder)) if folder.exists() else []
    if not entries:
        return
    # Overwriting deletes the folder, so a person's own file in it must never go with the run.
    foreign = [name for name in entries if not _is_a_runs(folder / name)]
    if foreign or not {"config.json", "metrics.jsonl"} <= set(entries):
        example = (foreign or entries)[0]
        raise InputError(
            f"{folder}: holds files that are not a run's ({example}): choose another --out"
        )
    if not overwrite:
        raise InputError(
            f"{folder}: holds another run: choose another --out, add --overwrite, "
            f"or go on with it: --resume {folder}"
        )


def _is_a_runs(path: Path) -> bool:
    name = path.name.removesuffix(".partial")
    return name in ENTRIES or (name.startswith(STAGE_ADAPTER) and path.is_dir())


def state_file(folder: Path) -> Path:
    return folder / "state" / "state.safetensors"


def read_run_record(folder: str | Path) -> dict[str, Any]:
    """A run's config.json. Raises InputError where the folder is not a run's."""
    file = Path(folder) / "config.json"
    if not file.exists():
        raise InputError(f"{folder}: not a run folder (config.json is missing)")
    record = read_json(file)
    if "options" not in record or "knobs" not in record:
        raise InputError(f"{folder}: not a run folder (config.json is not a run's)")
    return record


def source_of(record: dict[str, Any]) -> str:
    """What a run learned from: demonstrations, feedback, or preference pairs.

    Records of earlier versions do not say: pairs are data without a sentence.
    """
    if "learns_from" in record:
        return str(record["learns_from"])
    if not record["options"].get("data"):
        return DEMONSTRATIONS
    return PAIRS if record.get("feedback") == "" else FEEDBACK


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


def folder_and_weight(text: str) -> tuple[str, float]:
    """runs/a=0.5 -> runs/a, 0.5; without a number the weight is 1.

    A path that exists as it stands is one: a sweep's folders are called beta=0.1.
    """
    if Path(text).exists():
        return text, 1.0
    folder, equals, weight = text.rpartition("=")
    try:
        return (folder, float(weight)) if equals and folder else (text, 1.0)
    except ValueError:
        return text, 1.0


def base_of(folder: Path) -> tuple[str, str | None]:
    """The model and revision that an adapter says it was trained on.

    Raises InputError if it does not say.
    """
    config = read_json(folder / "adapter_config.json")
    if not config.get("base_model_name_or_path"):
        raise InputError(f"{folder}: the adapter does not name its base model: give --model")
    return str(config["base_model_name_or_path"]), config.get("revision")
