"""Rotary positions: the angle per position of each pair of channels."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minialign.model.config import ModelConfig


def rope_frequencies(config: ModelConfig, device: torch.device) -> Tensor:
    """The angle per position of each pair of channels, (Hd/2,): theta^(-2i/Hd).

    Llama 3.1 divides slow frequencies (wavelength above original/low_freq_factor) by `factor`,
    leaves fast ones (wavelength below original/high_freq_factor) alone, and blends in between.
    """
    exponents = (
        torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=device) / config.head_dim
    )
    frequencies = config.rope_theta**-exponents
    if config.rope_scaling is None:
        return frequencies
    scaling = config.rope_scaling
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    fast = ((turns - low) / (high - low)).clamp(0, 1)
    return fast * frequencies + (1 - fast) * frequencies / scaling["factor"]
