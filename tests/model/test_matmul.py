"""Products: the same numbers whoever computes them, little kept, and oneDNN where it serves."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.toys import gradients, small_model, with_adapter
from torch import Tensor

from minialign.data.records import Example
from minialign.model import matmul
from minialign.model.matmul import Linear, _Linear, linear, packed_weights, product
from minialign.model.transformer import CausalLM
from minialign.policy.merge import merged_adapter
from minialign.policy.score import score

needs_onednn = pytest.mark.skipif(
    matmul.ONEDNN is None, reason="this build of PyTorch has no oneDNN"
)
SHAPES = [(1, 1, 1), (1, 5, 7), (0, 5, 7), (3, 5, 7), (65, 16, 33), (64, 3, 2)]  # rows, in, out
CLOSE = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2e-2}  # of the largest number
IDS = torch.arange(3, 40)[None]


def case(shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """x, the weight, and the gradient coming in."""
    rows, inputs, outputs = shape
    generator = torch.Generator().manual_seed(100 * rows + 10 * inputs + outputs)
    sizes = ((rows, inputs), (outputs, inputs), (rows, outputs))
    return tuple(torch.randn(size, generator=generator).to(dtype) for size in sizes)


def results(function: Any, x: Tensor, weight: Tensor, factors: Tensor) -> list[Tensor]:
    """The value, and the gradients of x and the weight."""
    x, weight = (t.detach().requires_grad_() for t in (x, weight))
    value = function(x, weight)
    return [value.detach(), *torch.autograd.grad((value * factors).sum(), (x, weight))]


def assert_right(found: list[Tensor], truth: list[Tensor], close: float) -> None:
    for name, own, expected in zip(
        ("value", "x", "weight")[: len(truth)], found, truth, strict=True
    ):
        assert own.shape == expected.shape, name
        if expected.numel():
            error = (own.double() - expected).abs().max()
            assert error <= close * expected.abs().max() + 1e-30, name


def transposed(weight: Tensor) -> Tensor:
    """The same numbers as the transpose of a contiguous tensor, as a backward pass has them."""
    return weight.t().contiguous().t()


def with_gaps(weight: Tensor) -> Tensor:
    """The same numbers with others between them."""
    wide = torch.full((weight.shape[0], 2 * weight.shape[1]), 1e3, dtype=weight.dtype)
    wide[:, ::2] = weight
    return wide[:, ::2]


def with_gaps_between_rows(weight: Tensor) -> Tensor:
    wide = torch.full((2 * weight.shape[0], weight.shape[1] + 3), 1e3, dtype=weight.dtype)
    wide[::2, : weight.shape[1]] = weight
    return wide[::2, : weight.shape[1]]


VIEWS = [torch.clone, transposed, with_gaps, with_gaps_between_rows]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The weight of every product that oneDNN is asked for."""
    asked: list[Tensor] = []
    real = matmul.ONEDNN

    def watched(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        asked.append(weight)
        return real(x, weight, *rest)

    monkeypatch.setattr(matmul, "ONEDNN", watched)
    return asked


# ---- values and gradients ----


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_value_and_gradients_are_those_of_the_plain_product(
    shape: tuple[int, int, int], dtype: torch.dtype, view: Callable[[Tensor], Tensor]
) -> None:
    x, weight, factors = case(shape, dtype)
    truth = results(F.linear, x.double(), weight.double(), factors.double())
    found = results(linear, x, view(weight), factors)
    assert_right(found, truth, CLOSE[dtype])
    assert {t.dtype for t in found} == {dtype}
    with torch.no_grad():
        for function in (product, linear):
            assert_right([function(x, view(weight))], truth[:1], CLOSE[dtype])


@pytest.mark.parametrize("view", VIEWS)
def test_the_input_may_be_a_view_as_well(view: Callable[[Tensor], Tensor]) -> None:
    x, weight, factors = case((65, 16, 33), torch.float32)
    truth = results(F.linear, x.double(), weight.double(), factors.double())
    assert_right(results(linear, view(x), weight, factors), truth, CLOSE[torch.float32])
    incoming = view(factors)  # the gradient too
    x, weight = x.requires_grad_(), weight.requires_grad_()
    slopes = torch.autograd.grad(linear(x, weight), (x, weight), incoming)
    for own, expected in zip(slopes, truth[1:], strict=True):
        assert (own - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (4, 2, 3)], ids=str)
