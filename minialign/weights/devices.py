"""Where a model computes, and in which precision."""

from __future__ import annotations

import torch

from minialign.errors import InputError

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


def pick_dtype(name: str | torch.dtype, device: torch.device) -> torch.dtype:
    """By name; "auto" is bfloat16 on a CUDA GPU that has it, float32 elsewhere.

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
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if half else torch.float32
