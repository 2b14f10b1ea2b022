"""The update of a layer: its values, its own backward pass, and what it keeps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from minialign.policy.knobs import LoRAConfig
from minialign.policy.lora_linear import AddUpdate, LoRALinear

SHAPES = [(1, 3, 5, 1), (7, 5, 3, 2), (65, 8, 6, 9)]  # tokens, inputs, outputs, rank


def make_layer(
    shape: tuple[int, int, int, int], dtype: torch.dtype, dropout: float = 0.0
) -> LoRALinear:
    """A frozen random layer with an adapter that is not the identity."""
    _, inputs, outputs, rank = shape
    generator = torch.Generator().manual_seed(sum(shape))
    base = torch.nn.Linear(inputs, outputs, bias=False).requires_grad_(False)
    layer = LoRALinear(base)
    layer.weight.data = torch.randn(outputs, inputs, generator=generator).to(dtype)
    layer.add("default", LoRAConfig(rank=rank, alpha=3.0, dropout=dropout), generator)
    layer.active = "default"
    torch.nn.init.normal_(layer.lora_B["default"], generator=generator)
    return layer


def plain_layer(layer: LoRALinear, x: Tensor, dtype: torch.dtype) -> Tensor:
    """The formula, for autograd to differentiate, all of it in `dtype`."""
    config = layer.configs["default"]
    a, b = layer.lora_A["default"].to(dtype), layer.lora_B["default"].to(dtype)
    dropped = torch.nn.functional.dropout(x, config.dropout, layer.training).to(dtype)
    update = dropped @ a.T @ b.T * (config.alpha / config.rank)
    return x.to(dtype) @ layer.weight.to(dtype).T + update


def value_and_gradients(
    function: Callable[[Tensor], Tensor], layer: LoRALinear, x: Tensor, factors: Tensor
) -> list[Tensor]:
    """The value, then the gradients of x, A and B."""
    x = x.clone().requires_grad_()
    leaves = [x, layer.lora_A["default"], layer.lora_B["default"]]
    value = function(x)
    slopes = torch.autograd.grad((value * factors.to(value.dtype)).sum(), leaves)
    return [value.detach(), *slopes]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_update_has_the_gradients_of_the_plain_formula(
    shape: tuple[int, int, int, int], dtype: torch.dtype, dropout: float
) -> None:
    layer = make_layer(shape, dtype, dropout)
    tokens, inputs, outputs, _ = shape
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, inputs, generator=generator).to(dtype)
    factors = torch.randn(tokens, outputs, generator=generator).to(dtype)
    torch.manual_seed(5)  # the same tokens drop out
    found = value_and_gradients(layer, layer, x, factors)
    torch.manual_seed(5)
    wide = torch.float64
    expected = value_and_gradients(lambda x: plain_layer(layer, x, wide), layer, x, factors)
    # what is of the base's type, the value and the gradient of x, was rounded two or three times
    rounding = 8 * torch.finfo(dtype).eps
    for name, own, truth, close in zip(
        ("value", "x", "A", "B"), found, expected, (rounding, rounding, 2e-6, 2e-6), strict=True
    ):
        error = (own.double() - truth).abs().max()
        assert error <= close * truth.abs().max() + 1e-12, name
    assert [t.dtype for t in found] == [dtype, dtype, torch.float32, torch.float32]


def test_the_update_passes_gradcheck() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 4), (3, 5), (2, 5), (4, 2))  # y, x, A, B
    leaves = [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in shapes
    ]
    assert torch.autograd.gradcheck(
        lambda y, x, a, b: AddUpdate.apply(y.clone(), x, a, b, 1.7), leaves
    )


def test_the_update_in_place_touches_the_layer_s_own_output_and_nothing_else() -> None:
    layer = make_layer((7, 5, 3, 2), torch.float32)
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    held = [x, layer.weight, layer.lora_A["default"], layer.lora_B["default"]]
    before = [t.detach().clone() for t in held]
    first = layer(x)
    kept = first.detach().clone()
    second = layer(x)  # of another output: the first one must stay
    (first + 2 * second).sum().backward()
    assert torch.equal(first, kept) and torch.equal(second, kept)
    assert first.data_ptr() != second.data_ptr()
    for tensor, old in zip(held, before, strict=True):
        assert torch.equal(tensor, old)


def test_the_update_keeps_its_input_and_the_low_rank_product_and_no_output() -> None:
    layer = make_layer((65, 8, 6, 2), torch.float32)
    x = torch.randn(65, 8)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    shapes = sorted(tuple(t.shape) for t in kept if len(t) == 65)
    assert shapes == [(65, 2), (65, 8)]


def test_layers_with_one_input_of_a_half_type_keep_it_once_and_as_it_is() -> None:
    layers = [make_layer((65, 8, outputs, 2), torch.bfloat16) for outputs in (6, 4)]
    x = torch.randn(65, 8).bfloat16()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        for layer in layers:
            layer(x)
    assert {t.data_ptr() for t in kept if t.shape == x.shape} == {x.data_ptr()}


def test_gradients_of_two_uses_of_one_adapter_add_up() -> None:
    layer = make_layer((7, 5, 5, 2), torch.float32)
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    factors = torch.ones(7, 5)
    found = value_and_gradients(lambda x: layer(layer(x)), layer, x, factors)

    def twice(x: Tensor) -> Tensor:
        return plain_layer(layer, plain_layer(layer, x, torch.float64), torch.float64)

    for own, truth in zip(found, value_and_gradients(twice, layer, x, factors), strict=True):
        torch.testing.assert_close(own.double(), truth.double(), rtol=1e-4, atol=1e-4)
