"""The fixtures of the policy's tests."""

from __future__ import annotations

import pytest
from helpers.adapters import CONFIG, fill, logits

from minialign.model.transformer import CausalLM
from minialign.policy.adapters import apply_lora


@pytest.fixture
def adapted(toy_model: CausalLM) -> CausalLM:
    """The toy model with the adapter `default`, far from the base."""
    before = logits(toy_model)
    apply_lora(toy_model, CONFIG)
    fill(toy_model, "default")
    assert (logits(toy_model) - before).abs().max() > 1
    return toy_model
