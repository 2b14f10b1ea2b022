"""Checkpoint folders into models: what loads, and the one line for each thing that does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.refusals import refusal
from safetensors.torch import load_file, save_file
from torch import Tensor

import minialign
from minialign.model.transformer import CausalLM
from minialign.weights.devices import DTYPES, pick_device, pick_dtype
from minialign.weights.load import load_model

CPU = torch.device("cpu")
IDS = torch.arange(3, 40)[None]
NORM = "model.layers.1.input_layernorm.weight"


def load(folder: Path, dtype: torch.dtype = torch.float32) -> CausalLM:
    return load_model(folder, dtype, CPU)


def edit_config(folder: Path, **changes: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def shard(folder: Path) -> dict[str, str]:
    """Rewrites model.safetensors as three shards with an index, as large checkpoints come."""
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    weight_map = {
        name: f"model-0000{i % 3 + 1}-of-00003.safetensors" for i, name in enumerate(names)
    }
    for file in set(weight_map.values()):
        save_file({n: t for n, t in state.items() if weight_map[n] == file}, folder / file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return weight_map


def test_one_file_and_three_shards_load_as_the_same_frozen_model(
    toy_checkpoint: Path, toy_model: CausalLM
) -> None:
    expected = toy_model.logits(IDS)
    single = load(toy_checkpoint)
    assert torch.equal(single.logits(IDS), expected)
    assert not single.training and not any(p.requires_grad for p in single.parameters())
    shard(toy_checkpoint)
    assert torch.equal(load(toy_checkpoint).logits(IDS), expected)


def test_load_knows_the_models_name_and_every_token_it_stops_at(toy_checkpoint: Path) -> None:
    (toy_checkpoint / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    model, tokenizer = minialign.load(str(toy_checkpoint), dtype="float32", device="cpu")
    assert model.name == str(toy_checkpoint)
    assert model.stop_ids == (2, 0)  # the token that training ends completions with comes first
    assert tokenizer.eos_id == 2


def test_a_missing_tensor_is_named(toy_checkpoint: Path) -> None:
    edit_tensors(toy_checkpoint, lambda state: state.pop(NORM))
    assert NORM in refusal(lambda: load(toy_checkpoint))


def test_a_tensor_missing_from_the_shards_is_named(toy_checkpoint: Path) -> None:
    file = toy_checkpoint / shard(toy_checkpoint)[NORM]
    state = load_file(file)
    del state[NORM]
    save_file(state, file)
    assert NORM in refusal(lambda: load(toy_checkpoint))


def test_an_extra_tensor_is_named(toy_checkpoint: Path) -> None:
    extra = "model.layers.0.self_attn.q_proj.bias"
    edit_tensors(toy_checkpoint, lambda state: state.update({extra: torch.zeros(32)}))
    assert extra in refusal(lambda: load(toy_checkpoint))


def test_rotary_frequencies_that_old_checkpoints_store_are_passed_over(
    toy_checkpoint: Path, toy_model: CausalLM
) -> None:
    stored = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.full((4,), 7.0)}
    edit_tensors(toy_checkpoint, lambda state: state.update(stored))
    assert torch.equal(load(toy_checkpoint).logits(IDS), toy_model.logits(IDS))


def test_a_tensor_of_another_shape_is_named_with_both_shapes(toy_checkpoint: Path) -> None:
    edit_tensors(toy_checkpoint, lambda state: state.update({NORM: torch.ones(31)}))
    message = refusal(lambda: load(toy_checkpoint))
    assert NORM in message and "(31,)" in message and "(32,)" in message


@pytest.mark.parametrize("kept", [4, 200, -1], ids=["in the length", "in the header", "last byte"])
def test_a_truncated_file_is_named(toy_checkpoint: Path, kept: int) -> None:
    file = toy_checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    assert str(file) in refusal(lambda: load(toy_checkpoint))


def test_a_missing_shard_is_named(toy_checkpoint: Path) -> None:
    shard(toy_checkpoint)
    file = toy_checkpoint / "model-00002-of-00003.safetensors"
    file.unlink()
    assert str(file) in refusal(lambda: load(toy_checkpoint))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": 3}', '{"weight_map": {}}'])
def test_a_broken_index_is_named(toy_checkpoint: Path, content: str) -> None:
    index = toy_checkpoint / "model.safetensors.index.json"
    index.write_text(content)
    assert str(toy_checkpoint) in refusal(lambda: load(toy_checkpoint))


def test_a_folder_without_weights_says_which_file_it_needs(toy_checkpoint: Path) -> None:
    (toy_checkpoint / "model.safetensors").unlink()
    assert "model.safetensors" in refusal(lambda: load(toy_checkpoint))


@pytest.mark.parametrize("content", [None, "{", "[1, 2]", "\xff\xfe"])
def test_a_missing_or_broken_config_is_named(toy_checkpoint: Path, content: str | None) -> None:
    file = toy_checkpoint / "config.json"
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content.encode("latin-1"))
    assert "config.json" in refusal(lambda: load(toy_checkpoint))


@pytest.mark.parametrize("stored", [True, False], ids=["lm_head.weight stored", "not stored"])
def test_a_tied_head_is_the_embedding_itself_whatever_the_file_says(
    toy_checkpoint: Path, stored: bool
) -> None:
    edit_config(toy_checkpoint, tie_word_embeddings=True)
    edit_tensors(toy_checkpoint, lambda s: None if stored else s.pop("lm_head.weight"))
    model = load(toy_checkpoint)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    state = load_file(toy_checkpoint / "model.safetensors")
    assert torch.equal(model.lm_head.weight, state["model.embed_tokens.weight"])


def test_an_untied_head_must_be_in_the_file(toy_checkpoint: Path) -> None:
    edit_tensors(toy_checkpoint, lambda state: state.pop("lm_head.weight"))
    assert "lm_head.weight" in refusal(lambda: load(toy_checkpoint))


@pytest.mark.parametrize("stored", DTYPES.values(), ids=DTYPES.keys())
@pytest.mark.parametrize("asked", DTYPES.values(), ids=DTYPES.keys())
def test_every_type_is_converted_to_the_one_asked_for(
    toy_checkpoint: Path, toy_model: CausalLM, stored: torch.dtype, asked: torch.dtype
) -> None:
    edit_tensors(toy_checkpoint, lambda s: s.update({k: t.to(stored) for k, t in s.items()}))
    model = load(toy_checkpoint, asked)
    for name, parameter in model.named_parameters():
        # on a processor the norms' numbers stay wide
        own = asked if parameter.dim() > 1 or asked == torch.float64 else torch.float32
        assert parameter.dtype == own
        expected = toy_model.get_parameter(name).to(stored).to(own)
        assert torch.equal(parameter, expected), name


def test_auto_is_float32_without_a_gpu_and_a_wrong_type_is_answered_with_the_choice() -> None:
    assert pick_dtype("auto", CPU) is torch.float32
    assert pick_dtype("bfloat16", CPU) is torch.bfloat16
    message = refusal(lambda: pick_dtype("int4", CPU))
    assert "'int4'" in message and all(name in message for name in DTYPES)


@pytest.mark.parametrize("name", ["cuda:99", "toaster", "cpu:x", "meta:", ""])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    message = refusal(lambda: pick_device(name))
    assert repr(name) in message and "--device" in message
    assert pick_device("cpu") == CPU
