"""The families of models that open here: a row of switches each, and why others are refused.

A family is Llama but for its switches: `transformer.py` computes any row, and no other file knows a
family by name. The rows follow the configuration and modelling files of transformers 5.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple


class NormNames(NamedTuple):
    """A layer's norms, by their names in checkpoints; None where there is none."""

    before_attention: str | None
    after_attention: str | None
    before_mlp: str | None
    after_mlp: str | None


BEFORE = NormNames("input_layernorm", None, "post_attention_layernorm", None)
AFTER = NormNames(None, "post_attention_layernorm", None, "post_feedforward_layernorm")
BOTH = NormNames(
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)

# Has layer number i (from 0) a window, where config.json has no `layer_types`?
Sliding = Callable[[int, Mapping[str, Any]], bool]


def never(layer: int, config: Mapping[str, Any]) -> bool:
    return False


def always(layer: int, config: Mapping[str, Any]) -> bool:
    return True


def late(layer: int, config: Mapping[str, Any]) -> bool:
    return bool(layer >= config["max_window_layers"])


def unrotated(layer: int, config: Mapping[str, Any]) -> bool:
    return not config["no_rope_layers"][layer]


def all_but_every(period: int) -> Sliding:
    return lambda layer, config: (layer + 1) % (config.get("sliding_window_pattern") or period) != 0


@dataclass(frozen=True)
class Family:
    """One row: twelve switches at most, and what a config.json of the family may leave out."""

    qkv_bias: bool = False  # the projections of queries, keys and values add a bias
    qk_norm: Literal["none", "head", "whole"] = "none"  # RMSNorm of queries and keys: over what
    norms: NormNames = BEFORE
    centred_norms: bool = False  # norms multiply by 1 + w
    activation: Literal["silu", "gelu_tanh"] = "silu"  # of the MLP's gate
    scaled_embedding: bool = False  # by the square root of its size
    sliding: Sliding = never  # which layers have the window
    local_rope: bool = False  # layers with a window turn by a base of their own, unscaled
    skips_rope: bool = False  # some layers know no positions (`no_rope_layers`)
    grows_queries: bool = False  # queries are multiplied by a logarithm of their position
    fused: bool = False  # checkpoints hold q, k, v in one tensor, and gate, up in one
    defaults: Mapping[str, Any] = field(default_factory=dict)  # also names the fields of its own


NO_WINDOW_UNLESS_ASKED = {"use_sliding_window": False, "sliding_window": 4096}
QWEN = {**NO_WINDOW_UNLESS_ASKED, "max_window_layers": 28, "layer_types": None}

FAMILIES: dict[str, Family] = {
    # Llama 2, 3 and 3.x, SmolLM2, and all that are built alike.
    "llama": Family(),
    "mistral": Family(sliding=always, defaults={"sliding_window": 4096}),
    "qwen2": Family(qkv_bias=True, sliding=late, defaults=QWEN),
    "qwen3": Family(qk_norm="head", sliding=late, defaults={**QWEN, "head_dim": 128}),
    "smollm3": Family(
        sliding=unrotated,
        skips_rope=True,
        defaults={
            **NO_WINDOW_UNLESS_ASKED,
            "layer_types": None,
            "no_rope_layers": None,
            "no_rope_layer_interval": 4,
            "rope_theta": 2e6,
            "num_key_value_heads": 4,
            "tie_word_embeddings": True,
        },
    ),
    "gemma3_text": Family(
        qk_norm="head",
        norms=BOTH,
        centred_norms=True,
        activation="gelu_tanh",
        scaled_embedding=True,
        sliding=all_but_every(6),
        local_rope=True,
        defaults={
            "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh",
            "layer_types": None,
            "num_key_value_heads": 4,
            "query_pre_attn_scalar": 256,
            "rope_local_base_freq": 1e4,
            "rope_theta": 1e6,
            "sliding_window": 4096,
            "sliding_window_pattern": 6,
            "tie_word_embeddings": True,
        },
    ),
    "phi3": Family(
        sliding=always,
        fused=True,
        defaults={
            "original_max_position_embeddings": 4096,
            "partial_rotary_factor": 1.0,
            "rms_norm_eps": 1e-5,
            "sliding_window": None,
        },
    ),
    "granite": Family(
        defaults={
            "attention_multiplier": 1.0,
            "embedding_multiplier": 1.0,
            "logits_scaling": 1.0,
            "residual_multiplier": 1.0,
        }
    ),
    "olmo3": Family(
        qk_norm="whole",
        norms=AFTER,
        sliding=all_but_every(4),
        local_rope=True,
        defaults={
            "layer_types": None,
            "rms_norm_eps": 1e-5,
            "rope_local_base_freq": 5e5,
            "rope_theta": 5e5,
            "sliding_window": 4096,
        },
    ),
    "ministral3": Family(
        sliding=always,
        grows_queries=True,
        defaults={"head_dim": 128, "rms_norm_eps": 1e-5, "sliding_window": None},
    ),
}

