"""Adapters of projections that a checkpoint stores as one: joined when saved, split again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.toys import with_adapter
from safetensors.torch import load_file

from minialign.model.config import ModelConfig
from minialign.model.families import Family
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import lora_layers
from minialign.policy.peft import adapter_state, load_adapter, lora_of, save_adapter


def fused_model(make_toy_model: Callable[..., CausalLM], toy_config: ModelConfig) -> CausalLM:
    return make_toy_model(replace(toy_config, family=Family(fused=True)))


@pytest.mark.parametrize(
    "targets", [("q_proj", "k_proj", "v_proj", "o_proj"), ("q_proj", "v_proj", "up_proj")]
)
def test_joined_adapters_come_back_as_they_were(
    targets: tuple[str, ...],
    toy_config: ModelConfig,
    make_toy_model: Callable[..., CausalLM],
    tmp_path: Path,
) -> None:
    model = with_adapter(fused_model(make_toy_model, toy_config), target_modules=targets)
    save_adapter(model, tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert {key.split(".")[-3] for key in stored} & {"q_proj", "v_proj", "up_proj"} == set()
    again = fused_model(make_toy_model, toy_config)
    load_adapter(again, tmp_path)
    own, found = adapter_state(model, "default"), adapter_state(again, "default")
    assert own.keys() == found.keys()
    assert all(torch.equal(own[key], found[key]) for key in own)
    assert set(lora_of(tmp_path).target_modules) == set(targets)


def test_an_adapter_on_the_whole_is_its_parts_adapters(
    toy_config: ModelConfig, make_toy_model: Callable[..., CausalLM], tmp_path: Path
) -> None:
    """PEFT's own, on qkv_proj: W + s B A, whose rows belong to queries, keys and values in turn."""
    model = with_adapter(
        fused_model(make_toy_model, toy_config), target_modules=("q_proj", "k_proj", "v_proj")
    )
    save_adapter(model, tmp_path)
    (tmp_path / "base.json").unlink()
    file = tmp_path / "adapter_config.json"
    raw = json.loads(file.read_text())
    raw |= {"r": 12, "lora_alpha": 24.0, "rank_pattern": {}, "alpha_pattern": {}}
    file.write_text(json.dumps(raw))
    again = fused_model(make_toy_model, toy_config)
    load_adapter(again, tmp_path)
    assert lora_of(tmp_path).target_modules == ("k_proj", "q_proj", "v_proj")
    for (name, own), other in zip(
        lora_layers(model).items(), lora_layers(again).values(), strict=True
    ):
        torch.testing.assert_close(other.delta("default"), own.delta("default"), msg=name)
