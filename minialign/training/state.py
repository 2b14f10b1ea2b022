"""What `--resume` needs, in one safetensors file that is written whole or not at all.

Tensors (adapters, moments, and whatever a service keeps) and a few facts as JSON in the same file,
so that the two cannot disagree. No generator is among them: randomness is a function of (seed, what
for, step).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from minialign.data.files import replace_whole
from minialign.errors import InputError
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import adapter_names
from minialign.policy.peft import adapter_state, load_adapter_state
from minialign.training.folder import state_file


class Service(Protocol):
    """Something that a stage changes as it goes, and that can be put back as it was."""

    def state(self) -> dict[str, Tensor]: ...
    def load_state(self, state: dict[str, Tensor]) -> None: ...


class Parts:
    """Everything that a training stage changes: the adapters, and services by their names."""

    def __init__(self, model: CausalLM, **services: Service) -> None:
        self.model, self.services = model, services

    def tensors(self) -> dict[str, Tensor]:
        found = {
            f"adapter/{name}/{key}": tensor
            for name in adapter_names(self.model)
            for key, tensor in adapter_state(self.model, name).items()
        }
        for name, service in self.services.items():
            found |= {f"{name}/{key}": tensor for key, tensor in service.state().items()}
        return found


def write_state(file: Path, parts: Parts, facts: dict[str, Any]) -> None:
    """Saves `parts`, and `facts` beside them."""
    content = {"facts": json.dumps(facts)}
    file.parent.mkdir(exist_ok=True)
    replace_whole(file, lambda path: save_file(parts.tensors(), path, metadata=content))


def check_unfinished(folder: Path) -> None:
    """Raises InputError unless there is a whole state to go on from. `Run.resume` reads it."""
    if not state_file(folder).exists():
        finished = (folder / "adapter" / "adapter_config.json").exists()
        problem = (
            "the run is finished: there is nothing to resume"
            if finished
            else "the run was stopped before it saved anything: start it again with --overwrite"
        )
        raise InputError(f"{folder}: {problem}")
    SavedState.check(state_file(folder))


class SavedState:
    """A state that was read back."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.facts = self.check(file)
        with safe_open(file, framework="pt") as opened:
            self._everything = {key: opened.get_tensor(key) for key in opened.keys()}

    @staticmethod
    def check(file: Path) -> dict[str, Any]:
        """The facts alone. Raises InputError where the file is not there, not whole, or older."""
        try:
            with safe_open(file, framework="pt") as opened:
                facts = json.loads(opened.metadata()["facts"])
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{file.parent}: no state to go on from ({error}): start the run again"
            ) from None
        if "rounds" in facts:
            raise InputError(
                f"{file.parent}: was saved by an older version of minialign: start the run again"
            )
        return facts

    def restore_adapters(self, model: CausalLM) -> None:
        """Those that the model has by now."""
        for name in adapter_names(model):
            load_adapter_state(model, name, self._tensors(f"adapter/{name}/"), str(self.file))

    def restore(self, parts: Parts) -> None:
        """Everything but the adapters."""
        for name, service in parts.services.items():
            service.load_state(self._tensors(f"{name}/"))

    def _tensors(self, prefix: str) -> dict[str, Tensor]:
        return {
            key.removeprefix(prefix): tensor
            for key, tensor in self._everything.items()
            if key.startswith(prefix)
        }
