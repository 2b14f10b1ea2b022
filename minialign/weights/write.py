"""Checkpoints to disk, tensor by tensor: safetensors of the Hugging Face layout, and GGUF.

Handed tensors, whatever they were merged from.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minialign.weights.devices import DTYPES
from minialign.weights.gguf_header import read_header
from minialign.weights.gguf_tokenizer import read_tokenizer

# Of a checkpoint, what is copied as it is; and all that a written one consists of.
COPIED = (
    *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"),
    *(
        "special_tokens_map.json",
        "added_tokens.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
    ),
)
CHECKPOINT_FILES = ("config.json", "model.safetensors", *COPIED)
SAFETENSORS_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def write_json(file: Path, value: dict[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def write_checkpoint(
    folder: Path,
    source: Path,
    config: dict[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, Tensor]],
    dtype: str,
) -> None:
    """A checkpoint in an empty folder, with the tokenizer of `source`, a folder or a GGUF file."""
    if source.is_file():
        backend, tokenizer_config = read_tokenizer(read_header(source))
        backend.save(str(folder / "tokenizer.json"))
        write_json(folder / "tokenizer_config.json", tokenizer_config)
    else:
        for name in COPIED:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
    write_safetensors(folder / "model.safetensors", shapes, dtype, tensors)
    kinds = [key for key in ("torch_dtype", "dtype") if key in config] or ["dtype"]
    write_json(folder / "config.json", {**config, **dict.fromkeys(kinds, dtype)})


def write_safetensors(
    file: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: str,
    tensors: Iterable[tuple[str, Any]],
) -> None:
    """Writes tensors (or arrays) as they come, all in one type: never two in memory.

    `shapes` names every one of them beforehand, because the file begins with where each lies.
    """
    kind, width = SAFETENSORS_NAMES[dtype], DTYPES[dtype].itemsize
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place, places = 0, {}
    for name, shape in shapes.items():
        stop = place + math.prod(shape) * width
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [place, stop]}
        places[name], place = place, stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors:
            cast = torch.as_tensor(tensor).detach().cpu().to(DTYPES[dtype]).contiguous()
            out.seek(8 + len(text) + places.pop(name))
            out.write(_bytes(cast))
    if places:
        raise ValueError(f"{file}: {sorted(places)[0]} was never written")


def _bytes(tensor: Tensor) -> Any:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
