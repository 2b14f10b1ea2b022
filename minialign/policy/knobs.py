"""Knobs of a policy: its adapters, and how it samples."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

from minialign.data.knobs import knob, require

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EVERY_LINEAR = (*ATTENTION, "gate_proj", "up_proj", "down_proj")

BaseDtype = Literal["auto", "model", "int8", "nf4"]
BASE_DTYPE_HELP = (
    "how the base model's weights are kept: as --dtype says (model), in 8 or in 4 bits, which are "
    "widened for every product; auto: the first of these that fits into the memory"
)


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters: y = W x + (alpha / rank) B A dropout(x) (Hu et al., arXiv 2106.09685)."""

    rank: int = knob(16, "rank of the adapters (DITTO paper 16, its code 32)")
    alpha: float = knob(32.0, "adapters are scaled by alpha / rank (DITTO paper 32, its code 64)")
    dropout: float = knob(
        0.05, "dropout before the adapters; DITTO's DPO always runs without (both codes .05)"
    )
    target_modules: tuple[str, ...] = knob(
        ATTENTION, "linear layers that get an adapter (DITTO code: q k v o)"
    )

    def __post_init__(self) -> None:
        require(self.rank >= 1, f"rank must be at least 1, not {self.rank}")
        require(0 <= self.dropout < 1, f"dropout must lie in [0, 1), not {self.dropout}")
        require(len(self.target_modules) > 0, "target_modules must name at least one linear layer")


@dataclass(frozen=True)
class SamplingConfig:
    """How completions are drawn: DITTO's from the policy as it is, temperature 1, no cut-off."""

    max_new_tokens: int = knob(
        1024, "tokens a completion at most; 0: 1.25 x the longest demonstration (DITTO code 1024)"
    )
    temperature: float = knob(1.0, "0 takes the likeliest token (DITTO 1.0)")
    top_p: float = knob(
        1.0, "keep the likeliest tokens that hold this share of the probability; 1: all"
    )
    top_k: int = knob(0, "keep this many of the likeliest tokens; 0: all")
    max_rows: int = knob(
        64,
        "completions written at the same time: memory depends on it, the result does not",
        subject="memory and speed",
    )
    cache_gb: float = knob(
        8.0, "keys and values held at most, in GB: where they are more, fewer rows are written"
    )
    rollout_dtype: Literal["auto", "model", "float32", "bfloat16", "int8"] = knob(
        "model",
        "in what completions are computed while they are written: the model's own type, another, "
        "or auto: int8 on a processor that is fastest at it; what is learned is scored in the "
        "model's own",
    )

    def fitted(self, longest: int) -> SamplingConfig:
        """max_new_tokens = 0 stands for `longest` tokens, with a quarter to spare."""
        new = self.max_new_tokens or longest + longest // 4
        return dataclasses.replace(self, max_new_tokens=new)

    def __post_init__(self) -> None:
        require(
            self.max_new_tokens >= 0,
            f"max_new_tokens must not be negative, not {self.max_new_tokens}",
        )
        require(self.temperature >= 0, f"temperature must not be negative, not {self.temperature}")
        require(0 < self.top_p <= 1, f"top_p must lie in (0, 1], not {self.top_p}")
        require(self.top_k >= 0, f"top_k must not be negative, not {self.top_k}")
        require(self.max_rows >= 1, f"max_rows must be at least 1, not {self.max_rows}")
        require(self.cache_gb > 0, f"cache_gb must be positive, not {self.cache_gb}")

    @property
    def narrows(self) -> bool:
        """Whether tokens are drawn from another distribution than the policy's."""
        return self.temperature != 1 or self.top_k > 0 or self.top_p < 1
