"""What no machine should begin: a run that does not fit into its memory, or into a month.

The refusal names the knob that, set back to its recipe's value, would help most.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import torch

from minialign.commands.job import Job
from minialign.commands.needs import memory_of
from minialign.commands.plan import Speed, duration
from minialign.data.knobs import config_from_flags, flags_of, value_at
from minialign.errors import InputError
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import apply_lora
from minialign.training.knobs import TrainOptions, seconds_of
from minialign.weights import holding
from minialign.weights.devices import total_bytes
from minialign.weights.load import read_model_config

LONGEST_SECONDS = 30 * 86400
# Of every token that is written: a run keeps it as a number.
WRITTEN_BYTES = 40


def check_memory(job: Job) -> None:
    """Raises InputError where the run needs more memory than there is. Loads no model."""

    def needed(job: Job) -> float:
        return memory_of(outline(job), job).total + job.work.written * WRITTEN_BYTES

    there = total_bytes(job.device)
    if (wanted := needed(job)) > there:
        raise InputError(
            f"needs about {wanted / 1e9:,.1f} GB of memory, and there are {there / 1e9:.1f}: "
            + _advice(job, needed)
        )


def check_time(job: Job, speed: Speed) -> None:
    """Raises InputError where the run would take more than a month at this speed."""
    seconds = min(speed.seconds(job.work), seconds_of(job.options.time_budget))
    if seconds > LONGEST_SECONDS:
        raise InputError(
            f"takes up to {duration(seconds)}, more than 30 days: "
            + _advice(job, lambda job: speed.seconds(job.work))
        )


def outline(job: Job) -> CausalLM:
    """The model with its adapter, of shapes alone: it holds no memory."""
    config = read_model_config(job.checkpoint)
    model = holding.outline(config, job.dtype, job.base_dtype, job.device)
    with torch.device("meta"):
        apply_lora(model, job.knobs.lora)
    return model


def _advice(job: Job, cost: Callable[[Job], float]) -> str:
    costs = {flag: cost(changed) for flag, changed in _with_usual(job)}
    best = min(costs, key=costs.__getitem__, default="")
    if not best or costs[best] >= cost(job):
        return "choose a smaller model, or less to learn from"
    return f"lower --{best.replace('_', '-')}"


def _with_usual(job: Job) -> Iterator[tuple[str, Job]]:
    """The job with one flag at its usual value, for each flag that has another."""
    usual = job.card.recipe(job.recipe)
    for flag in flags_of(type(job.knobs)):
        value = value_at(usual, flag.path)
        if value_at(job.knobs, flag.path) != value:
            try:
                knobs = config_from_flags(job.knobs, {flag.name: value}).fitted(job.longest)
            # Some knobs go together, such as fractions that add up to 1.
            except InputError:
                continue
            yield flag.name, replanned(job, knobs=knobs)
    tokens = TrainOptions().micro_batch_tokens
    if job.options.micro_batch_tokens != tokens:
        options = dataclasses.replace(job.options, micro_batch_tokens=tokens)
        yield "micro_batch_tokens", replanned(job, options=options)


def replanned(job: Job, **changes: object) -> Job:
    changed = dataclasses.replace(job, **changes)  # type: ignore[arg-type]
    tokens = changed.options.micro_batch_tokens
    return dataclasses.replace(changed, work=job.method.work(job.lessons, changed.knobs, tokens))
