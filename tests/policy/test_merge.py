"""Merging an adapter into its weights, and taking it out again to the last bit."""

from __future__ import annotations

import pytest
import torch
from helpers.adapters import CONFIG, fill, logits

from minialign.errors import InputError
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import apply_lora, lora_layers
from minialign.policy.merge import merge_adapter, merged_adapter, unmerge_adapter
from minialign.policy.reference import reference_policy


def test_merged_weights_are_w_plus_scaled_b_a_and_unmerging_restores_every_bit(
    adapted: CausalLM,
) -> None:
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    unmerged = logits(adapted)
    share = merge_adapter(adapted)
    assert share > 0.99  # a float32 sum can round to where it was, rarely
    for name, layer in lora_layers(adapted).items():
        a, b = before[f"{name}.lora_A.default"], before[f"{name}.lora_B.default"]
        expected = before[f"{name}.weight"] + 1.5 * b @ a
        torch.testing.assert_close(layer.weight, expected, rtol=1e-6, atol=1e-6)
    # the adapter is not added a second time; float32 sums in another order
    assert (logits(adapted) - unmerged).abs().max() < 1e-4
    merge_adapter(adapted)
    assert (logits(adapted) - unmerged).abs().max() < 1e-4
    unmerge_adapter(adapted)
    unmerge_adapter(adapted)
    assert all(torch.equal(p, before[name]) for name, p in adapted.named_parameters())
    assert torch.equal(logits(adapted), unmerged)


def test_a_merged_block_that_breaks_off_restores_every_bit(toy_model: CausalLM) -> None:
    apply_lora(toy_model, CONFIG)
    fill(toy_model, "default")
    layers = lora_layers(toy_model)
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    with pytest.raises(RuntimeError), merged_adapter(toy_model):
        assert not any(torch.equal(layer.weight, before[name]) for name, layer in layers.items())
        raise RuntimeError
    assert all(torch.equal(layer.weight, before[name]) for name, layer in layers.items())


def test_an_inner_merge_leaves_the_weights_to_the_outer_one(toy_model: CausalLM) -> None:
    apply_lora(toy_model, CONFIG)
    fill(toy_model, "default")
    plain = {name: layer.weight.clone() for name, layer in lora_layers(toy_model).items()}
    with merged_adapter(toy_model):
        with merged_adapter(toy_model):
            pass
        assert all(layer.merged for layer in lora_layers(toy_model).values())
    for name, layer in lora_layers(toy_model).items():
        assert not layer.merged and torch.equal(layer.weight, plain[name])


def test_a_merged_model_refuses_to_switch_adapters(toy_model: CausalLM) -> None:
    """Its weights hold the adapter: a reference computed from them would be another policy's."""
    apply_lora(toy_model, CONFIG)
    fill(toy_model, "default")
    merge_adapter(toy_model)
    merged = logits(toy_model)
    with pytest.raises(InputError, match="unmerge"), reference_policy(toy_model, None):
        pass
    assert torch.equal(logits(toy_model), merged)
    unmerge_adapter(toy_model)
    with reference_policy(toy_model, None):
        pass


def test_a_half_base_stays_unmerged_so_that_the_policy_itself_is_sampled(
    toy_model: CausalLM,
) -> None:
    """Rounded into bfloat16, most of a small update would be gone from what is sampled."""
    toy_model.to(torch.bfloat16)
    apply_lora(toy_model, CONFIG)
    fill(toy_model, "default", std=1e-3)
    before = logits(toy_model)
    weights = {name: layer.weight.clone() for name, layer in lora_layers(toy_model).items()}
    with merged_adapter(toy_model):
        assert torch.equal(logits(toy_model), before)
        layers = lora_layers(toy_model).items()
        assert all(torch.equal(layer.weight, weights[name]) for name, layer in layers)


@pytest.mark.parametrize(("std", "low", "high"), [(1e-3, 0.0, 0.1), (0.3, 0.9, 1.0)])
def test_merging_into_bfloat16_reports_how_much_of_the_update_arrived(
    toy_model: CausalLM, std: float, low: float, high: float
) -> None:
    """A weight near 0.3 moves in steps of 0.002; an update of 3e-6 vanishes nearly everywhere."""
    toy_model.to(torch.bfloat16)
    apply_lora(toy_model, CONFIG)
    fill(toy_model, "default", std=std)
    before = {name: layer.weight.clone() for name, layer in lora_layers(toy_model).items()}
    share = merge_adapter(toy_model)
    after = {name: layer.weight for name, layer in lora_layers(toy_model).items()}
    changed = sum(int((after[name] != before[name]).sum()) for name in before)
    assert share == changed / sum(weight.numel() for weight in before.values())
    assert low < share < high
