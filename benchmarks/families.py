"""Every family that opens here beside transformers, at toy size: python benchmarks/families.py

Random weights, spread so far that a wrong switch shows, and every switch of the row in use. Writes
results/families.json and prints the table of docs/models.md: the largest differences in float32.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from minialign.model.attention import PackedAttention
from minialign.model.cache import KVCache
from minialign.model.config import ModelConfig, Rope
from minialign.model.families import BEFORE, FAMILIES
from minialign.model.segments import Segment
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import apply_lora, lora_layers
from minialign.policy.knobs import EVERY_LINEAR, LoRAConfig
from minialign.policy.lora_linear import LoRALinear
from minialign.policy.merge import merged_adapter
from minialign.policy.peft import save_adapter
from minialign.weights.load import load_model, parts_of

RESULT = Path(__file__).parent / "results" / "families.json"
CPU = torch.device("cpu")
LENGTH, PROMPT = 40, 9  # tokens of a text, of which the first are read at once
LORA = LoRAConfig(rank=3, alpha=6.0, dropout=0.0, target_modules=EVERY_LINEAR)

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 100.0,
    "factor": 4.0,
    "beta_fast": 4.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 16,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 100.0,
    "short_factor": [1.0, 1.5, 3.0],
    "long_factor": [9.0, 9.0, 9.0],
    "partial_rotary_factor": 0.75,
}
MIXED = ["sliding_attention", "sliding_attention", "full_attention", "sliding_attention"]

# What each toy adds to SMALL, so that every switch of the family's row is in use.
TOYS: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": LLAMA3, "tie_word_embeddings": True},
    "mistral": {"sliding_window": 7, "head_dim": 12},
    "qwen2": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 2},
    "qwen3": {
        "use_sliding_window": True,
        "sliding_window": 7,
        "layer_types": MIXED,
        "head_dim": 12,
        "rope_parameters": {**YARN, "attention_factor": 1.3},
    },
    "smollm3": {"no_rope_layers": [1, 0, 1, 1], "tie_word_embeddings": True},
    "gemma3_text": {
        "head_dim": 12,
        "layer_types": MIXED,
        "sliding_window": 7,
        "query_pre_attn_scalar": 20,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 300.0, "factor": 4.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        },
    },
    "phi3": {
        "rope_parameters": LONGROPE,
        "original_max_position_embeddings": 64,
        "sliding_window": 30,
    },
    "granite": {
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
        "residual_multiplier": 0.5,
        "logits_scaling": 0.4,
    },
    "olmo3": {
        "layer_types": MIXED,
        "sliding_window": 7,
        "rope_parameters": {
            "full_attention": {**YARN, "attention_factor": 1.2},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        },
    },
    "ministral3": {
        "head_dim": 8,
        "sliding_window": 25,
        "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.3, "mscale": 1.0},
    },
}
HEADS = {"gemma3_text": "Gemma3", "phi3": "Phi3", "smollm3": "SmolLM3", "olmo3": "Olmo3"}


def without(**switches: Any) -> Callable[[ModelConfig], ModelConfig]:
    """A config with other switches in its row."""
    return lambda config: replace(config, family=replace(config.family, **switches))


def with_values(**values: Any) -> Callable[[ModelConfig], ModelConfig]:
    return lambda config: replace(config, **values)


def with_ropes(**changes: Any) -> Callable[[ModelConfig], ModelConfig]:
    def changed(config: ModelConfig) -> ModelConfig:
        specs = [replace(s, rope=replace(s.rope or Rope(), **changes)) for s in config.layers]
        return replace(config, layer_specs=tuple(specs))

    return changed


def with_window(window: int | None) -> Callable[[ModelConfig], ModelConfig]:
    return lambda config: replace(
        config, layer_specs=tuple(replace(s, window=window) for s in config.layers)
    )


# Each switch of a toy set wrong: what it does must show.
WRONG: dict[str, dict[str, Callable[[ModelConfig], ModelConfig]]] = {
    "llama": {"plain positions": with_ropes(kind="default")},
    "mistral": {"no window": with_window(None), "a window one longer": with_window(8)},
    "qwen2": {"no bias": without(qkv_bias=False), "a window everywhere": with_window(7)},
    "qwen3": {
        "no norm of queries": without(qk_norm="none"),
        "no window": with_window(None),
        "plain positions": with_ropes(kind="default"),
        "no attention factor": with_ropes(attention_factor=1.0),
    },
    "smollm3": {"all layers turn": with_ropes()},
    "gemma3_text": {
        "norms not centred": without(centred_norms=False),
        "no norms behind": without(norms=BEFORE),
        "no norm of queries": without(qk_norm="none"),
        "silu": without(activation="silu"),
        "embedding not scaled": with_values(embedding_multiplier=1.0),
        "another query scale": with_values(attention_multiplier=None),
        "one rotary base": with_ropes(theta=300.0),
        "not slowed": with_ropes(kind="default"),
        "a window everywhere": with_window(7),
    },
    "phi3": {
        "no factors": with_ropes(kind="default"),
        "all channels turn": with_ropes(kind="default", rotated=1.0),
        "no attention factor": with_ropes(attention_factor=1.0),
        "no window": with_window(None),
    },
    "granite": {
        "embedding": with_values(embedding_multiplier=1.0),
        "attention": with_values(attention_multiplier=None),
        "residual": with_values(residual_multiplier=1.0),
        "logits": with_values(logits_divisor=1.0),
    },
    "olmo3": {
        "norms before": without(norms=BEFORE),
        "no norm of queries": without(qk_norm="none"),
        "no window": with_window(None),
        "one kind of positions": with_ropes(kind="default", attention_factor=1.0),
    },
    "ministral3": {
        "queries do not grow": with_ropes(growth=0.0),
        "plain positions": with_ropes(kind="default"),
        "no window": with_window(None),
    },
}


def peer(kind: str, folder: Path, **changes: Any) -> Any:
    """A random transformers model, saved to `folder` as transformers saves."""
    stem = HEADS.get(kind, kind.capitalize())
    suffix = "TextConfig" if kind.endswith("_text") else "Config"
    config = getattr(transformers, stem + suffix)(**{**SMALL, **TOYS[kind], **changes})
    config._attn_implementation = "eager"  # the plainest of transformers' implementations
    model = getattr(transformers, stem + "ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter.data, 0, 0.3, generator=generator)
        if name.endswith("norm.weight") and not FAMILIES[kind].centred_norms:
            parameter.data.add_(1)
    model.save_pretrained(folder)
    return model


def random_ids(rows: int, length: int = LENGTH) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, SMALL["vocab_size"], (rows, length), generator=generator)


def with_random_adapter(model: CausalLM) -> CausalLM:
    """An adapter on every linear layer that is far from changing nothing."""
    generator = torch.Generator().manual_seed(2)
    apply_lora(model, LORA, generator=generator)
    for layer in lora_layers(model).values():
        layer.lora_B["default"].data.normal_(0, 0.1, generator=generator)
    return model


def logits_difference(theirs: Any, model: CausalLM) -> float:
    ids = random_ids(2)
    with torch.no_grad():
        return largest(model.logits(ids) - theirs(ids).logits)


def largest(difference: Tensor) -> float:
    return float(difference.detach().abs().max())


def gradient_difference(theirs: Any, model: CausalLM) -> float:
    """Of A and B of every adapter, as a share of the largest.

    transformers' weights have the adapters merged in, so the gradient of a weight, dW, says what
    theirs would be: dA = s B^T dW, dB = s dW A^T.
    """
    merge_into(theirs, model)
    ids = random_ids(1)
    factors = torch.randn(LENGTH, SMALL["vocab_size"], generator=torch.Generator().manual_seed(3))
    (theirs(ids).logits[0].log_softmax(-1) * factors).sum().backward()
    (model.logits(ids)[0].log_softmax(-1) * factors).sum().backward()
    worst = 0.0
    for layer, slope in adapted(theirs, model, "grad"):
        a, b, scale = layer.lora_A["default"], layer.lora_B["default"], LORA.alpha / LORA.rank
        for own, truth in ((a, scale * b.T @ slope), (b, scale * slope @ a.T)):
            assert own.grad is not None
            worst = max(worst, largest(own.grad - truth) / largest(truth))
    return worst


def adapted(theirs: Any, model: CausalLM, what: str) -> list[tuple[LoRALinear, Tensor]]:
    """Each adapted layer with transformers' weight ("data") or its gradient ("grad")."""
    layers, found = lora_layers(model), []
    for name, parameter in theirs.named_parameters():
        parts = [layers[p.removesuffix(".weight")] for p in parts_of(name) if p[:-7] in layers]
        if parts:
            rows = getattr(parameter, what).split([layer.out_features for layer in parts])
            found += list(zip(parts, rows, strict=True))
    assert len(found) == len(layers)
    return found


