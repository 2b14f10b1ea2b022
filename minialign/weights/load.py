"""Checkpoints into models: Hugging Face safetensors, read directly, memory-mapped, with strict
keys.

A model is built on the meta device, where it weighs nothing, and the checkpoint's tensors are put
into it as they are: a folder of any size loads in the time it takes to touch its pages. What is
held in 8 or 4 bits is made so one tensor after the other. Every mismatch is one line that names the
tensor.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minialign.data.files import read_json
from minialign.data.general import general_prompts
from minialign.errors import InputError
from minialign.model.config import ModelConfig
from minialign.model.matmul import Held
from minialign.model.transformer import CausalLM
from minialign.weights.devices import pick_device, pick_dtype
from minialign.weights.find import find_checkpoint, lasting_name
from minialign.weights.folder import weight_files
from minialign.weights.gguf import gguf_config, gguf_shapes, gguf_stop_ids, gguf_tensors
from minialign.weights.holding import Holding, pick_base_dtype, put
from minialign.weights.tokenizer import Tokenizer

# Tensors that some families store as one: their parts, one below the other.
FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}
STORED_TYPES = ("F64", "F32", "F16", "BF16")


def load(
    name: str,
    *,
    revision: str | None = None,
    dtype: str | torch.dtype = "auto",
    base_dtype: str = "auto",
    device: str = "auto",
) -> tuple[CausalLM, Tokenizer]:
    """A model and its tokenizer, by alias, hub id, folder, GGUF file or ollama:NAME.

    dtype: "float32", "bfloat16", "float16", or "auto" (bfloat16 where the device is fast at it,
    float32 elsewhere). base_dtype: how the weights are held, "model" (in dtype), "int8", "nf4", or
    "auto" (the first of these that fits into the memory). Raises InputError, one line, for whatever
    is wrong with the name or the checkpoint.
    """
    target = pick_device(device)
    folder = find_checkpoint(name, revision)
    tokenizer = Tokenizer.from_folder(folder)
    config = read_model_config(folder)
    computed = pick_dtype(dtype, target, config.hidden_size)
    held = pick_base_dtype(base_dtype, config, computed, target)
    model = load_for(name, folder, tokenizer, computed, target, held)
    model.revision = revision
    return model, tokenizer


def load_for(
    name: str,
    folder: Path,
    tokenizer: Tokenizer,
    dtype: torch.dtype,
    device: torch.device,
    base_dtype: str = "model",
) -> CausalLM:
    """The model of a folder, knowing its name and where its completions stop.

    Raises InputError where the tokenizer has words that the model does not know.
    """
    vocab_size = read_model_config(folder).vocab_size
    stop_ids = _stop_ids(folder, tokenizer, vocab_size)
    tokenizer.fit(vocab_size)
    model = load_model(folder, dtype, device, base_dtype)
    model.name, model.stop_ids = lasting_name(name, folder), stop_ids
    model.ordinary_ids = tuple(tokenizer.encode_prompt(" ".join(general_prompts(12, 0)))[:128])
    return model


def load_model(
    folder: str | Path, dtype: torch.dtype, device: torch.device, base_dtype: str = "model"
) -> CausalLM:
    """The model of an HF-layout folder (safetensors in one file or in shards), or a GGUF file.

    Raises InputError for an unsupported architecture, a missing or extra tensor, one of another
    shape or type, a number that is not finite, a damaged file.
    """
    folder = Path(folder)
    config = read_model_config(folder)
    holding = Holding(dtype, device, base_dtype)
    with torch.device("meta"):
        model = CausalLM(config)
    needed = {
        key: parameter.shape for key, parameter in model.named_parameters()
    }  # a tied head is not among them
    state = _read_gguf(folder, needed, holding) if folder.is_file() else {}
    for file in _tensor_files(folder):
        state.update(_read_tensors(file, needed, config, holding))
    missing = sorted(needed.keys() - state.keys())
    if missing:
        raise InputError(f"{folder}: the tensor {missing[0]} is missing ({len(missing)} in all)")
    put(model, state)
    return model.requires_grad_(False).eval()


def read_model_config(folder: Path) -> ModelConfig:
    raw = read_config(folder)
    try:
        return ModelConfig.from_dict(raw)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from None


def read_config(folder: Path) -> dict[str, Any]:
    if folder.is_file():
        return gguf_config(folder)
    if not (folder / "config.json").exists():
        raise InputError(f"{folder}: not a model folder (config.json is missing)")
    return read_json(folder / "config.json")


def stored_dtype(folder: Path) -> str:
    """The type that holds all of a checkpoint's weights; of a GGUF file's, float32."""
    if folder.is_file():
        return "float32"
    kinds = set()
    for file in _tensor_files(folder):
        with safe_open(file, framework="pt") as tensors:
            kinds |= {tensors.get_slice(key).get_dtype() for key in tensors.keys()}
    half = {"F16": "float16", "BF16": "bfloat16"}
    return half.get(kinds.pop(), "float32") if len(kinds) == 1 else "float32"


def _tensor_files(folder: Path) -> list[Path]:
    if folder.is_file():
        return []  # a GGUF file
    files = [folder / name for name in weight_files(folder)]
    for file in files:
        if not file.exists():
            raise InputError(
                f"{file}: no such file: the checkpoint is incomplete, download it again"
            )
    return files


def _read_tensors(
    file: Path, needed: dict[str, torch.Size], config: ModelConfig, holding: Holding
) -> dict[str, Held]:
    state: dict[str, Held] = {}
    try:
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():
                tied = config.tie_word_embeddings and key == "lm_head.weight"
                if tied or key.endswith("rotary_emb.inv_freq"):
                    continue  # old checkpoints store what config.json says already
                parts = parts_of(key) if config.family.fused else [key]
                stored = tensors.get_slice(key)
                _check_tensor(file, key, stored, [needed.get(part) for part in parts])
                tensor = holding.as_floats(tensors.get_tensor(key))
                _check_numbers(file, key, tensor)
                pieces = tensor.split([needed[part][0] for part in parts])
                for part, piece in zip(parts, pieces, strict=True):
                    state[part] = holding.stored(part, piece)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: damaged or incomplete ({error}): download it again") from None
    return state


def _read_gguf(file: Path, needed: dict[str, torch.Size], holding: Holding) -> dict[str, Held]:
    """All shapes are checked before the first tensor is read."""
    for name, shape in gguf_shapes(file).items():
        if shape != needed.get(name):
            wanted = tuple(needed[name]) if name in needed else "no such tensor"
            raise InputError(f"{file}: {name} has shape {shape}, its settings make it {wanted}")
    return {
        name: holding.stored(name, holding.as_floats(torch.from_numpy(array)))
        for name, array in gguf_tensors(file)
    }


def parts_of(key: str) -> list[str]:
    """The tensors that a fused one holds, one below the other; of any other key, itself."""
    for fused, parts in FUSED.items():
        if f".{fused}." in key:
            return [key.replace(fused, part) for part in parts]
    return [key]


def whole_of(key: str) -> str:
    """The fused tensor that a part belongs to; of any other key, itself."""
    for fused, parts in FUSED.items():
        for part in parts:
            if f".{part}." in key:
                return key.replace(part, fused)
    return key


def joined_shapes(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """What a fused family stores, of shapes under the names that they have here."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        whole = whole_of(name)
        found[whole] = (found.get(whole, (0,))[0] + shape[0], *shape[1:])
    return found


