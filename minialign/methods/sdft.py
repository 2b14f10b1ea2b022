"""SDFT: self-distillation on the policy's own answers (Shenfeld et al. 2026, arXiv 2601.19897).

The teacher is the same model, shown demonstrations in its prompt. In each step the policy, which
sees the prompt alone, answers; every token of its answers is then held to what the teacher would
have said in its place:

    L = 1 / tokens sum KL(policy || teacher),   by the policy's likeliest tokens

The policy is trained on what it does itself, and moves only as far as its own model would go.

Where this differs from the paper: the teacher is the base model and not a moving average of the
policy, which a few dozen steps hardly move; and it sees a few demonstrations as turns of a
conversation, the prompt's own last, so that it sees a voice and not one text alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Sequence
from typing import NamedTuple

from torch import Tensor

from minialign.data.records import Example
from minialign.methods.cards import UNSEEN
from minialign.methods.knobs import DistilConfig
from minialign.methods.lessons import Part, Work
from minialign.methods.sft import Demonstrated
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import trainable_parameters
from minialign.policy.measure import nats_per_token
from minialign.policy.sample import Completion
from minialign.policy.shown import shown_divergence
from minialign.training import ranks
from minialign.training.collapse import answer_figures
from minialign.training.dealing import deal
from minialign.training.optimizer import Optimizer, constant_with_warmup
from minialign.training.rollouts import rollouts
from minialign.training.run import Run
from minialign.training.state import Parts

ADAPTER = "sdft"
# The teacher: no adapter.
BASE = None


class Question(NamedTuple):
    """A prompt as the policy sees it, and with what the teacher is shown besides; token ids."""

    prompt: tuple[int, ...]
    shown: tuple[int, ...]


def train(model: CausalLM, lessons: Demonstrated, knobs: DistilConfig, run: Run) -> None:
    """Trains the model's active adapter, a fresh one, in place.

    The held-out loss is logged once, at the end.
    """
    distil(model, questions(lessons.train, knobs), lessons.held_out, knobs, run, ADAPTER)


def questions(demonstrations: Sequence[Example], knobs: DistilConfig) -> list[Question]:
    """Each prompt, and behind `shown` demonstrations that fit; its own is the last of them."""
    found = []
    for place, own in enumerate(demonstrations):
        others = [*demonstrations[place + 1 :], *demonstrations[:place]]
        turns: list[tuple[int, ...]] = []
        room = knobs.max_length - len(own.prompt_ids) - knobs.sampling.max_new_tokens
        for one in (own, *others[: knobs.shown - 1]):
            if len(one) <= room:
                turns.insert(0, one.prompt_ids + one.completion_ids)
                room -= len(one)
        found.append(Question(own.prompt_ids, sum(turns, ()) + own.prompt_ids))
    return found


def distil(
    model: CausalLM,
    asked: Sequence[Question],
    held_out: Sequence[Example],
    knobs: DistilConfig,
    run: Run,
    name: str,
) -> None:
    """Trains the active adapter `name`. Metrics and what `--resume` needs are kept in `run`."""
    optimizer = Optimizer(
        trainable_parameters(model),
        knobs.learning_rate,
        constant_with_warmup,
        total_steps=knobs.max_steps,
        warmup_ratio=knobs.warmup_ratio,
        weight_decay=knobs.weight_decay,
        max_grad_norm=knobs.max_grad_norm,
    )
    parts = Parts(model, optimizer=optimizer)
    first = run.restore(name, parts) or 0
    model.eval()
    for step in run.steps(name, first, knobs.max_steps, parts):
        batch = deal(asked, knobs.prompts_per_step, step, f"{run.seed}/{name}")
        with run.phase("sample"):
            prompts = [question.prompt for question in batch]
            seed = run.derive_seed(name, step)
            number = knobs.samples_per_prompt
            groups = rollouts(model, prompts, number, knobs.sampling, run, seed=seed)
        with run.phase("train"):
            metrics = _backward(model, batch, groups, knobs, run.micro_batch_tokens)
            metrics |= optimizer.step(step)
        run.log(name, step, metrics)
    unseen = nats_per_token(model, held_out, run.micro_batch_tokens)
    run.log_summary(name, {UNSEEN: unseen})
    run.say(name, f"{run.guard.taken} steps", unseen)


def _backward(
    model: CausalLM,
    batch: Sequence[Question],
    groups: Sequence[Sequence[Completion]],
    knobs: DistilConfig,
    micro_batch_tokens: int,
) -> dict[str, float]:
    """Accumulates the gradient of a step, part by part; returns its metrics."""
    answers = [answer for group in groups for answer in group]
    tokens = sum(len(answer.ids) for answer in answers)

    def learn(part: tuple[Question, list[Example]]) -> tuple[Tensor]:
        question, own = part
        loss = shown_divergence(model, own, question.shown, BASE, knobs.top_tokens) / tokens
        loss.backward()
        return (loss.detach(),)

    parts = [
        (question, part)
        for question, group in zip(batch, groups, strict=True)
        for part in _parts(question, group, micro_batch_tokens)
    ]
    total = sum(float(loss) for (loss,) in ranks.divided(learn, parts))
    return {"loss": total, "tokens": tokens, **answer_figures(answers)}


def _parts(
    question: Question, group: Sequence[Completion], max_tokens: int
) -> Iterator[list[Example]]:
    """Answers to one prompt, as many at a time as fit behind what the teacher is shown."""
    part: list[Example] = []
    held = len(question.shown)
    for answer in group:
        if part and held + len(answer.ids) > max_tokens:
            yield part
            part, held = [], len(question.shown)
        part.append(Example(question.prompt, answer.ids))
        held += len(answer.ids)
    yield part


# ---- what it will cost, and what it trains on ----


def work(lessons: Demonstrated, knobs: DistilConfig, tokens: int) -> Work:
    """`tokens` are those that a micro-batch may hold."""
    asked = questions(lessons.train, knobs)
    own = lessons.train[0]
    before = len(asked[0].shown) - len(own.prompt_ids)
    told = "demonstrations" if before else "no demonstration, for want of room"
    shown = [
        Part("shown", asked[0].shown[:before], 0, before),
        Part("prompt", own.prompt_ids, before, len(asked[0].shown)),
    ]
    return work_of(asked, lessons.train, knobs, tokens, ("SDFT", told), shown)


def work_of(
    asked: Sequence[Question],
    probe: Sequence[Example],
    knobs: DistilConfig,
    tokens: int,
    said: tuple[str, str],
    shown: list[Part],
) -> Work:
    """Of a distillation whose title, and what the teacher is shown, are `said`."""
    new = knobs.sampling.max_new_tokens
    prompts = min(knobs.prompts_per_step, len(asked))
    samples = prompts * knobs.samples_per_prompt
    texts = knobs.max_steps * samples
    mean = sum(len(question.prompt) for question in asked) / len(asked)
    longest = max(len(question.shown) for question in asked) + new
    title, told = said
    row = (
        f"{knobs.max_steps} steps of {samples} answers of at most {new} tokens, "
        f"learning rate {knobs.learning_rate:g}; the teacher is shown {told}"
    )
    return Work(
        read=round(texts * (mean + new)),
        referred=round(texts * longest),
        largest=max(tokens, longest),
        probe=probe,
        written=texts * new,
        samples=samples,
        longest=longest,
        sampling=knobs.sampling,
        stages=[(title, row)],
        steps=knobs.max_steps,
        tokens=f"at most {texts * new:,} tokens written and learned from",
        shown=shown,
    )
