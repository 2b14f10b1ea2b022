"""Low-rank adapters, as a library: a face of policy/adapters, policy/merge and policy/peft."""

from __future__ import annotations

from minialign.policy.adapters import (
    active_adapter,
    adapter_names,
    apply_lora,
    combine_adapters,
    copy_adapter,
    remove_adapter,
    set_adapter,
    trainable_parameters,
)
from minialign.policy.knobs import LoRAConfig
from minialign.policy.merge import merge_adapter, merged_adapter, unmerge_adapter
from minialign.policy.peft import load_adapter, save_adapter
from minialign.policy.reference import reference_policy

__all__ = [
    "LoRAConfig",
    "active_adapter",
    "adapter_names",
    "apply_lora",
    "combine_adapters",
    "copy_adapter",
    "load_adapter",
    "merge_adapter",
    "merged_adapter",
    "reference_policy",
    "remove_adapter",
    "save_adapter",
    "set_adapter",
    "trainable_parameters",
    "unmerge_adapter",
]
