"""The Hugging Face cache and hub."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from minialign.weights.folder import missing_file, one_line, say

HUB_DEADLINE = 8.0  # seconds for the one request that decides whether the hub can be reached
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]  # no pickles
HUB_IGNORED = ["*/*", "consolidated*"]  # other formats in subfolders; Mistral's second copy


class HubError(Exception):
    """The hub does not give the model; the message says why, in one line."""


def from_cache(hub_id: str, revision: str | None) -> Path | None:
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
    return None if missing_file(Path(cached)) else Path(cached)


def from_hub(hub_id: str, revision: str | None) -> Path:
    """Downloads into the Hugging Face cache, which keeps half a download apart by itself."""
    from huggingface_hub import snapshot_download

    info = _hub_info(hub_id, revision)
    size = sum(file.size or 0 for file in info.siblings or [] if _is_wanted(file.rfilename))
    say(f"downloading {hub_id} from the Hugging Face hub ({size / 1e6:.0f} MB)")
    try:
        folder = snapshot_download(
            hub_id, revision=info.sha, allow_patterns=HUB_FILES, ignore_patterns=HUB_IGNORED
        )
    except Exception as error:
        raise HubError(f"the download failed ({one_line(error)})") from error
    missing = missing_file(Path(folder))
    if missing:
        raise HubError(f"it has no {missing}, the only format that is read here")
    return Path(folder)


def config_from_hub(hub_id: str, revision: str | None) -> Path:
    """The folder in the Hugging Face cache in which the model's config.json lies, if nothing else.

    Raises HubError where the hub does not give it.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    if isinstance(cached, str):
        return Path(cached).parent
    info = _hub_info(hub_id, revision)
    try:
        return Path(hf_hub_download(hub_id, "config.json", revision=info.sha)).parent
    except Exception as error:
        raise HubError(f"the download failed ({one_line(error)})") from error


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
        raise HubError(f"it did not answer within {HUB_DEADLINE:.0f} seconds")
    if isinstance(outcome[0], Exception):
        raise HubError(_reason(outcome[0], revision)) from outcome[0]
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
    return f"it cannot be reached ({one_line(error)})"
