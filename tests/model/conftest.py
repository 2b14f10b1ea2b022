"""The fixtures of the model's tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from helpers.sequences import WINDOW

from minialign.model.config import ModelConfig
from minialign.model.transformer import CausalLM


@pytest.fixture(params=[None, WINDOW], ids=["no window", "window 8"])
def model(
    request: pytest.FixtureRequest,
    toy_config: ModelConfig,
    make_toy_model: Callable[..., CausalLM],
) -> CausalLM:
    return make_toy_model(replace(toy_config, sliding_window=request.param))
