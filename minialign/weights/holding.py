"""How a model's weights are held: as floats, or in 8 or 4 bits (model/stored.py)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from minialign.errors import InputError
from minialign.model.config import ModelConfig
from minialign.model.matmul import Held, frozen_weights, hold
from minialign.model.stored import STORED
from minialign.model.transformer import CausalLM
from minialign.weights.devices import total_bytes

# The share of the memory that weights may take as they are, where nobody says how to hold them.
WEIGHTS_SHARE = 0.75
# Where 4 bits cost a small model most, it has 8: measured one by one (docs/models.md).
IN_8_BITS = ("embed_tokens", "lm_head", "v_proj", "down_proj")


@dataclass(frozen=True)
class Holding:
    """How a model's tensors are held: multiplied in `dtype`, and kept as `base_dtype` says."""

    dtype: torch.dtype
    device: torch.device
    base_dtype: str = "model"

    def as_floats(self, tensor: Tensor) -> Tensor:
        """In the type that it has here; what is to be stored in fewer bits waits as it is."""
        if tensor.dim() > 1:
            is_stored = self.base_dtype != "model"
            return tensor if is_stored else tensor.to(self.device, self.dtype)
        # copied, or one norm would keep the whole file in memory
        own = norm_dtype(self.dtype, self.device)
        return tensor.to(self.device, own, copy=self.device.type == "cpu")

    def stored(self, name: str, tensor: Tensor) -> Held:
        if self.base_dtype == "model" or tensor.dim() == 1:
            return tensor
        kind = "int8" if name.split(".")[-2] in IN_8_BITS else self.base_dtype
        return STORED[kind](tensor, self.dtype).moved(self.device)


def norm_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Of norms and biases: on a processor only products are of a half type (model/matmul.py)."""
    return torch.promote_types(dtype, torch.float32) if device.type == "cpu" else dtype


def pick_base_dtype(
    name: str, config: ModelConfig, dtype: torch.dtype, device: torch.device
) -> str:
    """How the weights are held; "auto" is "model", in `dtype`, or the first of "int8" and "nf4"
    that fits into the memory.

    Raises InputError for an unknown one.
    """
    kinds = ("model", *STORED)
    if name in kinds:
        return name
    if name != "auto":
        raise InputError(f"base_dtype {name!r} is unknown: use auto, {', '.join(kinds)}")
    room = WEIGHTS_SHARE * total_bytes(device)
    fitting = (kind for kind in kinds if weight_bytes(outline(config, dtype, kind, device)) <= room)
    return next(fitting, kinds[-1])


def weight_bytes(model: CausalLM) -> int:
    """What the weights take that are not trained."""
    return sum(held.nbytes for held in frozen_weights(model))


def outline(
    config: ModelConfig,
    dtype: torch.dtype,
    base_dtype: str,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> CausalLM:
    """The model as `device` would hold it, in shapes alone: it takes no memory."""
    holding, norms = Holding(dtype, torch.device("meta"), base_dtype), norm_dtype(dtype, device)
    with torch.device("meta"):
        model = CausalLM(config).to(dtype).requires_grad_(False)
    state = {
        name: holding.stored(name, held) if held.dim() > 1 else held.to(norms)
        for name, held in model.named_parameters()
    }
    put(model, state)
    return model


def put(model: CausalLM, state: Mapping[str, Held]) -> None:
    """Puts tensors into their places."""
    for name, held in state.items():
        path, _, attribute = name.rpartition(".")
        hold(model.get_submodule(path), attribute, held)
    if model.config.tie_word_embeddings:
        hold(model.lm_head, "weight", model.model.embed_tokens.weight)
