"""Checkpoints into models: Hugging Face safetensors, read directly, memory-mapped, with strict
keys.

A model is built on the meta device, where it weighs nothing, and the checkpoint's tensors are put
into it as they are: a folder of any size loads in the time it takes to touch its pages. Every
mismatch is one line that names the tensor.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minialign.data.files import read_json
from minialign.data.general import general_prompts
from minialign.errors import InputError
from minialign.model.config import ModelConfig
from minialign.model.transformer import CausalLM
from minialign.weights.devices import pick_device, pick_dtype
from minialign.weights.find import find_checkpoint
from minialign.weights.tokenizer import Tokenizer


def load(
    name: str,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    device: str = "auto",
) -> tuple[CausalLM, Tokenizer]:
    """A model and its tokenizer, by alias, hub id or folder.

    dtype: "float32", "bfloat16", "float16", or "auto" (bfloat16 where the device is fast at it,
    float32 elsewhere). Raises InputError, one line, for whatever is wrong with the name or the
    checkpoint.
    """
    target = pick_device(device)
    folder = find_checkpoint(name, revision)
    tokenizer = Tokenizer.from_folder(folder)
    width = read_model_config(folder).hidden_size
    model = load_for(name, folder, tokenizer, pick_dtype(dtype, target, width), target)
    model.revision = revision
    return model, tokenizer


def load_for(
    name: str, folder: Path, tokenizer: Tokenizer, dtype: torch.dtype, device: torch.device
) -> CausalLM:
    """The model of a folder, knowing its name and where its completions stop."""
    model = load_model(folder, dtype, device)
    model.name = name
    model.stop_ids = _stop_ids(folder, tokenizer)
    model.ordinary_ids = tuple(tokenizer.encode_prompt(" ".join(general_prompts(12, 0)))[:128])
    return model


def load_model(folder: str | Path, dtype: torch.dtype, device: torch.device) -> CausalLM:
    """The model of an HF-layout folder: config.json, and safetensors in one file or in shards.

    Raises InputError for an unsupported architecture, a missing or extra tensor, one of another
    shape, a damaged file.
    """
    folder = Path(folder)
    config = read_model_config(folder)
    with torch.device("meta"):
        model = CausalLM(config)
    needed = {
        key: parameter.shape for key, parameter in model.named_parameters()
    }  # a tied head is not among them
    state = {}
    for file in _tensor_files(folder):
        state.update(_read_tensors(file, needed, config.tie_word_embeddings, dtype, device))
    missing = sorted(needed.keys() - state.keys())
    if missing:
        raise InputError(f"{folder}: the tensor {missing[0]} is missing ({len(missing)} in all)")
    if config.tie_word_embeddings:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    if config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.requires_grad_(False).eval()


def read_model_config(folder: Path) -> ModelConfig:
    raw = read_config(folder)
    try:
        return ModelConfig.from_dict(raw)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None


def read_config(folder: Path) -> dict[str, Any]:
    if not (folder / "config.json").exists():
        raise InputError(f"{folder}: not a model folder (config.json is missing)")
    return read_json(folder / "config.json")


def _tensor_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        try:
            names = read_json(index)["weight_map"].values()
        except (KeyError, AttributeError):
            raise InputError(f"{index}: not a safetensors index") from None
        files = [folder / name for name in sorted(set(names))]
    else:
        files = [folder / "model.safetensors"]
    for file in files:
        if not file.exists():
            raise InputError(
                f"{file}: no such file: the checkpoint is incomplete, download it again"
            )
    return files


def _read_tensors(
    file: Path, needed: dict[str, torch.Size], tied: bool, dtype: torch.dtype, device: torch.device
) -> dict[str, Tensor]:
    state = {}
    try:
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():
                if key.endswith("rotary_emb.inv_freq") or (tied and key == "lm_head.weight"):
                    continue  # old checkpoints store what config.json says already
                _check_tensor(file, key, tensors.get_slice(key).get_shape(), needed)
                tensor = tensors.get_tensor(key)
                # on a processor only the products are of a half type (model/matmul.py)
                wide = tensor.dim() == 1 and device.type == "cpu" and dtype != torch.float64
                # copied, or one norm would keep the whole file in memory
                state[key] = tensor.to(device, torch.float32 if wide else dtype, copy=wide)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: damaged or incomplete ({error}): download it again") from None
    return state


def _check_tensor(file: Path, key: str, shape: list[int], needed: dict[str, torch.Size]) -> None:
    if key not in needed:
        raise InputError(f"{file}: the tensor {key} does not belong to this architecture")
    if tuple(shape) != tuple(needed[key]):
        raise InputError(
            f"{file}: {key} has shape {tuple(shape)}, config.json makes it {tuple(needed[key])}"
        )


def _stop_ids(folder: Path, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The trained end token first, then whatever else the checkpoint stops at."""
    stop: list[int | None] = [tokenizer.eos_id]
    for name in ("config.json", "generation_config.json"):
        file = folder / name
        found = read_json(file).get("eos_token_id") if file.exists() else None
        stop += found if isinstance(found, list) else [found]
    return tuple(dict.fromkeys(token for token in stop if token is not None))