def joined(tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """What a fused family stores; a whole's parts come one after the other."""
    for whole, parts in itertools.groupby(tensors, key=lambda item: whole_of(item[0])):
        yield whole, torch.cat([tensor for _, tensor in parts])


def _check_tensor(file: Path, key: str, stored: Any, shapes: list[torch.Size | None]) -> None:
    """Raises InputError unless it has the shape of those that it holds together."""
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(shapes):
        raise InputError(f"{file}: the tensor {key} does not belong to this architecture")
    whole = (sum(shape[0] for shape in known), *known[0][1:])
    if tuple(stored.get_shape()) != whole:
        raise InputError(
            f"{file}: {key} has shape {tuple(stored.get_shape())}, config.json makes it {whole}"
        )
    if stored.get_dtype() not in STORED_TYPES:
        raise InputError(
            f"{file}: {key} is stored as {stored.get_dtype()}, not as one of"
            f" {', '.join(STORED_TYPES)}: use the checkpoint in one of these"
        )


def _check_numbers(file: Path, key: str, tensor: Tensor) -> None:
    """Raises InputError for NaN or infinity; a tensor without memory (meta) has no numbers."""
    if tensor.is_meta or not tensor.numel():
        return
    if not all(bound.isfinite() for bound in tensor.aminmax()):
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise InputError(
            f"{file}: {key} holds numbers that are not finite in {dtype}:"
            " download it again, or use another --dtype"
        )


def _stop_ids(folder: Path, tokenizer: Tokenizer, vocab_size: int) -> tuple[int, ...]:
    """The trained end token first, then whatever else the checkpoint stops at.

    Raises InputError for one that is no id of the model's.
    """
    named: list[tuple[Any, Path]] = []
    named += [(token, folder / "tokenizer.json") for token in tokenizer.stop_ids]
    if folder.is_file():
        named += [(token, folder) for token in gguf_stop_ids(folder)]
    for name in ("config.json", "generation_config.json"):
        file = folder / name
        found = read_json(file).get("eos_token_id") if file.exists() else None
        named += [(token, file) for token in (found if isinstance(found, list) else [found])]
    for token, file in named:
        is_id = isinstance(token, int) and not isinstance(token, bool) and 0 <= token < vocab_size
        if token is not None and not is_id:
            shown = repr(token)[:60]
            raise InputError(
                f"{file}: the end token {shown} is not one of the model's {vocab_size:,}"
            )
    return tuple(dict.fromkeys(token for token, _ in named if token is not None))
