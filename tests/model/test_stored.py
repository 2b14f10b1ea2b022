"""Weights in 8 and 4 bits: by their definition, number by number, and as products of floats."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.toys import naive_score, small_model
from torch import Tensor

from minialign.data.records import Example
from minialign.fused import linear_kl, linear_logps
from minialign.model import stored
from minialign.model.matmul import Embedding, Linear, across, hold, linear, wide_product
from minialign.model.stored import LEVELS, NF4, STORED, Int8, Stored, fingerprint_of
from minialign.policy.score import score

KINDS = list(STORED.values())
FLOATS = torch.float32


def weight(outputs: int = 48, inputs: int = 128, seed: int = 0) -> Tensor:
    """Rows of unlike sizes, an outlier, and a row of zeros."""
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(outputs, inputs, generator=generator)
    numbers *= 10.0 ** torch.linspace(-2, 1, outputs)[:, None]
    numbers[0, 0] = 30.0
    numbers[1] = 0
    return numbers


def eight_bits(number: float) -> float:
    """The nearest E4M3 number: three digits after the first one, exponents from -6, at most 448."""
    if number == 0:
        return 0.0
    exponent = max(-6, math.floor(math.log2(abs(number))))
    step = 2.0 ** (exponent - 3)
    return math.copysign(min(448.0, round(abs(number) / step) * step), number)


def by_hand(numbers: Tensor) -> Tensor:
    """NF4 with double quantisation as the paper has it, in plain Python."""
    rows, inputs = numbers.shape
    groups = [row[at : at + 64] for row in numbers.tolist() for at in range(0, inputs, 64)]
    constants = [max(map(abs, group)) for group in groups]
    mean = sum(constants) / len(constants)
    held: list[float] = []
    for at in range(0, len(constants), 256):
        off = [c - mean for c in constants[at : at + 256]]
        largest = max(map(abs, off)) or 1.0
        held += [eight_bits(o / largest * 448) * largest / 448 + mean for o in off]
    found = []
    for group, constant, kept in zip(groups, constants, held, strict=True):
        for number in group:
            share = number / constant if constant else 0.0
            found.append(kept * min(LEVELS, key=lambda level: abs(level - share)))
    return torch.tensor(found).view(rows, inputs)


def test_the_16_levels_are_quantiles_of_a_normal_distribution() -> None:
    # The published construction: 8 quantiles above zero, 7 below, zero itself, the largest at 1.
    offset, normal = 0.9677083, statistics.NormalDist()
    above = [normal.inv_cdf(offset + (0.5 - offset) * i / 8) for i in range(8)]
    below = [-normal.inv_cdf(offset + (0.5 - offset) * i / 7) for i in range(7)]
    expected = sorted([*above, 0.0, *below])
    assert len(LEVELS) == 16
    assert [*LEVELS] == pytest.approx([level / expected[-1] for level in expected], abs=1e-6)


@pytest.mark.parametrize(("outputs", "inputs"), [(48, 128), (300, 128), (5, 64)])
def test_nf4_is_what_the_paper_says(outputs: int, inputs: int) -> None:
    numbers = weight(outputs, inputs)
    found = NF4(numbers, FLOATS).to(FLOATS)
    torch.testing.assert_close(found, by_hand(numbers), rtol=1e-6, atol=1e-6)


def test_int8_is_the_nearest_of_255_steps_a_row() -> None:
    numbers = weight()
    found = Int8(numbers, FLOATS).to(FLOATS)
    step = numbers.abs().amax(1, keepdim=True) / 127
    assert ((found - numbers).abs() <= 0.5001 * step).all()
    torch.testing.assert_close(found, (numbers / step).round().nan_to_num() * step)


def test_the_second_quantisation_moves_a_constant_by_less_than_a_sixteenth_of_its_excess() -> None:
    numbers = weight(400, 128)
    exact = numbers.view(400, 2, 64).abs().amax(2)
    held = NF4(numbers, FLOATS).scales()
    excess = (exact - exact.mean()).abs()
    error = (held - exact).abs()
    # The last term: the step of the smallest of 8-bit floats.
    assert (error <= excess / 16 + excess.max() / 448 / 2**9).all()
    assert error.max() > 0


def test_bytes_are_those_of_the_formats() -> None:
    numbers = weight(512, 1024)
    assert Int8(numbers, FLOATS).nbytes == 512 * 1024 + 4 * 512
    groups = 512 * 1024 // 64
    assert NF4(numbers, FLOATS).nbytes == 512 * 1024 // 2 + groups + 4 * groups // 256 + 4
    assert 8 * NF4(numbers, FLOATS).nbytes / numbers.numel() == pytest.approx(4.127, abs=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_alone_have_the_same_bytes(kind: type[Stored]) -> None:
    numbers = weight(7, 33)
    outline = kind(numbers.to("meta"), FLOATS)
    assert (outline.nbytes, outline.shape) == (kind(numbers, FLOATS).nbytes, numbers.shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("inputs", [1, 33, 64, 100])
def test_rows_of_any_length_come_back_and_zeros_stay_zeros(kind: type[Stored], inputs: int) -> None:
    numbers = weight(9, inputs)
    found = kind(numbers, FLOATS).to(FLOATS)
    assert found.shape == numbers.shape and (found[1] == 0).all()
    # Of half the widest gap between levels, and of the second quantisation.
    assert (found - numbers).abs().max() <= 0.2 * numbers.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_of_another_type_is_stored_as_its_numbers(
    kind: type[Stored], dtype: torch.dtype
) -> None:
    numbers = weight().to(dtype)
    held, same = kind(numbers, dtype), kind(numbers.float(), FLOATS)
    assert torch.equal(held.codes, same.codes) and held.dtype == dtype
    assert torch.equal(held.to(dtype), same.to(FLOATS).to(dtype))
    assert held.fingerprint == fingerprint_of(numbers)


# ---- products ----


def small_blocks(monkeypatch: pytest.MonkeyPatch, numbers: int = 640) -> list[int]:
    """Lets few numbers be floats at a time; returns how many were, block by block."""
    widened: list[int] = []
    monkeypatch.setattr(stored, "BLOCK", numbers)
    for kind in KINDS:

        def noted(self: Stored, *parts: Tensor, own: Any = kind.widened) -> Tensor:
            found = own(self, *parts)
            widened.append(found.numel())
            return found

        monkeypatch.setattr(kind, "widened", noted)
    return widened


def with_gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    y = function(leaf)
    slopes = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    (gradient,) = torch.autograd.grad(y, leaf, slopes)
    return y.detach(), gradient


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_product_and_gradient_are_those_of_the_widened_weight_to_the_bit(
    kind: type[Stored], dtype: torch.dtype
) -> None:
    held = kind(weight(), dtype)
    floats, x = held.to(dtype), torch.randn(5, 128, generator=torch.Generator().manual_seed(2))
    own = with_gradient(lambda x: linear(x, held), x)
    expected = with_gradient(lambda x: linear(x, floats), x)
    assert all(torch.equal(a, b) for a, b in zip(own, expected, strict=True))
    assert own[0].dtype == own[1].dtype == torch.float32
    with torch.no_grad():
        assert torch.equal(linear(x, held), linear(x, floats))
        assert torch.equal(across(own[0], held), across(own[0], floats))


@pytest.mark.parametrize("kind", KINDS)
def test_never_more_than_a_block_is_in_floats(
    kind: type[Stored], monkeypatch: pytest.MonkeyPatch
) -> None:
    widened = small_blocks(monkeypatch)
    held, x = kind(weight(), FLOATS), torch.randn(5, 128)
    floats = held.to(FLOATS)
    own = with_gradient(lambda x: linear(x, held), x)
    expected = with_gradient(lambda x: linear(x, floats), x)
    for found, right in zip(own, expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(wide_product(x, held), own[0], rtol=1e-5, atol=1e-5)
    # There and back, and as a head; the first time all of it was asked for.
    assert max(widened) == 640 and len(widened) == 4 * math.ceil(48 / 5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_losses_read_a_stored_head(kind: type[Stored], monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, 2000)
    held = kind(weight(90, 64) / 10, FLOATS)
    floats, targets = held.to(FLOATS), torch.tensor([3, 89, 0, 7])
    generator = torch.Generator().manual_seed(3)
    x, reference = (torch.randn(4, 64, generator=generator) for _ in range(2))
    for loss in (
        lambda x, w: linear_logps(x, w, targets, 3),
        lambda x, w: linear_kl(x, reference, w, 1.5, 3),
    ):
        own = with_gradient(lambda x, loss=loss: loss(x, held), x)
        expected = with_gradient(lambda x, loss=loss: loss(x, floats), x)
        for a, b in zip(own, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_embedding_takes_its_rows(kind: type[Stored]) -> None:
    layer, held = Embedding(48, 128), kind(weight(), FLOATS)
    hold(layer, "weight", held)
    ids = torch.tensor([[3, 47], [3, 0]])
    assert torch.equal(layer(ids), held.to(FLOATS)[ids])


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_stored_layers_is_the_model_of_their_floats(kind: type[Stored]) -> None:
    model, plain = small_model(), small_model()
    for own, other in zip(model.modules(), plain.modules(), strict=True):
        if isinstance(own, Linear | Embedding):
            held = kind(own.weight, FLOATS)
            hold(own, "weight", held)
            hold(other, "weight", held.to(FLOATS))
    text = Example((5, 9, 200), (7, 3, 40))
    with torch.no_grad():
        assert torch.allclose(score(model, [text]), naive_score(plain, text), atol=1e-4)
        assert not torch.allclose(score(model, [text]), naive_score(small_model(), text), atol=1e-3)
