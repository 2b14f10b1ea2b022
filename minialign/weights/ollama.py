"""The GGUF file that Ollama keeps behind a model's name."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from minialign.data.files import read_json
from minialign.errors import InputError

OLLAMA = "ollama:"
# host/namespace/model:tag, of which only the model must be given
NAME = re.compile(r"(?:(?:([\w.:-]+)/)?([\w.-]+)/)?([\w.-]+?)(?::([\w.-]+))?")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
MODEL = "application/vnd.ollama.image.model"


def ollama_blob(name: str) -> Path:
    """The file of weights of a model that Ollama has fetched; asks nobody.

    Raises InputError where Ollama's folder, the model or the file is not there.
    """
    parts = NAME.fullmatch(name)
    if parts is None or ".." in name:
        raise InputError(f"{OLLAMA}{name}: not a model's name; give one that ollama list shows")
    host, space, model, tag = parts.groups()
    path = Path(host or "registry.ollama.ai", space or "library", model, tag or "latest")
    folders = [folder for folder in _folders() if (folder / "manifests" / path).is_file()]
    if not folders:
        looked = " and ".join(map(str, _folders()))
        raise InputError(f"{OLLAMA}{name}: not in {looked}; fetch it with: ollama pull {name}")
    manifest = folders[0] / "manifests" / path
    layers = read_json(manifest).get("layers")
    digests = [
        layer.get("digest") for layer in _dictionaries(layers) if layer.get("mediaType") == MODEL
    ]
    if len(digests) != 1 or not DIGEST.fullmatch(str(digests[0])):
        raise InputError(f"{manifest}: names no single file of weights; fetch the model again")
    blob = folders[0] / "blobs" / str(digests[0]).replace(":", "-")
    if not blob.is_file():
        raise InputError(f"{blob}: is missing; fetch it with: ollama pull {name}")
    return blob


def _folders() -> list[Path]:
    """Where Ollama keeps models: the user's own, and that of the service."""
    if own := os.environ.get("OLLAMA_MODELS"):
        return [Path(own).expanduser()]
    return [Path("~/.ollama/models").expanduser(), Path("/usr/share/ollama/.ollama/models")]


def _dictionaries(found: Any) -> list[dict[str, Any]]:
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []
