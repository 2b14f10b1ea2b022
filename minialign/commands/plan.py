"""What a run will cost, told before it starts: tokens by counting, seconds by timing a small piece
of the same work, memory by adding up what is kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence as Sequence
from dataclasses import dataclass

from minialign.commands.job import Job
from minialign.commands.needs import memory_of
from minialign.data.records import Example
from minialign.methods.lessons import Work
from minialign.model.matmul import frozen_weights
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import trainable_parameters
from minialign.policy.knobs import SamplingConfig
from minialign.policy.sample import sample
from minialign.policy.score import score
from minialign.training.knobs import seconds_of

# What the training probe reads, and what the sampling probe writes, a row.
PROBE_TOKENS, PROBE_STEPS = 400, 6


@dataclass(frozen=True)
class Speed:
    """Tokens per second of each kind of work, on this machine with this model."""

    training: float
    sampling: float
    # of one answer alone, as before and after the run
    single: float = math.inf

    @classmethod
    def measured(cls, model: CausalLM, work: Work) -> Speed:
        """Takes a few seconds. Leaves the model as it was."""
        # No more at a time than the sampler writes unless asked.
        rows = min(work.sampling.max_rows, work.samples, SamplingConfig().max_rows)
        sampling = _sampling_speed(model, work, rows) if work.written else float("inf")
        single = _sampling_speed(model, work, 1)
        return cls(_training_speed(model, work.probe), sampling, single)

    def seconds(self, work: Work, preview_tokens: int = 0) -> float:
        """Of the run, with an answer of so many tokens before it and one after it."""
        return self._work_seconds(work) + 2 * preview_tokens / self.single

    def _work_seconds(self, work: Work) -> float:
        # The policy reads a text in every step that it stands in, the reference once and forward.
        return (work.read + work.referred / 3) / self.training + work.written / self.sampling


def _training_speed(model: CausalLM, texts: Sequence[Example]) -> float:
    batch, tokens = [], 0
    for sequence in texts:
        batch.append(sequence)
        tokens += len(sequence)
        if tokens >= PROBE_TOKENS:
            break
    # The first round warms up.
    for _ in range(2):
        began = time.perf_counter()
        score(model, batch).sum().backward()
        _wait_for_gradients(model)
        seconds = time.perf_counter() - began
        for parameter in trainable_parameters(model):
            parameter.grad = None
    return tokens / seconds


def _wait_for_gradients(model: CausalLM) -> None:
    """A GPU answers before it has computed: looking at a number waits for it."""
    gradient = trainable_parameters(model)[0].grad
    assert gradient is not None
    gradient.sum().item()


def _sampling_speed(model: CausalLM, work: Work, rows: int) -> float:
    prompt, dtype = work.probe[0].prompt_ids, work.sampling.rollout_dtype
    stop_ids, model.stop_ids = model.stop_ids, ()
    try:
        times = []
        # The difference leaves out the prompt.
        for steps in (1, 1 + PROBE_STEPS):
            began = time.perf_counter()
            sample(model, [prompt], rows, SamplingConfig(steps, rollout_dtype=dtype), seed=0)
            times.append(time.perf_counter() - began)
    finally:
        model.stop_ids = stop_ids
    return rows * PROBE_STEPS / max(1e-6, times[1] - times[0])


def describe(model: CausalLM, job: Job, speed: Speed) -> str:
    """The first lines of a run: what will happen to what, and what it costs."""
    budget = seconds_of(job.options.time_budget)
    seconds = duration(min(speed.seconds(job.work, job.preview_tokens), budget))
    gigabytes = memory_of(model, job).total / 1e9
    rows = [
        *_model_rows(model, job),
        *job.source.rows(job.lessons),
        *job.work.stages,
        ("work", job.work.tokens),
        ("needs", f"at most {seconds}, about {gigabytes:.1f} GB of memory"),
        *_fitting(job, speed),
        ("writes", f"{job.out}/"),
        *(("warning", warning) for warning in job.warnings),
    ]
    return "\n".join(f"{name:>12}  {text}" for name, text in rows)


def _fitting(job: Job, speed: Speed) -> list[tuple[str, str]]:
    """How many steps of each stage a time budget leaves room for."""
    if not job.options.time_budget:
        return []
    budget, spent, rows = seconds_of(job.options.time_budget), 0.0, []
    works = [work for work in (job.work.first, job.work) if work]
    for stage, work in zip(job.card.stages, works, strict=False):
        total = speed.seconds(work)
        share = min(1.0, max(0.0, budget - spent) / max(1e-9, total - spent))
        rows.append(f"{int(work.steps * share)} of {work.steps} {stage.title}")
        spent = total
    fits = f"{job.options.time_budget}, in which about {' and '.join(rows)} steps fit"
    return [("ends after", fits)]


def _model_rows(model: CausalLM, job: Job) -> list[tuple[str, str]]:
    """What is trained."""
    options, lora = job.options, job.knobs.lora
    trainable = sum(parameter.numel() for parameter in trainable_parameters(model))
    total = sum(held.numel() for held in frozen_weights(model))
    targets = ", ".join(lora.target_modules)
    return [
        (
            "model",
            f"{options.model}: {total / 1e6:,.0f} M parameters, {job.precision} on {model.device}",
        ),
        ("recipe", f"{job.recipe}, method {options.method}, seed {options.seed}"),
        ("trained", f"{trainable / 1e6:.1f} M parameters: LoRA rank {lora.rank} on {targets}"),
    ]


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{math.ceil(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
