"""Writes a checkpoint as GGUF: llama.cpp runs the same weights."""

from __future__ import annotations

from pathlib import Path

from minialign.policy.merge import base_parameters
from minialign.weights.gguf_settings import plain_rope
from minialign.weights.gguf_write import write_gguf
from minialign.weights.load import load, read_config


def export(folder: Path, target: Path, bits: int) -> None:
    model, tokenizer = load(str(folder), dtype="float32", device="cpu")
    raw = read_config(folder)
    config = {**raw, "head_dim": model.config.head_dim, **plain_rope(raw)}
    tensors = dict(base_parameters(model))
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    dtype = {8: "q8_0", 16: "float16", 32: "float32"}[bits]
    stops = model.stop_ids
    write_gguf(target, config, tokenizer, stops, shapes, iter(tensors.items()), dtype, folder.name)
