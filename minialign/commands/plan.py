"""What a run will cost, told before it starts: tokens by counting, seconds by timing a small piece
of the same work, memory by adding up what is kept.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from itertools import chain

import torch

from minialign.commands.feedback_job import FeedbackJob
from minialign.commands.job import Job
from minialign.data.records import Sequence
from minialign.fused import CHUNK_BYTES
from minialign.methods.c3po import Batch
from minialign.methods.knobs import DittoConfig
from minialign.model.config import ModelConfig
from minialign.model.transformer import CausalLM, Checkpointing
from minialign.policy.adapters import lora_layers, trainable_parameters
from minialign.policy.knobs import LoRAConfig, SamplingConfig
from minialign.policy.packing import by_prompt, distinct_tokens
from minialign.policy.sample import cache_bytes, cache_rows, sample
from minialign.policy.score import score
from minialign.training.knobs import TrainOptions

PROBE_TOKENS = 400  # what the training probe reads
PROBE_STEPS = 6  # tokens that the sampling probe writes, per row
WASTE = 1.4  # what an allocator holds, next to what is in use; measured on Linux
PROCESS_BYTES = 400_000_000  # Python and PyTorch


@dataclass(frozen=True)
class Work:
    """Tokens to be computed, at most: SFT may stop early, and answers may end before the limit."""

    sft: int
    sampled: int
    preferences: int

    @classmethod
    def of(cls, config: DittoConfig, train: list[Sequence], ditto: bool) -> Work:
        mean = sum(map(len, train)) / len(train)
        sft = round(config.sft.max_steps * min(config.sft.batch_size, len(train)) * mean)
        if not ditto:
            return cls(sft, 0, 0)
        new = config.sampling.max_new_tokens
        sampled = config.rounds * len(train) * config.samples_per_prompt * new
        texts = min(len(train), config.pairs_per_step) * mean + config.pairs_per_step * new
        return cls(sft, sampled, round(config.max_steps * texts))


@dataclass(frozen=True)
class Speed:
    """Tokens per second of the two kinds of work, on this machine with this model."""

    training: float
    sampling: float

    @classmethod
    def measured(cls, model: CausalLM, job: Job) -> Speed:
        """Takes a few seconds. Leaves the model as it was."""
        rows = min(job.config.sampling.max_rows, len(job.train) * job.config.samples_per_prompt)
        writes = job.options.method != "sft"
        sampling = _sampling_speed(model, job.train[0], rows) if writes else float("inf")
        return cls(_training_speed(model, job.train), sampling)

    def seconds(self, work: Work) -> float:
        # the policy reads a text in every step that it stands in, the reference once, forward only
        read = work.sft + work.preferences + min(work.sampled, work.preferences) / 3
        return read / self.training + work.sampled / self.sampling


def _training_speed(model: CausalLM, train: list[Sequence]) -> float:
    batch, tokens = [], 0
    for sequence in train:
        batch.append(sequence)
        tokens += len(sequence)
        if tokens >= PROBE_TOKENS:
            break
    for _ in range(2):  # the first one warms up
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


def _sampling_speed(model: CausalLM, sequence: Sequence, rows: int) -> float:
    stop_ids, model.stop_ids = model.stop_ids, ()
    try:
        times = []
        for steps in (1, 1 + PROBE_STEPS):  # the difference leaves out the prompt
            began = time.perf_counter()
            sample(model, [sequence.prompt_ids], rows, SamplingConfig(max_new_tokens=steps), seed=0)
            times.append(time.perf_counter() - began)
    finally:
        model.stop_ids = stop_ids
    return rows * PROBE_STEPS / max(1e-6, times[1] - times[0])


def memory_bytes(model: CausalLM, job: Job) -> int:
    """What is held at the same time, at most.

    Weights; adapters (policy and reference, gradient, two moments); one micro-batch of activations
    or what the sampler holds, whichever is larger; a chunk of logits and its softmax; and what the
    process takes besides.
    """
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    # float32, five times: policy, gradient, two moments, reference
    adapters = 5 * 4 * sum(p.numel() for p in trainable_parameters(model))
    longest = max(len(s.prompt_ids) for s in job.train) + job.config.sampling.max_new_tokens
    activations = activation_bytes(
        model.config,
        job.config.lora,
        model.dtype.itemsize,
        _tokens_in_flight(job),
        job.options.activation_checkpointing,
    )
    samples = len(job.train) * job.config.samples_per_prompt
    rows = cache_rows(model, longest, samples, job.config.sampling)
    writing = rows * cache_bytes(model, longest)
    if model.dtype == torch.float32:  # merged with the adapter for the sampler
        writing += 4 * sum(layer.weight.numel() for layer in lora_layers(model).values())
        writing += weights if model.device.type == "cpu" else 0  # and packed
    return weights + adapters + _with_process(model, max(activations, writing))


def _with_process(model: CausalLM, held: int) -> int:
    """With chunks of logits, on a processor also with what its allocator wastes, and PyTorch."""
    if model.device.type != "cpu":
        return held + 2 * CHUNK_BYTES
    return round(WASTE * (held + 2 * CHUNK_BYTES)) + PROCESS_BYTES


def _tokens_in_flight(job: Job) -> int:
    """A micro-batch, which one prompt's texts may double, or one comparison if that is more."""
    budget, new = job.options.micro_batch_tokens, job.config.sampling.max_new_tokens
    groups = by_prompt(job.train, lambda sequence: sequence).values()
    largest, item = max(sum(map(len, group)) for group in groups), max(map(len, job.train))
    if job.options.method != "sft":
        share = max(map(len, groups)) / len(job.train)  # of the demonstrations, so of the pairs
        largest += math.ceil(job.config.pairs_per_step * share) * new
        item += new
    return max(budget, min(largest, 2 * budget), item)


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
    work = Work.of(job.config, job.train, job.options.method != "sft")
    rows = [*_subject(model, job), *_stages(job)]
    tokens = f"{work.sft:,} tokens of SFT"
    if job.options.method != "sft":
        tokens += f", at most {work.sampled:,} written and {work.preferences:,} compared"
    seconds, gigabytes = _duration(speed.seconds(work)), memory_bytes(model, job) / 1e9
    rows += [
        ("work", tokens),
        ("needs", f"at most {seconds}, about {gigabytes:.1f} GB of memory"),
        ("writes", f"{job.out}/"),
        *(("warning", warning) for warning in job.warnings),
    ]
    return "\n".join(f"{name:>12}  {text}" for name, text in rows)


