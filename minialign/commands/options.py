"""The flags of sample.py."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minialign.data.knobs import knob, require
from minialign.policy.knobs import SamplingConfig


@dataclass(frozen=True)
class SampleOptions:
    """sample.py's flags."""

    prompt: str = knob("", "what to answer")
    prompts: str = knob("", "or a file of prompts, JSON Lines of {prompt} or {messages}")
    chat: bool = knob(
        False, "or a conversation in the terminal; /adapter off and /adapter on compare"
    )
    adapter: tuple[str, ...] = knob(
        (),
        "a run folder, or an adapter folder in PEFT's format; several (again --adapter) are added "
        "up, FOLDER=0.5 by half",
    )
    n: int = knob(1, "answers a prompt")
    out: str = knob("", "write the answers to --prompts into this file, a line each")
    max_new_tokens: int = knob(400, "tokens an answer at most")
    temperature: float = knob(0.7, "0 takes the likeliest token; 1 is the model as it is")
    top_p: float = knob(1.0, "keep the likeliest tokens that hold this share of the probability")
    top_k: int = knob(0, "keep this many of the likeliest tokens; 0: all")
    seed: int = knob(0, "the same seed gives the same answers")
    model: str = knob(
        "", "alias, hub id or folder; by default the one that the adapter was trained on"
    )
    revision: str = knob("", "the hub's branch, tag or commit")
    device: str = knob("auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob("auto", "of the base model")
    overwrite: bool = knob(False, "replace the file --out")

    def __post_init__(self) -> None:
        require(self.n >= 1, f"n must be at least 1, not {self.n}")
        require(
            self.max_new_tokens >= 1,
            f"max_new_tokens must be at least 1, not {self.max_new_tokens}",
        )
        require(0 <= self.seed < 2**63, f"seed must lie in [0, 2^63), not {self.seed}")
        SamplingConfig(
            self.max_new_tokens, self.temperature, self.top_p, self.top_k
        )  # checks the rest
