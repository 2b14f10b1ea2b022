"""Every family against transformers: logits, gradients, decoding, merging, and switches set wrong.

The toys and the measures are those of benchmarks/families.py, which prints the table of the docs.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.processes import ROOT

from minialign.errors import InputError
from minialign.model.config import ModelConfig
from minialign.model.families import FAMILIES, Family
from minialign.weights.load import load_model

pytest.importorskip("transformers")
pytest.importorskip("peft")

CLOSE = 1e-4  # float32 rounding in another order of operations


def measures() -> ModuleType:
    file = ROOT / "benchmarks" / "families.py"
    specification = importlib.util.spec_from_file_location("families", file)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules["families"] = module
    specification.loader.exec_module(module)
    return module


BENCH = measures()


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_family_computes_what_transformers_computes(kind: str, tmp_path: Path) -> None:
    found = BENCH.measure(kind, tmp_path)
    assert found["spread"] > 1  # logits that could not differ by much would prove nothing
    for measure in BENCH.COLUMNS:
        assert found[measure] < CLOSE, measure
    for switch, difference in found["wrong"].items():
        assert difference > 0.1, switch


def test_there_are_at_most_twelve_switches_and_each_is_used() -> None:
    assert set(BENCH.TOYS) == set(BENCH.WRONG) == set(FAMILIES)
    switches = [field.name for field in dataclasses.fields(Family) if field.name != "defaults"]
    assert len(switches) <= 12
    for switch in switches:
        values = [getattr(family, switch) for family in FAMILIES.values()]
        assert len(set(map(repr, values))) > 1, switch


def test_the_table_of_the_docs_is_the_one_that_was_measured() -> None:
    rows = json.loads(BENCH.RESULT.read_text())["families"]
    assert [row["family"] for row in rows] == list(FAMILIES)
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert BENCH.table(rows) in page


# ---- config.json as it is found ----

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def config(kind: Any, **changes: Any) -> ModelConfig:
    return ModelConfig.from_dict({"model_type": kind, **SIZES, **changes})


def refusal(kind: Any, **changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        config(kind, **changes)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    return message


# Fields as published config.json files have them, where transformers 5 would write others: older
# spellings of positions, and defaults that were left out.
OLD: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "rope_theta": 300.0,
        "rope_local_base_freq": 50.0,
        "rope_scaling": {"rope_type": "linear", "factor": 4.0},
        "sliding_window_pattern": 3,
        "sliding_window": 7,
        "query_pre_attn_scalar": 8,
    },
    "olmo3": {
        "rope_theta": 500000,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 16,
            "attention_factor": 1.2,
        },
        "sliding_window": 7,
    },
    "phi3": {
        "rope_theta": 100.0,
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 64,
        "rope_scaling": {"type": "longrope", "short_factor": [1, 2, 3], "long_factor": [4, 5, 6]},
    },
    "smollm3": {"no_rope_layer_interval": 2, "rope_theta": 1000.0, "use_sliding_window": False},
    "qwen2": {"rope_theta": 1000.0, "use_sliding_window": False, "sliding_window": 3},
}


@pytest.mark.parametrize("kind", OLD)
def test_older_spellings_mean_what_transformers_takes_them_for(kind: str, tmp_path: Path) -> None:
    import transformers

    head_dim = {"head_dim": 8} if kind == "gemma3_text" else {}
    BENCH.peer(kind, tmp_path, **head_dim)
    file = tmp_path / "config.json"
    newer = ("rope_parameters", "layer_types", "no_rope_layers", "use_sliding_window")
    raw = {k: v for k, v in json.loads(file.read_text()).items() if k not in newer}
    raw |= {**SIZES, **OLD[kind], "max_position_embeddings": 128}
    file.write_text(json.dumps(raw))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager"
    )
    ours = load_model(tmp_path, torch.float32, BENCH.CPU)
    assert BENCH.logits_difference(theirs.eval(), ours) < CLOSE


def test_what_a_config_leaves_out_is_the_familys_default() -> None:
    assert config("gemma3_text").tie_word_embeddings and config("smollm3").tie_word_embeddings
    assert not config("qwen3").tie_word_embeddings
    assert config("smollm3").rope.theta == 2e6 and config("llama").rope.theta == 1e4
    assert config("qwen3").windows == (None,) * 4  # a window that is not asked for
    assert config("mistral").windows == (4096,) * 4
    assert config("mistral", sliding_window=None).windows == (None,) * 4
    assert [spec.rope is None for spec in config("smollm3").layers] == [False, False, False, True]


def test_longrope_ends_the_context_where_other_factors_would_begin() -> None:
    rope = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    found = config("phi3", rope_scaling=rope, max_position_embeddings=131072)
    assert found.max_position_embeddings == 4096
    assert found.rope.attention_factor == pytest.approx(1.19, abs=0.01)  # as in Phi-4-mini


# ---- what is refused, and why ----

REASONS = {
    "mixtral": "mixture of experts",
    "qwen3_moe": "mixture of experts",
    "gpt_oss": "mixture of experts",
    "granitemoehybrid": "recurrent",
    "qwen3_next": "recurrent",
    "qwen3_5_text": "recurrent",
    "nemotron_h": "recurrent",
    "lfm2": "short convolutions",
    "gemma3n_text": "keys and values of others",
    "gemma4_text": "keys and values of others",
    "falcon": "side by side",
    "gemma2": "soft-capping",
    "gemma3": "models of text",
    "mistral3": "models of text",
    "qwen2_5_vl": "models of text",
    "gpt2": "none of llama, mistral",
}


@pytest.mark.parametrize(("kind", "reason"), REASONS.items())
def test_other_architectures_are_refused_by_name_with_the_reason(kind: str, reason: str) -> None:
    message = refusal(kind)
    assert repr(kind) in message and reason in message


FEATURES: dict[str, tuple[str, dict[str, Any], str]] = {
    "experts": ("qwen3", {"num_experts": 8}, "mixture of experts"),
    "shared keys": ("llama", {"num_kv_shared_layers": 2}, "keys and values of others"),
    "capped": ("gemma3_text", {"final_logit_softcapping": 30.0}, "soft-capping"),
    "both ways": ("gemma3_text", {"use_bidirectional_attention": True}, "later tokens"),
    "quantised": ("llama", {"quantization_config": {"bits": 4}}, "stored quantised"),
    "another's switch": ("llama", {"logits_scaling": 8.0}, "logits_scaling"),
    "unknown": ("qwen3", {"hyper_attention": 2}, "'hyper_attention'"),
    "unknown in positions": ("llama", {"rope_scaling": {"mrope_section": [1]}}, "mrope_section"),
    "another activation": ("gemma3_text", {"hidden_activation": "relu"}, "'relu'"),
    "other layers": ("qwen3", {"layer_types": ["linear_attention"] * 4}, "layer_types"),
}


@pytest.mark.parametrize(("kind", "changes", "named"), FEATURES.values(), ids=FEATURES)
def test_an_unknown_feature_of_a_config_is_refused_by_name(
    kind: str, changes: dict[str, Any], named: str
) -> None:
    assert named in refusal(kind, **changes)


def test_what_changes_nothing_may_stand_in_a_config() -> None:
    plain = config("llama")
    noise = {"transformers_version": "5", "torch_dtype": "bfloat16", "_name_or_path": "x"}
    assert config("llama", **noise, attention_dropout=0.1, eos_token_id=[1, 2]) == plain
    assert config("llama", unknown_but_off=False, quantization_config=None) == plain


def test_no_other_file_knows_a_family_by_name() -> None:
    """But for GGUF's, whose own names of architectures are some of the same words."""
    for file in (ROOT / "minialign").rglob("*.py"):
        if file.name != "families.py" and "gguf" not in file.name and file.name != "write.py":
            text = file.read_text(encoding="utf-8")
            assert not [kind for kind in FAMILIES if f'"{kind}"' in text], file