def _model_rows(
    model: CausalLM, options: TrainOptions, recipe: str, lora: LoRAConfig
) -> list[tuple[str, str]]:
    """What is trained."""
    trainable = sum(parameter.numel() for parameter in trainable_parameters(model))
    total = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    dtype, targets = str(model.dtype).removeprefix("torch."), ", ".join(lora.target_modules)
    return [
        ("model", f"{options.model}: {total / 1e6:,.0f} M parameters, {dtype} on {model.device}"),
        ("recipe", f"{recipe}, method {options.method}, seed {options.seed}"),
        ("trained", f"{trainable / 1e6:.1f} M parameters: LoRA rank {lora.rank} on {targets}"),
    ]


def _subject(model: CausalLM, job: Job) -> list[tuple[str, str]]:
    """What is trained, and on what."""
    tokens = sum(map(len, job.train))
    return [
        *_model_rows(model, job.options, job.recipe, job.config.lora),
        ("learns from", f"{len(job.train)} demonstrations, {tokens:,} tokens: {job.options.demos}"),
        ("judged by", f"{len(job.held_out)} held-out demonstrations: {job.options.test}")
        if job.held_out
        else ("judged by", "nothing: give held-out demonstrations with --test FILE.jsonl"),
    ]


def _stages(job: Job) -> list[tuple[str, str]]:
    """The knobs that decide most."""
    config, sft = job.config, job.config.sft
    stages = [
        (
            "SFT",
            f"at most {sft.max_steps} steps, learning rate {sft.learning_rate:g}, "
            f"until the loss is {sft.stop_loss:g}",
        )
    ]
    if job.options.method != "sft":
        answers = len(job.train) * config.samples_per_prompt
        new = config.sampling.max_new_tokens
        stages += [
            (
                job.options.method.upper(),
                f"{config.rounds} rounds of {answers} answers of at most {new} tokens;",
            ),
            (
                "",
                f"{config.max_steps} steps of {config.pairs_per_step} comparisons, "
                f"learning rate {config.learning_rate:g}, beta {config.beta:g}",
            ),
        ]
    return stages


