"""What `--resume` needs, in one safetensors file that is written whole or not at all.

Tensors (adapters, moments) and facts (as JSON, in the same file, so that the two cannot disagree).
No generator is among them: randomness is a function of (seed, what for, step).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from minialign.data.records import Sequence
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import adapter_names
from minialign.policy.peft import adapter_state, load_adapter_state
from minialign.training.folder import saved_facts
from minialign.training.optimizer import Optimizer

if TYPE_CHECKING:
    from minialign.methods.pool import ComparisonPool
    from minialign.policy.reference_scores import ReferenceScores
from minialign.data.files import replace_whole


@dataclass(frozen=True)
class Parts:
    """Everything that a training stage changes."""

    model: CausalLM
    optimizer: Optimizer
    pool: ComparisonPool | None = None
    reference: ReferenceScores | None = None

    def tensors(self) -> dict[str, Tensor]:
        adapters = {
            f"adapter/{name}/{key}": tensor
            for name in adapter_names(self.model)
            for key, tensor in adapter_state(self.model, name).items()
        }
        moments = {f"optimizer/{key}": t for key, t in self.optimizer.state().items()}
        return adapters | moments

    def facts(self) -> dict[str, Any]:
        known = self.reference.known if self.reference else {}
        return {
            "rounds": self.pool.state() if self.pool else [],
            "reference": [[s.prompt_ids, s.completion_ids, value] for s, value in known.items()],
        }


def write_state(file: Path, parts: Parts, facts: dict[str, Any]) -> None:
    """Saves `parts`, and `facts` beside what the parts know of themselves."""
    content = json.dumps({**facts, **parts.facts()})
    file.parent.mkdir(exist_ok=True)
    replace_whole(file, lambda path: save_file(parts.tensors(), path, metadata={"facts": content}))


class SavedState:
    """A state that was read back."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.facts = saved_facts(file)
        with safe_open(file, framework="pt") as opened:
            self._everything = {key: opened.get_tensor(key) for key in opened.keys()}

    def restore_adapters(self, model: CausalLM) -> None:
        """Those that the model has by now."""
        for name in adapter_names(model):
            load_adapter_state(model, name, self._tensors(f"adapter/{name}/"), str(self.file))

    def restore(self, parts: Parts) -> None:
        """Everything but the adapters."""
        parts.optimizer.load_state(self._tensors("optimizer/"))
        if parts.pool is not None:
            parts.pool.load_state(self.facts["rounds"])
        if parts.reference is not None:
            known = {
                Sequence(tuple(prompt), tuple(completion)): value
                for prompt, completion, value in self.facts["reference"]
            }
            parts.reference.restore(known)

    def _tensors(self, prefix: str) -> dict[str, Tensor]:
        return {
            key.removeprefix(prefix): tensor
            for key, tensor in self._everything.items()
            if key.startswith(prefix)
        }
