"""A GGUF file as a model: its config.json, its tensors one by one, and its tokenizer.

The rest of the package knows one layout, Hugging Face's, so what a file says comes out under those
names. Two things must be put right on the way, or the model computes nonsense without complaint:

- For Llama, GGUF pairs neighbouring rows of q_proj and k_proj for the rotary embedding, the Hugging
  Face layout pairs row i with row i + head_dim / 2. The rows are put back here.
- Whatever has no place in the architecture (other RoPE scaling, experts, biases) is refused by its
  name, never dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from minialign.errors import InputError
from minialign.weights.gguf_header import Header, TensorInfo, read_header
from minialign.weights.gguf_names import (
    LONG_FACTORS,
    ROPE_FACTORS,
    Architecture,
    architecture_of,
    heads_in_pairs,
    hf_tensor_name,
    layer_names,
    parts_of,
)
from minialign.weights.gguf_settings import read_settings, rope_scaling
from minialign.weights.gguf_tokenizer import read_tokenizer, stop_ids


def gguf_config(file: Path) -> dict[str, Any]:
    """What config.json would hold.

    Raises InputError where the `gguf` package is missing, the file cannot be read, or it holds
    something that has no counterpart here.
    """
    header = read_header(file)
    if header.settings.get("split.count", 0) > 1:
        raise InputError(f"{file}: is one part of several; merge them with llama-gguf-split")
    row = architecture_of(header)
    config = read_settings(header, row)
    stops = stop_ids(header)
    factors = header.tensors.get(ROPE_FACTORS)
    if factors:
        config["rope_scaling"] = rope_scaling(_dequantized(header, factors), config, file)
    if row.longrope and LONG_FACTORS["short_factor"] in header.tensors:
        config["rope_scaling"] = {"type": "longrope", **_long_factors(header)}
    return {
        "architectures": [row.class_name],
        "model_type": row.model_types[0],
        **row.fixed,
        **config,
        "tie_word_embeddings": "output.weight" not in header.tensors,
        "bos_token_id": header.settings.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": stops[0] if len(stops) == 1 else stops,
        "pad_token_id": header.settings.get("tokenizer.ggml.padding_token_id"),
        "torch_dtype": "float32",
    }


def gguf_stop_ids(file: Path) -> list[int]:
    return stop_ids(read_header(file))


def _long_factors(header: Header) -> dict[str, list[float]]:
    found = {key: header.tensors.get(name) for key, name in LONG_FACTORS.items()}
    return {key: _dequantized(header, info).ravel().tolist() for key, info in found.items() if info}


def gguf_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """The tensors' shapes under their Hugging Face names.

    Raises InputError for a tensor without one, and where one is missing.
    """
    header = read_header(file)
    row = architecture_of(header)
    config = read_settings(header, row)
    shapes, layers = _shapes(header, row), config["num_hidden_layers"]
    wrong = sorted(layer_names(row, layers) ^ (shapes.keys() - {"lm_head.weight"}))
    if wrong:
        raise InputError(
            f"{file}: {len(wrong)} tensors are missing or surplus for {layers} layers, the first"
            f" is {wrong[0]}; download the file again"
        )
    split: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        parts = parts_of(name, config)
        if parts and shape[0] != sum(parts.values()):
            raise InputError(f"{file}: {name} has {shape[0]} rows, its settings make it other ones")
        split |= {part: (rows, *shape[1:]) for part, rows in parts.items()} or {name: shape}
    return split


def _shapes(header: Header, row: Architecture) -> dict[str, tuple[int, ...]]:
    return {name: info.shape for name, info in _renamed(header, row).items()}


def gguf_tensors(file: Path) -> Iterator[tuple[str, Any]]:
    """The tensors as float32 arrays under their Hugging Face names, one after the other.

    Where the file holds float32 the array is mapped, not copied.
    """
    header = read_header(file)
    row, config = architecture_of(header), gguf_config(file)
    for name, info in _renamed(header, row).items():
        heads = heads_in_pairs(row, name, config)
        if heads and (len(info.shape) != 2 or info.shape[0] != heads * config["head_dim"]):
            raise InputError(f"{file}: {info.name} is not made of {heads} heads; use another file")
        array = _dequantized(header, info)
        if row.centred_norms and name.endswith("norm.weight"):
            array = array - 1
        if parts := parts_of(name, config):
            places = np.cumsum(list(parts.values()))[:-1]
            yield from zip(parts, np.split(array, places), strict=True)
        else:
            yield name, halves_of_pairs(array, heads) if heads else array


def _renamed(header: Header, row: Architecture) -> dict[str, TensorInfo]:
    found: dict[str, TensorInfo] = {}
    for name, info in header.tensors.items():
        if name == ROPE_FACTORS or (row.longrope and name in LONG_FACTORS.values()):
            continue
        ours = hf_tensor_name(row, name)
        if ours is None:
            raise InputError(
                f"{header.file}: the tensor {name} has no place in a {row.name} model;"
                " use the model's Hugging Face checkpoint instead"
            )
        found[ours] = info
    return found


def _dequantized(header: Header, info: TensorInfo) -> Any:
    """float32, in the tensor's shape."""
    from gguf import dequantize

    # Copy-on-write: PyTorch wants arrays that could be written to.
    raw = np.memmap(header.file, np.uint8, "c", info.start, (info.stop - info.start,))
    if info.kind.name in ("F32", "F16"):
        layout = np.dtype("<f4" if info.kind.name == "F32" else "<f2")
        return np.asarray(raw.view(layout)).reshape(info.shape).astype(np.float32, copy=False)
    rows = np.asarray(raw).reshape(*info.shape[:-1], -1)
    return dequantize(rows, info.kind).reshape(info.shape)


def halves_of_pairs(array: Any, heads: int) -> Any:
    """Within each head, the rows 0 1 2 3 ... (pairs side by side) become 0 2 ... 1 3 ..."""
    rows, columns = array.shape
    pairs = array.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(rows, columns))


def pairs_of_halves(array: Any, heads: int) -> Any:
    """The inverse of `halves_of_pairs`."""
    rows, columns = array.shape
    halves = array.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def convert_gguf(file: Path, folder: Path) -> None:
    """Writes a checkpoint (config.json, model.safetensors, tokenizer files) to `folder`.

    Weights become float32. config.json is written last: no reader takes a folder without it for a
    checkpoint. Raises InputError as `gguf_config` does, before anything is written.
    """
    from minialign.weights.write import write_json, write_safetensors

    config, shapes = gguf_config(file), gguf_shapes(file)
    backend, tokenizer_config = read_tokenizer(read_header(file))
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", shapes, "float32", gguf_tensors(file))
    backend.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", tokenizer_config)
    write_json(folder / "config.json", config)
