"""Supervised fine-tuning on demonstrations: DITTO's warm start, and a method of its own.

The official DITTO code also learns to write the prompts (`train_on_prompt`); here the loss covers
the completion and its end token by default.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceABC

import torch

from minialign.data.records import Sequence
from minialign.losses import sft_loss
from minialign.methods.anchors import Anchors
from minialign.methods.knobs import DittoConfig
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import trainable_parameters
from minialign.policy.packing import micro_batches
from minialign.policy.reference import reference_policy
from minialign.policy.score import score
from minialign.training.dealing import deal
from minialign.training.optimizer import Optimizer, cosine_with_warmup
from minialign.training.run import Run
from minialign.training.state import Parts

ADAPTER = "sft"
NO_ANCHORS = Anchors([], 0.0)


def train_sft(
    model: CausalLM,
    demonstrations: SequenceABC[Sequence],
    config: DittoConfig,
    run: Run,
    held_out: SequenceABC[Sequence] = (),
    anchors: Anchors = NO_ANCHORS,
) -> None:
    """Minimises the demonstrations' loss per token, until `stop_loss` or `max_steps` is reached.

    Trains the model's active adapter, in place. The held-out loss is logged once, at the end.
    """
    knobs = config.sft
    if knobs.train_on_prompt:
        demonstrations = [_with_prompt(sequence) for sequence in demonstrations]
    optimizer = Optimizer(
        trainable_parameters(model),
        knobs.learning_rate,
        cosine_with_warmup,
        total_steps=knobs.max_steps,
        warmup_ratio=knobs.warmup_ratio,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
    )
    parts = Parts(model, optimizer)
    first = run.restore("sft", parts)
    if first is None:
        return
    model.train()
    losses: list[float] = []
    for step in run.steps("sft", first, knobs.max_steps, parts):
        batch = deal(demonstrations, knobs.batch_size, step, f"{run.seed}/sft")
        total = sum(len(sequence.completion_ids) for sequence in batch)
        run.seed_step("sft", step)  # for dropout
        loss = 0.0
        with run.phase("train"):
            for part in micro_batches(batch, lambda sequence: (sequence,), run.micro_batch_tokens):
                part_loss = sft_loss(score(model, part), total)
                part_loss.backward()
                loss += part_loss.item()
            measured = anchors.backward(model, "sft", step, run) | optimizer.step(step)
        run.log("sft", step, {"loss": loss, **measured, "tokens": sum(map(len, batch))})
        losses.append(loss)
        if loss < knobs.stop_loss:
            break
    model.eval()
    unseen = nats_per_token(model, held_out, run.micro_batch_tokens)
    run.log_summary("sft", {"eval/nats_per_token": unseen})
    if losses:
        text = f"{len(losses)} steps, loss {losses[0]:.2f} -> {losses[-1]:.2f} nats per token"
        run.say("SFT", text, unseen)


def nats_per_token(
    model: CausalLM, sequences: SequenceABC[Sequence], max_tokens: int
) -> float | None:
    """The loss per token of texts that were not trained on; None if there are none."""
    if not sequences:
        return None
    total = 0.0
    with torch.no_grad():
        for part in micro_batches(sequences, lambda sequence: (sequence,), max_tokens):
            total -= float(score(model, part).sum())
    return total / sum(len(sequence.completion_ids) for sequence in sequences)


def adapter_nats_per_token(
    model: CausalLM, adapter: str | None, sequences: SequenceABC[Sequence], max_tokens: int
) -> float | None:
    with reference_policy(model, adapter):
        return nats_per_token(model, sequences, max_tokens)


def _with_prompt(sequence: Sequence) -> Sequence:
    """All but the very first token of the prompt becomes something to predict."""
    return Sequence(sequence.prompt_ids[:1], sequence.prompt_ids[1:] + sequence.completion_ids)
