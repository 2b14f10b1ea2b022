"""What `--resume` needs, in one safetensors file that is written whole or not at all.

Tensors (adapters, moments, the lines of metrics, and whatever a service keeps) and a few facts as
JSON in the same file, so that the two cannot disagree. A checksum covers both. No generator is
among them: randomness is a function of (seed, what for, step).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minialign.data.files import replace_whole, require_fields
from minialign.errors import InputError
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import active_adapter, adapter_names, copy_adapter, train_only
from minialign.policy.peft import adapter_state, load_adapter_state
from minialign.training.folder import is_finished, state_file

# Changes whenever an older state could not be gone on from.
VERSION = 2
# The stage of a run that is trained, and whose result is still to be written.
RESULT = "result"
METRICS = "metrics"
FACTS = {
    **{"stage": str, "step": int, "active": str},
    **{"seconds": dict, "phases": dict, "elapsed": float},
}


class Service(Protocol):
    """Something that a stage changes as it goes, and that can be put back as it was."""

    def state(self) -> dict[str, Tensor]: ...
    def load_state(self, state: dict[str, Tensor]) -> None: ...


class Parts:
    """Everything that a training stage changes: the adapters, and services by their names."""

    def __init__(self, model: CausalLM, **services: Service) -> None:
        self.model, self.services = model, services

    def tensors(self) -> dict[str, Tensor]:
        """Raises InputError where an adapter is not finite: from there nothing could go on."""
        found = {
            f"adapter/{name}/{key}": tensor
            for name in adapter_names(self.model)
            for key, tensor in adapter_state(self.model, name).items()
        }
        check_finite(found)
        for name, service in self.services.items():
            found |= {f"{name}/{key}": tensor for key, tensor in service.state().items()}
        return found


def check_finite(adapters: dict[str, Tensor]) -> None:
    """Raises InputError for numbers that are not finite, or whose squares are not."""
    if not all(bool(tensor.square().sum().isfinite()) for tensor in adapters.values()):
        raise InputError("the adapter has grown beyond all bounds: lower the learning rate")


def write_state(file: Path, parts: Parts, facts: dict[str, Any], metrics: str) -> None:
    """Saves `parts`, `facts` and the lines of `metrics` so far."""
    text = torch.tensor(list(metrics.encode()), dtype=torch.uint8)
    tensors = {key: tensor.contiguous() for key, tensor in parts.tensors().items()}
    tensors |= {METRICS: text}
    active = active_adapter(parts.model) or ""
    said = json.dumps({"version": VERSION, **facts, "active": active})
    content = {"facts": said, "sha256": _checksum(said, tensors)}
    file.parent.mkdir(exist_ok=True)
    replace_whole(file, lambda path: save_file(tensors, path, metadata=content))


def _checksum(facts: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(facts.encode())
    for key, tensor in sorted(tensors.items()):
        digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_unfinished(folder: Path) -> None:
    """Raises InputError where there is nothing to go on with. `Run.resume` reads the state."""
    if is_finished(folder):
        raise InputError(f"{folder}: the run is finished: there is nothing to resume")
    # Without a state it was stopped before its first step, and begins again.
    if state_file(folder).exists():
        SavedState(state_file(folder))


class SavedState:
    """A state that was read back. Raises InputError where it is not there, not whole, or older."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self.facts, self._everything = self._read()
            require_fields(self.facts, FACTS, "its facts")
            for book in (self.facts["seconds"], self.facts["phases"]):
                require_fields(book, dict.fromkeys(book, float), "its seconds")
            self.metrics = bytes(self._everything.pop(METRICS).numpy()).decode()
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"{file.parent}: no state to go on from ({reason}): start the run again"
            ) from None

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if not self.file.is_file():
            raise OSError("not a plain file")
        with safe_open(self.file, framework="pt") as opened:
            said = opened.metadata() or {}
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}
        facts = json.loads(said["facts"])
        if not isinstance(facts, dict) or facts.get("version") != VERSION:
            raise ValueError("it was saved by another version of minialign")
        if said.get("sha256") != _checksum(said["facts"], tensors):
            raise ValueError("its checksum is wrong, so it was changed or damaged")
        return facts, tensors

    def restore_adapters(self, model: CausalLM) -> None:
        """Those that the model has by now."""
        for name in adapter_names(model):
            load_adapter_state(model, name, self._tensors(f"adapter/{name}/"), str(self.file))

    def restore_result(self, model: CausalLM) -> None:
        """All adapters, also those that the model lacks; the trained one is active."""
        kept = {key.split("/")[1] for key in self._everything if key.startswith("adapter/")}
        for name in sorted(kept - {*adapter_names(model)}):
            copy_adapter(model, adapter_names(model)[0], name)
        self.restore_adapters(model)
        train_only(model, self.facts["active"])

    def restore(self, parts: Parts) -> None:
        """Everything but the adapters."""
        try:
            for name, service in parts.services.items():
                service.load_state(self._tensors(f"{name}/"))
        except (KeyError, IndexError, ValueError, RuntimeError, StopIteration) as error:
            raise InputError(
                f"{self.file.parent}: is not a state of this run ({error}): start the run again"
            ) from None

    def _tensors(self, prefix: str) -> dict[str, Tensor]:
        return {
            key.removeprefix(prefix): tensor
            for key, tensor in self._everything.items()
            if key.startswith(prefix)
        }