def merge_into(theirs: Any, model: CausalLM) -> None:
    with torch.no_grad():
        for layer, weight in adapted(theirs, model, "data"):
            weight += layer.delta("default")


@torch.no_grad()
def cached_difference(theirs: Any, model: CausalLM) -> float:
    """A text of which most is decoded token by token, beside transformers' whole pass."""
    config, ids = model.config, random_ids(1)[0]
    attend = PackedAttention([Segment(0, PROMPT)], config.windows, CPU, record=True)
    logits = [model.lm_head(model(ids[:PROMPT], torch.arange(PROMPT), attend))]
    sizes = (config.num_key_value_heads, config.head_dim)
    cache = KVCache(config.windows, 1, LENGTH, *sizes, dtype=torch.float32, device=CPU)
    cache.add(attend.recorded, PROMPT, 1)
    for token in ids[PROMPT:]:
        logits.append(model.lm_head(model(token[None], *cache.step())))
    return largest(torch.cat(logits) - theirs(ids[None]).logits[0])


@torch.no_grad()
def merge_difference(theirs: Any, model: CausalLM) -> float:
    """Our merged adapter beside weights that were merged in transformers."""
    with merged_adapter(model):
        return logits_difference(theirs, model)


def peft_difference(kind: str, model: CausalLM, folder: Path) -> float:
    """Our saved adapter, opened by PEFT over transformers' model."""
    from peft import PeftModel

    save_adapter(model, folder / "adapter")
    theirs = PeftModel.from_pretrained(peer(kind, folder), folder / "adapter").eval()
    return logits_difference(theirs, model)


