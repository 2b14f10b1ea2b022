"""What GGUF calls tensors: a row for each architecture, read in both directions.

On the left are always the names of the Hugging Face layout, on the right GGUF's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from minialign.errors import InputError
from minialign.weights.gguf_header import Header

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
# A factor for each pair of channels, in short and in long texts.
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
