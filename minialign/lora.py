"""LoRA by surgery: named linear layers of a loaded model are swapped for ones that carry low-rank
adapters (lora_linear.py).

A model can hold several named adapters, of which one (or none) is active. That is all a reference
policy needs: DITTO's is the frozen adapter "sft", C3PO's is "no adapter", and neither is a second
model. Adapters are float32 whatever the base is, and are saved and loaded in PEFT's format.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minialign.config import LoRAConfig
from minialign.data import read_json
from minialign.errors import InputError
from minialign.lora_linear import LoRALinear

PEFT_PREFIX = "base_model.model."
BASE_FILE = "base.json"  # ours, and optional: which model the adapter was trained on
UNSUPPORTED = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "fan_in_fan_out",
    "layer_replication",
    "alora_invocation_tokens",
)


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


@contextmanager
def reference_policy(model: nn.Module, name: str | None) -> Iterator[None]:
    """Within the context the model *is* the reference: adapter `name`, or the base for None.

    No gradients, no dropout; the state before comes back whatever happens.
    """
    before, training = active_adapter(model), model.training
    set_adapter(model, name)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        set_adapter(model, before)
        model.train(training)


def is_policy(model: nn.Module, name: str | None) -> bool:
    """Whether adapter `name`, or the base for None, has the active adapter's very numbers."""
    own, others = (_changes(model, adapter) for adapter in (active_adapter(model), name))
    return len(own) == len(others) and all(map(torch.equal, own, others))


