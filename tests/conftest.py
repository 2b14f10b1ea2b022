"""The fixtures of all tests: a toy model, a toy checkpoint folder, and the real default model."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.loopback import direct, server  # noqa: F401  (fixtures)
from helpers.models import TOY_CONFIG, make_model, write_folder
from helpers.processes import ROOT
from hypothesis import settings

from minialign.model.config import ModelConfig
from minialign.model.transformer import CausalLM
from minialign.weights.find import ALIASES, local_checkpoint
from minialign.weights.load import load
from minialign.weights.tokenizer import Tokenizer
from minialign.weights.wheel import DEFAULT_ALIAS

torch.set_num_threads(1)
# A script that runs in the background ignores these, and so would all that is tested.
signal.signal(signal.SIGINT, signal.default_int_handler)
for ended_by in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(ended_by, signal.SIG_DFL)
settings.register_profile("minialign", deadline=None, derandomize=True)  # same result each time
settings.load_profile("minialign")


@pytest.fixture
def toy_config() -> ModelConfig:
    return TOY_CONFIG


@pytest.fixture
def make_toy_model() -> Callable[..., CausalLM]:
    """`make_model(config, seed=0, std=0.3)`; variants: `dataclasses.replace(toy_config, ...)`."""
    return make_model


@pytest.fixture
def toy_model(toy_config: ModelConfig) -> CausalLM:
    return make_model(toy_config)


@pytest.fixture
def toy_tokenizer(toy_checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_folder(toy_checkpoint)


@pytest.fixture
def toy_checkpoint(tmp_path: Path, toy_model: CausalLM) -> Path:
    """The toy model and a byte-level tokenizer as a folder in the Hugging Face layout."""
    config = toy_model.config
    description = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope.theta,
        "max_position_embeddings": config.max_position_embeddings,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    return write_folder(tmp_path / "toy", toy_model, description)


@pytest.fixture(scope="session")
def default_checkpoint() -> Path:
    """The folder of the default model; skips the test where it is absent. Read only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIALIGN_CHECKPOINTS", str(ROOT / "checkpoints"))
        folder = local_checkpoint(ALIASES[DEFAULT_ALIAS])
    return folder or pytest.skip("the default model is absent: python -m minialign fetch")


@pytest.fixture(scope="session")
def default_model(default_checkpoint: Path) -> tuple[CausalLM, Tokenizer]:
    """(model, tokenizer) in float32, one for the whole session: leave it as you found it."""
    return load(str(default_checkpoint), dtype="float32", device="cpu")
