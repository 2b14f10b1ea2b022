"""The part of a checkpoint's config.json that decides the computation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minialign.errors import InputError

ROPE_TYPES = ("default", "llama3")
LLAMA3_FIELDS = (
    "factor",
    "low_freq_factor",
    "high_freq_factor",
    "original_max_position_embeddings",
)


@dataclass(frozen=True)
class ModelConfig:
    """The part of a checkpoint's config.json that decides the computation, under its own names."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10_000.0
    rope_scaling: dict[str, Any] | None = None  # Llama 3's, or None
    max_position_embeddings: int = 2048
    sliding_window: int | None = None
    tie_word_embeddings: bool = False

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> ModelConfig:
        """Reads a config.json of model_type `llama` or `mistral`.

        Raises InputError, naming the field, for everything that this file does not compute.
        """
        if raw.get("model_type") not in ("llama", "mistral"):
            raise InputError(
                f"config.json: model_type {raw.get('model_type')!r} is not llama or mistral"
            )
        for key, supported in (
            ("hidden_act", "silu"),
            ("attention_bias", False),
            ("mlp_bias", False),
        ):
            if raw.get(key, supported) not in (supported, None):
                raise InputError(
                    f"config.json: {key} = {raw[key]!r} is not supported (only {supported!r})"
                )
        rope = dict(
            raw.get("rope_parameters") or raw.get("rope_scaling") or {}
        )  # the newer name first
        theta = rope.pop("rope_theta", None) or raw.get("rope_theta") or 10_000.0
        rope_type = rope.get("rope_type", rope.get("type", "default"))
        if rope_type not in ROPE_TYPES:
            raise InputError(
                f"config.json: rope type {rope_type!r} is not supported ({', '.join(ROPE_TYPES)})"
            )
        for key in LLAMA3_FIELDS if rope_type == "llama3" else ():
            if key not in rope:
                raise InputError(f"config.json: the rope settings of llama3 lack {key}")
        try:
            heads = raw["num_attention_heads"]
            return cls(
                vocab_size=raw["vocab_size"],
                hidden_size=raw["hidden_size"],
                intermediate_size=raw["intermediate_size"],
                num_hidden_layers=raw["num_hidden_layers"],
                num_attention_heads=heads,
                num_key_value_heads=raw.get("num_key_value_heads") or heads,
                head_dim=raw.get("head_dim") or raw["hidden_size"] // heads,
                rms_norm_eps=raw.get("rms_norm_eps", 1e-6),
                rope_theta=float(theta),
                rope_scaling=rope if rope_type == "llama3" else None,
                max_position_embeddings=raw.get("max_position_embeddings", 2048),
                sliding_window=raw.get("sliding_window")
                if raw["model_type"] == "mistral"
                else None,
                tie_word_embeddings=raw.get("tie_word_embeddings", False),
            )
        except KeyError as error:
            raise InputError(f"config.json: {error.args[0]} is missing") from None
