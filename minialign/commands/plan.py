"""What a run will cost, told before it starts: tokens by counting, seconds by timing a small piece
of the same work, memory by adding up what is kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence as Sequence
from dataclasses import dataclass

import torch

from minialign.commands.job import Job
from minialign.data.records import Example
from minialign.fused import CHUNK_BYTES
from minialign.methods.lessons import Work
from minialign.model.config import ModelConfig
from minialign.model.matmul import frozen_weights
from minialign.model.transformer import CausalLM, Checkpointing
from minialign.policy.adapters import lora_layers, trainable_parameters
from minialign.policy.knobs import LoRAConfig, SamplingConfig
from minialign.policy.sample import cache_bytes, cache_rows, sample
from minialign.policy.score import score
from minialign.training.knobs import seconds_of
from minialign.weights.devices import pick_precision
from minialign.weights.holding import weight_bytes

# What the training probe reads, and what the sampling probe writes, a row.
PROBE_TOKENS, PROBE_STEPS = 400, 6
# What an allocator holds, next to what is in use; measured on Linux (benchmarks/speed.md).
WASTE = 1.15
# Python, PyTorch, and what oneDNN keeps.
PROCESS_BYTES = 400_000_000


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


def memory_bytes(model: CausalLM, job: Job) -> int:
    """What is held at the same time, at most.

    Weights; adapters (the policy with its gradient and two moments, and references); one
    micro-batch of activations or what the sampler holds, whichever is larger; a chunk of logits and
    its softmax; and what the process takes besides.
    """
    work = job.work
    # Two more are copied while the better of two states is chosen.
    copies = 2 * (job.options.keep == "best" or job.options.stop_on_collapse)
    held = 4 + work.references + copies
    adapters = held * 4 * sum(p.numel() for p in trainable_parameters(model))
    activations = activation_bytes(
        model.config,
        job.knobs.lora,
        model.stream_dtype.itemsize,
        work.largest,
        job.options.activation_checkpointing,
    )
    on_cpu = job.device.type == "cpu"
    writing = _writing_bytes(model, job) if work.written else 0
    return weight_bytes(model) + adapters + _with_process(on_cpu, max(activations, writing))


def _writing_bytes(model: CausalLM, job: Job) -> int:
    """Keys and values; in float32 weights merged with the adapter; on a processor packed ones.

    Weights in 8 or 4 bits are merged never, and packed where another precision is asked for.
    """
    work, as_floats = job.work, job.base_dtype == "model"
    held = cache_rows(model, work.longest, work.samples, work.sampling)
    held *= cache_bytes(model, work.longest)
    layers = lora_layers(model).values()
    if as_floats and model.dtype == torch.float32:
        held += 4 * sum(layer.in_features * layer.out_features for layer in layers)
    if job.device.type != "cpu":
        return held
    width, name = model.config.hidden_size, work.sampling.rollout_dtype
    precision = pick_precision(name, torch.device("cpu"), width)
    own = model.dtype.itemsize if as_floats else 0
    bytes_each = {"model": own, "float32": 4, "bfloat16": 2, "int8": 1}
    return held + bytes_each[precision] * _numbers(model)


def _numbers(model: CausalLM) -> int:
    """Parameters that are not trained."""
    return sum(held.numel() for held in frozen_weights(model))


def _with_process(on_cpu: bool, held: int) -> int:
    """With chunks of logits, on a processor also with what its allocator wastes, and PyTorch."""
    if not on_cpu:
        return held + 2 * CHUNK_BYTES
    return round(WASTE * (held + 2 * CHUNK_BYTES)) + PROCESS_BYTES


def activation_bytes(
    config: ModelConfig, lora: LoRAConfig, size: int, tokens: int, mode: Checkpointing
) -> int:
    """What the backward pass keeps: the inputs of all that is not a frozen matrix."""
    hidden, width = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    kept = 2 * hidden + 2 * queries + 2 * keys + 2 * width
    if mode == "none":
        kept += 2 * hidden + width
    targets = set(lora.target_modules)
    inputs = hidden * (bool(targets & {"q_proj", "k_proj", "v_proj"}) + ("o_proj" in targets))
    inputs += hidden * bool(targets & {"gate_proj", "up_proj"}) + width * ("down_proj" in targets)
    layer = kept * size + 4 * (inputs + lora.rank * len(targets))
    if mode == "full":
        return tokens * (layer + config.num_hidden_layers * hidden * size)
    return tokens * layer * config.num_hidden_layers


def describe(model: CausalLM, job: Job, speed: Speed) -> str:
    """The first lines of a run: what will happen to what, and what it costs."""
    budget = seconds_of(job.options.time_budget)
    seconds = duration(min(speed.seconds(job.work, job.preview_tokens), budget))
    gigabytes = memory_bytes(model, job) / 1e9
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
    total, targets = _numbers(model), ", ".join(lora.target_modules)
    dtype = str(model.dtype).removeprefix("torch.")
    if job.base_dtype != "model":
        dtype = f"{job.base_dtype}, multiplied in {dtype}"
    return [
        ("model", f"{options.model}: {total / 1e6:,.0f} M parameters, {dtype} on {model.device}"),
        ("recipe", f"{job.recipe}, method {options.method}, seed {options.seed}"),
        ("trained", f"{trainable / 1e6:.1f} M parameters: LoRA rank {lora.rank} on {targets}"),
    ]


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{math.ceil(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
