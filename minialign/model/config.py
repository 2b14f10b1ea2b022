"""The part of a checkpoint's config.json that decides the computation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from minialign.errors import InputError
from minialign.model.families import (
    FAMILIES,
    REFUSED_FIELDS,
    Family,
    is_harmless,
    why_refused,
)
from minialign.model.fields import Fields

MOST_LAYERS = 1024
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}

# The settings that each kind of scaled positions must have; None: it may.
ROPE_SETTINGS: dict[str, dict[str, float | None]] = {
    "default": {},
    "linear": {"factor": None},
    "llama3": dict.fromkeys(
        ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    ),
    "yarn": {"factor": None, "beta_fast": 32.0, "beta_slow": 1.0},
    "longrope": {},
}
ROPE_FIELDS = (
    *ROPE_SETTINGS["llama3"],
    *ROPE_SETTINGS["yarn"],
    *("type", "rope_type", "rope_theta", "attention_factor", "mscale", "mscale_all_dim"),
    *("truncate", "short_factor", "long_factor", "max_position_embeddings"),
)
COMMON_FIELDS = (
    *("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps"),
    *("max_position_embeddings", "tie_word_embeddings"),
    *("rope_theta", "rope_scaling", "rope_parameters"),
)


@dataclass(frozen=True)
class Rope:
    """How a layer turns queries and keys by their position; `kind` names the formula in rope.py."""

    theta: float = 10_000.0
    kind: str = "default"
    rotated: float = 1.0  # the share of a head's channels that turn
    attention_factor: float = 1.0  # what cosines and sines are multiplied by
    factor: float = 1.0
    original: int = 0  # the context before it was stretched
    low: float = 0.0  # llama3's low_freq_factor, yarn's beta_slow
    high: float = 0.0  # llama3's high_freq_factor, yarn's beta_fast
    truncate: bool = True  # yarn's bounds are whole channels
    short_factors: tuple[float, ...] = ()
    growth: float = 0.0  # queries times 1 + growth ln(1 + floor(position / original))


@dataclass(frozen=True)
class LayerSpec:
    """What may differ from layer to layer: the window, and how positions turn (None: not)."""

    window: int | None = None
    rope: Rope | None = Rope()


@dataclass(frozen=True)
class ModelConfig:
    """The part of a checkpoint's config.json that decides the computation."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 2048
    tie_word_embeddings: bool = False
    sliding_window: int | None = None  # of every layer, unless `layer_specs` says otherwise
    rope: Rope = Rope()
    layer_specs: tuple[LayerSpec, ...] = ()  # one a layer, or none where all are alike
    family: Family = Family()
    embedding_multiplier: float = 1.0
    residual_multiplier: float = 1.0  # of what attention and MLP add
    attention_multiplier: float | None = None  # of the scores; None: 1 / sqrt(head_dim)
    logits_divisor: float = 1.0

    @cached_property
    def layers(self) -> tuple[LayerSpec, ...]:
        alike = LayerSpec(self.sliding_window, self.rope)
        return self.layer_specs or (alike,) * self.num_hidden_layers

    @cached_property
    def windows(self) -> tuple[int | None, ...]:
        """One a layer."""
        return tuple(layer.window for layer in self.layers)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Reads a config.json of a family in families.py.

        Raises InputError, naming the field, for everything that this package does not compute, and
        for values that no model has.
        """
        kind = raw.get("model_type")
        if not isinstance(kind, str) or kind not in FAMILIES:
            reason = why_refused(kind) if isinstance(kind, str) else "no model is called so"
            raise InputError(
                f"config.json: model_type {repr(kind)[:60]} is not supported: {reason}"
            )
        family = FAMILIES[kind]
        _refuse_unknown(raw, family)
        given = {name: value for name, value in raw.items() if value is not None}
        nulls = {name: None for name in raw if raw[name] is None and name == "sliding_window"}
        fields = Fields({**family.defaults, **given, **nulls}, "config.json")
        return _read(cls, fields, family)


def _read(cls: type[ModelConfig], fields: Fields, family: Family) -> ModelConfig:
    heads = fields.size("num_attention_heads")
    hidden = fields.size("hidden_size")
    head_dim = fields.size("head_dim", hidden // heads or None)
    key_heads = fields.size("num_key_value_heads", heads)
    if heads % key_heads:
        raise fields.wrong("num_key_value_heads", f"a divisor of the {heads} heads")
    if head_dim % 2:
        raise fields.wrong("head_dim", "even")
    layers = fields.size("num_hidden_layers", most=MOST_LAYERS)
    specs = _layer_specs(fields, family, layers, head_dim)
    alike = len(set(specs)) == 1 and specs[0].rope is not None
    return cls(
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        intermediate_size=fields.size("intermediate_size"),
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=head_dim,
        rms_norm_eps=fields.number("rms_norm_eps", 1e-6),
        max_position_embeddings=_context(fields, specs),
        tie_word_embeddings=fields.flag("tie_word_embeddings"),
        sliding_window=specs[0].window if alike else None,
        rope=specs[0].rope or Rope(),
        layer_specs=() if alike else specs,
        family=family,
        embedding_multiplier=fields.number("embedding_multiplier", 1.0)
        * (math.sqrt(hidden) if family.scaled_embedding else 1.0),
        residual_multiplier=fields.number("residual_multiplier", 1.0),
        attention_multiplier=_attention_multiplier(fields),
        logits_divisor=fields.number("logits_scaling", 1.0),
    )


def _attention_multiplier(fields: Fields) -> float | None:
    if fields.get("query_pre_attn_scalar") is not None:
        return fields.number("query_pre_attn_scalar") ** -0.5
    named = fields.get("attention_multiplier") is not None
    return fields.number("attention_multiplier") if named else None


def _refuse_unknown(raw: Mapping[str, Any], family: Family) -> None:
    """Raises InputError for a field that asks for something that is not computed here."""
    for name, value in raw.items():
        if name in COMMON_FIELDS or name in family.defaults or is_harmless(name) or not value:
            continue
        if name in REFUSED_FIELDS:
            raise InputError(f"config.json: {name} is not supported: {REFUSED_FIELDS[name]}")
        raise InputError(
            f"config.json: {name[:60]!r} is unknown here, and may change what the model computes;"
            " if it does not, delete it from config.json"
        )
    for name in ("hidden_act", "hidden_activation"):
        if raw.get(name) is not None and ACTIVATIONS.get(str(raw[name])) != family.activation:
            raise InputError(
                f"config.json: {name} = {str(raw[name])[:60]!r} is not supported"
                f" (only {family.activation!r})"
            )


def _layer_specs(
    fields: Fields, family: Family, layers: int, head_dim: int
) -> tuple[LayerSpec, ...]:
    kinds = _sliding_layers(fields, family, layers)
    window = fields.size("sliding_window") if any(kinds) else None
    rotated = _rotated_layers(fields, family, layers)
    ropes = {sliding: read_rope(fields, family, sliding, head_dim) for sliding in set(kinds)}
    return tuple(
        LayerSpec(window if sliding else None, ropes[sliding] if turns else None)
        for sliding, turns in zip(kinds, rotated, strict=True)
    )


def _sliding_layers(fields: Fields, family: Family, layers: int) -> list[bool]:
    """Of each layer, whether it sees no further back than a window."""
    kinds = fields.listed("layer_types", layers, ("sliding_attention", "full_attention"))
    switched_off = "use_sliding_window" in family.defaults and not fields.flag("use_sliding_window")
    if fields.get("sliding_window") is None or switched_off:
        return [False] * layers
    if kinds is not None and "layer_types" in family.defaults:
        return [kind == "sliding_attention" for kind in kinds]
    values = {**fields.values, "no_rope_layers": _rotated_layers(fields, family, layers)}
    return [family.sliding(layer, values) for layer in range(layers)]


def _rotated_layers(fields: Fields, family: Family, layers: int) -> list[bool]:
    if not family.skips_rope:
        return [True] * layers
    listed = fields.listed("no_rope_layers", layers, (0, 1))
    interval = fields.size("no_rope_layer_interval")
    return [bool((i + 1) % interval) if listed is None else bool(listed[i]) for i in range(layers)]


def _context(fields: Fields, specs: tuple[LayerSpec, ...]) -> int:
    """How many tokens a text may have.

    longrope turns by other factors in longer texts, so that one text's scores would depend on the
    texts beside it: the context ends where those would begin.
    """
    context = fields.size("max_position_embeddings", 2048)
    long = [s.rope.original for s in specs if s.rope and s.rope.kind == "longrope"]
    return min([context, *long])


# ---- positions ----


def read_rope(fields: Fields, family: Family, local: bool, head_dim: int) -> Rope:
    """How the layers with a window (local) or those without turn."""
    own = fields.nested("rope_parameters") or fields.nested("rope_scaling")
    theta = fields.number("rope_theta", 10_000.0)
    kinds = ("full_attention", "sliding_attention")
    if family.local_rope:
        by_kind = Fields(own, "config.json: rope_parameters")
        if any(isinstance(own.get(kind), dict) for kind in kinds):
            own = by_kind.nested(kinds[local])
        elif local:
            own = {}
        theta = fields.number("rope_local_base_freq") if local else theta
    for name in own:
        beta = family.grows_queries and name == "llama_4_scaling_beta"
        share = "partial_rotary_factor" in family.defaults and name == "partial_rotary_factor"
        if name not in ROPE_FIELDS and own[name] is not None and not (beta or share):
            raise InputError(f"config.json: the rope setting {name[:60]!r} is unknown here")
    return _rope_of_kind(Fields(own, "config.json: rope settings"), fields, family, theta, head_dim)


def _rope_of_kind(own: Fields, fields: Fields, family: Family, theta: float, head_dim: int) -> Rope:
    kind = own.get("rope_type") or own.get("type") or "default"
    if family.fused and kind in ("su", "yarn"):
        kind = "longrope"  # as it was called before it was published
    if not isinstance(kind, str) or kind not in ROPE_SETTINGS:
        kinds = ", ".join(ROPE_SETTINGS)
        raise InputError(f"config.json: rope type {str(kind)[:60]!r} is not supported ({kinds})")
    settings = {name: own.number(name, default) for name, default in ROPE_SETTINGS[kind].items()}
    share = own.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    if share > 1 or int(head_dim * share) % 2 or int(head_dim * share) < 2:
        raise own.wrong("partial_rotary_factor", f"an even share of the {head_dim} channels")
    context = fields.size("max_position_embeddings", 2048)
    original = own.size("original_max_position_embeddings", context)
    if kind != "default":
        original = fields.size("original_max_position_embeddings", original)
    short: tuple[float, ...] = ()
    if kind == "longrope":
        short = own.numbers("short_factor", int(head_dim * share) // 2)
        settings["factor"] = own.number("factor", context / original)
    if kind == "llama3" and settings["low_freq_factor"] >= settings["high_freq_factor"]:
        raise own.wrong("low_freq_factor", "below high_freq_factor")
    if own.number("rope_theta", theta) <= 1 or (kind in ("yarn", "longrope") and original < 2):
        raise own.wrong("rope_theta", "a number above 1, and the original context longer than 1")
    return Rope(
        theta=own.number("rope_theta", theta),
        kind=kind,
        rotated=share,
        attention_factor=_attention_factor(kind, own, settings.get("factor", 1.0), original),
        factor=settings.get("factor", 1.0),
        original=0 if kind == "default" and not own.get("llama_4_scaling_beta") else original,
        low=settings.get("low_freq_factor", settings.get("beta_slow", 0.0)),
        high=settings.get("high_freq_factor", settings.get("beta_fast", 0.0)),
        truncate=own.flag("truncate", True),
        short_factors=short,
        growth=own.number("llama_4_scaling_beta") if own.get("llama_4_scaling_beta") else 0.0,
    )


def _attention_factor(kind: str, own: Fields, factor: float, original: int) -> float:
    """What stretched positions multiply cosines and sines by."""
    if kind not in ("yarn", "longrope"):
        return 1.0
    if own.get("attention_factor") is not None:
        return own.number("attention_factor")
    if factor <= 1:
        return 1.0
    if kind == "longrope":
        return math.sqrt(1 + math.log(factor) / math.log(original))
    if own.get("mscale") and own.get("mscale_all_dim"):
        return _mscale(factor, own.number("mscale")) / _mscale(factor, own.number("mscale_all_dim"))
    return _mscale(factor, 1.0)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1