def describe_feedback(model: CausalLM, job: FeedbackJob) -> str:
    """The same for a run on feedback; times a small piece of the work."""
    config, train = job.config, job.train
    steps = config.steps(len(train.in_scope))
    read = round(config.epochs * job.tokens)
    texts = [sequence for pair in train.in_scope for sequence in pair]
    seconds = (read + sum(map(len, texts)) / 3) / _training_speed(model, texts)
    rows = [
        *_model_rows(model, job.options, job.recipe, config.lora),
        *(_feedback_subject(job) if job.data.feedback else _pairs_subject(job)),
        (
            "steps",
            f"{steps} of {config.pairs_per_step} pairs, learning rate {config.learning_rate:g}, "
            f"beta {config.beta:g}",
        ),
        ("needs", f"about {_duration(seconds)}, {_feedback_memory(model, job) / 1e9:.1f} GB"),
        ("writes", f"{job.out}/"),
        *(("warning", warning) for warning in job.warnings),
    ]
    return "\n".join(f"{name:>12}  {text}" for name, text in rows)


def _feedback_subject(job: FeedbackJob) -> list[tuple[str, str]]:
    config, train = job.config, job.train
    weights = (
        f"{config.constraint} x {config.lambda_out:g} out of scope ({len(train.out_of_scope)} "
        f"answers), x {config.lambda_near:g} near scope ({len(train.near_scope)})"
    )
    return [
        ("feedback", job.data.feedback),
        ("in scope", f"{config.in_scope_loss} on {len(train.in_scope)} revised answers"),
        ("kept", weights if config.lambda_out or config.lambda_near else "nothing: no constraint"),
    ]


def _pairs_subject(job: FeedbackJob) -> list[tuple[str, str]]:
    held_out = len(job.held_out.in_scope)
    what = "pairs" if job.config.in_scope_loss == "dpo" else "chosen answers"
    return [
        ("learns from", f"{len(job.train.in_scope)} {what}: {job.options.data}"),
        ("judged by", f"{held_out} held-out pairs")
        if held_out
        else ("judged by", 'nothing: give some lines the split "test"'),
    ]


def _feedback_memory(model: CausalLM, job: FeedbackJob) -> int:
    """Weights, adapter with gradient and moments, and one micro-batch or pair."""
    weights = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    adapter = 4 * 4 * sum(p.numel() for p in trainable_parameters(model))
    batch, budget = Batch.of(job.train, job.config), job.options.micro_batch_tokens
    groups = by_prompt(batch.pairs, lambda pair: pair[0]).values()
    largest = max(distinct_tokens(chain(*group)) for group in groups)
    items = [*batch.pairs, *((answer,) for answer in (*batch.out, *batch.near))]
    tokens = max(budget, min(largest, 2 * budget), *map(distinct_tokens, items))
    mode = job.options.activation_checkpointing
    kept = activation_bytes(model.config, job.config.lora, model.dtype.itemsize, tokens, mode)
    return weights + adapter + _with_process(model, kept)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{math.ceil(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
