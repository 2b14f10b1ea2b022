"""PEFT's format: adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from minialign.data.files import read_json
from minialign.errors import InputError
from minialign.model.matmul import frozen_weights
from minialign.model.stored import fingerprint_of
from minialign.policy.adapters import active_adapter, apply_lora, lora_layers, remove_adapter
from minialign.policy.joined import Parts, join, part_names, split
from minialign.policy.knobs import LoRAConfig

PEFT_PREFIX = "base_model.model."
BASE_FILE = "base.json"  # ours, and optional: which model the adapter was trained on
CONFIG_FILE, TENSOR_FILE = "adapter_config.json", "adapter_model.safetensors"
ADAPTER_FILES = (CONFIG_FILE, TENSOR_FILE, BASE_FILE, "README.md")
LARGEST = 1e30  # of a scale: what it makes of weights is finite still
UNSUPPORTED = (
    "use_dora",
    "use_qalora",
    "use_bdlora",
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
    """Names a base model by its embedding, however it is held."""
    return fingerprint_of(frozen_weights(model)[0])


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
    held = read_json(file).get("joined", {}) if file.exists() else {}
    lists = held.values() if isinstance(held, dict) else [None]
    if not all(part and isinstance(part, list) and {*map(type, part)} == {str} for part in lists):
        raise InputError(f"{file}: joined is not an object of lists of layers")
    return dict(held)


@dataclass(frozen=True)
class PeftConfig:
    """What adapter_config.json says of every layer; patterns are by the end of a layer's path."""

    rank: int
    alpha: float
    dropout: float
    ranks: dict[str, int]
    alphas: dict[str, float]
    rank_stabilised: bool
    targets: Any  # names, or a pattern of whole paths
    excluded: Any
    layers: Any  # numbers, or one, or None for all

    def reaches(self, path: str) -> bool:
        """Whether the layer at `path` is one that the adapter says it changes."""
        number = re.search(r"\.(\d+)\.", path)
        layers = [self.layers] if isinstance(self.layers, int) else self.layers
        if layers and (number is None or int(number[1]) not in layers):
            return False
        return _names(self.targets, path) and not _names(self.excluded, path)

    def rank_of(self, path: str) -> int:
        return _by_pattern(self.ranks, path, self.rank)

    def scale_of(self, path: str) -> float:
        """What B A is multiplied by in the layer at `path`."""
        rank = self.rank_of(path)
        alpha = _by_pattern(self.alphas, path, self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def _names(targets: Any, path: str) -> bool:
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, path) is not None
    return any(path == name or path.endswith(f".{name}") for name in targets or ())


def _by_pattern(patterns: dict[str, Any], path: str, default: Any) -> Any:
    """As PEFT does: the first pattern that matches the path's end, from a dot on."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return default


def read_adapter_config(folder: Path) -> PeftConfig:
    """Raises InputError where the folder is not a plain LoRA adapter in PEFT's format."""
    file = folder / CONFIG_FILE
    if not file.exists():
        raise InputError(f"{folder}: no adapter here ({CONFIG_FILE} is missing)")
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
    ranks, alphas = (_pattern(file, raw, key) for key in ("rank_pattern", "alpha_pattern"))
    for rank in (raw["r"], *ranks.values()):
        if type(rank) is not int or rank < 1:
            raise InputError(f"{file}: a rank is {rank!r}: it must be a whole number from 1 on")
    dropout = raw.get("lora_dropout", 0.0)
    for number in (raw["lora_alpha"], dropout, *alphas.values()):
        if type(number) not in (int, float) or not abs(number) < LARGEST:
            raise InputError(f"{file}: {number!r} stands where a finite number must")
    where = [raw.get(k) for k in ("target_modules", "exclude_modules", "layers_to_transform")]
    stabilised, alpha = bool(raw.get("use_rslora")), float(raw["lora_alpha"])
    return PeftConfig(raw["r"], alpha, dropout, ranks, alphas, stabilised, *where)


def _pattern(file: Path, raw: dict[str, Any], key: str) -> dict[str, Any]:
    patterns = raw.get(key) or {}
    try:
        for pattern in patterns.keys():
            re.compile(pattern)
    except (AttributeError, TypeError, re.error):
        raise InputError(f"{file}: {key} is not an object of patterns") from None
    return dict(patterns)


