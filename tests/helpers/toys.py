"""What several test files share: a model, tokenizers and trainings small enough for a test."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from collections.abc import Sequence as Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers
from torch import Tensor

from helpers.models import TOY_CONFIG, make_model
from minialign.data.records import Demonstration, Example
from minialign.methods import ditto
from minialign.methods.anchors import Anchors
from minialign.methods.knobs import DittoConfig, SFTConfig
from minialign.methods.lessons import Lessons
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import adapter_parameters, apply_lora
from minialign.policy.encode import encode_demonstration
from minialign.policy.knobs import LoRAConfig, SamplingConfig
from minialign.policy.peft import adapter_state
from minialign.training.guard import Guard
from minialign.training.run import Run
from minialign.weights.tokenizer import Tokenizer

EOS, BOS, VOCAB = 2, 1, 272


# ---- models ----


def small_model(seed: int = 0, **changes: Any) -> CausalLM:
    """Two layers at random, for the ids of `byte_tokenizer`."""
    plain = {"vocab_size": VOCAB, "max_position_embeddings": 128}
    return make_model(dataclasses.replace(TOY_CONFIG, **(plain | changes)), seed)


def with_adapter(
    model: CausalLM, name: str = "default", seed: int = 0, scale: float = 0.1, **lora: Any
) -> CausalLM:
    """Adds an adapter that is not the identity, active and trainable."""
    generator = torch.Generator().manual_seed(seed)
    apply_lora(model, LoRAConfig(**{"rank": 4, "alpha": 8.0, "dropout": 0.0} | lora), name)
    with torch.no_grad():
        for parameter in adapter_parameters(model, name):
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return model


def naive_score(model: CausalLM, sequence: Example) -> Tensor:
    """The definition: a plain forward pass over one sequence, log_softmax, gather, sum."""
    ids = torch.tensor([sequence.prompt_ids + sequence.completion_ids])
    logps = model.logits(ids)[0].log_softmax(-1)
    first = len(sequence.prompt_ids)
    chosen = [logps[place - 1, ids[0, place]] for place in range(first, ids.shape[1])]
    return torch.stack(chosen).sum() if chosen else logps.sum() * 0


def gradients(model: CausalLM, name: str = "default") -> list[Tensor]:
    """Takes the gradients of an adapter away from it."""
    found = []
    for parameter in adapter_parameters(model, name):
        assert parameter.grad is not None
        found.append(parameter.grad)
        parameter.grad = None
    return found


# ---- tokenizers ----

CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}me:{% endif %}"
)


def byte_tokenizer(template: str | None = CHAT, add_bos: bool = False) -> Tokenizer:
    """Byte-level BPE: `<unk> <s> </s>`, 256 bytes, and the merges "ab", "abc", "][" and "\\n["."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    newline = "\u010a"  # how byte-level BPE writes "\n"
    merges = [("a", "b"), ("ab", "c"), ("]", "["), (newline, "[")]
    tokens = ["<unk>", "<s>", "</s>", *letters, *("".join(pair) for pair in merges)]
    vocab = {token: place for place, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(backend, "</s>", "<s>", template, add_bos)


def spaced_tokenizer(template: str) -> Tokenizer:
    """In Mistral v0.1's and v0.2's manner: a text begins with a space, which belongs to its first
    word ("▁Dear" is one token, "▁" another).
    """
    merges = [("D", "e"), ("De", "a"), ("Dea", "r"), ("▁", "Dear"), ("▁", "▁")]
    letters = [*"▁[]/INSTDear:;hio.!", *"</s>u"]
    tokens = ["<unk>", "<s>", "</s>", *dict.fromkeys(letters), *("".join(m) for m in merges)]
    vocab = {token: place for place, token in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    return Tokenizer(backend, "</s>", "<s>", template)


# ---- trainings ----

TEXTS = (
    ("say hi", "abc, dear."),
    ("say bye", "farewell ab"),
    ("say hi", "hello hello"),
    ("thank", "ta!"),
)


def demonstrations(texts: Sequence[tuple[str, str]] = TEXTS) -> list[Demonstration]:
    return [
        Demonstration(
            [{"role": "user", "content": prompt}], completion, f"demos.jsonl, line {line}"
        )
        for line, (prompt, completion) in enumerate(texts, start=1)
    ]


def small_config(**changes: Any) -> DittoConfig:
    """A DITTO run of three rounds that takes about a second and in which every knob matters."""
    config = DittoConfig(
        lora=LoRAConfig(rank=4, alpha=8.0, dropout=0.05),
        sft=SFTConfig(
            max_steps=4, batch_size=2, learning_rate=3e-3, warmup_ratio=0.5, stop_loss=0.01
        ),
        sampling=SamplingConfig(max_new_tokens=6),
        max_steps=6,
        resample_every=2,
        samples_per_prompt=3,
        pairs_per_step=10,
        beta=0.1,
        learning_rate=3e-3,
        warmup_ratio=0.5,
        max_length=64,
    )
    return change(config, changes)


HELD_OUT = [Example((1, 87, 85), (70, 71, EOS)), Example((1, 87), (71, EOS))]
ANCHOR_PROMPTS = [(1, 80 + i, 90) for i in range(6)]


def change(config: DittoConfig, changes: dict[str, Any]) -> DittoConfig:
    """Knobs by path: `{"beta": .1, "sft.max_steps": 3}`."""
    for path, value in changes.items():
        *nested, name = path.split(".")
        if nested:
            inner = dataclasses.replace(getattr(config, nested[0]), **{name: value})
            config = dataclasses.replace(config, **{nested[0]: inner})
    flat = {path: value for path, value in changes.items() if "." not in path}
    return dataclasses.replace(config, **flat)


@dataclass
class Outcome:
    """Everything that a training leaves, in a form that `==` compares to the last bit."""

    adapters: dict[str, dict[str, bytes]]
    metrics: list[dict[str, Any]]  # without the seconds
    samples: list[dict[str, Any]]
    model: CausalLM

    def steps(self, stage: str) -> list[dict[str, Any]]:
        return [m for m in self.metrics if m["stage"] == stage and "step" in m]

    def same_as(self, other: Outcome) -> bool:
        return (self.adapters, self.metrics, self.samples) == (
            other.adapters,
            other.metrics,
            other.samples,
        )


def adapter_bytes(model: CausalLM, name: str) -> dict[str, bytes]:
    return {key: t.numpy().tobytes() for key, t in adapter_state(model, name).items()}


def fresh_policy(config: DittoConfig, seed: int = 0) -> CausalLM:
    """A model whose active adapter is a fresh "sft", as train.py makes it."""
    model = small_model()
    apply_lora(model, config.lora, "sft", torch.Generator().manual_seed(seed))
    return model


def small_training(
    folder: Path,
    config: DittoConfig | None = None,
    texts: Sequence[tuple[str, str]] = TEXTS,
    *,
    seed: int = 0,
    micro_batch_tokens: int = 2048,
    save_every: float = 60.0,
    held_out: Sequence[Example] = (),
    resume: bool = False,
    guard: Guard | None = None,
    prepare: Callable[[Run], None] = lambda run: None,
    method: Callable[..., None] = ditto.train,
) -> Outcome:
    """From text files' content to a run folder; `prepare` may tamper with the run first."""
    config = config or small_config()
    tokenizer = byte_tokenizer()
    # a resumed run must not depend on how its adapter was started
    model = fresh_policy(config, seed if not resume else seed + 1000)
    encoded = [
        encode_demonstration(d, tokenizer, config.max_length)[0] for d in demonstrations(texts)
    ]
    options: dict[str, Any] = {"seed": seed, "micro_batch_tokens": micro_batch_tokens}
    options |= {"save_every": save_every, "guard": guard}
    run = Run.resume(folder, **options) if resume else Run.create(folder, {}, **options)
    run.tokenizer = tokenizer
    prepare(run)
    anchors = Anchors.to(model, ANCHOR_PROMPTS, config.anchors, run)
    method(model, Lessons(encoded, list(held_out)), config, run, anchors=anchors)
    return outcome(folder, model)


def outcome(folder: Path, model: CausalLM) -> Outcome:
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in metrics:
        line.pop("seconds", None)
    file = folder / "samples.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    layers = [m for m in model.modules() if hasattr(m, "configs")]
    names = sorted({name for layer in layers for name in layer.configs})
    adapters = {name: adapter_bytes(model, name) for name in names}
    return Outcome(adapters, metrics, [json.loads(line) for line in lines], model)


def encoded(text: str, prompt: str = "say hi", max_length: int = 64) -> Example:
    (demonstration,) = demonstrations([(prompt, text)])
    return encode_demonstration(demonstration, byte_tokenizer(), max_length)[0]
