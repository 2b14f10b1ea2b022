"""Blocks of queries against the simple way: values, gradients and types."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from minialign.model import block_attention
from minialign.model.attention import PackedAttention
from minialign.model.segments import Segment


def attention_case(
    dtype: torch.dtype, window: int | None, *lengths: tuple[int, int, int]
) -> tuple[PackedAttention, list[torch.Tensor], torch.Tensor]:
    """Prompts with two completions each: (prompt, first, second) tokens."""
    segments: list[Segment] = []
    for prompt, *completions in lengths:
        start = segments[-1].stop if segments else 0
        prefix = (start, start + prompt) if prompt else None
        if prompt:
            segments.append(Segment(start, start + prompt))
        for length in completions:
            stop = segments[-1].stop if segments else 0
            segments.append(Segment(stop, stop + length, prefix))
    generator = torch.Generator().manual_seed(len(segments))
    total = segments[-1].stop
    q, k, v, factors = (
        torch.randn(total, heads, 8, generator=generator, dtype=torch.float64).to(dtype)
        for heads in (4, 2, 2, 4)
    )
    attend = PackedAttention(segments, [window], torch.device("cpu"))
    return attend, [x.requires_grad_() for x in (q, k, v)], factors


def with_gradients(function: Any, inputs: list[torch.Tensor], factors: Any) -> list[torch.Tensor]:
    out = function(*inputs)
    return [out.detach(), *torch.autograd.grad((out * factors).sum(), inputs)]


@pytest.mark.parametrize("window", [None, 1, 50, 64, 65])
@pytest.mark.parametrize(
    "lengths",
    [(0, 1, 63), (0, 64, 65), (3, 1, 200), (70, 63, 130), (200, 64, 5)],
    ids=str,
)
def test_blocks_equal_the_simple_way_in_values_and_gradients(
    lengths: tuple[int, int, int], window: int | None
) -> None:
    attend, inputs, factors = attention_case(torch.float64, window, lengths, (5, 2, 66))
    found = with_gradients(lambda *qkv: attend(0, *qkv), inputs, factors)
    expected = with_gradients(lambda *qkv: attend.simple(0, *qkv), inputs, factors)
    for own, truth in zip(found, expected, strict=True):
        torch.testing.assert_close(own, truth, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_blocks_in_other_types_stay_near_float64(dtype: torch.dtype, tolerance: float) -> None:
    attend, inputs, factors = attention_case(dtype, 80, (70, 63, 130))
    exact = [x.detach().double().requires_grad_() for x in inputs]
    found = with_gradients(lambda *qkv: attend(0, *qkv), inputs, factors)
    expected = with_gradients(lambda *qkv: attend.simple(0, *qkv), exact, factors)
    for own, truth in zip(found, expected, strict=True):
        assert own.dtype == dtype
        assert (own.double() - truth).norm() <= tolerance * truth.norm()


def test_blocks_pass_gradcheck_across_their_borders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_attention, "BLOCK", 3)
    attend, inputs, _ = attention_case(torch.float64, 5, (4, 7, 2))
    assert torch.autograd.gradcheck(lambda *qkv: attend(0, *qkv), inputs)


def test_a_sum_of_attention_has_the_right_gradient() -> None:
    """The gradient of a plain sum is one number seen at every place, not a tensor of its own."""
    attend, inputs, _ = attention_case(torch.float64, None, (70, 63, 130))
    own = torch.autograd.grad(attend(0, *inputs).sum(), inputs)
    for found, truth in zip(
        own, torch.autograd.grad(attend.simple(0, *inputs).sum(), inputs), strict=True
    ):
        torch.testing.assert_close(found, truth, rtol=1e-10, atol=1e-12)