@pytest.mark.parametrize("train", ["x", "w", "xw"])
def test_the_backward_pass_by_hand_passes_gradcheck(
    shape: tuple[int, int, int], train: str
) -> None:
    x, weight, _ = case(shape, torch.float64)
    x.requires_grad_("x" in train)
    weight.requires_grad_("w" in train)
    assert torch.autograd.gradcheck(_Linear.apply, (x, weight))


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    x, weight, _ = case((3, 5, 7), torch.float32)
    x.requires_grad_()
    value = _Linear.apply(x, weight).square().sum()
    (slope,) = torch.autograd.grad(value, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_neither_factor_is_changed() -> None:
    x, weight, factors = case((3, 5, 7), torch.float32)
    copies = x.clone(), weight.clone(), factors.clone()
    results(linear, x, weight, factors)
    assert all(map(torch.equal, (x, weight, factors), copies))


# ---- what is kept ----


def kept_by(x: Tensor, weight: Tensor) -> list[int]:
    """Where the tensors lie that `linear` keeps for its backward pass."""
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.data_ptr()) or t, lambda t: t
    ):
        linear(x, weight)
    return kept


def test_no_graph_is_made_where_no_gradient_is_wanted() -> None:
    x, weight, _ = case((3, 5, 7), torch.float32)
    assert linear(x, weight).grad_fn is None
    x.requires_grad_(), weight.requires_grad_()
    with torch.no_grad():
        assert linear(x, weight).grad_fn is None
        assert not linear(x, weight).requires_grad


def test_the_input_of_a_frozen_weight_is_not_kept() -> None:
    x, weight, _ = case((65, 16, 33), torch.float32)
    x.requires_grad_()
    assert kept_by(x, weight) == [weight.data_ptr()]
    weight.requires_grad_()
    assert sorted(kept_by(x, weight)) == sorted([x.data_ptr(), weight.data_ptr()])


@pytest.mark.parametrize("trained", ["x", "weight"])
def test_only_the_gradients_that_are_wanted_are_computed(trained: str, calls: list[Tensor]) -> None:
    if matmul.ONEDNN is None:
        pytest.skip("counted in oneDNN's products")
    x, weight, factors = case((3, 5, 7), torch.float32)
    {"x": x, "weight": weight}[trained].requires_grad_()
    (linear(x, weight) * factors).sum().backward()
    assert len(calls) == 2  # forward and one backward
    assert (x.grad is None) == (trained == "weight") and (weight.grad is None) == (trained == "x")


# ---- who computes it ----


@needs_onednn
def test_float32_products_on_x86_are_onednn_s(calls: list[Tensor]) -> None:
    x, weight, factors = case((3, 5, 7), torch.float32)
    product(x, weight)
    assert len(calls) == 1
    results(linear, x, weight, factors)
    assert len(calls) == 4  # the value and two gradients


