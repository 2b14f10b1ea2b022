"""GGUF files byte by byte, so that anything in them can be wrong."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN, FEED_FORWARD, LAYERS, HEADS, VOCABULARY = 32, 32, 1, 4, 8
TOKENS = ["<s>", "</s>", "a", "b", "ab", "Ġ", "c", "d"]
SETTINGS: dict[str, Any] = {
    "general.architecture": "llama",
    "llama.embedding_length": HIDDEN,
    "llama.feed_forward_length": FEED_FORWARD,
    "llama.block_count": LAYERS,
    "llama.attention.head_count": HEADS,
    "llama.context_length": 64,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 3, 1, 1, 1, 1, 1, 1],
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
}
SHAPES: dict[str, tuple[int, ...]] = {
    "token_embd.weight": (VOCABULARY, HIDDEN),
    "output_norm.weight": (HIDDEN,),
    "blk.0.attn_norm.weight": (HIDDEN,),
    "blk.0.ffn_norm.weight": (HIDDEN,),
    **{f"blk.0.attn_{kind}.weight": (HIDDEN, HIDDEN) for kind in ("q", "k", "v", "output")},
    **{f"blk.0.ffn_{kind}.weight": (HIDDEN, HIDDEN) for kind in ("gate", "up", "down")},
}


@dataclass
class Tensor:
    shape: tuple[int, ...]
    code: int = 0  # F32
    data: bytes | None = None  # by default random float32
    offset: int | None = None  # by default where it lies


@dataclass
class GgufBytes:
    """A whole, small file; `settings`, `tensors` and the rest may be changed before `write`."""

    settings: dict[str, Any] = field(default_factory=lambda: dict(SETTINGS))
    tensors: dict[str, Tensor] = field(
        default_factory=lambda: {name: Tensor(shape) for name, shape in SHAPES.items()}
    )
    magic: bytes = b"GGUF"
    version: int = 3
    tensor_count: int | None = None
    setting_count: int | None = None

    def bytes(self) -> bytes:
        counts = (
            len(self.tensors) if self.tensor_count is None else self.tensor_count,
            len(self.settings) if self.setting_count is None else self.setting_count,
        )
        head = self.magic + struct.pack("<IQQ", self.version, *counts)
        for key, value in self.settings.items():
            head += string(key) + typed(value)
        data = b""
        for name, tensor in self.tensors.items():
            offset = len(data) if tensor.offset is None else tensor.offset
            shape = tensor.shape[::-1]
            head += string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
            head += struct.pack("<IQ", tensor.code, offset)
            raw = random_floats(tensor.shape) if tensor.data is None else tensor.data
            data += raw + b"\0" * (-len(raw) % 32)
        return head + b"\0" * (-len(head) % 32) + data

    def write(self, file: Path) -> Path:
        file.write_bytes(self.bytes())
        return file


def random_floats(shape: tuple[int, ...]) -> bytes:
    return np.random.default_rng(0).normal(size=shape).astype("<f4").tobytes()


def string(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def typed(value: Any) -> bytes:
    """A value with its kind; bytes stand for themselves."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool):
        return struct.pack("<IB", 7, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + string(value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    items = [typed(item) for item in value]
    return (
        struct.pack("<I", 9)
        + items[0][:4]
        + struct.pack("<Q", len(items))
        + b"".join(item[4:] for item in items)
    )
