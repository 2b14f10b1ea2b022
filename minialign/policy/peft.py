"""PEFT's format: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minialign.data.files import read_json
from minialign.errors import InputError
from minialign.policy.adapters import active_adapter, apply_lora, lora_layers, remove_adapter
from minialign.policy.joined import Parts, join, part_names, split
from minialign.policy.knobs import LoRAConfig

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
    state, held = join(model, adapter_state(model, name))
    save_file(state, file, metadata={"format": "pt"})
    base = {"base_signs": base_fingerprint(model)} | ({"joined": held} if held else {})
    (folder / BASE_FILE).write_text(json.dumps(base) + "\n")
    description = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": getattr(model, "name", ""),
        "revision": getattr(model, "revision", None),
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": sorted({key.split(".")[-3] for key in state})
        if held
        else list(config.target_modules),
        **_patterns(held, config),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(description, indent=2) + "\n")


def _patterns(held: Parts, config: LoRAConfig) -> dict[str, dict[str, float]]:
    """The ranks of joined adapters, and alphas that leave alpha / rank as it is."""
    if not held:
        return {}
    return {
        "rank_pattern": {whole: len(parts) * config.rank for whole, parts in held.items()},
        "alpha_pattern": {whole: len(parts) * config.alpha for whole, parts in held.items()},
    }


def joined_parts(folder: Path) -> Parts:
    """What `save_adapter` noted of adapters that it joined."""
    file = folder / BASE_FILE
    return read_json(file).get("joined", {}) if file.exists() else {}


def read_adapter_config(folder: Path) -> LoRAConfig:
    """Raises InputError where the folder is not a plain LoRA adapter in PEFT's format."""
    file = folder / "adapter_config.json"
    if not file.exists():
        raise InputError(f"{folder}: no adapter here (adapter_config.json is missing)")
    raw = read_json(file)
    if raw.get("peft_type") != "LORA":
        raise InputError(f"{file}: peft_type {raw.get('peft_type')!r} is not supported, only LORA")
    joined = joined_parts(folder)
    for key in UNSUPPORTED:
        if raw.get(key) and not (joined and key in ("rank_pattern", "alpha_pattern")):
            raise InputError(f"{file}: {key} is not supported")
    start = raw.get("init_lora_weights", True)  # PiSSA's kin alter the base weights as well
    if start not in (True, False, None, "gaussian", "orthogonal", "eva"):
        raise InputError(f"{file}: init_lora_weights {start!r} is not supported")
    for key in ("r", "lora_alpha"):
        if key not in raw:
            raise InputError(f"{file}: {key} is missing")
    scale = math.sqrt(raw["r"]) if raw.get("use_rslora") else 1.0
    return LoRAConfig(raw["r"], raw["lora_alpha"] * scale, raw.get("lora_dropout", 0.0))


def load_adapter(model: nn.Module, folder: str | Path, name: str = "default") -> str:
    """Reads an adapter in PEFT's format into the model, as the active one. In place.

    Returns its name in the model.

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
    state = split(model, state, joined_parts(folder))
    targets = sorted({key.split(".")[-3] for key in state})  # the config may give them as a pattern
    remove_adapter(model, name)
    apply_lora(model, replace(config, target_modules=tuple(targets)), name)
    try:
        load_adapter_state(model, name, state, str(file))
    except InputError:
        # Or random numbers would stay behind, under its name.
        remove_adapter(model, name)
        raise
    return name


def lora_of(folder: Path) -> LoRAConfig:
    """What an adapter consists of, as its tensors say: `--resume` builds it anew without them."""
    file = folder / "adapter_model.safetensors"
    lora = read_adapter_config(folder)
    try:
        with safe_open(file, framework="pt") as tensors:
            names = [key.split(".") for key in tensors.keys()]
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    stored, held = {parts[-3] for parts in names if len(parts) > 2}, joined_parts(folder)
    targets = tuple(sorted({part for name in stored for part in part_names(name, held)}))
    return dataclasses.replace(lora, dropout=0.0, target_modules=targets)
