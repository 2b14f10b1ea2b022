"""Adapters merged into the base weights, and taken out again bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from minialign.errors import InputError
from minialign.model.matmul import is_stored
from minialign.policy.adapters import lora_layers


def merge_adapter(model: nn.Module) -> float:
    """Adds the active adapter to the base weights. Returns the share of those weights that changed.

    Tiny updates can vanish when the sum is rounded to a half type: a share well below 1 says so.
    """
    layers = [layer for layer in lora_layers(model).values() if layer.active]
    changed = sum(layer.merge() for layer in layers)
    return changed / max(1, sum(layer.weight.numel() for layer in layers))


def unmerge_adapter(model: nn.Module) -> None:
    """Undoes `merge_adapter`, bit for bit."""
    for layer in lora_layers(model).values():
        layer.unmerge()


@contextmanager
def merged_adapter(model: nn.Module) -> Iterator[None]:
    """Within the context the active adapter costs nothing; the weights come back bit for bit.

    Over a base of fewer bits it stays as it is: rounding the sum would lose small updates, and
    what is sampled would not be the policy. An inner context leaves it to the outer one.
    """
    inner = any(layer.merged for layer in lora_layers(model).values())
    if not inner and next(model.parameters()).dtype == torch.float32 and not is_stored(model):
        merge_adapter(model)
    try:
        yield
    finally:
        if not inner:
            unmerge_adapter(model)


def base_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The checkpoint's own tensors by their names; a tied head is not among them.

    Raises InputError for a base in 8 or 4 bits: it does not have them any more.
    """
    if is_stored(model):
        raise InputError("a base in 8 or 4 bits has no tensors to give: load with base_dtype=model")
    for name, parameter in model.named_parameters():
        if ".lora_A." not in name and ".lora_B." not in name:
            yield name, parameter.detach()


def merged_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Every weight of the model by its name: with the active adapter in float32, and without.

    One after the other; where no adapter reaches, both are the same tensor.
    """
    layers = lora_layers(model)
    for name, base in base_parameters(model):
        layer = layers.get(name.removesuffix(".weight"))
        if layer is None or layer.active is None:
            yield name, base, base
        else:
            yield name, base.float() + layer.delta(layer.active).detach(), base


def active_factors(model: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """The active adapter by the names of the weights it changes: A (rank, in) and B (out, rank)."""
    for name, layer in lora_layers(model).items():
        if layer.active is not None:
            yield f"{name}.weight", layer.lora_A[layer.active], layer.lora_B[layer.active]
