"""`--model auto`: the largest model of a short list that this machine can train, and in time.

Memory is that of the plan, from config.json alone. Time is the plan's count of tokens times what a
token takes, at the rate that one product reaches here; the run itself measures it once it has the
model.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from minialign.commands.ahead import job_ahead
from minialign.commands.bounds import outline
from minialign.commands.job import Job
from minialign.commands.needs import memory_of
from minialign.commands.plan import duration
from minialign.errors import InputError
from minialign.model.matmul import Linear
from minialign.model.transformer import CausalLM
from minialign.training.knobs import TrainOptions
from minialign.weights.devices import product_seconds
from minialign.weights.find import DEFAULT_GPU_MODEL, DEFAULT_MODEL, find_config
from minialign.weights.folder import say

CHOICES = (
    DEFAULT_GPU_MODEL,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "HuggingFaceTB/SmolLM2-360M-Instruct",
    DEFAULT_MODEL,
)
# Of the rate of `product_seconds`, what training and writing reach: benchmarks/speed.md.
TRAINING, WRITING = 0.5, 0.3


def choose(options: TrainOptions, given: dict[str, Any], budget: float = math.inf) -> str:
    """The model's name. Says of each that was looked at why it is, or is not, the one.

    Raises InputError where none fits into memory and `budget`, in seconds.
    """
    why = ""
    for name in CHOICES:
        asked = dataclasses.replace(options, model=name)
        try:
            find_config(name, options.revision or None)
        except InputError as error:
            say(f"--model auto: {error}")
            continue
        job, there = job_ahead(asked, given)
        model = outline(job)
        needed, spent = memory_of(model, job).total, seconds(model, job)
        why = f"{name} needs {needed / 1e9:.1f} GB of {there / 1e9:.1f}"
        why += f" and about {duration(spent)}" if spent else ", its time was not estimated"
        if needed <= there and spent <= budget:
            say(f"--model auto: {why}: taken")
            return name
        say(f"--model auto: {why}: too much")
    raise InputError(f"--model auto: none fits; {why}: give more time, or name a --model")


def seconds(model: CausalLM, job: Job) -> float:
    """At most, on a processor; 0 where nothing is known, as on a GPU."""
    if job.device.type != "cpu":
        return 0.0
    work = job.work
    layers = [layer for layer in model.modules() if isinstance(layer, Linear)]
    products = 2 * sum(layer.in_features * layer.out_features for layer in layers)
    rate = 2 * 64 * 768**2 / product_seconds()[str(job.dtype).removeprefix("torch.")]
    # Forward, and back to the inputs; with `full`, forward again.
    again = job.options.activation_checkpointing == "full"
    read = (2 + again) * work.read + work.referred
    return products * (read / TRAINING + work.written / WRITING) / rate
