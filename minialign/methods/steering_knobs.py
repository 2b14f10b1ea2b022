"""The knobs of steering by a vector."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from minialign.data.knobs import knob, knobs, require
from minialign.policy.knobs import LoRAConfig, SamplingConfig


@dataclass(frozen=True)
class StyleVectorConfig:
    """StyleVector (Zhang et al. 2025, arXiv 2503.05213)."""

    sampling: SamplingConfig = knobs(
        SamplingConfig(max_new_tokens=0), "", subject="how answers are drawn"
    )
    samples_per_prompt: int = knob(
        4, "the base model's answers to each prompt", subject="how it steers"
    )
    strength: float = knob(1.0, "times the vector that is added; below 0 it leads away")
    depth: float = knob(0.5, "of the layer behind which it is added: 0 the first, 1 the last one")
    max_length: int = knob(512, "tokens at most; longer demonstrations are cut")

    def __post_init__(self) -> None:
        require(
            self.samples_per_prompt >= 1,
            f"samples_per_prompt must be at least 1, not {self.samples_per_prompt}",
        )
        require(0 <= self.depth <= 1, f"depth must lie in [0, 1], not {self.depth}")
        require(self.max_length >= 16, f"max_length must be at least 16, not {self.max_length}")

    @property
    def lora(self) -> LoRAConfig:
        """A vector is an adapter of rank one."""
        return LoRAConfig(rank=1, alpha=1.0, dropout=0.0, target_modules=("down_proj",))

    @property
    def unread(self) -> dict[str, str]:
        return {}

    def fitted(self, longest: int) -> StyleVectorConfig:
        """As DITTO's: max_new_tokens = 0 stands for what the texts need."""
        return dataclasses.replace(self, sampling=self.sampling.fitted(longest))


STEERING_RECIPES = {"paper": StyleVectorConfig(), "laptop": StyleVectorConfig()}
