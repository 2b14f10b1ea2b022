"""Lean backward passes: the gradients of the plain versions, from less memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
import torch
from helpers.adapters import EVERY_LAYER
from helpers.toys import gradients, small_model, with_adapter
from torch import Tensor

from minialign.commands.needs import layer_bytes
from minialign.data.records import Example
from minialign.model.activations import (
    gated,
    plain_gated,
    plain_rms_norm,
    plain_rotate,
    rms_norm,
    rotate,
)
from minialign.model.transformer import CausalLM
from minialign.policy.knobs import LoRAConfig
from minialign.policy.score import score

Mode = Literal["none", "cheap", "full"]
MODES: tuple[Mode, ...] = ("none", "cheap", "full")
SEQUENCES = [Example((3, 4, 5), tuple(range(6, 30))), Example((9,), (10, 2))]
Function = Callable[..., Tensor]


def random(shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def norm_case(n: int, d: int, dtype: torch.dtype) -> tuple[Function, Function, list[Tensor]]:
    """Lean, plain, and what both are a function of. The tokens are of very different lengths."""
    x = random((n, d), 1, dtype) * torch.logspace(-3, 1, n, dtype=dtype)[:, None]
    weight = 1 + 0.5 * random((d,), 2, dtype)
    return lambda *a: rms_norm(*a, 1e-5), lambda *a: plain_rms_norm(*a, 1e-5), [x, weight]


def swiglu_case(n: int, d: int, dtype: torch.dtype) -> tuple[Function, Function, list[Tensor]]:
    return gated, plain_gated, [3 * random((n, d), 3, dtype), random((n, d), 4, dtype)]


def rotate_case(n: int, d: int, dtype: torch.dtype) -> tuple[Function, Function, list[Tensor]]:
    """`d` heads of size 6, and of size 2 for one head."""
    size = 6 if d > 1 else 2
    angles = (7 * random((n, size // 2), 5, dtype)).repeat(1, 2)[:, None]
    cos, sin = angles.cos(), angles.sin()
    inputs = [random((n, d, size), 6, dtype)]
    return lambda x: rotate(x, cos, sin), lambda x: plain_rotate(x, cos, sin), inputs


CASES = [norm_case, swiglu_case, rotate_case]
SHAPES = [(1, 1), (0, 3), (3, 5), (7, 2)]


def value_and_gradients(function: Function, inputs: list[Tensor]) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    factors = random(tuple(value.shape), 9, value.dtype)
    return [value.detach(), *torch.autograd.grad((value * factors).sum(), leaves)]


def error(found: Tensor, truth: Tensor) -> float:
    """The largest, as a share of the largest number."""
    if not truth.numel():
        return 0.0
    return float((found.double() - truth).abs().max() / truth.abs().max().clamp(min=1e-30))


# ---- one by one ----


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_equal_the_plain_version_s(case: Any, shape: tuple[int, int]) -> None:
    lean, plain, inputs = case(*shape, torch.float64)
    found, truth = value_and_gradients(lean, inputs), value_and_gradients(plain, inputs)
    for own, expected in zip(found, truth, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("shape", [(1, 2), (3, 5), (7, 2)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_gradients_pass_gradcheck(case: Any, shape: tuple[int, int]) -> None:
    lean, _, inputs = case(*shape, torch.float64)
    for wanted in range(1, 2 ** len(inputs)):  # every choice of what is trained
        leaves = [x.clone().requires_grad_(bool(wanted >> i & 1)) for i, x in enumerate(inputs)]
        assert torch.autograd.gradcheck(lean, leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_no_less_precise_than_the_plain_version(case: Any, dtype: torch.dtype) -> None:
    """Against float64 on the same rounded inputs."""
    lean, plain, inputs = case(33, 24, dtype)
    exact = case(33, 24, torch.float64)[1]
    if case is rotate_case:  # cosines and sines of the rounded angles, as the model rounds them
        close = 4 * torch.finfo(dtype).eps
        for own, other in zip(
            *(value_and_gradients(f, inputs) for f in (lean, plain)), strict=True
        ):
            assert own.dtype == dtype and error(own, other.double()) <= close
        return
    wide = [x.double() for x in inputs]
    factors = random((33, 24), 9, dtype).double()
    leaves = [x.clone().requires_grad_() for x in wide]
    value = exact(*leaves)
    truth = [value.detach(), *torch.autograd.grad((value * factors).sum(), leaves)]
    found, naive = value_and_gradients(lean, inputs), value_and_gradients(plain, inputs)
    for own, other, right in zip(found, naive, truth, strict=True):
        assert own.dtype == dtype
        assert error(own, right) <= 1.5 * error(other, right) + torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_the_value_without_a_gradient_is_the_same_to_the_last_bit(
    case: Any, dtype: torch.dtype
) -> None:
    lean, _, inputs = case(7, 4, dtype)
    with_graph = value_and_gradients(lean, inputs)[0]
    with torch.no_grad():
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = lean(*leaves)
    assert value.grad_fn is None and torch.equal(value, with_graph)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_nothing_that_is_handed_over_is_changed(case: Any, grad: bool) -> None:
    """They work in place, on their own tensors only: also on the gradient that comes in."""
    lean, _, inputs = case(7, 4, torch.float32)
    copies = [x.clone() for x in inputs]
    leaves = [x.requires_grad_(grad) for x in inputs]
    value = lean(*leaves)
    if grad:
        incoming = random(tuple(value.shape), 9, value.dtype)
        copy = incoming.clone()
        kept = value.detach().clone()
        torch.autograd.grad(value, leaves, incoming)
        assert torch.equal(incoming, copy) and torch.equal(value, kept)
    assert all(map(torch.equal, inputs, copies))


def test_a_frozen_norm_weight_gets_no_gradient_and_a_trainable_one_does() -> None:
    lean, plain, (x, weight) = norm_case(7, 5, torch.float32)
    for function in (lean, plain):
        x_leaf, frozen = x.clone().requires_grad_(), weight.clone()
        function(x_leaf, frozen).sum().backward()
        assert x_leaf.grad is not None and frozen.grad is None
    trained = weight.clone().requires_grad_()
    lean(x, trained).sum().backward()  # and the tokens may be frozen
    expected = (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)).sum(0)
    torch.testing.assert_close(trained.grad, expected)


def test_a_token_of_zeros_has_a_norm_and_a_gradient() -> None:
    """The padding of nothing: eps alone keeps them finite."""
    inputs = [torch.zeros(2, 5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)]
    for own, expected in zip(
        value_and_gradients(lambda *a: rms_norm(*a, 1e-5), inputs),
        value_and_gradients(lambda *a: plain_rms_norm(*a, 1e-5), inputs),
        strict=True,
    ):
        assert own.isfinite().all()
        torch.testing.assert_close(own, expected)


@pytest.mark.parametrize("case", CASES)
def test_a_second_derivative_is_refused_rather_than_wrong(case: Any) -> None:
    lean, _, inputs = case(3, 4, torch.float64)
    inputs[0].requires_grad_()
    (slope,) = torch.autograd.grad(lean(*inputs).square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


# ---- what is kept ----


def kept_bytes(function: Callable[[], Any], without: list[Tensor]) -> int:
    """What lives on for the backward pass, each storage once, but for these tensors."""
    known = {t.untyped_storage().data_ptr() for t in without}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()  # held until all is counted, or memory would be used twice
    assert result is not None
    return sum(kept.values())


@pytest.mark.parametrize("case", CASES)
def test_the_lean_version_keeps_less_than_the_plain_one(case: Any) -> None:
    lean, plain, inputs = case(64, 16, torch.float32)
    middles = [x.requires_grad_() * 1 for x in inputs]  # as within a model: no leaves
    kept = [kept_bytes(lambda f=f: f(*middles), []) for f in (lean, plain)]
    if case is rotate_case:  # autograd keeps cosines and sines only, too
        assert kept[0] <= kept[1]
    else:
        assert kept[0] < kept[1]


def test_each_keeps_what_its_docstring_says() -> None:
    lean, _, inputs = norm_case(64, 16, torch.float32)
    leaves = [x.requires_grad_() for x in inputs]
    assert kept_bytes(lambda: lean(*leaves), leaves) == 64 * 4  # one number a token
    lean, _, inputs = swiglu_case(64, 16, torch.float32)
    leaves = [x.requires_grad_() for x in inputs]
    assert kept_bytes(lambda: lean(*leaves), leaves) == 0
    x = random((64, 4, 8), 0, torch.float32).requires_grad_()
    cos, sin = torch.ones(64, 1, 8), torch.zeros(64, 1, 8)
    assert kept_bytes(lambda: rotate(x, cos, sin), [cos, sin]) == 0


# ---- in a model ----


def in_mode(mode: Mode, dropout: float = 0.0, **changes: Any) -> CausalLM:
    adapter = {"target_modules": EVERY_LAYER, "dropout": dropout}
    model = with_adapter(small_model(**changes), **adapter)
    model.set_activation_checkpointing(mode)
    return model


def adapter_gradients(model: CausalLM) -> list[Tensor]:
    score(model, SEQUENCES).sum().backward()
    return gradients(model)


def test_no_mode_changes_the_gradients() -> None:
    none, cheap, full = (adapter_gradients(in_mode(mode)) for mode in MODES)
    assert len(none) == 2 * len(EVERY_LAYER) * 2
    for plain, lean, again in zip(none, cheap, full, strict=True):
        assert plain.abs().sum() > 0
        assert torch.equal(lean, again)
        assert (lean - plain).norm() <= 1e-5 * plain.norm()


def test_no_mode_changes_the_gradients_of_norms_and_all_other_weights() -> None:
    found = []
    for mode in MODES:
        model = in_mode(mode)
        model.requires_grad_(True)
        score(model, SEQUENCES).sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters()})
    assert any(name.endswith("norm.weight") for name in found[0])
    for name, plain in found[0].items():
        assert torch.equal(found[1][name], found[2][name]), name
        assert (found[1][name] - plain).norm() <= 2e-5 * plain.norm(), name


def test_no_mode_changes_the_values() -> None:
    ids = torch.arange(3, 40)[None]
    values = [in_mode(mode).logits(ids).detach() for mode in MODES]
    assert torch.equal(values[1], values[2])
    assert (values[0] - values[1]).abs().max() <= 1e-5 * values[0].abs().max()


def test_a_layer_that_runs_again_drops_out_the_same_numbers() -> None:
    found = []
    for mode in MODES:
        model = in_mode(mode, dropout=0.5).train()
        torch.manual_seed(3)
        found.append(adapter_gradients(model))
    torch.manual_seed(4)
    other = adapter_gradients(in_mode("cheap", dropout=0.5).train())
    assert not torch.equal(other[0], found[1][0])  # dropout is at work
    for plain, lean, again in zip(*found, strict=True):
        assert torch.equal(lean, again)
        assert (lean - plain).norm() <= 1e-5 * plain.norm()


def test_each_mode_keeps_less_than_the_one_before() -> None:
    ids = torch.arange(3, 103)[None]
    kept = []
    for mode in MODES:
        model = in_mode(mode)
        kept.append(kept_bytes(lambda model=model: model.logits(ids), list(model.parameters())))
    assert kept[0] > 1.1 * kept[1]
    assert kept[1] > 3 * kept[2]


def test_the_mode_full_keeps_of_a_layer_its_input_alone() -> None:
    ids = torch.arange(3, 103)[None]
    kept = []
    for layers in (2, 4):
        model = in_mode("full", num_hidden_layers=layers)
        kept.append(kept_bytes(lambda model=model: model.logits(ids), list(model.parameters())))
    assert kept[1] - kept[0] == 2 * 100 * 32 * 4  # two layers, tokens, hidden size, float32


def test_layers_run_again_in_the_mode_full_and_only_for_a_backward_pass() -> None:
    runs = []
    for mode in MODES:
        model, count = in_mode(mode), []
        model.model.layers[1].register_forward_pre_hook(lambda *_, count=count: count.append(1))
        with torch.no_grad():
            model.logits(torch.tensor([[3, 4, 5]]))
        model.logits(torch.tensor([[3, 4, 5]])).sum().backward()
        runs.append(len(count))
    assert runs == [2, 2, 3]


def test_a_mode_can_be_changed_and_changed_back() -> None:
    ids = torch.arange(3, 40)[None]
    model = in_mode("cheap")
    parameters = list(model.parameters())
    kept = {}
    for mode in (*MODES, *MODES):
        model.set_activation_checkpointing(mode)
        found = kept_bytes(lambda: model.logits(ids), parameters)
        assert kept.setdefault(mode, found) == found
    assert len(set(kept.values())) == 3


@pytest.mark.parametrize("targets", [EVERY_LAYER, ("q_proj", "v_proj"), ("down_proj",)], ids=len)
@pytest.mark.parametrize("mode", ["none", "cheap"])
def test_the_plan_knows_what_a_layer_keeps(mode: Mode, targets: tuple[str, ...]) -> None:
    """What only the first or the last one keeps is no part of it."""
    tokens = 100
    ids = torch.arange(3, 3 + tokens)[None]

    def measured(layers: int) -> int:
        model = with_adapter(small_model(num_hidden_layers=layers), target_modules=targets)
        model.set_activation_checkpointing(mode)
        return kept_bytes(lambda: model.logits(ids), list(model.parameters()))

    config = small_model(num_hidden_layers=1).config
    lora = LoRAConfig(rank=4, dropout=0.0, target_modules=targets)
    a_layer = measured(3) - measured(2)
    assert tokens * layer_bytes(config, lora, 4, mode) == pytest.approx(a_layer, rel=0.03)
