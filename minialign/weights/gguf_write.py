"""GGUF files, written tensor by tensor: a whole model, or low-rank factors for `--lora`.

Handed tensors under their Hugging Face names, whatever they were merged from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from minialign.errors import InputError
from minialign.weights.gguf import pairs_of_halves
from minialign.weights.gguf_header import require_gguf
from minialign.weights.gguf_names import (
    ROPE_FACTORS,
    Architecture,
    architecture_for,
    heads_in_pairs,
    tensor_name,
)
from minialign.weights.gguf_settings import (
    REALS,
    SCALING,
    SCALING_TYPE,
    SCALING_TYPES,
    SETTINGS,
    rope_factors,
)
from minialign.weights.gguf_tokenizer import END_KEYS, tokenizer_settings
from minialign.weights.tokenizer import Tokenizer

KINDS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "q8_0": "Q8_0"}
FILE_TYPES = {"F32": 0, "F16": 1, "Q8_0": 7, "BF16": 32}
BLOCK = 32  # Q8_0's; a matrix with other rows is kept in float16


def rounded(tensor: Tensor, dtype: str) -> Any:
    """The float32 array that a reader gets back of a tensor stored as `dtype`."""
    from gguf import dequantize

    array, kind = _stored(tensor.detach().float().cpu().numpy(), dtype)
    return dequantize(array, kind).reshape(tensor.shape).astype(np.float32, copy=False)


def write_gguf(
    file: Path,
    config: dict[str, Any],
    tokenizer: Tokenizer,
    stops: tuple[int, ...],
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, Tensor]],
    dtype: str,
    name: str,
) -> None:
    """A model: `config` is config.json's, and `shapes` names every tensor in the order they come.

    `stops` are the tokens that end a completion, the one that it was trained to end in first. Norms
    and other vectors stay float32. Raises InputError for a family or a tokenizer that GGUF has no
    name for.
    """
    row = architecture_for(config["model_type"])
    writer = _writer(file, row, name)
    _add_settings(writer, row, config, dtype)
    _add_tokenizer(writer, tokenizer, stops, config["vocab_size"])
    if isinstance(config.get("pad_token_id"), int):
        writer.add_pad_token_id(config["pad_token_id"])
    factors = _rope_factors(config)
    if factors is not None:
        writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.dtype, factors.nbytes)
    for ours, shape in shapes.items():
        empty, kind = _stored(np.zeros((1, *shape[1:]), np.float32), dtype)
        size = empty.nbytes * shape[0]
        full = (shape[0], *empty.shape[1:])
        writer.add_tensor_info(tensor_name(row, ours), full, empty.dtype, size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors)
    for ours, tensor in tensors:
        heads = heads_in_pairs(row, ours, config)
        array = tensor.detach().float().cpu().numpy()
        array = pairs_of_halves(array, heads) if heads else array
        array = array + 1 if row.centred_norms and ours.endswith("norm.weight") else array
        writer.write_tensor_data(_stored(array, dtype)[0])
    writer.close()


def write_gguf_factors(
    file: Path,
    config: dict[str, Any],
    factors: Iterable[tuple[str, Tensor, Tensor]],
    alpha: float,
    name: str,
) -> None:
    """Low-rank factors for llama.cpp's `--lora`: a weight's name, A (rank, in) and B (out, rank).

    It adds alpha / rank times B A.
    """
    row = architecture_for(config["model_type"])
    writer = _writer(file, row, name, kind="adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for ours, a, b in factors:
        heads, theirs = heads_in_pairs(row, ours, config), tensor_name(row, ours)
        right = b.detach().float().cpu().numpy()
        writer.add_tensor(f"{theirs}.lora_a", a.detach().float().cpu().numpy())
        writer.add_tensor(f"{theirs}.lora_b", pairs_of_halves(right, heads) if heads else right)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _writer(file: Path, row: Architecture, name: str, kind: str = "model") -> Any:
    writer = require_gguf(file).GGUFWriter(file, row.name)
    writer.add_type(kind)
    writer.add_name(name)
    return writer


def _stored(array: Any, dtype: str) -> tuple[Any, Any]:
    """The array as it lies in the file, and GGUF's word for how."""
    from gguf import GGMLQuantizationType, quantize

    kind = KINDS[dtype] if array.ndim > 1 else "F32"
    if kind == "Q8_0" and array.shape[-1] % BLOCK:
        kind = "F16"
    return quantize(array, GGMLQuantizationType[kind]), GGMLQuantizationType[kind]


def _add_settings(writer: Any, row: Architecture, config: dict[str, Any], dtype: str) -> None:
    for key, value in row.implied(config).items():
        if config.get(key) not in (None, value):
            raise InputError(
                f"config.json: {key} is not what llama.cpp takes it to be: use --to hf or peft"
            )
    for ours, theirs in SETTINGS.items():
        add = writer.add_float32 if ours in REALS else writer.add_uint32
        add(f"{row.name}.{theirs}", config[ours])
    for ours, theirs in row.settings.items():
        _add(writer, f"{row.name}.{theirs}", config[ours])
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") in SCALING_TYPES:
        writer.add_string(f"{row.name}.{SCALING_TYPE}", scaling["rope_type"])
        for key in SCALING_TYPES[scaling["rope_type"]]:
            add = writer.add_float32 if key == "factor" else writer.add_uint32
            add(f"{row.name}.{SCALING[key]}", scaling[key])
    writer.add_uint32(f"{row.name}.attention.value_length", config["head_dim"])
    writer.add_uint32(f"{row.name}.rope.dimension_count", config["head_dim"])
    writer.add_uint32(f"{row.name}.vocab_size", config["vocab_size"])
    writer.add_uint32("general.file_type", FILE_TYPES[KINDS[dtype]])
    writer.add_uint32("general.quantization_version", 2)


def _rope_factors(config: dict[str, Any]) -> Any:
    scaling = config.get("rope_scaling") or {}
    if scaling.get("rope_type") != "llama3":
        return None
    return rope_factors(scaling, config["rope_theta"], config["head_dim"])


def _add_tokenizer(writer: Any, tokenizer: Tokenizer, stops: tuple[int, ...], rows: int) -> None:
    settings = tokenizer_settings(tokenizer.backend, rows)
    settings["add_bos_token"] = tokenizer.add_bos
    for key, stop in zip(END_KEYS, stops, strict=False):
        settings[f"{key}_token_id"] = stop
    if tokenizer.bos_id is not None:
        settings["bos_token_id"] = tokenizer.bos_id
    for key, value in settings.items():
        _add(writer, f"tokenizer.ggml.{key}", value)
    if tokenizer.template is not None:
        writer.add_chat_template(tokenizer.template)


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