def load_adapter(model: nn.Module, folder: str | Path, name: str = "default") -> str:
    """Reads an adapter in PEFT's format into the model, as the active one. In place.

    Returns its name in the model. Here an adapter has one rank and one alpha: where PEFT's differ
    by layer, zeros fill up to the largest rank, and what the scales differ by goes into B.

    Raises InputError where it is missing, damaged, not LoRA, or was made for another base model.
    """
    folder = Path(folder)
    config, state = read_adapter_config(folder), _read_state(folder)
    file = folder / TENSOR_FILE
    base = read_json(folder / BASE_FILE) if (folder / BASE_FILE).exists() else {}
    made_for = base.get("base_signs")
    if made_for and made_for != base_fingerprint(model):
        raise InputError(
            f"{folder}: this adapter was trained on another model: load it with that one"
        )
    shapes, held = {key: tuple(state[key].shape) for key in state}, joined_parts(folder)
    layers, state = _layers(config, shapes, file, held), split(model, state, held)
    lora = _one_config(config, layers)
    remove_adapter(model, name)
    apply_lora(model, lora, name)
    try:
        load_adapter_state(model, name, _uniform(model, name, config, layers, state), str(file))
    except InputError:
        # Or random numbers would stay behind, under its name.
        remove_adapter(model, name)
        raise
    return name


def lora_of(folder: Path) -> LoRAConfig:
    """What an adapter consists of, as its tensors say: `--resume` builds it anew without them."""
    config, file = read_adapter_config(folder), _tensor_file(folder)
    try:
        with safe_open(file, framework="pt") as tensors:
            shapes = {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    layers = _layers(config, shapes, file, joined_parts(folder))
    return replace(_one_config(config, layers), dropout=0.0)


def _tensor_file(folder: Path) -> Path:
    """Raises InputError where there is none; a pipe would never be open."""
    if not (folder / TENSOR_FILE).is_file():
        raise InputError(f"{folder / TENSOR_FILE}: no such file: train the adapter again")
    return folder / TENSOR_FILE


def _read_state(folder: Path) -> dict[str, Tensor]:
    file = _tensor_file(folder)
    try:
        with safe_open(file, framework="pt") as tensors:
            state = {key: tensors.get_tensor(key) for key in tensors.keys()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    for key, tensor in state.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"{file}: {key} holds numbers that are not finite: train it again")
    return state


def _layers(
    config: PeftConfig, shapes: dict[str, tuple[int, ...]], file: Path, held: Parts
) -> dict[str, tuple[int, float]]:
    """The rank and the scale of every layer that has tensors, by its path.

    Read off the shapes, and before anything is made: a config may say any rank.
    """
    layers = {}
    for key, shape in shapes.items():
        path, _, kind = key.removeprefix(PEFT_PREFIX).rpartition(".lora_")
        if kind not in ("A.weight", "B.weight") or len(shape) != 2:
            raise InputError(f"{file}: {key} is not supported")
        rank, said = shape[0] if kind == "A.weight" else shape[1], config.rank_of(path)
        if rank != said:
            raise InputError(f"{file}: {key} has rank {rank}, {CONFIG_FILE} says {said}")
        base, _, stored = path.rpartition(".")
        for part in part_names(stored, held):
            own = rank // len(held.get(stored, [part]))
            layers[f"{base}.{part}"] = own, config.scale_of(path)
    if not layers:
        raise InputError(f"{file}: holds no tensor: train the adapter again")
    return layers


def _one_config(config: PeftConfig, layers: dict[str, tuple[int, float]]) -> LoRAConfig:
    """One rank that holds all layers, and the alpha that makes their common scale of it.

    The config may give its targets as a pattern, so they are read off the paths.
    """
    targets = tuple(sorted({path.split(".")[-1] for path in layers}))
    rank, scale = max(rank for rank, _ in layers.values()), _common_scale(layers)
    is_plain = (rank, scale) == (config.rank, config.alpha / config.rank)
    alpha = config.alpha if is_plain else scale * rank
    return LoRAConfig(rank, alpha, config.dropout, targets)


def _common_scale(layers: dict[str, tuple[int, float]]) -> float:
    """The first that is not 0: what others differ by goes into B."""
    return next((scale for _, (_, scale) in sorted(layers.items()) if scale), 0.0)


def _uniform(
    model: nn.Module,
    name: str,
    config: PeftConfig,
    layers: dict[str, tuple[int, float]],
    state: dict[str, Tensor],
) -> dict[str, Tensor]:
    """PEFT's tensors as those of one rank and one alpha; zeros in the layers that it skips."""
    found, common = dict(state), _common_scale(layers) or 1.0
    for path, layer in lora_layers(model).items():
        a, b = (f"{PEFT_PREFIX}{path}.lora_{kind}.weight" for kind in "AB")
        if name not in layer.configs:
            continue
        if a in state and b in state:
            missing, factor = layer.configs[name].rank - len(state[a]), layers[path][1] / common
            found[a] = F.pad(state[a].float(), (0, 0, 0, missing))
            found[b] = F.pad(state[b].float() * factor, (0, missing))
        elif a not in state and b not in state and not config.reaches(path):
            found[a] = torch.zeros_like(layer.lora_A[name])
            found[b] = torch.zeros_like(layer.lora_B[name])
    return found
