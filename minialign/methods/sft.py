"""Supervised fine-tuning on demonstrations: DITTO's warm start, and a method of its own.

The official DITTO code also learns to write the prompts (`train_on_prompt`); here the loss covers
the completion and its end token by default.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minialign.data.records import Example, plural
from minialign.losses import sft_loss
from minialign.methods.anchors import Anchors
from minialign.methods.cards import UNSEEN
from minialign.methods.knobs import DittoConfig, SFTConfig
from minialign.methods.lessons import Lessons, Part, Work
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import trainable_parameters
from minialign.policy.measure import nats_per_token
from minialign.policy.packing import largest_part, micro_batches
from minialign.policy.score import score
from minialign.training import ranks
from minialign.training.dealing import deal
from minialign.training.optimizer import Optimizer, cosine_with_warmup
from minialign.training.run import Run
from minialign.training.state import Parts

ADAPTER = "sft"
Demonstrated = Lessons[list[Example]]


def train(
    model: CausalLM,
    lessons: Demonstrated,
    knobs: DittoConfig,
    run: Run,
    anchors: Anchors | None = None,
) -> None:
    """Minimises the demonstrations' loss per token, until it is low enough or at `max_steps`.

    Trains the model's active adapter, in place. The held-out loss is logged once, at the end.
    `anchors` are written here if `knobs.anchors` asks for them and none are handed over.
    """
    sft, demonstrations = knobs.sft, lessons.train
    if sft.train_on_prompt:
        demonstrations = [_with_prompt(sequence) for sequence in demonstrations]
    if anchors is None:
        anchors = Anchors.written(model, knobs.anchors, knobs.max_length, run)
    optimizer = Optimizer(
        trainable_parameters(model),
        sft.learning_rate,
        cosine_with_warmup,
        total_steps=sft.max_steps,
        warmup_ratio=sft.warmup_ratio,
        weight_decay=knobs.weight_decay,
        max_grad_norm=knobs.max_grad_norm,
    )
    stop = EarlyStop(sft)
    parts = Parts(model, optimizer=optimizer, stop=stop)
    first = run.restore(ADAPTER, parts)
    if first is None:
        return
    model.train()
    for step in run.steps(ADAPTER, first, sft.max_steps, parts):
        batch = deal(demonstrations, sft.batch_size, step, f"{run.seed}/sft")
        # Dropout draws from torch's global generator.
        seed = run.derive_seed(ADAPTER, step)
        with run.phase("train"):
            loss = _backward(model, batch, run.micro_batch_tokens, seed)
            measured = anchors.backward(model, ADAPTER, step, run) | optimizer.step(step)
        run.log(ADAPTER, step, {"loss": loss, **measured, "tokens": sum(map(len, batch))})
        if stop(loss):
            break
    model.eval()
    unseen = nats_per_token(model, lessons.held_out, run.micro_batch_tokens)
    run.log_summary(ADAPTER, {UNSEEN: unseen})
    if stop.steps:
        run.say("SFT", stop.summary(), unseen)


class EarlyStop:
    """Ends the warm start once a step's loss is low enough: DPO needs texts not known by heart."""

    def __init__(self, knobs: SFTConfig) -> None:
        self._loss, self._ratio = knobs.stop_loss, knobs.stop_ratio
        self.steps, self._first, self._last = 0, math.nan, math.nan

    def __call__(self, loss: float) -> bool:
        """Whether the step with this loss is the last one."""
        if self.steps == 0:
            self._first = loss
        self.steps, self._last = self.steps + 1, loss
        return loss < self.threshold

    @property
    def threshold(self) -> float:
        """Nats per token."""
        return min(self._loss, self._ratio * self._first) if self._ratio < 1 else self._loss

    def summary(self) -> str:
        steps, losses = plural(self.steps, "step"), f"{self._first:.2f} -> {self._last:.2f}"
        text = f"{steps}, loss {losses} nats per token"
        if self._first >= self._loss or self._ratio < 1:
            return text
        return f"{text}: below {self._loss:g} from the start, so there was little to learn"

    def state(self) -> dict[str, Tensor]:
        return {"seen": torch.tensor([self.steps, self._first, self._last], dtype=torch.float64)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        steps, self._first, self._last = state["seen"].tolist()
        self.steps = int(steps)


def _backward(model: CausalLM, batch: list[Example], micro_batch_tokens: int, seed: int) -> float:
    """Accumulates the gradient of a step, part by part; returns its loss."""
    total = sum(len(sequence.completion_ids) for sequence in batch)

    def learn(part: list[Example]) -> tuple[Tensor]:
        loss = sft_loss(score(model, part), total)
        loss.backward()
        return (loss.detach(),)

    parts = micro_batches(batch, lambda sequence: (sequence,), micro_batch_tokens)
    return sum(float(loss) for (loss,) in ranks.divided(learn, parts, seed))


def _with_prompt(sequence: Example) -> Example:
    """All but the very first token of the prompt becomes something to predict."""
    return Example(sequence.prompt_ids[:1], sequence.prompt_ids[1:] + sequence.completion_ids)


# ---- what it will cost, and what it trains on ----


def work(lessons: Demonstrated, knobs: DittoConfig, tokens: int) -> Work:
    """`tokens` are those that a micro-batch may hold."""
    demonstrations, sft = lessons.train, knobs.sft
    mean = sum(map(len, demonstrations)) / len(demonstrations)
    read = round(sft.max_steps * min(sft.batch_size, len(demonstrations)) * mean)
    batch = sorted(demonstrations, key=len)[-sft.batch_size :]
    if sft.train_on_prompt:
        batch = [_with_prompt(sequence) for sequence in batch]
    largest = largest_part(batch, lambda sequence: (sequence,), tokens)
    row = (
        f"at most {sft.max_steps} steps, learning rate {sft.learning_rate:g}, "
        f"until the loss is {_until(sft)}"
    )
    return Work(
        read=read,
        referred=0,
        largest=largest,
        dropped=largest,
        probe=demonstrations,
        stages=[("SFT", row)],
        steps=sft.max_steps,
        tokens=f"{read:,} tokens of SFT",
        shown=_shown(demonstrations[0], sft.train_on_prompt),
    )


def _until(sft: SFTConfig) -> str:
    also = f" and {sft.stop_ratio:.0%} of the first step's" if sft.stop_ratio < 1 else ""
    return f"{sft.stop_loss:g}{also}"


def _shown(sequence: Example, prompt_is_trained: bool) -> list[Part]:
    after = len(sequence.prompt_ids)
    return [
        Part("prompt", sequence.prompt_ids, 0, 1 if prompt_is_trained else after),
        Part("completion", sequence.completion_ids, after, after),
    ]
