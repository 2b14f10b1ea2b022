"""Adapters as if trained, and what a model computes with them."""

from __future__ import annotations

import torch
from torch import Tensor

from minialign.data.records import Example
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import adapter_parameters
from minialign.policy.knobs import LoRAConfig

CONFIG = LoRAConfig(rank=4, alpha=6.0, dropout=0.0)
EVERY_LAYER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
IDS = torch.arange(3, 40)[None]
SEQUENCES = [Example((3, 4, 5), (6, 7, 8)), Example((9,), (10, 2))]


def fill(model: CausalLM, name: str, seed: int = 0, std: float = 0.2) -> None:
    """As if trained: both matrices random, so that the adapter changes the model a lot."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_parameters(model, name):
            parameter.normal_(0, std, generator=generator)


def logits(model: CausalLM) -> Tensor:
    with torch.no_grad():
        return model.logits(IDS)
