"""Adapters: what is trained and what is not, and which of several is at work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from helpers.adapters import CONFIG, EVERY_LAYER, SEQUENCES, fill, logits
from helpers.refusals import refusal

from minialign.model.config import ModelConfig
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import (
    active_adapter,
    adapter_parameters,
    apply_lora,
    copy_adapter,
    lora_layers,
    set_adapter,
    trainable_parameters,
)
from minialign.policy.peft import adapter_hash
from minialign.policy.score import score

# ---- what an adapter is ----


def test_a_fresh_adapter_changes_nothing_to_the_last_bit(toy_model: CausalLM) -> None:
    before = logits(toy_model)
    apply_lora(toy_model, replace(CONFIG, target_modules=EVERY_LAYER))
    assert torch.equal(logits(toy_model), before)
    fill(toy_model, "default")
    assert not torch.equal(logits(toy_model), before)


def test_a_layer_computes_w_x_plus_alpha_over_rank_times_b_a_x(adapted: CausalLM) -> None:
    layer = lora_layers(adapted)["model.layers.1.self_attn.o_proj"]
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    a, b = layer.lora_A["default"], layer.lora_B["default"]
    expected = layer.weight @ x.T + 6.0 / 4 * (b @ (a @ x.T))
    torch.testing.assert_close(layer(x), expected.T, rtol=1e-5, atol=1e-5)


def test_a_score_reaches_every_trainable_number_and_those_are_the_adapters(
    toy_model: CausalLM,
) -> None:
    toy_model.requires_grad_(True)  # whatever was trainable before
    apply_lora(toy_model, replace(CONFIG, target_modules=EVERY_LAYER))
    fill(toy_model, "default")
    score(toy_model, SEQUENCES).sum().backward()
    learned = {name for name, p in toy_model.named_parameters() if p.grad is not None}
    assert learned == {n for n, p in toy_model.named_parameters() if p.requires_grad}
    assert learned == {n for n, _ in toy_model.named_parameters() if "lora_" in n}
    assert len(learned) == 2 * len(EVERY_LAYER) * toy_model.config.num_hidden_layers
    ours = {id(p) for p in adapter_parameters(toy_model, "default")}
    assert ours == {id(p) for p in trainable_parameters(toy_model)}
    assert all(p.grad.abs().sum() > 0 for p in trainable_parameters(toy_model))


def test_dropout_works_in_training_and_never_in_evaluation(toy_model: CausalLM) -> None:
    apply_lora(toy_model, replace(CONFIG, dropout=0.5))
    fill(toy_model, "default")
    assert torch.equal(logits(toy_model), logits(toy_model))
    toy_model.train()
    assert not torch.equal(logits(toy_model), logits(toy_model))


def test_the_same_generator_starts_the_same_adapter(
    toy_config: ModelConfig, make_toy_model: Callable[..., CausalLM]
) -> None:
    hashes = []
    for seed in (1, 1, 2):
        model = make_toy_model(toy_config)
        apply_lora(model, CONFIG, generator=torch.Generator().manual_seed(seed))
        hashes.append(adapter_hash(model, "default"))
    assert hashes[0] == hashes[1] != hashes[2]


def test_adapters_are_float32_over_a_half_base_and_take_steps_that_the_base_could_not(
    toy_model: CausalLM,
) -> None:
    toy_model.to(torch.bfloat16)
    apply_lora(toy_model, CONFIG)
    assert {p.dtype for p in trainable_parameters(toy_model)} == {torch.float32}
    assert {p.dtype for p in toy_model.parameters() if not p.requires_grad} == {torch.bfloat16}
    score(toy_model, SEQUENCES).sum().backward()
    first = trainable_parameters(toy_model)[0]
    before = first.detach().clone()
    with torch.no_grad():
        first.mul_(1 + 1e-5)  # bfloat16 knows nothing between 1 and 1.0078
    assert (first != before).float().mean() > 0.9
    hidden = torch.ones(2, 32, dtype=torch.bfloat16)
    assert lora_layers(toy_model)["model.layers.0.self_attn.q_proj"](hidden).dtype == hidden.dtype


# ---- several adapters ----


def test_several_adapters_share_one_base_and_only_the_active_one_counts(
    toy_model: CausalLM,
) -> None:
    base = logits(toy_model)
    apply_lora(toy_model, CONFIG, "one")
    fill(toy_model, "one", seed=1)
    one = logits(toy_model)
    apply_lora(toy_model, replace(CONFIG, rank=2, target_modules=("down_proj",)), "two")
    fill(toy_model, "two", seed=2)
    two = logits(toy_model)
    for name, expected in (("one", one), ("two", two), (None, base), ("one", one)):
        set_adapter(toy_model, name)
        assert active_adapter(toy_model) == name
        assert torch.equal(logits(toy_model), expected)
    assert len({adapter_hash(toy_model, name) for name in ("one", "two", None)}) == 3
    assert "'three'" in refusal(lambda: set_adapter(toy_model, "three"))
    assert active_adapter(toy_model) == "one"


def test_a_copy_starts_where_its_source_stands_and_leaves_it_frozen(adapted: CausalLM) -> None:
    before, source = logits(adapted), adapter_hash(adapted, "default")
    copy_adapter(adapted, "default", "next")
    assert active_adapter(adapted) == "next"
    assert torch.equal(logits(adapted), before)
    copies = {id(p) for p in adapter_parameters(adapted, "next")}
    assert {id(p) for p in trainable_parameters(adapted)} == copies
    fill(adapted, "next", seed=5)
    assert adapter_hash(adapted, "default") == source
