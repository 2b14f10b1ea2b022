"""Run folders: may one be written, can one be gone on with, and what was it trained on?"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from minialign.data.files import read_json
from minialign.data.records import DEMONSTRATIONS, FEEDBACK, PAIRS
from minialign.errors import InputError

ENTRIES = {
    *("config.json", "metrics.jsonl", "samples.jsonl", "adapter", "adapter-sft", "state"),
    *("preview.json", "evaluation.json", "judge.jsonl", "report.html"),
}


def check_free(folder: Path, overwrite: bool) -> None:
    """Raises InputError unless a new run may be written to `folder`. Changes nothing."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"{existing}: is a file: choose another --out")
    if not os.access(existing, os.W_OK):
        raise InputError(f"{existing}: cannot be written to: choose another --out")
    entries = set(os.listdir(folder)) if folder.exists() else set()
    if not entries:
        return
    # Overwriting deletes the folder, so a person's own file in it must never go with the run.
    foreign = sorted(entries - ENTRIES - {f"{name}.partial" for name in ENTRIES})
    if foreign or not {"config.json", "metrics.jsonl"} <= entries:
        example = (foreign or sorted(entries))[0]
        raise InputError(
            f"{folder}: holds files that are not a run's ({example}): choose another --out"
        )
    if not overwrite:
        raise InputError(
            f"{folder}: holds another run: choose another --out, add --overwrite, "
            f"or go on with it: --resume {folder}"
        )


def check_unfinished(folder: Path) -> None:
    """Raises InputError unless there is a state to go on from. `Run.resume` reads it."""
    if not state_file(folder).exists():
        finished = (folder / "adapter" / "adapter_config.json").exists()
        problem = (
            "the run is finished: there is nothing to resume"
            if finished
            else "the run was stopped before it saved anything: start it again with --overwrite"
        )
        raise InputError(f"{folder}: {problem}")
    saved_facts(state_file(folder))


def state_file(folder: Path) -> Path:
    return folder / "state" / "state.safetensors"


def saved_facts(file: Path) -> dict[str, Any]:
    """What a saved state says in JSON. Raises InputError where it is not there, or not whole."""
    try:
        with safe_open(file, framework="numpy") as opened:
            return json.loads(opened.metadata()["facts"])
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{file.parent}: no state to go on from ({error}): start the run again"
        ) from None


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


def source_of(record: dict[str, Any]) -> str:
    """What a run learned from, by its record: DEMONSTRATIONS, FEEDBACK or PAIRS."""
    if record.get("learns_from"):
        return str(record["learns_from"])
    # A record that does not say: data without a sentence of feedback is a file of pairs.
    if not record["options"].get("data"):
        return DEMONSTRATIONS
    return PAIRS if record.get("feedback") == "" else FEEDBACK


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
