"""Run folders: may one be written, and what was the run in it trained on?

No torch: a report and `--help` read run folders too.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minialign.data.files import (
    PARTIAL,
    read_json,
    read_text,
    replace_text,
    replace_whole,
    require_fields,
    sync,
)
from minialign.data.records import DEMONSTRATIONS, FEEDBACK, PAIRS
from minialign.errors import InputError

if TYPE_CHECKING:
    from filelock import BaseFileLock

LOCK, CONFIG, METRICS = ".lock", "config.json", "metrics.jsonl"
FILES = {
    *(LOCK, CONFIG, METRICS, "samples.jsonl", "preview.json", "evaluation.json", "judge.jsonl"),
    *("report.html", "blind.html"),
}
STAGE_ADAPTER = "adapter-"  # and the name of a stage: what the result was trained from
ADAPTER_FILES = {"adapter_config.json", "adapter_model.safetensors", "base.json", "README.md"}
STATE_FILES = {"state.safetensors"}
# Bytes of a file's name, with what a file that is not whole yet has behind its own.
LONGEST_NAME = 255 - len(PARTIAL)


def check_free(folder: Path, overwrite: bool, *, locked: bool = False) -> None:
    """Raises InputError unless a new run may be written to `folder`. Changes nothing.

    `locked`: this process itself keeps others out.
    """
    _check_name(folder)
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"{existing}: is a file: choose another --out")
    if not os.access(existing, os.W_OK):
        raise InputError(f"{existing}: cannot be written to: choose another --out")
    entries = set(os.listdir(folder)) if folder.exists() else set()
    if entries <= {LOCK, CONFIG + PARTIAL}:
        return
    # Overwriting deletes what is there, so a person's own file must never go with the run.
    if example := next(iter(_foreign(folder)), ""):
        raise InputError(
            f"{folder}: holds files that are not a run's ({example}): choose another --out"
        )
    if not locked:
        check_idle(folder)
    if not overwrite:
        raise InputError(
            f"{folder}: holds another run: choose another --out, add --overwrite, "
            f"or go on with it: --resume {folder}"
        )
    if folder.is_symlink():
        raise InputError(f"{folder}: is a link: --overwrite needs the folder itself")


def _check_name(folder: Path) -> None:
    """Raises InputError for a name that no folder can have, or that is a link to nothing."""
    for path in (folder, *folder.parents):
        try:
            fits = len(os.fsencode(path.name)) <= LONGEST_NAME and "\0" not in path.name
            is_lost = fits and path.is_symlink() and not path.exists()
        except (OSError, ValueError):
            fits, is_lost = False, False
        if not fits:
            raise InputError(f"--out {path.name[:40]!r}...: no folder can have this name")
        if is_lost:
            raise InputError(f"{path}: is a link to nothing: choose another --out")


def _foreign(folder: Path) -> list[str]:
    """What in a run's folder is not a run's, as paths within."""
    found = []
    for path in sorted(folder.iterdir()):
        own = _own_files(path)
        if own is None:
            name = path.name.removesuffix(PARTIAL)
            is_own = name in FILES and path.is_file() and not path.is_symlink()
            found += [] if is_own else [path.name]
        else:
            inside = [entry for entry in sorted(path.iterdir()) if entry not in own]
            found += [f"{path.name}/{entry.name}" for entry in inside]
    has_record = (folder / METRICS).exists()
    with suppress(InputError):
        has_record = has_record or bool(read_run_record(folder))
    return found if has_record else found or [path.name for path in folder.iterdir()]


def _own_files(path: Path) -> list[Path] | None:
    """The files that a run wrote into a folder of its own; None where it is not a run's."""
    name = path.name.removesuffix(PARTIAL)
    if not path.is_dir() or path.is_symlink():
        return None
    if name == "adapter" or name.startswith(STAGE_ADAPTER):
        names = ADAPTER_FILES
    elif name == "state":
        names = STATE_FILES
    else:
        return None
    there = sorted(path.iterdir())
    return [entry for entry in there if entry.name.removesuffix(PARTIAL) in names]


