"""The reference policy: a block without gradient and dropout, after which the policy is back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.adapters import CONFIG, IDS, SEQUENCES, fill, logits

from minialign.model.transformer import CausalLM
from minialign.policy.adapters import active_adapter, apply_lora, copy_adapter
from minialign.policy.reference import reference_policy
from minialign.policy.score import score


@pytest.mark.parametrize("reference", ["sft", None])
def test_the_reference_policy_has_no_gradient_and_no_dropout_and_ends_with_its_block(
    toy_model: CausalLM, reference: str | None
) -> None:
    base = logits(toy_model)
    apply_lora(toy_model, replace(CONFIG, dropout=0.5), "sft")
    fill(toy_model, "sft", seed=1)
    expected = logits(toy_model) if reference else base
    copy_adapter(toy_model, "sft", "policy")
    fill(toy_model, "policy", seed=2)
    toy_model.train().requires_grad_(True)  # also where all of it could be trained
    with reference_policy(toy_model, reference):
        assert not score(toy_model, SEQUENCES).requires_grad
        assert torch.equal(toy_model.logits(IDS), expected)
    assert active_adapter(toy_model) == "policy" and toy_model.training
    assert score(toy_model, SEQUENCES).requires_grad


def test_the_policy_is_back_when_the_reference_block_breaks_off(adapted: CausalLM) -> None:
    before = logits(adapted)
    with pytest.raises(KeyboardInterrupt), reference_policy(adapted, None):
        raise KeyboardInterrupt
    assert active_adapter(adapted) == "default" and not adapted.training
    assert torch.equal(logits(adapted), before)
    assert score(adapted, SEQUENCES).requires_grad
