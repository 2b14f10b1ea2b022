"""The reference policy is an adapter that is switched on, not a second model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from minialign.policy.adapters import active_adapter, adapter_parameters, set_adapter


@contextmanager
def reference_policy(model: nn.Module, name: str | None) -> Iterator[None]:
    """Within the context the model *is* the reference: adapter `name`, or the base for None.

    No gradients, no dropout; the state before comes back whatever happens.
    """
    before, training = active_adapter(model), model.training
    set_adapter(model, name)
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        set_adapter(model, before)
        model.train(training)


def is_policy(model: nn.Module, name: str | None) -> bool:
    """Whether adapter `name`, or the base for None, has the active adapter's very numbers."""
    own, others = (_changes(model, adapter) for adapter in (active_adapter(model), name))
    return len(own) == len(others) and all(map(torch.equal, own, others))


def _changes(model: nn.Module, name: str | None) -> list[nn.Parameter]:
    """An adapter's parameters; none where it changes nothing."""
    parameters = [] if name is None else adapter_parameters(model, name)
    return parameters if any(lora_B.any() for lora_B in parameters[1::2]) else []