EXPERTS = "it is a mixture of experts, whose layers choose among several MLPs"
RECURRENT = "some of its layers are recurrent (Mamba, DeltaNet and the like) and not attention"
SHARED_KEYS = "some of its layers use the keys and values of others"
SEES_OR_HEARS = "it sees or hears, and only models of text open here"
CAPPED = "it caps its logits (soft-capping)"
QUANTISED = "its weights are stored quantised: use the checkpoint in bfloat16, float16 or float32"
NOT_CAUSAL = "it attends to later tokens as well"

# What stands in a model_type, and what that means. The first that fits is taken.
REFUSED_TYPES = {
    "granitemoehybrid": RECURRENT,
    "moe": EXPERTS,
    "mixtral": EXPERTS,
    "gpt_oss": EXPERTS,
    "deepseek": EXPERTS,
    "llama4": EXPERTS,
    "minimax": EXPERTS,
    "dbrx": EXPERTS,
    "mistral4": EXPERTS,
    "qwen3_next": RECURRENT,
    "qwen3_5": RECURRENT,
    "lfm2": "some of its layers are short convolutions and not attention",
    "falcon_h1": RECURRENT,
    "mamba": RECURRENT,
    "hybrid": RECURRENT,
    "jamba": RECURRENT,
    "bamba": RECURRENT,
    "zamba": RECURRENT,
    "nemotron_h": RECURRENT,
    "recurrent": RECURRENT,
    "rwkv": RECURRENT,
    "kimi_linear": RECURRENT,
    "gemma3n": SHARED_KEYS,
    "gemma4": SHARED_KEYS,
    "phi4flash": SHARED_KEYS,
    "gemma2": CAPPED,
    "falcon": "attention and MLP of its layers stand side by side, behind LayerNorm",
    "vl": SEES_OR_HEARS,
    "vision": SEES_OR_HEARS,
    "omni": SEES_OR_HEARS,
    "multimodal": SEES_OR_HEARS,
    "llava": SEES_OR_HEARS,
    "mistral3": SEES_OR_HEARS,
    "gemma3": SEES_OR_HEARS,
    "mllama": SEES_OR_HEARS,
    "idefics": SEES_OR_HEARS,
    "smolvlm": SEES_OR_HEARS,
    "audio": SEES_OR_HEARS,
}

# Fields that say the same of a model whose type does not.
REFUSED_FIELDS = {
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "moe_intermediate_size": EXPERTS,
    "linear_conv_kernel_dim": RECURRENT,
    "mamba_d_state": RECURRENT,
    "num_kv_shared_layers": SHARED_KEYS,
    "attn_logit_softcapping": CAPPED,
    "final_logit_softcapping": CAPPED,
    "use_bidirectional_attention": NOT_CAUSAL,
    "quantization_config": QUANTISED,
    "vision_config": SEES_OR_HEARS,
    "audio_config": SEES_OR_HEARS,
    "attention_bias": "every projection of its attention adds a bias",
    "mlp_bias": "the projections of its MLP add a bias",
    "lm_head_bias": "its head adds a bias",
}

# What may stand in any config.json and changes nothing here: dropout is LoRA's business, and the
# rest is about other programs, file formats, how weights were started, and generation.
HARMLESS = frozenset(
    "architectures attn_implementation auto_map cache_implementation chunk_size_feed_forward dtype"
    " finetuning_task id2label initializer_range interpolate_factor is_llama_config label2id"
    " language name max_window_layers no_rope_layer_interval output_attentions output_hidden_states"
    " pretraining_tp problem_type return_dict sep_token sliding_window_pattern task_specific_params"
    " tokenizer_class torch_dtype unsloth_fixed unsloth_version use_cache use_sliding_window"
    " sliding_window layer_types original_max_position_embeddings full_attn_mod".split()
)
HARMLESS_STARTS = ("_", "transformers")
HARMLESS_ENDS = ("_token_id", "_dropout", "_pdrop")


def why_refused(model_type: str) -> str:
    """The reason why a model of this type does not open, as half a sentence."""
    for part, reason in REFUSED_TYPES.items():
        if part in model_type:
            return reason
    return f"it is none of {', '.join(FAMILIES)}"


def is_harmless(name: str) -> bool:
    """Whether a field of config.json may have any value."""
    return name in HARMLESS or name.startswith(HARMLESS_STARTS) or name.endswith(HARMLESS_ENDS)
