"""The header of a GGUF file: its settings, and where its tensors lie. Trusts no number in it.

Read by hand although the `gguf` package has a reader: that one believes every count (a file of a
hundred bytes can make it fill the memory) and makes three arrays a token. Here each count is held
against the bytes that are left before anything is made.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from minialign.errors import InputError

MAGIC, VERSIONS = b"GGUF", (2, 3)
STRING, ARRAY = 8, 9
# GGUF's codes of plain values, as struct and NumPy write them.
PLAIN = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
MAX_DIMENSIONS = 4
# What the tensors may be stored as. Whatever else there is, is refused by its name.
KINDS = (
    *("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"),
)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: its bytes in the file, and its shape as PyTorch has it, GGUF's reversed."""

    name: str
    shape: tuple[int, ...]
    kind: Any  # gguf.GGMLQuantizationType
    start: int
    stop: int


@dataclass(frozen=True)
class Header:
    """All settings by their names, and the tensors in the file's order."""

    file: Path
    settings: dict[str, Any]
    tensors: dict[str, TensorInfo]


def read_header(file: Path) -> Header:
    """Raises InputError, one line, for what is not a whole GGUF file of version 2 or 3."""
    require_gguf(file)
    try:
        state = file.stat()
    except OSError:
        raise InputError(f"{file}: no such file; give the path of a .gguf file") from None
    return _read_header(file, state.st_size, state.st_mtime_ns)


# Configuration, tokenizer and tensors ask one after the other.
@lru_cache(maxsize=1)
def _read_header(file: Path, size: int, _changed: int) -> Header:
    try:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as m:
            return _parse(_Reader(m, size), file)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file}: not a readable GGUF file, perhaps cut short ({error}); download it again"
        ) from None


def require_gguf(file: Path) -> Any:
    """The `gguf` package. Raises InputError where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise InputError(
            f'{file}: GGUF needs the gguf package: pip install "minialign[gguf]"'
        ) from None
    return gguf


class _Reader:
    """Takes values off a file one after the other. Raises ValueError at its end."""

    def __init__(self, data: mmap.mmap, size: int) -> None:
        self.data, self.size, self.place = data, size, 0

    def take(self, count: int) -> int:
        """Moves on by `count` bytes; returns where they begin."""
        start = self.place
        if count > self.size - start:
            raise ValueError(f"{count} bytes are asked for at byte {start} of {self.size}")
        self.place += count
        return start

    def number(self, code: str) -> Any:
        layout = struct.Struct("<" + code)
        return layout.unpack_from(self.data, self.take(layout.size))[0]

    def string(self) -> str:
        length = self.number("Q")
        start = self.take(length)
        return self.data[start : start + length].decode("utf-8")

    def value(self) -> Any:
        kind = self.number("I")
        if kind == ARRAY:
            return self._array()
        return self.string() if kind == STRING else self.number(_plain(kind))

    def _array(self) -> Any:
        kind, count = self.number("I"), self.number("Q")
        if kind == STRING:
            if count > (self.size - self.place) // 8:
                raise ValueError(f"an array of {count} strings does not fit")
            return [self.string() for _ in range(count)]
        layout = np.dtype("<" + _plain(kind).replace("Q", "u8").replace("q", "i8"))
        start = self.take(count * layout.itemsize)
        return np.frombuffer(self.data[start : self.place], layout)


def _plain(kind: int) -> str:
    if kind not in PLAIN:
        raise ValueError(f"{kind} is no kind of value")
    return PLAIN[kind]


def _parse(reader: _Reader, file: Path) -> Header:
    if reader.data[reader.take(4) : 4] != MAGIC:
        raise ValueError("it does not begin with GGUF")
    if (version := reader.number("I")) not in VERSIONS:
        raise ValueError(f"version {version} is not known, only 2 and 3")
    tensors, count = reader.number("Q"), reader.number("Q")
    settings: dict[str, Any] = {}
    for _ in range(count):
        name = reader.string()
        if name in settings:
            raise ValueError(f"the setting {name!r} is there twice")
        settings[name] = reader.value()
    infos = [_tensor(reader) for _ in range(tensors)]
    alignment = settings.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 1 <= alignment <= 2**20:
        raise ValueError(f"general.alignment is {alignment!r}")
    begin = math.ceil(reader.place / alignment) * alignment
    return Header(file, settings, _placed(infos, begin, reader.size, alignment))


def _tensor(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, kind and offset."""
    name, dimensions = reader.string(), reader.number("I")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise ValueError(f"the tensor {name!r} has {dimensions} dimensions")
    shape = tuple(reader.number("Q") for _ in range(dimensions))
    return name, shape[::-1], reader.number("I"), reader.number("Q")


def _placed(
    infos: list[tuple[str, tuple[int, ...], int, int]], begin: int, size: int, alignment: int
) -> dict[str, TensorInfo]:
    """The tensors with their bytes, none of which lies outside the file or in two of them."""
    placed: dict[str, TensorInfo] = {}
    taken = begin
    for name, shape, code, offset in sorted(infos, key=lambda info: info[3]):
        kind, count = _stored(name, shape, code)
        start = begin + offset
        if start % alignment or start < taken or start + count > size:
            raise ValueError(f"the tensor {name!r} lies outside the file, or in another's place")
        if name in placed:
            raise ValueError(f"the tensor {name!r} is there twice")
        taken = start + count
        placed[name] = TensorInfo(name, shape, kind, start, taken)
    return placed


def _stored(name: str, shape: tuple[int, ...], code: int) -> tuple[Any, int]:
    """What a tensor is stored as, and its bytes."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    known = {kind.value: kind for kind in GGMLQuantizationType}
    if code not in known or known[code].name not in KINDS:
        kind = known[code].name if code in known else f"kind {code}"
        raise InputError(
            f"the tensor {name!r} is stored as {kind}; only {', '.join(KINDS)} are read"
        )
    block, block_bytes = GGML_QUANT_SIZES[known[code]]
    if 0 in shape or shape[-1] % block:
        raise ValueError(f"the tensor {name!r} of shape {shape} is not made of blocks of {block}")
    return known[code], math.prod(shape) // block * block_bytes
