"""A toy model of random weights, its byte-level tokenizer, and both as a checkpoint folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from minialign.model.config import ModelConfig
from minialign.model.transformer import CausalLM

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


def write_folder(folder: Path, model: CausalLM, description: dict[str, Any]) -> Path:
    """A model and its tokenizer in the Hugging Face layout; `description` becomes config.json."""
    write_tokenizer(
        folder,
        make_byte_level_backend(),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )
    (folder / "config.json").write_text(json.dumps(description, indent=2))
    state = {name: parameter.data for name, parameter in model.named_parameters()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_checkpoint(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """A toy model of random weights as a folder in the Hugging Face layout; `changes` go into its
    config.json.
    """
    sizes = {name: value for name, value in vars(TOY_CONFIG).items() if isinstance(value, int)}
    description = {"model_type": "mistral", "eos_token_id": 2, "sliding_window": None, **sizes}
    return write_folder(folder, make_model(TOY_CONFIG, seed=seed), {**description, **changes})


def numbers(config: ModelConfig) -> dict[str, Any]:
    """The sizes and switches of a config, as config.json has them."""
    return {name: value for name, value in vars(config).items() if isinstance(value, int)}
