"""Sums of adapters: exact, whatever their ranks, scales and layers, and readable by PEFT."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.adapters import IDS, logits
from helpers.refusals import refusal

from minialign.model.config import ModelConfig
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import (
    active_adapter,
    adapter_parameters,
    apply_lora,
    combine_adapters,
    copy_adapter,
    lora_layers,
    set_adapter,
    trainable_parameters,
)
from minialign.policy.knobs import LoRAConfig
from minialign.policy.merge import merge_adapter
from minialign.policy.peft import adapter_hash, load_adapter, save_adapter
from minialign.weights.load import load_model

CONFIGS = {
    "a": LoRAConfig(rank=4, alpha=6.0, dropout=0.0, target_modules=("q_proj", "v_proj")),
    "b": LoRAConfig(rank=3, alpha=16.0, dropout=0.0, target_modules=("v_proj", "up_proj")),
    "c": LoRAConfig(rank=1, alpha=0.7, dropout=0.0, target_modules=("v_proj", "o_proj", "q_proj")),
}
WEIGHTS = [
    {"a": 1.0, "b": 1.0},
    {"b": 1.0, "a": 1.0},
    {"a": 0.3, "b": -1.7, "c": 2.0},
    {"a": 1.0, "b": 0.0},
    {"a": 0.0, "b": 1.0},
    {"a": -1.0},
    {"a": 0.0},
]


def add_adapters(model: CausalLM) -> CausalLM:
    """As if trained: `a`, `b` and `c` share the layer v_proj alone."""
    for seed, (name, config) in enumerate(CONFIGS.items()):
        apply_lora(model, config, name)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in adapter_parameters(model, name):
                parameter.normal_(0, 0.3, generator=generator)
    return model


@pytest.fixture
def adapted(toy_model: CausalLM) -> CausalLM:
    return add_adapters(toy_model)


@pytest.mark.parametrize("weights", WEIGHTS, ids=str)
def test_the_sum_is_the_weighted_sum_of_the_deltas_in_every_layer(
    adapted: CausalLM, weights: dict[str, float]
) -> None:
    combine_adapters(adapted, weights)
    assert active_adapter(adapted) == "combined"
    reached = 0
    for layer in lora_layers(adapted).values():
        deltas = [w * layer.delta(name) for name, w in weights.items() if name in layer.configs]
        assert bool(deltas) == ("combined" in layer.configs)
        if deltas:
            expected = torch.stack(deltas).sum(0)
            torch.testing.assert_close(layer.delta("combined"), expected, rtol=1e-5, atol=1e-5)
            reached += 1
    assert reached >= 4


def test_the_combined_model_is_the_model_whose_weights_are_the_base_s_plus_both_deltas(
    adapted: CausalLM, toy_config: ModelConfig, make_toy_model: Callable[..., CausalLM]
) -> None:
    combine_adapters(adapted, {"a": 1.0, "b": 0.5})
    plain = make_toy_model(toy_config)
    weights = dict(plain.named_parameters())
    with torch.no_grad():
        for path, layer in lora_layers(adapted).items():
            for name, weight in (("a", 1.0), ("b", 0.5)):
                if name in layer.configs:
                    weights[f"{path}.weight"].add_(layer.delta(name), alpha=weight)
    combined = logits(adapted)
    assert (combined - logits(plain)).abs().max() < 1e-3  # logits are of the order of 10
    set_adapter(adapted, "a")
    assert (combined - logits(adapted)).abs().max() > 1


def test_one_adapter_with_weight_1_is_itself_to_the_last_bit(adapted: CausalLM) -> None:
    for name in CONFIGS:
        combine_adapters(adapted, {name: 1.0}, f"{name}2")
        assert adapter_hash(adapted, f"{name}2") == adapter_hash(adapted, name)
        for layer in lora_layers(adapted).values():
            if name in layer.configs:
                assert layer.configs[f"{name}2"] == layer.configs[name]
                assert torch.equal(layer.delta(f"{name}2"), layer.delta(name))


def test_summing_the_matrices_instead_would_be_another_adapter(adapted: CausalLM) -> None:
    """The mistake that this guards against: (A1 + A2) (B1 + B2) has mixed products."""
    copy_adapter(adapted, "a", "d")
    with torch.no_grad():
        for parameter in adapter_parameters(adapted, "d"):
            parameter.neg_()  # the same delta, from opposite matrices
    combine_adapters(adapted, {"a": 1.0, "d": 1.0})
    layer = next(layer for layer in lora_layers(adapted).values() if "a" in layer.configs)
    torch.testing.assert_close(layer.delta("combined"), 2 * layer.delta("a"), rtol=1e-5, atol=1e-5)
    assert layer.delta("a").abs().max() > 0.1


def test_an_adapter_of_scale_0_adds_nothing(adapted: CausalLM) -> None:
    silent = LoRAConfig(rank=2, alpha=0.0, dropout=0.0, target_modules=("q_proj",))
    apply_lora(adapted, silent, "silent")
    combine_adapters(adapted, {"silent": 1.0, "a": 2.0}, "both")
    combine_adapters(adapted, {"silent": 3.0}, "nothing")
    for layer in lora_layers(adapted).values():
        if "silent" in layer.configs:
            torch.testing.assert_close(layer.delta("both"), 2 * layer.delta("a"))
            assert not layer.delta("nothing").any()


def test_the_sources_stay_and_the_sum_is_frozen_until_it_is_copied(adapted: CausalLM) -> None:
    before = {name: adapter_hash(adapted, name) for name in CONFIGS}
    combine_adapters(adapted, {"a": 1.0, "b": 1.0})
    assert {name: adapter_hash(adapted, name) for name in CONFIGS} == before
    ours = {id(p) for p in adapter_parameters(adapted, "combined")}
    assert not ours & {id(p) for p in trainable_parameters(adapted)}
    copy_adapter(adapted, "combined", "next")
    trainable = {id(p) for p in trainable_parameters(adapted)}
    assert trainable == {id(p) for p in adapter_parameters(adapted, "next")}


def test_a_sum_may_take_the_place_of_one_of_its_sources(adapted: CausalLM) -> None:
    combine_adapters(adapted, {"a": 1.0, "b": 2.0}, "expected")
    combine_adapters(adapted, {"a": 1.0, "b": 2.0}, "a")
    assert adapter_hash(adapted, "a") == adapter_hash(adapted, "expected")
    combine_adapters(adapted, {"c": 1.0}, "a")  # which reaches other layers than the one before
    assert adapter_hash(adapted, "a") == adapter_hash(adapted, "c")
    combine_adapters(adapted, {"b": 1.0}, "b")
    assert active_adapter(adapted) == "b"


def test_a_saved_sum_opens_again_with_the_same_logits(
    adapted: CausalLM,
    toy_config: ModelConfig,
    make_toy_model: Callable[..., CausalLM],
    tmp_path: Path,
) -> None:
    combine_adapters(adapted, {"a": 0.3, "b": -1.7, "c": 2.0})
    save_adapter(adapted, tmp_path)
    again = make_toy_model(toy_config)
    load_adapter(again, tmp_path)
    assert torch.equal(logits(again), logits(adapted))


@pytest.mark.parametrize(
    "weights", [{"a": 1.0, "b": 0.5}, {"a": 1.0, "b": -1.0, "c": 2.0}], ids=str
)
def test_peft_opens_a_saved_sum_and_computes_our_logits(
    toy_checkpoint: Path, tmp_path: Path, weights: dict[str, float]
) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    ours = add_adapters(load_model(toy_checkpoint, torch.float32, torch.device("cpu")))
    combine_adapters(ours, weights)
    save_adapter(ours, tmp_path / "adapter")
    base = transformers.AutoModelForCausalLM.from_pretrained(toy_checkpoint, dtype=torch.float32)
    with torch.no_grad():
        without = base(IDS).logits
        theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()(IDS).logits
    assert (theirs - without).abs().max() > 1
    # float32 rounding; logits are of the order of 10
    assert (theirs - logits(ours)).abs().max() < 1e-3


def test_what_cannot_be_combined_is_refused_by_name_and_changes_nothing(adapted: CausalLM) -> None:
    set_adapter(adapted, "a")
    before = logits(adapted)
    assert "'nobody'" in refusal(lambda: combine_adapters(adapted, {"a": 1.0, "nobody": 1.0}))
    assert "at least one" in refusal(lambda: combine_adapters(adapted, {}))
    for weight in (float("nan"), float("inf")):
        assert "'b'" in refusal(lambda w=weight: combine_adapters(adapted, {"a": 1.0, "b": w}))
    merge_adapter(adapted)
    assert "unmerge" in refusal(lambda: combine_adapters(adapted, {"a": 1.0}))
    assert active_adapter(adapted) == "a"
    assert all("combined" not in layer.configs for layer in lora_layers(adapted).values())
    torch.testing.assert_close(logits(adapted), before, rtol=1e-3, atol=1e-3)
