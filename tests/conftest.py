"""Shared fixtures: a toy model, a toy checkpoint folder, and the real default model where it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from minialign.errors import InputError
from minialign.model.config import ModelConfig
from minialign.model.transformer import CausalLM
from minialign.weights.find import ALIASES, local_checkpoint
from minialign.weights.load import load
from minialign.weights.tokenizer import Tokenizer
from minialign.weights.wheel import DEFAULT_ALIAS

torch.set_num_threads(1)
settings.register_profile("minialign", deadline=None, derandomize=True)  # same result each time
settings.load_profile("minialign")

ROOT = Path(__file__).parents[1]
VOCAB_SIZE = 320
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 0, 1, 2
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = (
    "Dear Sam, thank you for the note about the meeting on Monday. I will be there at nine and "
    "bring the numbers that you asked for. Best regards, Kim. Write an e-mail to the team that "
    "says the printer on the second floor is broken again, and ask them to use the other one. "
    "Hello all, the system and the user and the assistant write short letters to each other."
)


def make_model(config: ModelConfig, seed: int = 0, std: float = 0.3) -> CausalLM:
    """A frozen float32 model of random weights, the norms' too. At this spread attention is far
    from uniform, so that a wrong mask or position shows.
    """
    generator = torch.Generator().manual_seed(seed)
    model = CausalLM(config, name="toy")
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter.data, 0, std, generator=generator)
        if name.endswith("norm.weight"):
            parameter.data.add_(1)
    model.stop_ids = (2,)
    return model.requires_grad_(False).eval()


def make_byte_level_backend() -> Backend:
    """A byte-level BPE of VOCAB_SIZE tokens: all bytes, some merges, the special tokens."""
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([CORPUS], trainer)
    assert backend.get_vocab_size() == VOCAB_SIZE
    return backend


def write_tokenizer(folder: Path, backend: Backend, **config: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


TOY_CONFIG = ModelConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=256,
)


def refusal(action: Callable[[], object]) -> str:
    """The message of the InputError that `action` must raise: one line."""
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert message and "\n" not in message
    return message


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
    folder = tmp_path / "toy"
    write_tokenizer(
        folder,
        make_byte_level_backend(),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )
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
        "rope_theta": config.rope_theta,
        "max_position_embeddings": config.max_position_embeddings,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(description, indent=2))
    state = {name: parameter.data for name, parameter in toy_model.named_parameters()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


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
