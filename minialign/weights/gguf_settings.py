"""What GGUF calls settings, and config.json from them.

On the left are always the names of the Hugging Face layout, on the right GGUF's.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minialign.errors import InputError
from minialign.weights.gguf_header import Header
from minialign.weights.gguf_names import ROPE_FACTORS, Architecture

# config.json's settings; GGUF's carry the architecture's name and a dot in front.
SETTINGS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
REALS = ("rms_norm_eps", "rope_theta")
# Settings that say nothing more, each with the setting whose value, or the value, it must have.
IMPLIED = {
    "attention.value_length": "head_dim",
    "rope.dimension_count": "head_dim",
    "vocab_size": "vocab_size",
    "expert_count": 0,
    "expert_used_count": 0,
}
# How positions are stretched, where settings say so and not the tensor ROPE_FACTORS.
SCALING_TYPE = "rope.scaling.type"
ORIGINAL = "original_max_position_embeddings"
SCALING = {"factor": "rope.scaling.factor", ORIGINAL: "rope.scaling.original_context_length"}
SCALING_TYPES = {"linear": ("factor",), "yarn": tuple(SCALING)}
# What longrope adds.
LONGROPE = ("rope.dimension_count", "attention.sliding_window", "rope.scaling.attn_factor")
LLAMA3 = {  # what every Llama 3.1, 3.2 and 3.3 has; GGUF keeps only what follows from it
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def read_settings(header: Header, row: Architecture) -> dict[str, Any]:
    """The part of config.json that decides the computation.

    Raises InputError for a setting that is missing, of another type, or not known.
    """
    own = {
        key.removeprefix(f"{row.name}."): value
        for key, value in header.settings.items()
        if key.startswith(f"{row.name}.")
    }
    where = f"{header.file}: {row.name}"
    config: dict[str, Any] = {
        "vocab_size": _embedding_rows(header),
        **{key: _number(own, key, where) for key in SETTINGS},
        **{key: _real(own, theirs, where) for key, theirs in row.settings.items()},
        "rope_scaling": _scaling(own, where),
    }
    _check_sizes(config, header)
    named = {*SETTINGS.values(), *row.settings.values(), SCALING_TYPE, *SCALING.values()}
    if row.longrope:
        config |= _longrope(own, config, where)
        named |= set(LONGROPE)
    for key in own.keys() - named:
        if key not in IMPLIED:
            raise InputError(f"{where}.{key} = {_shown(own[key])} is not known; use another file")
        wanted = config.get(str(IMPLIED[key]), IMPLIED[key])
        if own[key] != wanted:
            raise InputError(
                f"{where}.{key} is {_shown(own[key])}, and only {wanted} can be read; use the"
                " model's Hugging Face checkpoint instead"
            )
    return {**config, **row.implied(config)}


def _shown(value: Any) -> str:
    return repr(value)[:60]


def _embedding_rows(header: Header) -> int:
    info = header.tensors.get("token_embd.weight")
    if info is None or len(info.shape) != 2:
        raise InputError(
            f"{header.file}: the matrix token_embd.weight is missing; use another file"
        )
    return info.shape[0]


def _number(own: dict[str, Any], key: str, where: str) -> Any:
    """A positive number; the three that may be missing follow from others."""
    value = own.get(SETTINGS[key])
    if isinstance(value, np.ndarray) and len(set(value.tolist())) == 1:
        value = value.tolist()[0]  # one number a layer, all the same
    if value is None and key == "num_key_value_heads":
        return _number(own, "num_attention_heads", where)
    if value is None and key == "head_dim":
        heads = _number(own, "num_attention_heads", where)
        return max(1, _number(own, "hidden_size", where) // heads)
    if value is None and key == "rope_theta":
        return 10_000.0
    if value is None:
        raise InputError(f"{where}.{SETTINGS[key]} is missing; use another GGUF file")
    right = isinstance(value, float) if key in REALS else type(value) is int
    if not right or not math.isfinite(value) or not 0 < value < 2**31:
        raise InputError(f"{where}.{SETTINGS[key]} is {_shown(value)}; download the file again")
    return shortest(value) if key in REALS else value


def _real(own: dict[str, Any], key: str, where: str) -> Any:
    value: Any = own.get(key)
    if type(value) not in (int, float) or not math.isfinite(value) or not 0 < value < 2**31:
        raise InputError(f"{where}.{key} is {_shown(value)}, not a number; use another file")
    return shortest(value) if isinstance(value, float) else value


def _scaling(own: dict[str, Any], where: str) -> dict[str, Any] | None:
    kind: Any = own.get(SCALING_TYPE, "none")
    if kind == "none":
        return None
    if not isinstance(kind, str) or kind not in SCALING_TYPES:
        raise InputError(
            f"{where}.{SCALING_TYPE} {_shown(kind)} is not supported; use another file"
        )
    found = {key: _real(own, SCALING[key], where) for key in SCALING_TYPES[kind]}
    return {"rope_type": kind, **found}


def _longrope(own: dict[str, Any], config: dict[str, Any], where: str) -> dict[str, Any]:
    turned, window = own.get(LONGROPE[0], config["head_dim"]), own.get(LONGROPE[1], 0)
    if type(turned) is not int or not 0 < turned <= config["head_dim"] or type(window) is not int:
        raise InputError(f"{where}.{LONGROPE[0]} is {_shown(turned)}; use another file")
    return {
        "partial_rotary_factor": turned / config["head_dim"],
        "original_max_position_embeddings": _real(own, SCALING[ORIGINAL], where),
        "sliding_window": window or None,
    }


def _check_sizes(config: dict[str, Any], header: Header) -> None:
    """A count that nothing in the file stands behind would cost memory before it is found out."""
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    if layers > len(header.tensors):
        raise InputError(f"{header.file}: {layers} layers in {len(header.tensors)} tensors")
    if config["head_dim"] % 2:
        raise InputError(f"{header.file}: a head of {config['head_dim']} channels cannot be turned")
    if heads % config["num_key_value_heads"]:
        shared = config["num_key_value_heads"]
        raise InputError(f"{header.file}: {heads} heads cannot share {shared} keys and values")


def shortest(value: float) -> float:
    """1e-05 for the float32 that GGUF stores and Python reads as 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def plain_rope(config: dict[str, Any]) -> dict[str, Any]:
    """rope_theta and rope_scaling of a config.json, old or new, as the older ones have them.

    Raises InputError for positions that GGUF is not told of here.
    """
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    theta = rope.pop("rope_theta", None) or config.get("rope_theta") or 10_000.0
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return {"rope_theta": float(theta), "rope_scaling": None}
    if kind not in ("llama3", *SCALING_TYPES):
        raise InputError(f"rope type {kind!r} cannot be written as GGUF yet: use --to hf or peft")
    return {"rope_theta": float(theta), "rope_scaling": {**rope, "rope_type": kind}}


# ---- Llama 3's slow rotations ----


def rope_factors(scaling: dict[str, Any], theta: float, head_dim: int) -> Any:
    """What each frequency is divided by, as GGUF keeps it: float32, (head_dim / 2,)."""
    frequencies = theta ** -(np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    fast = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / (fast + (1 - fast) / scaling["factor"])).astype(np.float32)


def rope_scaling(factors: Any, config: dict[str, Any], file: Any) -> dict[str, Any]:
    """The settings that make these factors. Raises InputError where Llama 3's do not."""
    scaling = {"rope_type": "llama3", "factor": float(factors.max()), **LLAMA3}
    expected = rope_factors(scaling, config["rope_theta"], config["head_dim"])
    if expected.shape != factors.shape or not np.allclose(factors, expected, rtol=1e-3):
        raise InputError(
            f"{file}: the factors in {ROPE_FACTORS} are not Llama 3's; use another file"
        )
    return scaling
