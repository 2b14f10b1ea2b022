"""Where a model computes, in which precision, and how much memory there is."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch

from minialign.errors import InputError
from minialign.model.matmul import Precision, Weight, product
from minialign.model.quantised import Quantised, sums_are_exact

# A product of another type than float32 is taken where it needs at most this share of its time.
WORTHWHILE = 0.8
# Narrower models are too small for it to matter.
WIDE = 256
# What a container may take, where the system limits it.
CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")
# What `product_seconds` found, once a process.
SECONDS: dict[str, float] = {}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """By name; "auto" is a CUDA GPU, then Apple's, then the processor.

    Raises InputError for one that is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("it computes nothing")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} is not available: {reason}: use --device auto") from None
    return device


def pick_dtype(name: str | torch.dtype, device: torch.device, width: int = 0) -> torch.dtype:
    """By name; "auto" is bfloat16 where the device is fast at it and the model `width` wide,
    float32 elsewhere.

    Raises InputError for an unknown one, and for half types on Apple's GPU, where PyTorch's fused
    attention has been seen to let tokens look ahead.
    """
    if name != "auto":
        dtype = name if isinstance(name, torch.dtype) else DTYPES.get(name)
        if dtype is None:
            raise InputError(f"dtype {name!r} is unknown: use auto, {', '.join(DTYPES)}")
        if device.type == "mps" and dtype != torch.float32:
            raise InputError(f"dtype {name} is not reliable on {device}: use float32 or the cpu")
        return dtype
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    fast = device.type == "cpu" and width >= WIDE and is_faster("bfloat16", "float32")
    return torch.bfloat16 if fast else torch.float32


def pick_precision(name: str, device: torch.device, width: int) -> Precision:
    """In what the sampler multiplies; "auto" is int8 on a processor that is fastest at it, for a
    model `width` wide, and the model's own type elsewhere.

    Raises InputError for another type than the model's off a processor, and for int8 on one whose
    sums are not exact.
    """
    on_cpu = device.type == "cpu"
    if name == "auto":
        able = on_cpu and width >= WIDE and sums_are_exact()
        fast = able and is_faster("int8", "float32") and is_faster("int8", "bfloat16")
        return "int8" if fast else "model"
    if name != "model" and not on_cpu:
        raise InputError(f"rollout-dtype {name} is for processors: use auto or model on {device}")
    if name == "int8" and not sums_are_exact():
        raise InputError("rollout-dtype int8: this processor rounds its sums: use auto or model")
    return name  # type: ignore[return-value]


def is_faster(one: str, other: str) -> bool:
    if not SECONDS:
        SECONDS.update(product_seconds())
    return SECONDS[one] <= WORTHWHILE * SECONDS[other]


def agree_on_speed(agree: Callable[[dict[str, float]], dict[str, float]]) -> None:
    """What `agree` makes of this process's figures counts from now on."""
    SECONDS.update(agree(product_seconds()))


def product_seconds() -> dict[str, float]:
    """How long this processor takes for one product of each type, from and to float32.

    The least of a few tries, in turn, so that other work on the machine does not decide. Takes some
    50 ms.
    """
    x, weight = torch.ones(64, 768), torch.ones(768, 768)
    weights: dict[str, Weight] = {
        "float32": weight,
        "bfloat16": weight.bfloat16(),
        "int8": Quantised.of(weight),
    }
    tries: dict[str, list[float]] = {name: [] for name in weights}
    for _ in range(6):
        for name, held in weights.items():
            began = time.perf_counter()
            product(x, held)
            tries[name].append(time.perf_counter() - began)
    return {name: min(seconds) for name, seconds in tries.items()}


def total_bytes(device: torch.device) -> float:
    """The memory that there is at all: a GPU's, else the machine's; infinite if unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    found = [math.inf]
    with suppress(AttributeError, ValueError, OSError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):
        found.append(int(CONTAINER_LIMIT.read_text()))
    return min(found)


def take_gpu(number: int) -> int:
    """Makes one of this machine's GPUs the process's own; returns how many there are."""
    gpus = torch.cuda.device_count()
    if gpus:
        torch.cuda.set_device(number % gpus)
    return gpus


def has_gpu() -> bool:
    return torch.cuda.is_available()
