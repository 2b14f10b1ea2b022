"""Rotary positions: by which angle each pair of a head's channels turns."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from minialign.model.config import Rope


class Turn(NamedTuple):
    """What turns the tokens of a forward pass; R is the number of channels that turn."""

    cos: Tensor  # (N, 1, R), both halves alike
    sin: Tensor
    growth: Tensor | None  # (N, 1, 1): what queries are multiplied by


def turn_of(rope: Rope | None, head_dim: int, positions: Tensor, dtype: torch.dtype) -> Turn | None:
    """Positions (N,) -> cosines and sines in `dtype`; None for layers that know no positions."""
    if rope is None:
        return None
    angles = positions[:, None].float() * rope_frequencies(rope, head_dim, positions.device)
    cos, sin = angles.cos().repeat(1, 2)[:, None], angles.sin().repeat(1, 2)[:, None]
    if rope.attention_factor != 1:
        cos, sin = cos * rope.attention_factor, sin * rope.attention_factor
    return Turn(cos.to(dtype), sin.to(dtype), _growth(rope, positions, dtype))


def rope_frequencies(rope: Rope, head_dim: int, device: torch.device) -> Tensor:
    """The angle per position of each pair of channels, (R/2,): theta^(-2i/R), then scaled.

    linear: all slower by `factor` (arXiv 2306.15595).
    llama3: slow frequencies (wavelength above original / low) are divided by `factor`, fast ones
        (wavelength below original / high) are left alone, those in between are blended.
    yarn: the same by the number of the channel (arXiv 2309.00071).
    longrope: each pair has a factor of its own (arXiv 2402.13753).
    """
    rotated = int(head_dim * rope.rotated)
    exponents = torch.arange(0, rotated, 2, dtype=torch.float32, device=device) / rotated
    frequencies = rope.theta**-exponents
    if rope.kind == "linear":
        return frequencies / rope.factor
    if rope.kind == "longrope":
        return frequencies / torch.tensor(rope.short_factors, device=device)
    if rope.kind == "llama3":
        turns = rope.original * frequencies / (2 * math.pi)
        fast = ((turns - rope.low) / (rope.high - rope.low)).clamp(0, 1)
    elif rope.kind == "yarn":
        low, high = _yarn_bounds(rope, rotated)
        pairs = torch.arange(rotated // 2, dtype=torch.float32, device=device)
        fast = 1 - ((pairs - low) / (high - low)).clamp(0, 1)
    else:
        return frequencies
    return fast * frequencies + (1 - fast) * frequencies / rope.factor


def _yarn_bounds(rope: Rope, rotated: int) -> tuple[float, float]:
    """The pairs of channels that turn `high` and `low` times in the original context."""
    low, high = (
        rotated * math.log(rope.original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))
        for turns in (rope.high, rope.low)
    )
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rotated - 1)
    return low, high + 0.001 * (low == high)


def _growth(rope: Rope, positions: Tensor, dtype: torch.dtype) -> Tensor | None:
    """1 + growth ln(1 + floor(position / original)), as Llama 4 has it."""
    if not rope.growth:
        return None
    grown = 1 + rope.growth * torch.log(1 + torch.floor(positions / rope.original))
    return grown.to(dtype)[:, None, None]
