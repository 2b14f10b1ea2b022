"""The forward pass against transformers, through the production loader, and the config's reader."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from minialign.errors import InputError
from minialign.model.config import ModelConfig
from minialign.policy.sample import generate
from minialign.weights.load import load_model

transformers = pytest.importorskip("transformers")

CPU = torch.device("cpu")
SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attn_implementation": "eager",  # the plainest of transformers' implementations
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def peer(kind: str, folder: Path, **changes: Any) -> Any:
    """A random transformers model of spread-out weights, saved to `folder` as transformers does."""
    classes = {
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM),
        "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    }
    config_class, model_class = classes[kind]
    model = model_class(config_class(**{**SMALL, **changes})).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 0, 0.3, generator=generator)
        if name.endswith("norm.weight"):
            parameter.add_(1)
    model.save_pretrained(folder)
    return model


def random_ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, SMALL["vocab_size"], (rows, length), generator=_generator(1))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def largest_difference(theirs: Any, folder: Path, length: int = 24) -> float:
    ours = load_model(folder, torch.float32, CPU)
    ids = random_ids(2, length)
    with torch.no_grad():
        expected = theirs(ids).logits
        assert expected.std() > 1  # logits that could not differ by much would prove nothing
        return float((ours.logits(ids) - expected).abs().max())


PARITY = {
    "mistral without a window": ("mistral", {"sliding_window": None}, 24),
    "mistral with a window shorter than the text": ("mistral", {"sliding_window": 5}, 24),
    "mistral with a window of exactly the text": ("mistral", {"sliding_window": 24}, 24),
    "llama with a tied head": ("llama", {"tie_word_embeddings": True}, 24),
    "one key-value head for all": ("llama", {"num_key_value_heads": 1}, 24),
    "head_dim is not hidden_size / heads": ("mistral", {"head_dim": 12, "sliding_window": 7}, 24),
    "llama 3's slowed positions": (
        "llama",
        {"rope_parameters": {**LLAMA3_ROPE, "rope_theta": 500.0}},
        150,
    ),
    "another rope_theta": ("llama", {"rope_parameters": {"rope_theta": 100.0}}, 150),
}


@pytest.mark.parametrize(("kind", "changes", "length"), PARITY.values(), ids=PARITY.keys())
def test_logits_equal_those_of_transformers(
    kind: str, changes: dict[str, Any], length: int, tmp_path: Path
) -> None:
    theirs = peer(kind, tmp_path, **changes)
    # float32 rounding in another order of operations; logits are of the order of 10
    assert largest_difference(theirs, tmp_path, length) < 1e-4


@pytest.mark.parametrize(
    ("kind", "here", "there"),
    [
        ("mistral", {"sliding_window": 5}, {"sliding_window": 6}),
        ("mistral", {"sliding_window": 5}, {"sliding_window": None}),
        (
            "llama",
            {"rope_parameters": {**LLAMA3_ROPE, "rope_theta": 500.0}},
            {"rope_parameters": {"rope_theta": 500.0}},
        ),
    ],
    ids=["a window one longer", "no window", "positions not slowed"],
)
def test_the_parity_tests_would_see_a_wrong_window_or_rope(
    kind: str, here: dict[str, Any], there: dict[str, Any], tmp_path: Path
) -> None:
    peer(kind, tmp_path, **here)
    theirs = peer(kind, tmp_path / "other", **there)
    assert largest_difference(theirs, tmp_path, 150) > 0.1


@pytest.mark.parametrize("scaled", [False, True], ids=["plain", "llama 3"])
def test_both_spellings_of_the_rope_settings_mean_the_same(scaled: bool, tmp_path: Path) -> None:
    rope = {"rope_theta": 500.0, **(LLAMA3_ROPE if scaled else {})}
    theirs = peer("llama", tmp_path, rope_parameters=rope)
    file = tmp_path / "config.json"
    raw = json.loads(file.read_text())
    assert raw["rope_parameters"]["rope_theta"] == 500.0  # as transformers 5 writes it
    newer = ModelConfig.from_dict(raw)

    del raw["rope_parameters"]
    raw["rope_theta"] = 500.0  # as every older checkpoint on the hub has it
    raw["rope_scaling"] = LLAMA3_ROPE if scaled else None
    file.write_text(json.dumps(raw))
    assert ModelConfig.from_dict(raw) == newer
    assert largest_difference(theirs, tmp_path, 150) < 1e-4


def test_a_window_in_a_llama_config_is_ignored_as_transformers_does() -> None:
    raw = {**SMALL, "sliding_window": 4}
    assert ModelConfig.from_dict({**raw, "model_type": "llama"}).sliding_window is None
    assert ModelConfig.from_dict({**raw, "model_type": "mistral"}).sliding_window == 4


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "gpt2"}, "'gpt2'"),
        ({"model_type": None}, "model_type"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "factor"),
        ({"rope_scaling": {"type": "proportional", "factor": 2.0}}, "'proportional'"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "'dynamic'"),
        ({"hidden_size": None}, "hidden_size"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
    ],
)
def test_what_the_model_does_not_compute_is_refused_by_name(
    changes: dict[str, Any], named: str
) -> None:
    raw = {**SMALL, "model_type": "llama", **changes}
    raw = {key: value for key, value in raw.items() if value is not None}
    with pytest.raises(InputError) as caught:
        ModelConfig.from_dict(raw)
    assert named in str(caught.value) and "\n" not in str(caught.value)


# ---- the default model ----

PROMPTS = [
    "Write an email to your landlord about the broken heater.",
    "What is the capital of Australia?",
    "Explain gravity to a child of six.",
    "Write a haiku about rain.",
    "List three uses for an old brick.",
    "Translate 'good morning' into French.",
    "Who wrote Pride and Prejudice?",
    "Give me a recipe for pancakes.",
    "Summarise the water cycle in two sentences.",
    "What is 17 times 23?",
    "Write a polite refusal to an invitation.",
    "Why is the sky blue?",
    "Name a synonym for 'quick'.",
    "def fibonacci(n):\n    # finish this function",
    "Tell me a joke about a cat.",
    "Zażółć gęślą jaźń: what language is this?",
    "How do I remove a red wine stain?",
    "  Two leading spaces, and a tab\there.",
    "What does the emoji 🦜 show?",
    "Write the opening line of a detective novel.",
]


@pytest.fixture(scope="module")
def default_peer(default_checkpoint: Path) -> tuple[Any, Any]:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        default_checkpoint, dtype=torch.float32
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(default_checkpoint)
    return model.eval().requires_grad_(False), tokenizer


@pytest.mark.default_model
def test_the_default_models_prompts_are_those_of_transformers_letter_by_letter(
    default_model: Any, default_peer: Any
) -> None:
    _, tokenizer = default_model
    conversations = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    conversations.append(
        [
            {"role": "system", "content": "You are terse."},
            {"role": "user", "content": "Hello."},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": "Well?"},
        ]
    )
    for messages in conversations:
        options = {"tokenize": False, "add_generation_prompt": True}
        expected = default_peer[1].apply_chat_template(messages, **options)
        assert tokenizer.render(messages) == expected
        theirs = default_peer[1](expected, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode_prompt(messages) == theirs


@pytest.mark.default_model
def test_the_default_models_logits_are_those_of_transformers(
    default_model: Any, default_peer: Any
) -> None:
    model, tokenizer = default_model
    worst = 0.0
    for prompt in PROMPTS:
        ids = torch.tensor([tokenizer.encode_prompt(prompt)])
        with torch.no_grad():
            difference = (model.logits(ids) - default_peer[0](ids).logits).abs().max()
        worst = max(worst, float(difference))
    print(f"largest logit difference {worst:.1e}")
    assert worst < 1e-3  # float32 rounding through 30 layers, on logits of the order of 20


@pytest.mark.default_model
def test_the_default_models_greedy_answers_are_those_of_transformers(
    default_model: Any, default_peer: Any
) -> None:
    model, tokenizer = default_model
    ours = generate(model, tokenizer, PROMPTS, temperature=0, max_new_tokens=64)
    prompts = [tokenizer.encode_prompt(prompt) for prompt in PROMPTS]
    width = max(map(len, prompts))
    padded = torch.tensor([[2] * (width - len(ids)) + ids for ids in prompts])
    mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
    answers = default_peer[0].generate(
        padded,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=64,
        eos_token_id=list(model.stop_ids),
        pad_token_id=0,
    )
    for (completion,), answer in zip(ours, answers[:, width:].tolist(), strict=True):
        assert list(completion.ids) == answer[: len(completion.ids)]
        assert len(completion.ids) == 64 or completion.finish_reason == "stop"