def _changes(model: nn.Module, name: str | None) -> list[nn.Parameter]:
    """An adapter's parameters; none where it changes nothing."""
    parameters = [] if name is None else adapter_parameters(model, name)
    return parameters if any(lora_B.any() for lora_B in parameters[1::2]) else []


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

    Over a base of a half type it stays as it is: rounding the sum would lose small updates, and
    what is sampled would not be the policy. An inner context leaves it to the outer one.
    """
    inner = any(layer.merged for layer in lora_layers(model).values())
    if not inner and next(model.parameters()).dtype == torch.float32:
        merge_adapter(model)
    try:
        yield
    finally:
        if not inner:
            unmerge_adapter(model)


# ---- PEFT's format: adapter_config.json and adapter_model.safetensors ----


def adapter_state(model: nn.Module, name: str) -> dict[str, Tensor]:
    """An adapter's tensors under PEFT's keys.

    For example `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`.
    """
    state = {}
    for path, layer in lora_layers(model).items():
        if name in layer.configs:
            state[f"{PEFT_PREFIX}{path}.lora_A.weight"] = (
                layer.lora_A[name].detach().cpu().contiguous()
            )
            state[f"{PEFT_PREFIX}{path}.lora_B.weight"] = (
                layer.lora_B[name].detach().cpu().contiguous()
            )
    return state


def load_adapter_state(model: nn.Module, name: str, state: dict[str, Tensor], source: str) -> None:
    """Copies tensors under PEFT's keys into adapter `name`, strictly.

    Raises InputError, in which `source` names them, for a missing, extra or misshapen one.
    """
    own = adapter_state(model, name)
    for key in sorted(own.keys() ^ state.keys()):
        problem = "is missing" if key in own else "does not belong to this model"
        raise InputError(f"{source}: {key} {problem}: was it trained on another model?")
    for key, tensor in own.items():  # all of them, before any is written
        if state[key].shape != tensor.shape:
            shapes = f"{tuple(state[key].shape)}, the model needs {tuple(tensor.shape)}"
            raise InputError(
                f"{source}: {key} has shape {shapes}: was it trained on another model?"
            )
    with torch.no_grad():
        for path, layer in lora_layers(model).items():
            if name in layer.configs:
                layer.lora_A[name].copy_(state[f"{PEFT_PREFIX}{path}.lora_A.weight"])
                layer.lora_B[name].copy_(state[f"{PEFT_PREFIX}{path}.lora_B.weight"])


def adapter_hash(model: nn.Module, name: str | None) -> str:
    """Names an adapter by its content, so that stale reference scores are recognised."""
    digest = hashlib.sha256()
    for key, tensor in sorted(adapter_state(model, name).items() if name else []):
        digest.update(key.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:16]


def base_fingerprint(model: nn.Module) -> str:
    """Names a base model by signs in its embedding: no rounding to another type changes those."""
    signs = next(model.parameters())[:64].detach().signbit().cpu()
    return hashlib.sha256(signs.numpy().tobytes()).hexdigest()[:16]


def save_adapter(model: nn.Module, folder: str | Path, name: str | None = None) -> None:
    """Writes an adapter (by default the active one) as PEFT would."""
    name = name or active_adapter(model)
    if name is None:
        raise InputError("there is no active adapter to save")
    config = next(
        layer.configs[name] for layer in lora_layers(model).values() if name in layer.configs
    )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # one metadata entry: of two, safetensors writes now the one, now the other first
    file = folder / "adapter_model.safetensors"
    save_file(adapter_state(model, name), file, metadata={"format": "pt"})
    base = {"base_signs": base_fingerprint(model)}
    (folder / BASE_FILE).write_text(json.dumps(base) + "\n")
    description = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": getattr(model, "name", ""),
        "revision": getattr(model, "revision", None),
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": list(config.target_modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(description, indent=2) + "\n")


def read_adapter_config(folder: Path) -> LoRAConfig:
    """Raises InputError where the folder is not a plain LoRA adapter in PEFT's format."""
    file = folder / "adapter_config.json"
    if not file.exists():
        raise InputError(f"{folder}: no adapter here (adapter_config.json is missing)")
    raw = read_json(file)
    if raw.get("peft_type") != "LORA":
        raise InputError(f"{file}: peft_type {raw.get('peft_type')!r} is not supported, only LORA")
    for key in UNSUPPORTED:
        if raw.get(key):
            raise InputError(f"{file}: {key} is not supported")
    start = raw.get("init_lora_weights", True)  # PiSSA's kin alter the base weights as well
    if start not in (True, False, None, "gaussian", "orthogonal", "eva"):
        raise InputError(f"{file}: init_lora_weights {start!r} is not supported")
    for key in ("r", "lora_alpha"):
        if key not in raw:
            raise InputError(f"{file}: {key} is missing")
    scale = math.sqrt(raw["r"]) if raw.get("use_rslora") else 1.0
    return LoRAConfig(raw["r"], raw["lora_alpha"] * scale, raw.get("lora_dropout", 0.0))


def load_adapter(model: nn.Module, folder: str | Path, name: str = "default") -> None:
    """Reads an adapter in PEFT's format into the model, as the active one. In place.

    Raises InputError where it is missing, damaged, not LoRA, or was made for another base model.
    """
    folder = Path(folder)
    config = read_adapter_config(folder)
    file = folder / "adapter_model.safetensors"
    try:
        with safe_open(file, framework="pt") as tensors:
            state = {key: tensors.get_tensor(key) for key in tensors.keys()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    made_for = read_json(folder / BASE_FILE)["base_signs"] if (folder / BASE_FILE).exists() else ""
    if made_for and made_for != base_fingerprint(model):
        raise InputError(
            f"{folder}: this adapter was trained on another model: load it with that one"
        )
    for key in state:
        if not key.endswith((".lora_A.weight", ".lora_B.weight")):
            raise InputError(f"{file}: {key} is not supported")
    targets = sorted({key.split(".")[-3] for key in state})  # the config may give them as a pattern
    remove_adapter(model, name)
    apply_lora(model, replace(config, target_modules=tuple(targets)), name)
    try:
        load_adapter_state(model, name, state, str(file))
    except InputError:
        remove_adapter(model, name)  # or random numbers would stay behind, under its name
        raise