@needs_onednn
def test_every_product_of_a_float32_model_is_onednn_s(
    calls: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model()
    monkeypatch.setattr(F, "linear", lambda *args: pytest.fail("an ordinary product"))
    model.logits(IDS)
    assert len(calls) == 7 * model.config.num_hidden_layers + 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_types_are_left_to_pytorch(dtype: torch.dtype, calls: list[Tensor]) -> None:
    results(linear, *case((3, 5, 7), dtype))
    assert calls == []


def test_every_x86_build_finds_onednn() -> None:
    """Else all tests of it would be skipped, and nobody would notice that it is never used."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    assert (matmul.ONEDNN is not None) == (x86 and torch.backends.mkldnn.is_available())


def test_other_processors_and_builds_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(platform, "machine", lambda: "arm64")
        assert matmul._onednn() is None
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
        assert matmul._onednn() is None


def adapter_gradients(model: CausalLM) -> list[Tensor]:
    score(model, [Example((3, 4, 5), (6, 7, 8)), Example((9,), (10, 2))]).sum().backward()
    return gradients(model)


def test_a_model_computes_the_same_without_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_adapter(small_model())
    with torch.no_grad():
        expected = model.logits(IDS)
    slopes = adapter_gradients(model)
    monkeypatch.setattr(matmul, "ONEDNN", None)
    with torch.no_grad(), packed_weights(model):
        found = model.logits(IDS)
    # logits are of the order of 10
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    for own, other in zip(adapter_gradients(model), slopes, strict=True):
        assert (own - other).abs().max() < 1e-4 * other.abs().max()


# ---- packed weights ----


def packed_of(model: torch.nn.Module) -> list[Tensor | None]:
    kinds = Linear | matmul.SharedInput
    return [module.packed for module in model.modules() if isinstance(module, kinds)]


@needs_onednn
@pytest.mark.parametrize("rows", [0, 1, 8, 64, 65, 200])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (33, 16)], ids=str)
def test_a_packed_layer_computes_the_same(rows: int, size: tuple[int, int]) -> None:
    layer = Linear(*size)
    x = torch.randn(rows, size[0], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = x.double() @ layer.weight.double().T
        with packed_weights(layer):
            assert layer.packed is not None and layer.packed.is_mkldnn
            assert_right([layer(x)], [expected], CLOSE[torch.float32])


@needs_onednn
@pytest.mark.parametrize("merged", [True, False])
def test_a_packed_model_computes_the_same_and_uses_what_is_packed(
    calls: list[Tensor], merged: bool
) -> None:
    """Two layers of q+k+v, o, gate+up and down, and the head: the adapter is packed with them."""
    model = with_adapter(small_model())
    with torch.no_grad():
        expected = model.logits(IDS)
        assert not any(weight.is_mkldnn for weight in calls)
        with merged_adapter(model) if merged else nullcontext(), packed_weights(model):
            calls.clear()
            found = model.logits(IDS)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert sum(weight.is_mkldnn for weight in calls) == 2 * 4 + 1
    assert set(packed_of(model)) == {None}


@needs_onednn
def test_layers_that_share_an_input_give_what_each_gives(calls: list[Tensor]) -> None:
    attention = small_model().model.layers[0].self_attn
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        apart = [attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)]
        with packed_weights(attention):
            calls.clear()
            together = attention.project(x)
    assert len(calls) == 1
    for own, truth in zip(together, apart, strict=True):
        torch.testing.assert_close(own, truth, rtol=0, atol=1e-5)


def test_layers_that_share_an_input_train_as_each_does_within_the_context() -> None:
    attention = small_model().model.layers[0].self_attn.requires_grad_()
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    with packed_weights(attention):
        sum(part.sum() for part in attention.project(x)).backward()
    for layer in attention.readers():
        assert layer.weight.grad is not None and layer.weight.grad.abs().max() > 0


def test_weights_are_as_before_after_an_exception() -> None:
    model = small_model()
    with pytest.raises(KeyboardInterrupt), packed_weights(model):
        raise KeyboardInterrupt
    assert set(packed_of(model)) == {None}


def test_weights_are_as_before_when_packing_itself_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    layers = [module for module in model.modules() if isinstance(module, Linear)]

    def pack(readers: list[Linear], *_: Any) -> Tensor:
        if readers[0] is layers[3]:
            raise MemoryError
        return readers[0].weight.detach()

    monkeypatch.setattr(matmul, "_pack", pack)
    with pytest.raises(MemoryError), packed_weights(model):
        pytest.fail("not all weights are packed")
    assert set(packed_of(model)) == {None}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
def test_packing_does_nothing_in_other_types(dtype: torch.dtype) -> None:
    model = small_model().to(dtype)
    with torch.no_grad():
        expected = model.logits(IDS)
        with packed_weights(model):
            assert set(packed_of(model)) == {None}
            assert torch.equal(model.logits(IDS), expected)


def test_gradients_within_the_context_are_those_without() -> None:
    layer = Linear(5, 7)
    x, _, factors = case((3, 5, 7), torch.float32)
    x.requires_grad_()
    slopes = []
    for context in (packed_weights(layer), torch.enable_grad()):
        with context:
            (layer(x) * factors).sum().backward()
        slopes += [(x.grad, layer.weight.grad)]
        x.grad = layer.weight.grad = None
    assert torch.equal(slopes[0][0], slopes[1][0]) and torch.equal(slopes[0][1], slopes[1][1])
    assert slopes[0][1].abs().sum() > 0


def test_a_weight_that_changes_after_the_context_counts() -> None:
    layer = Linear(5, 7)
    x, _, _ = case((3, 5, 7), torch.float32)
    with torch.no_grad():
        with packed_weights(layer):
            before = layer(x)
        layer.weight.mul_(2)
        torch.testing.assert_close(layer(x), 2 * before)
        with packed_weights(layer):
            torch.testing.assert_close(layer(x), 2 * before)


def test_a_layer_s_state_is_its_weight_alone() -> None:
    """So that checkpoints fit, packed or not."""
    layer = Linear(5, 7)
    with packed_weights(layer):
        assert list(layer.state_dict()) == ["weight"]
        assert len(list(layer.parameters())) == 1


@needs_onednn
def test_an_inner_context_leaves_packed_what_the_outer_one_packed() -> None:
    model = small_model()
    layer = model.lm_head
    with packed_weights(model):
        packed = layer.packed
        with packed_weights(model):
            assert layer.packed is packed
        assert layer.packed is packed
    assert layer.packed is None
