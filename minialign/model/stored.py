"""Frozen weights in 8 or 4 bits. A product widens them to floats, block of rows by block of rows.

    int8   w ~ s i,           s = max |w| / 127 of a row
    nf4    w ~ c levels[i],   c = max |w| of 64 numbers of a row, i in 4 bits (arXiv 2305.14314)

NF4's 16 levels are quantiles of a normal distribution. Its constants c are stored in 8 bits too:
what they differ by from their mean, as floats with a scale for 256 of them. A number takes 4.13
bits in all.

Shape letters: O outputs, I inputs, R some of the rows, C constants a row.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from minialign.model.quantised import whole_rows

BLOCK = 2**22  # numbers that are floats at the same time
SIGNS = 64  # rows that name a matrix
GROUP, CONSTANTS = 64, 256  # numbers with a constant, constants with a scale
LARGEST = 448.0  # of an 8-bit float, E4M3
LEVELS = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


class Stored(ABC):
    """A frozen matrix (O, I), read like a tensor of type `dtype`: the one in which it multiplies.

    A float matrix of any type becomes one; neither it nor a copy of it is kept.
    """

    requires_grad = False

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.shape, self.dtype = weight.shape, dtype
        self.fingerprint = fingerprint_of(weight)
        self.rows = max(1, BLOCK // max(1, weight.shape[1]))
        parts = [self.narrowed(part.float()) for part in weight.split(self.rows)]
        codes, scales = map(torch.cat, zip(*parts, strict=True))
        self.codes: Tensor = codes
        self.keep(scales)

    @abstractmethod
    def narrowed(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and float32 scales (R, C) of some rows in float32."""

    @abstractmethod
    def keep(self, scales: Tensor) -> None:
        """Stores the scales of all rows, (O, C)."""

    @abstractmethod
    def scales(self) -> Tensor:
        """The scales of all rows as they multiply, (O, C) float32."""

    @abstractmethod
    def widened(self, codes: Tensor, scales: Tensor) -> Tensor:
        """Some rows in float32, (R, I)."""

    @property
    def device(self) -> torch.device:
        return self.codes.device

    @property
    def nbytes(self) -> int:
        return sum(held.nbytes for held in vars(self).values() if isinstance(held, Tensor))

    def numel(self) -> int:
        return self.shape.numel()

    def moved(self, device: torch.device) -> Stored:
        """Itself, on another device."""
        for name, held in list(vars(self).items()):
            if isinstance(held, Tensor):
                setattr(self, name, held.to(device))
        return self

    def __getitem__(self, ids: Tensor) -> Tensor:
        """The rows of these numbers, (.., I)."""
        rows = self.widened(self.codes[ids.flatten()], self.scales()[ids.flatten()])
        return rows.view(*ids.shape, -1).to(self.dtype)

    def blocks(self) -> Iterator[Tensor]:
        """All rows in turn, `rows` of them at a time."""
        pairs = zip(self.codes.split(self.rows), self.scales().split(self.rows), strict=True)
        for codes, scales in pairs:
            yield self.widened(codes, scales).to(self.dtype)

    def to(self, dtype: torch.dtype) -> Tensor:
        """All of it as floats: for a sampler that packs another copy, layer by layer."""
        return torch.cat([block.to(dtype) for block in self.blocks()])


class Int8(Stored):
    """Whole numbers from -127 to 127, and a scale for each row."""

    def narrowed(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return whole_rows(weight)

    def keep(self, scales: Tensor) -> None:
        self.scale = scales

    def scales(self) -> Tensor:
        return self.scale

    def widened(self, codes: Tensor, scales: Tensor) -> Tensor:
        return codes.float().mul_(scales)


class NF4(Stored):
    """Two numbers a byte, rows filled up with zeros to whole groups."""

    def narrowed(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        groups = F.pad(weight, (0, -weight.shape[1] % GROUP)).unflatten(1, (-1, GROUP))
        constants = groups.abs().amax(2)
        # a group of zeros has a scale too
        groups = groups / constants.clamp(min=torch.finfo(torch.float32).tiny)[..., None]
        levels = torch.tensor(LEVELS, device=weight.device)
        places = torch.bucketize(groups, (levels[1:] + levels[:-1]) / 2, out_int32=True).flatten(1)
        return (places[:, ::2] * 16 + places[:, 1::2]).to(torch.uint8), constants

    def keep(self, scales: Tensor) -> None:
        self.mean = scales.mean()
        off = (scales - self.mean).flatten()
        off = F.pad(off, (0, -off.numel() % CONSTANTS)).view(-1, CONSTANTS)
        largest = off.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        self.steps = largest / LARGEST
        # as bytes: not every device knows the type
        self.constants = (off / largest * LARGEST).to(torch.float8_e4m3fn).view(torch.uint8)

    def scales(self) -> Tensor:
        off = _eight_bit_floats(self.device)[self.constants.int()] * self.steps
        groups = 2 * self.codes.numel() // GROUP
        return (off + self.mean).flatten()[:groups].view(len(self.codes), -1)

    def widened(self, codes: Tensor, scales: Tensor) -> Tensor:
        pairs = _pairs_of_levels(codes.device).index_select(0, codes.flatten().int())
        groups = pairs.view(torch.float32).view(*scales.shape, GROUP).mul_(scales[..., None])
        return groups.flatten(1)[:, : self.shape[1]].contiguous()


STORED: dict[str, type[Stored]] = {"int8": Int8, "nf4": NF4}


@cache
def _eight_bit_floats(device: torch.device) -> Tensor:
    """What each byte means, (256,)."""
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().to(device)


@cache
def _pairs_of_levels(device: torch.device) -> Tensor:
    """The two numbers of each byte, (256,): as one of 64 bits, which is ten times as fast."""
    levels = torch.tensor(LEVELS, device=device)
    pairs = torch.stack((levels.repeat_interleave(16), levels.repeat(16)), dim=1)
    return pairs.view(torch.int64).flatten()


def fingerprint_of(weight: Tensor | Stored) -> str:
    """Names a matrix by the signs of its first rows: no rounding to another type changes those."""
    if isinstance(weight, Stored):
        return weight.fingerprint
    if weight.is_meta:
        return ""
    signs = weight[:SIGNS].detach().signbit().cpu()
    return hashlib.sha256(signs.numpy().tobytes()).hexdigest()[:16]
