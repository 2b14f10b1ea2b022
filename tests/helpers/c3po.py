"""C3PO at toy size: data of three scopes, a training, and the loss by its definition."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from helpers.toys import Outcome, byte_tokenizer, change, naive_score, outcome, small_model
from minialign.data.records import Example
from minialign.methods import c3po
from minialign.methods.batches import Batch
from minialign.methods.c3po import ADAPTER
from minialign.methods.knobs import C3POConfig
from minialign.methods.lessons import Lessons
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import apply_lora
from minialign.policy.encode import ScopedExamples
from minialign.policy.knobs import LoRAConfig
from minialign.policy.reference import reference_policy
from minialign.training.run import Run

SCD = {"loss": "sft", "lambda_out": 0.0, "lambda_near": 0.0}
SCD_NEGATIVES = {"loss": "sft"}
DPO = {"lambda_out": 0.0, "lambda_near": 0.0}
KL = {"constraint": "kl"}
SETTINGS: dict[str, dict[str, Any]] = {
    **{"c3po": {}, "dpo": DPO, "scd": SCD, "scd + negatives": SCD_NEGATIVES, "kl": KL},
    "dropout": {"lora.dropout": 0.3},
}

ONE_STEP: dict[str, Any] = {"epochs": 0.4, **DPO}
# A knob, and the setting in which it counts.
KNOBS_IN_A_SETTING: dict[str, tuple[dict[str, Any], Any]] = {
    "lora.dropout": (ONE_STEP | {"epochs": 1.0}, 0.3),
    "simpo_beta": ({**ONE_STEP, "loss": "simpo"}, 5.0),
    "simpo_gamma": ({**ONE_STEP, "loss": "simpo"}, 5.0),
    "orpo_weight": ({**ONE_STEP, "loss": "orpo"}, 5.0),
    "nll_weight": (ONE_STEP, 5.0),
    "changed_span": (ONE_STEP, True),
    "kl_temperature": ({"epochs": 1.0, **KL}, 4.0),
    "kl_share": ({"epochs": 1.0, **KL}, 0.5),
}


def encode(prompt: str, answer: str) -> Example:
    tokenizer = byte_tokenizer()
    return Example(tokenizer.encode_prompt(prompt), tokenizer.encode_completion(answer))


def make_data(name: str = "", pairs: int = 5, near: int = 3, out: int = 4) -> ScopedExamples:
    """Scopes of unequal size; answers of unequal length."""
    return ScopedExamples(
        tuple(
            (encode(f"hi {name}{i}", i * "o" + "ahoy"), encode(f"hi {name}{i}", "hello" + i * "!"))
            for i in range(pairs)
        ),
        tuple(encode(f"by {name}{i}", "bye" + i * i * ".") for i in range(near)),
        tuple(encode(f"sum {name}{i}", i * "ab" + "4") for i in range(out)),
    )


DATA, HELD_OUT = make_data(), make_data("new ", 2, 2, 3)


def small_config(**changes: Any) -> C3POConfig:
    """A run of six steps in which every knob matters, over more than two epochs of pairs."""
    config = C3POConfig(
        lora=LoRAConfig(rank=4, alpha=8.0, dropout=0.0, target_modules=("q_proj", "v_proj")),
        epochs=2.4,
        pairs_per_step=2,
        learning_rate=3e-3,
        warmup_ratio=0.5,
        max_length=64,
    )
    return change(config, changes)  # type: ignore[arg-type,return-value]


def fresh_policy(config: C3POConfig, seed: int = 0) -> CausalLM:
    model = small_model()
    apply_lora(model, config.lora, ADAPTER, torch.Generator().manual_seed(seed))
    return model


def small_training(
    folder: Path,
    config: C3POConfig | None = None,
    data: ScopedExamples = DATA,
    *,
    seed: int = 0,
    micro_batch_tokens: int = 2048,
    held_out: ScopedExamples | None = None,
    resume: bool = False,
    prepare: Callable[[Run], None] = lambda run: None,
) -> Outcome:
    """`prepare` may tamper with the run first."""
    config = config or small_config()
    # a resumed run must not depend on how its adapter was started
    model = fresh_policy(config, seed if not resume else seed + 1000)
    options = {"seed": seed, "micro_batch_tokens": micro_batch_tokens}
    run = Run.resume(folder, **options) if resume else Run.create(folder, {}, **options)
    prepare(run)
    c3po.train(model, Lessons(data, held_out or make_data(pairs=0, near=0, out=0)), config, run)
    return outcome(folder, model)


def naive_divergence(model: CausalLM, sequence: Example) -> Tensor:
    """KL(base || policy) at the positions that predict the completion, whole and unfused."""
    ids = torch.tensor([sequence.prompt_ids + sequence.completion_ids])
    places = slice(len(sequence.prompt_ids) - 1, -1)
    with reference_policy(model, None):
        base = model.logits(ids)[0, places].log_softmax(-1)
    policy = model.logits(ids)[0, places].log_softmax(-1)
    return (base.exp() * (base - policy)).sum()


def naive_loss(model: CausalLM, batch: Batch, config: C3POConfig) -> Tensor:
    """The definition, a sequence at a time."""
    terms: list[Tensor] = []
    for pair in batch.pairs:
        if config.loss == "sft":
            tokens = sum(len(p[0].completion_ids) for p in batch.pairs)
            terms.append(-naive_score(model, pair[0]) / tokens)
            continue
        with reference_policy(model, None):
            reference = [naive_score(model, s) for s in pair]
        rewards = [naive_score(model, s) - r for s, r in zip(pair, reference, strict=True)]
        margin = config.beta * (rewards[0] - rewards[1])
        terms.append(-torch.nn.functional.logsigmoid(margin) / len(batch.pairs))
    for weight, answers in ((config.lambda_out, batch.out), (config.lambda_near, batch.near)):
        for answer in answers:
            kl = config.constraint == "kl"
            cost = naive_divergence(model, answer) if kl else -naive_score(model, answer)
            divisor = {
                "token_mean": sum(len(a.completion_ids) for a in answers),
                "sequence_mean": len(answers) * len(answer.completion_ids),
                "sum": len(answers),
            }[config.constraint_reduction]
            terms.append(weight * cost / divisor)
    return torch.stack(terms).sum()
