"""LoRA by surgery: named linear layers of a loaded model are swapped for ones that carry low-rank
adapters (lora_linear.py).

A model can hold several named adapters, of which one (or none) is active. That is all a reference
policy needs: DITTO's is the frozen adapter "sft", C3PO's is "no adapter", and neither is a second
model. Adapters are float32 whatever the base is, and are saved and loaded in PEFT's format.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minialign.errors import InputError
from minialign.policy.knobs import LoRAConfig
from minialign.policy.lora_linear import LoRALinear


def lora_layers(model: nn.Module) -> dict[str, LoRALinear]:
    return {
        name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)
    }


def apply_lora(
    model: nn.Module,
    config: LoRAConfig,
    name: str = "default",
    generator: torch.Generator | None = None,
) -> None:
    """Gives every linear layer called `config.target_modules` an adapter `name`. In place.

    The adapter is active, and alone trainable.

    Raises InputError where a target is not there, or is the head: the fused losses read the head's
    weight itself and would not see its adapter.
    """
    if "lm_head" in config.target_modules:
        raise InputError(
            "target_modules: lm_head cannot carry an adapter, the fused losses would not see it"
        )
    for target in config.target_modules:
        parents = [m for m in model.modules() if isinstance(getattr(m, target, None), nn.Linear)]
        if not parents:
            raise InputError(f"target_modules: the model has no linear layer called {target!r}")
        for parent in parents:
            linear = getattr(parent, target)
            if not isinstance(linear, LoRALinear):
                linear = LoRALinear(linear)
                setattr(parent, target, linear)
            linear.add(name, config, generator)
    train_only(model, name)


def train_only(model: nn.Module, name: str) -> None:
    """Makes an adapter active, and alone trainable."""
    set_adapter(model, name)
    model.requires_grad_(False)
    for parameter in adapter_parameters(model, name):
        parameter.requires_grad_(True)


def adapter_parameters(model: nn.Module, name: str) -> list[nn.Parameter]:
    layers = [layer for layer in lora_layers(model).values() if name in layer.configs]
    return [p for layer in layers for p in (layer.lora_A[name], layer.lora_B[name])]


def trainable_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def adapter_names(model: nn.Module) -> list[str]:
    return sorted({name for layer in lora_layers(model).values() for name in layer.configs})


def active_adapter(model: nn.Module) -> str | None:
    return next((layer.active for layer in lora_layers(model).values() if layer.active), None)


def set_adapter(model: nn.Module, name: str | None) -> None:
    """Makes `name` the active adapter (None: the base alone). Leaves alone what is trainable."""
    layers = lora_layers(model).values()
    if name is not None and not any(name in layer.configs for layer in layers):
        raise InputError(f"the model has no adapter called {name!r}")
    for layer in layers:
        wanted = name if name in layer.configs else None
        if layer.merged and wanted != layer.active:
            raise InputError("an adapter is merged into the weights: unmerge it before switching")
        layer.active = wanted


def remove_adapter(model: nn.Module, name: str) -> None:
    """Forgets an adapter, if it is there; where it was active, the base alone is."""
    for layer in lora_layers(model).values():
        if name in layer.configs:
            del layer.configs[name], layer.lora_A[name], layer.lora_B[name]
            layer.active = None if layer.active == name else layer.active


def copy_adapter(model: nn.Module, source: str, target: str) -> None:
    """Starts adapter `target` as an exact copy of `source`, which is frozen from now on.

    The copy is active, and alone trainable.
    """
    for layer in lora_layers(model).values():
        if source in layer.configs:
            layer.configs[target] = layer.configs[source]
            layer.lora_A[target] = nn.Parameter(layer.lora_A[source].detach().clone())
            layer.lora_B[target] = nn.Parameter(layer.lora_B[source].detach().clone())
    train_only(model, target)


@torch.no_grad()
def combine_adapters(model: nn.Module, weights: dict[str, float], name: str = "combined") -> None:
    """Makes adapter `name` of a weighted sum: W + sum_i w_i (alpha_i / rank_i) B_i A_i, exactly.

    The matrices are stacked along the rank, as C3PO adds up two feedbacks (arXiv 2402.10893, Figure
    7): a sum of A's times a sum of B's would bring in products of one's A with the other's B. Ranks
    add up; in layers that fewer adapters reach, zeros fill up to the common rank. Alone and with
    weight 1, an adapter is itself to the last bit.

    The sum is active, and frozen: `copy_adapter` goes on from it. Raises InputError for an adapter
    that is not there, a weight that is not finite, or while an adapter is merged.
    """
    layers = [layer for layer in lora_layers(model).values() if weights.keys() & layer.configs]
    configs = {s: c for layer in layers for s, c in layer.configs.items() if s in weights}
    _check_combination(layers, configs, weights)
    first = next((c for c in configs.values() if c.alpha), next(iter(configs.values())))
    scale = first.alpha / first.rank or 1.0  # the sum's own; what others differ by goes into B
    factors = {s: w * (configs[s].alpha / configs[s].rank / scale) for s, w in weights.items()}
    rank = max(sum(configs[s].rank for s in weights if s in layer.configs) for layer in layers)
    stacked = [_stack(layer, factors, rank) for layer in layers]
    remove_adapter(model, name)  # only now: it may be one of the sources
    config = replace(
        first,
        rank=rank,
        alpha=first.alpha * (rank / first.rank),
        target_modules=tuple(dict.fromkeys(t for c in configs.values() for t in c.target_modules)),
    )
    for layer, (a, b) in zip(layers, stacked, strict=True):
        layer.configs[name] = config
        layer.lora_A[name] = nn.Parameter(a, requires_grad=False)
        layer.lora_B[name] = nn.Parameter(b, requires_grad=False)
    set_adapter(model, name)


def _stack(layer: LoRALinear, factors: dict[str, float], rank: int) -> tuple[Tensor, Tensor]:
    """(rank, in) and (out, rank): A's one below the other, scaled B's side by side."""
    sources = [source for source in factors if source in layer.configs]
    a = torch.cat([layer.lora_A[source] for source in sources])
    b = torch.cat([factors[source] * layer.lora_B[source] for source in sources], dim=1)
    missing = rank - len(a)
    return F.pad(a, (0, 0, 0, missing)), F.pad(b, (0, missing))


def _check_combination(
    layers: list[LoRALinear], configs: dict[str, LoRAConfig], weights: dict[str, float]
) -> None:
    if not weights:
        raise InputError("there are no adapters to combine: name at least one")
    for source, weight in weights.items():
        if source not in configs:
            raise InputError(f"the model has no adapter called {source!r}")
        if not math.isfinite(weight):
            raise InputError(f"the weight of adapter {source!r} must be finite, not {weight}")
    if any(layer.merged for layer in layers):
        raise InputError("an adapter is merged into the weights: unmerge it before combining")
