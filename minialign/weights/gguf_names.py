"""What GGUF calls things: a row for each architecture, read in both directions.

On the left are always the names of the Hugging Face layout, on the right GGUF's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minialign.errors import InputError
from minialign.weights.gguf_header import Header

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
TENSORS = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}
LAYER_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ROPE_FACTORS = "rope_freqs.weight"
LLAMA3 = {  # what every Llama 3.1, 3.2 and 3.3 has; GGUF keeps only what follows from it
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@dataclass(frozen=True)
class Architecture:
    """A row: GGUF's word, config.json's, and what is not as everywhere else."""

    name: str
    model_types: tuple[str, ...]  # a file that is read gets the first
    class_name: str
    rotates_neighbours: bool = False  # q and k rows lie in pairs, not half a head apart
    centred_norms: bool = False  # GGUF keeps 1 + w
    layer_tensors: dict[str, str] = field(default_factory=lambda: LAYER_TENSORS)
    biases: tuple[str, ...] = ()
    settings: dict[str, str] = field(default_factory=dict)  # besides SETTINGS: numbers
    fixed: dict[str, Any] = field(default_factory=lambda: {"hidden_act": "silu"})
    longrope: bool = False  # a factor for each pair of channels, and some may not turn at all
    # What llama.cpp takes for granted of these sizes.
    implied: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: {}


def _every(period: int, layers: int) -> list[bool]:
    """True but in every so many layers."""
    return [(layer + 1) % period != 0 for layer in range(layers)]


def _smollm3(config: dict[str, Any]) -> dict[str, Any]:
    return {"no_rope_layers": [int(turns) for turns in _every(4, config["num_hidden_layers"])]}


def _gemma3(config: dict[str, Any]) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    per_head = config["hidden_size"] // config["num_attention_heads"]
    kinds = ("full_attention", "sliding_attention")
    return {
        "layer_types": [kinds[slides] for slides in _every(6, layers)],
        # The one with 62 layers scales its scores otherwise.
        "query_pre_attn_scalar": per_head if layers == 62 else config["head_dim"],
    }


NORMED = LAYER_TENSORS | {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
ARCHITECTURES = (
    Architecture("llama", ("llama", "mistral"), "LlamaForCausalLM", rotates_neighbours=True),
    Architecture(
        "smollm3", ("smollm3",), "SmolLM3ForCausalLM", rotates_neighbours=True, implied=_smollm3
    ),
    Architecture(
        "granite",
        ("granite",),
        "GraniteForCausalLM",
        rotates_neighbours=True,
        settings={
            "attention_multiplier": "attention.scale",
            "embedding_multiplier": "embedding_scale",
            "residual_multiplier": "residual_scale",
            "logits_scaling": "logit_scale",
        },
    ),
    Architecture(
        "qwen2",
        ("qwen2",),
        "Qwen2ForCausalLM",
        biases=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ),
    Architecture("qwen3", ("qwen3",), "Qwen3ForCausalLM", layer_tensors=NORMED),
    Architecture(
        "gemma3",
        ("gemma3_text",),
        "Gemma3ForCausalLM",
        centred_norms=True,
        layer_tensors=NORMED
        | {
            "post_attention_layernorm": "post_attention_norm",
            "pre_feedforward_layernorm": "ffn_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        },
        settings={"sliding_window": "attention.sliding_window"},
        fixed={"hidden_activation": "gelu_pytorch_tanh"},
        implied=_gemma3,
    ),
    Architecture(
        "phi3",
        ("phi3",),
        "Phi3ForCausalLM",
        layer_tensors={
            "input_layernorm": "attn_norm",
            "self_attn.qkv_proj": "attn_qkv",
            "self_attn.o_proj": "attn_output",
            "post_attention_layernorm": "ffn_norm",
            "mlp.gate_up_proj": "ffn_up",
            "mlp.down_proj": "ffn_down",
        },
        longrope=True,
    ),
)
# What longrope adds, in settings and in tensors.
LONGROPE = ("rope.dimension_count", "attention.sliding_window", "rope.scaling.attn_factor")
LONG_FACTORS = {
    "short_factor": "rope_factors_short.weight",
    "long_factor": "rope_factors_long.weight",
}


def architecture_of(header: Header) -> Architecture:
    name = header.settings.get("general.architecture")
    for row in ARCHITECTURES:
        if row.name == name:
            return row
    known = ", ".join(row.name for row in ARCHITECTURES)
    raise InputError(
        f"{header.file}: general.architecture is {name!r}, and only {known} can be read;"
        " use the model's Hugging Face checkpoint instead"
    )


def architecture_for(model_type: str) -> Architecture:
    """The row for a config.json. Raises InputError for a family that cannot be written."""
    for row in ARCHITECTURES:
        if model_type in row.model_types and not row.longrope:
            return row
    raise InputError(f"a {model_type} model cannot be written as GGUF yet: use --to hf or peft")


def tensor_name(row: Architecture, name: str) -> str:
    """`model.layers.3.self_attn.q_proj.weight` -> `blk.3.attn_q.weight`."""
    stem, _, suffix = name.rpartition(".")
    if stem in TENSORS:
        return f"{TENSORS[stem]}.{suffix}"
    layer, stem = stem.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{row.layer_tensors[stem]}.{suffix}"


def hf_tensor_name(row: Architecture, name: str) -> str | None:
    """The other way round; None for a tensor that has no place in this architecture."""
    outer = {theirs: ours for ours, theirs in TENSORS.items()}
    inner = {theirs: ours for ours, theirs in row.layer_tensors.items()}
    match name.split("."):
        case [stem, "weight"] if stem in outer:
            return f"{outer[stem]}.weight"
        case ["blk", layer, stem, "weight"] if stem in inner and layer.isdecimal():
            return f"model.layers.{layer}.{inner[stem]}.weight"
        case ["blk", layer, stem, "bias"] if inner.get(stem) in row.biases and layer.isdecimal():
            return f"model.layers.{layer}.{inner[stem]}.bias"
    return None


def layer_names(row: Architecture, layers: int) -> set[str]:
    """The Hugging Face names of all tensors but a head that is not tied."""
    each = [f"{stem}.weight" for stem in row.layer_tensors] + [
        f"{stem}.bias" for stem in row.biases
    ]
    inner = {f"model.layers.{layer}.{name}" for layer in range(layers) for name in each}
    return inner | {"model.embed_tokens.weight", "model.norm.weight"}


def heads_in_pairs(row: Architecture, name: str, config: dict[str, Any]) -> int:
    """How many heads a tensor has whose rows GGUF keeps in pairs; 0: it keeps them as they are."""
    kind = re.search(r"self_attn\.([qk])_proj\.weight$", name)
    if not (row.rotates_neighbours and kind):
        return 0
    return int(config["num_attention_heads" if kind[1] == "q" else "num_key_value_heads"])


# ---- config.json from settings ----


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


def parts_of(name: str, config: dict[str, Any]) -> dict[str, int]:
    """The tensors that one holds for several, one below the other, each with its rows."""
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    sizes = {"q_proj": heads, "k_proj": shared, "v_proj": shared}
    if "qkv_proj" in name:
        rows = {part: count * config["head_dim"] for part, count in sizes.items()}
        return {name.replace("qkv_proj", part): count for part, count in rows.items()}
    if "gate_up_proj" in name:
        both = ("gate_proj", "up_proj")
        return {name.replace("gate_up_proj", part): config["intermediate_size"] for part in both}
    return {}


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
