"""The one kernel that a GPU takes does what the plain optimizer does."""

from __future__ import annotations

import pytest
import torch

from minialign.training import optimizer as module
from minialign.training.optimizer import Optimizer, cosine_with_warmup


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(n, 3, generator=generator)) for n in (2, 5)]


def optimizer(own: list[torch.nn.Parameter]) -> Optimizer:
    return Optimizer(
        own,
        *(0.1, cosine_with_warmup),
        total_steps=6,
        warmup_ratio=0.5,
        weight_decay=0.1,
        max_grad_norm=1.0,
    )


def take(own: list[torch.nn.Parameter], steps: range, start: Optimizer) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for parameter in own:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        start.step(step)


def test_the_fused_optimizer_is_the_plain_one_also_when_resumed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = parameters()
    take(plain, range(6), optimizer(plain))
    monkeypatch.setattr(module, "is_fused", lambda _: True)
    fused = parameters()
    first = optimizer(fused)
    assert first.adamw.param_groups[0]["fused"]
    take(fused, range(3), first)
    again = optimizer(fused)
    again.load_state(first.state())
    take(fused, range(3, 6), again)
    for one, other in zip(plain, fused, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_on_a_processor_it_is_not_fused() -> None:
    assert not module.is_fused(parameters())