def begin(folder: Path, config: dict[str, Any]) -> None:
    """Makes `folder` a run that has not begun: the record alone, and no line of metrics.

    A new folder appears with its record in it. What another run left is deleted, its result first:
    whenever this is cut short, the folder is a run's that begins anew.
    """
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        made = folder.with_name(f".run-{os.getpid()}")
        made.mkdir()
        try:
            replace_text(made / CONFIG, text)
            (made / METRICS).touch()
            made.rename(folder)
        except BaseException:
            shutil.rmtree(made)
            raise
        sync(folder.parent)
        return

    def clear_and_write(partial: Path) -> None:
        # On a full disk this fails, and then nothing was deleted.
        partial.write_text(text, encoding="utf-8")
        clear_results(folder)

    replace_whole(folder / CONFIG, clear_and_write)
    clear_rest(folder)


def clear_results(folder: Path) -> None:
    """Deletes adapters and state; a person's own file among them stays."""
    for path in sorted(folder.iterdir()):
        for file in _own_files(path) or []:
            file.unlink()
        if _own_files(path) is not None:
            with suppress(OSError):
                path.rmdir()


def clear_rest(folder: Path) -> None:
    """Deletes what a run's folder holds beside its record; `clear_results` comes first."""
    for name in FILES - {LOCK, CONFIG}:
        (folder / name).unlink(missing_ok=True)
        (folder / (name + PARTIAL)).unlink(missing_ok=True)
    (folder / METRICS).touch()


# ---- one process at a time ----


def lock_folder(folder: Path) -> BaseFileLock:
    """Keeps other processes out of a run's folder until it is released, or the process ends.

    Raises InputError, naming the process that is at work there.
    """
    lock = _acquired(folder)
    owner = {"pid": os.getpid(), "host": socket.gethostname()}
    # It only informs: on some systems nobody may write to what is locked.
    with suppress(OSError):
        (folder / LOCK).write_text(json.dumps(owner) + "\n", encoding="utf-8")
    return lock


def check_idle(folder: Path) -> None:
    """Raises InputError where another process is at work in `folder`. Changes nothing."""
    if (folder / LOCK).exists():
        _acquired(folder).release()


def _acquired(folder: Path) -> BaseFileLock:
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        owner = "another process"
        with suppress(InputError):
            found = read_json(folder / LOCK)
            owner = f"process {found.get('pid')} on {found.get('host')}"
        raise InputError(
            f"{folder}: {owner} is at work here: wait for it, or choose another --out"
        ) from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be locked: {error.strerror}") from None
    return lock


# ---- what a folder holds ----


def state_file(folder: Path) -> Path:
    return folder / "state" / "state.safetensors"


def is_finished(folder: Path) -> bool:
    """Whether all was written: the state, which `--resume` needs, is removed at the very end."""
    result = folder / "adapter" / "adapter_config.json"
    return result.exists() and not state_file(folder).exists()


def lines_of_stages(folder: Path) -> str:
    """The lines of metrics that a finished run's stages wrote, without the one that ends it."""
    lines = read_text(folder / METRICS).splitlines(keepends=True)
    return "".join(line for line in lines if json.loads(line)["stage"] != "done")


def read_run_record(folder: str | Path) -> dict[str, Any]:
    """A run's config.json. Raises InputError where the folder is not a run's."""
    file = Path(folder) / CONFIG
    if not file.exists():
        raise InputError(f"{folder}: not a run folder (config.json is missing)")
    # earlier versions had floats alone, and did not say so
    record = {"base_dtype": "model", **read_json(file)}
    if "options" not in record or "knobs" not in record:
        raise InputError(f"{folder}: not a run folder (config.json is not a run's)")
    require_fields(record, {"options": dict, "knobs": dict}, str(file))
    named = ("recipe", "device", "dtype", "base_dtype", "learns_from")
    texts = [name for name in named if name in record]
    require_fields(record, dict.fromkeys(texts, str), str(file))
    require_fields({"method": "", **record["options"]}, {"method": str}, str(file))
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
