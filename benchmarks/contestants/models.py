"""The model as minialign and as transformers load it, and the adapters that both read."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from minialign.policy.knobs import LoRAConfig

from .measuring import Result

LORA = LoRAConfig(rank=32, alpha=64.0, dropout=0.0)


def load_ours(path: str, dtype: str = "float32") -> Any:
    import minialign

    model, _ = minialign.load(path, dtype=dtype, device="cpu")
    model.eval()
    touch(model)
    return model


def load_theirs(path: str, dtype: str = "float32") -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
    model.eval()
    touch(model)
    return model


def touch(model: torch.nn.Module) -> None:
    """Weights are mapped from their file and read when first used: now."""
    for parameter in model.parameters():
        parameter.sum().item()


def adapters(model_path: str, folder: Path) -> tuple[Path, Path]:
    """A reference and a policy a little away from it, in PEFT's format; made once."""
    from minialign.policy.adapters import adapter_parameters, apply_lora
    from minialign.policy.peft import save_adapter

    reference, policy = folder / "adapter-reference", folder / "adapter-policy"
    if (policy / "adapter_model.safetensors").exists():
        return reference, policy
    model = load_ours(model_path)
    generator = torch.Generator().manual_seed(0)
    apply_lora(model, LORA, generator=generator)
    for path in (reference, policy):
        for parameter in adapter_parameters(model, "default"):
            parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)
        save_adapter(model, path)
    return reference, policy


def prepare(options: Namespace, folder: Path) -> Result:
    """What all contestants read, made before any of them is measured."""
    adapters(options.model, folder)
    return {"seconds": [0.0]}