def wrong_differences(kind: str, theirs: Any, model: CausalLM) -> dict[str, float]:
    """How far off each wrong switch is."""
    found = {}
    for label, change in WRONG[kind].items():
        other = CausalLM(change(model.config)).requires_grad_(False)
        other.load_state_dict(model.state_dict(), strict=False)
        found[label] = logits_difference(theirs, other)
    return found


def measure(kind: str, folder: Path) -> dict[str, Any]:
    theirs = peer(kind, folder)
    model = load_model(folder, torch.float32, CPU)
    found: dict[str, Any] = {"family": kind, "logits": logits_difference(theirs, model)}
    with torch.no_grad():
        found["spread"] = float(theirs(random_ids(2)).logits.std())
    found["cached"] = cached_difference(theirs, model)
    found["wrong"] = wrong_differences(kind, theirs, model)
    model = with_random_adapter(model)
    found["gradient"] = gradient_difference(theirs, model)
    found["merged"] = merge_difference(theirs, model)
    found["peft"] = peft_difference(kind, model, folder)
    return found


COLUMNS = {
    "logits": "logits",
    "cached": "decoded with the cache",
    "gradient": "gradient of LoRA",
    "merged": "merged",
    "peft": "opened by PEFT",
}


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [f"| family | {' | '.join(COLUMNS.values())} | least wrong switch |"]
    lines.append("|---" * (len(COLUMNS) + 2) + "|")
    for row in rows:
        numbers = [f"{row[column]:.0e}" for column in COLUMNS]
        wrong, off = min(row["wrong"].items(), key=lambda item: item[1])
        lines.append(f"| `{row['family']}` | {' | '.join(numbers)} | {off:.1f} ({wrong}) |")
    return "\n".join(lines)


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for kind in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(kind, Path(folder)))
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    RESULT.write_text(json.dumps({"versions": versions, "families": rows}, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
