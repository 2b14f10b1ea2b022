"""The memory that a run needs, in bytes by part, from shapes alone.

The formulas are held to what was measured: benchmarks/memory.py.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from minialign.commands.job import Job
from minialign.fused import CHUNK_BYTES
from minialign.model.config import ModelConfig
from minialign.model.matmul import PACKED_NUMBERS, Linear
from minialign.model.transformer import CausalLM, Checkpointing
from minialign.policy.adapters import lora_layers, trainable_parameters
from minialign.policy.knobs import LoRAConfig, SamplingConfig
from minialign.policy.sample import cache_bytes, cache_rows
from minialign.weights.devices import pick_precision
from minialign.weights.holding import weight_bytes

# What a processor's allocator holds of a step, next to what is in use: benchmarks/memory.md.
WASTE = 1.45
# Python, PyTorch, and what oneDNN keeps; on a GPU its driver's own, which was not measured.
PROCESS_BYTES, CUDA_BYTES = 370_000_000, 600_000_000
# Of a row of logits, as many stand beside each other while a token is drawn.
DRAWN = 4


@dataclass(frozen=True)
class Memory:
    """What a run holds. A step's activations and the answers' cache are never held together."""

    weights: int
    adapters: int
    # AdamW's two, and the gradient
    moments: int
    activations: int
    head: int
    cache: int
    # of the weights, merged with the adapter or packed, while answers are written
    copies: int
    process: int

    @property
    def total(self) -> int:
        held = self.weights + self.adapters + self.moments + self.head + self.process
        return held + max(self.activations, self.cache + self.copies)


def memory_of(model: CausalLM, job: Job) -> Memory:
    """Of a model with its adapter, which may be of shapes alone."""
    work, on_cpu = job.work, job.device.type == "cpu"
    adapter = 4 * sum(p.numel() for p in trainable_parameters(model))
    sampling = work.sampling if work.written else SamplingConfig()
    longest = work.longest if work.written else job.longest + job.preview_tokens
    rows = cache_rows(model, longest, work.samples, sampling) if work.written else 1
    lora, mode = job.knobs.lora, job.options.activation_checkpointing
    size, whole = model.stream_dtype.itemsize, dataclasses.replace(lora, dropout=0.0)
    activations = max(
        activation_bytes(model.config, whole, size, work.largest, mode, on_cpu),
        activation_bytes(model.config, lora, size, work.dropped, mode, on_cpu),
    )
    drawn = DRAWN * 4 * model.config.vocab_size
    chooses = job.options.keep == "best" or job.options.stop_on_collapse
    return Memory(
        weights=weight_bytes(model),
        # Two more are copied while the better of two states is chosen.
        adapters=(1 + work.references + 2 * chooses) * adapter,
        moments=3 * adapter,
        activations=round((WASTE if on_cpu else 1.0) * activations),
        head=2 * CHUNK_BYTES,
        cache=rows * (cache_bytes(model, longest) + drawn),
        copies=_copied_bytes(model, sampling, on_cpu, job.base_dtype == "model"),
        process=PROCESS_BYTES if on_cpu else CUDA_BYTES,
    )


def _copied_bytes(model: CausalLM, sampling: SamplingConfig, on_cpu: bool, as_floats: bool) -> int:
    """In float32 weights merged with the adapter; on a processor packed ones.

    Weights in 8 or 4 bits are merged never, and packed where another precision is asked for.
    """
    merged = [layer.in_features * layer.out_features for layer in lora_layers(model).values()]
    held = 4 * sum(merged) if as_floats and model.dtype == torch.float32 else 0
    if not on_cpu:
        return held
    layers = [layer for layer in model.modules() if isinstance(layer, Linear)]
    numbers = sum(layer.in_features * layer.out_features for layer in layers)
    precision = pick_precision(
        sampling.rollout_dtype, torch.device("cpu"), model.config.hidden_size
    )
    if precision == "model" and model.dtype != torch.float32 and numbers > PACKED_NUMBERS:
        return held
    own = model.dtype.itemsize if as_floats else 0
    sizes = {"model": own, "float32": 4, "bfloat16": 2, "int8": 1}
    return held + sizes[precision] * numbers


def activation_bytes(
    config: ModelConfig,
    lora: LoRAConfig,
    size: int,
    tokens: int,
    mode: Checkpointing,
    on_cpu: bool = True,
) -> int:
    """What a step holds at most, of `size` bytes a number between the products.

    The inputs of all that is not a frozen matrix, for the backward pass; and, outside the layers,
    the last norm's, and the gradients with which the backward pass begins.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    layer = layer_bytes(config, lora, size, mode, on_cpu)
    begins = size * (5 * hidden + 4 * config.intermediate_size)
    if mode == "full":
        return tokens * (layer + layers * hidden * size + begins)
    return tokens * (layers * layer + begins)


def layer_bytes(
    config: ModelConfig, lora: LoRAConfig, size: int, mode: Checkpointing, on_cpu: bool = True
) -> int:
    """What one layer keeps of a token."""
    hidden, width = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    norms = sum(name is not None for name in config.family.norms)
    normed = norms * hidden + (queries + keys) * (config.family.qk_norm != "none")
    # The plain norms keep what they made of it, in float32.
    kept = normed * (4 if mode == "none" else size)
    kept += size * (2 * queries + 2 * keys + 2 * width + width * (mode == "none"))
    # Keys behind a prompt, and answers end to end, are copies there.
    kept += 0 if on_cpu else size * (queries + 2 * keys)
    inputs = {"q_proj": hidden, "k_proj": hidden, "v_proj": hidden, "o_proj": queries}
    inputs |= {"gate_proj": hidden, "up_proj": hidden, "down_proj": width}
    targets = set(lora.target_modules)
    if lora.dropout:
        # Each layer has its own, and which of it was dropped.
        kept += (size + 1) * sum(inputs[name] for name in targets)
    else:
        shared = ({"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"})
        kept += size * (hidden * sum(bool(targets & names) for names in shared))
        kept += size * width * ("down_proj" in targets)
    return kept + 4 * (norms + config.num_attention_heads + lora.rank * len(targets))
