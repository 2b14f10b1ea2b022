"""Hostile and broken checkpoints: one line each, before anything large is allocated."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.refusals import refusal
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import minialign
from minialign.errors import InputError
from minialign.model.config import COMMON_FIELDS, ROPE_FIELDS, ROPE_SETTINGS, ModelConfig
from minialign.model.families import FAMILIES
from minialign.model.rope import turn_of
from minialign.weights.load import load_model

NORM = "model.layers.1.input_layernorm.weight"
NESTED = "[" * 100_000 + "]" * 100_000


def load(folder: Path) -> object:
    return minialign.load(str(folder), dtype="float32", device="cpu")


def edit(file: Path, **changes: Any) -> None:
    raw = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**raw, **changes}))


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "sizes as texts": ({"hidden_size": "32"}, "hidden_size"),
    "a size as a list": ({"vocab_size": [320]}, "vocab_size"),
    "a size as true": ({"num_attention_heads": True}, "num_attention_heads"),
    "a size as a fraction": ({"head_dim": 8.5}, "head_dim"),
    "a billion layers": ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
    "a billion words": ({"vocab_size": 10**9}, "vocab_size"),
    "a huge size": ({"intermediate_size": 10**400}, "intermediate_size"),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers"),
    "a negative size": ({"hidden_size": -32}, "hidden_size"),
    "no heads": ({"num_attention_heads": 0}, "num_attention_heads"),
    "heads that do not divide": ({"num_key_value_heads": 3}, "num_key_value_heads"),
    "an odd head": ({"head_dim": 7}, "head_dim"),
    "a window of nothing": ({"sliding_window": 0}, "sliding_window"),
    "a window as a text": ({"sliding_window": "all"}, "sliding_window"),
    "epsilon as a text": ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
    "no epsilon": ({"rms_norm_eps": 0.0}, "rms_norm_eps"),
    "NaN": ({"rms_norm_eps": math.nan}, "rms_norm_eps"),
    "infinity": ({"rope_theta": math.inf}, "rope_theta"),
    "a negative base": ({"rope_theta": -1.0}, "rope_theta"),
    "tied to a text": ({"tie_word_embeddings": "yes"}, "tie_word_embeddings"),
    "a type that is a list": ({"model_type": ["mistral"]}, "model_type"),
    "a type that is a letter 100,000 times": ({"model_type": "x" * 100_000}, "model_type"),
    "positions as a list": ({"rope_scaling": [1]}, "rope_scaling"),
    "a kind of positions that is an object": ({"rope_scaling": {"type": {"a": 1}}}, "rope type"),
    "a factor as a text": ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor"),
    "an unknown field, nested": ({"layers": {"a": {"b": 1}}}, "layers"),
    "an end token beyond the vocabulary": ({"eos_token_id": 320}, "end token"),
    "an end token as a text": ({"eos_token_id": "2"}, "end token"),
    "an end token below zero": ({"eos_token_id": [2, -1]}, "end token"),
    "end tokens nested": ({"eos_token_id": [[2]]}, "end token"),
}


@pytest.mark.parametrize(("changes", "named"), CONFIGS.values(), ids=CONFIGS)
def test_a_hostile_config_is_refused_by_name(
    changes: dict[str, Any], named: str, toy_checkpoint: Path
) -> None:
    edit(toy_checkpoint / "config.json", **changes)
    began = time.process_time()
    message = refusal(lambda: load(toy_checkpoint))
    assert named in message and len(message) < 500
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer_config.json", "generation_config.json", "tokenizer.json"]
    + ["model.safetensors.index.json"],
)
@pytest.mark.parametrize("content", [NESTED, '{"a": ' + NESTED + "}", "9" * 100_000, '"text"'])
def test_a_file_nested_beyond_bounds_is_named(
    name: str, content: str, toy_checkpoint: Path
) -> None:
    (toy_checkpoint / name).write_text(content)
    assert name in refusal(lambda: load(toy_checkpoint))[:1000]


@pytest.mark.parametrize(
    "names", [["../model.safetensors"], ["/etc/hostname"], [3], [None], [["model.safetensors"]], []]
)
def test_an_index_names_files_of_its_own_folder_alone(
    names: list[Any], toy_checkpoint: Path
) -> None:
    edit(toy_checkpoint / "model.safetensors.index.json", weight_map=dict(enumerate(names)))
    assert "index" in refusal(lambda: load(toy_checkpoint))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
POSITIONS = st.fixed_dictionaries(
    {"rope_type": st.sampled_from([*ROPE_SETTINGS, "su"])},
    optional={
        name: JUNK | st.floats(0.1, 99) | st.just([1.0] * 4)
        for name in ROPE_FIELDS
        if name != "rope_type"
    },
)


@settings(max_examples=400)
@given(
    st.sampled_from(list(FAMILIES)),
    st.sets(st.integers(0, 40), max_size=3),
    st.lists(JUNK | st.integers(1, 64), min_size=3, max_size=3),
    st.none() | POSITIONS,
)
def test_any_value_in_any_field_is_read_or_refused(
    kind: str, places: set[int], values: list[Any], positions: Any
) -> None:
    fields = [*COMMON_FIELDS, *FAMILIES[kind].defaults]
    changed = {fields[i % len(fields)]: v for i, v in zip(places, values, strict=False)}
    sizes = {"vocab_size": 9, "hidden_size": 32, "intermediate_size": 9, "head_dim": 8}
    counts = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    raw = {"model_type": kind, **sizes, **counts, "rope_parameters": positions, **changed}
    try:
        config = ModelConfig.from_dict(raw)
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 500
        return
    for spec in config.layers if config.head_dim < 1000 else ():
        if spec.rope is not None:
            turn = turn_of(spec.rope, config.head_dim, torch.arange(3), torch.float32)
            assert turn is not None and turn.cos.isfinite().all()


TOKENIZERS: dict[str, tuple[dict[str, Any], str]] = {
    "an end token as a number": ({"eos_token": 2}, "eos_token"),
    "an end token as a list": ({"eos_token": ["</s>"]}, "eos_token"),
    "an end token without content": ({"eos_token": {"lstrip": True}}, "eos_token"),
    "a start token as a number": ({"bos_token": 1}, "bos_token"),
    "a template as a number": ({"chat_template": 3}, "chat_template"),
    "templates without a text": ({"chat_template": [{"name": "default"}, 3]}, ""),
    "an unknown token, long": ({"eos_token": "x" * 100_000}, "tokenizer.json"),
}


@pytest.mark.parametrize(("changes", "named"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_hostile_tokenizer_config_is_refused_by_name(
    changes: dict[str, Any], named: str, toy_checkpoint: Path
) -> None:
    edit(toy_checkpoint / "tokenizer_config.json", **changes)
    if named:
        message = refusal(lambda: load(toy_checkpoint))
        assert named in message and len(message) < 500
    else:  # as if there were no template
        load(toy_checkpoint)


MODELS: dict[str, dict[str, Any]] = {
    "no words": {"type": "BPE", "vocab": {}, "merges": []},
    "an id as a text": {"type": "BPE", "vocab": {"a": "0"}, "merges": []},
    "an id below zero": {"type": "BPE", "vocab": {"a": -1}, "merges": []},
    "an id of 20 digits": {"type": "BPE", "vocab": {"a": 10**20}, "merges": []},
    "merges of no words": {"type": "BPE", "vocab": {"a": 0}, "merges": [["x", "y"]]},
    "merges of one": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a"]},
    "an unknown kind": {"type": "Other", "vocab": {}},
    "no unknown word": {"type": "WordLevel", "vocab": {"b": 0}, "unk_token": "<x>"},
}


@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
def test_a_hostile_tokenizer_is_one_line(model: dict[str, Any], toy_checkpoint: Path) -> None:
    file = toy_checkpoint / "tokenizer.json"
    edit(file, model=model, added_tokens=[])
    assert "tokenizer.json" in refusal(lambda: load(toy_checkpoint))


def test_ids_beyond_the_vocabulary_are_refused(toy_checkpoint: Path) -> None:
    """A few control tokens may be beyond it, until a text has one; words may not."""
    file = toy_checkpoint / "tokenizer.json"
    raw = json.loads(file.read_text())
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    raw["added_tokens"].append({"id": 320, "content": "<image>", "special": True, **special})
    file.write_text(json.dumps(raw))
    _, tokenizer = minialign.load(str(toy_checkpoint), dtype="float32", device="cpu")
    assert tokenizer.encode_prompt("a picture")
    assert "<image>" in refusal(lambda: tokenizer.encode_prompt("<image>"))
    raw["model"]["vocab"] |= {f"word{i}": 320 + i for i in range(9)}
    file.write_text(json.dumps(raw))
    assert "another model" in refusal(lambda: load(toy_checkpoint))


WEIGHTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "NaN": lambda t: t.index_fill(0, torch.tensor([3]), math.nan),
    "infinity": lambda t: t.index_fill(0, torch.tensor([3]), -math.inf),
    "whole numbers": lambda t: t.to(torch.int32),
    "bytes": lambda t: t.to(torch.uint8),
    "true and false": lambda t: t > 0,
    "8 bits": lambda t: t.to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("change", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_are_no_finite_numbers_are_named(
    change: Callable[[torch.Tensor], torch.Tensor], toy_checkpoint: Path
) -> None:
    state = load_file(toy_checkpoint / "model.safetensors")
    state[NORM] = change(state[NORM])
    save_file(state, toy_checkpoint / "model.safetensors")
    message = refusal(lambda: load_model(toy_checkpoint, torch.float32, torch.device("cpu")))
    assert NORM in message


def test_weights_too_large_for_a_half_type_are_named(toy_checkpoint: Path) -> None:
    state = load_file(toy_checkpoint / "model.safetensors")
    # a norm stays in float32
    matrix = "model.layers.1.mlp.down_proj.weight"
    state[matrix][0, 0] = 1e6
    save_file(state, toy_checkpoint / "model.safetensors")
    message = refusal(lambda: load_model(toy_checkpoint, torch.float16, torch.device("cpu")))
    assert matrix in message
