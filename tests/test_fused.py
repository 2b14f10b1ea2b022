"""The kernel: values, gradients, precision, and how little it holds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minialign import fused
from minialign.fused import linear_kl, linear_logps


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return (hidden @ weight.T).log_softmax(-1)[torch.arange(len(targets)), targets]


def case(n: int, d: int, v: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Any:
    generator = torch.Generator().manual_seed(1000 * n + 10 * d + v)
    hidden = scale * torch.randn(n, d, generator=generator, dtype=torch.float64)
    weight = torch.randn(v, d, generator=generator, dtype=torch.float64)
    targets = torch.randint(v, (n,), generator=generator)
    factors = torch.randn(n, generator=generator, dtype=torch.float64)  # the gradient coming in
    return hidden.to(dtype), weight.to(dtype), targets, factors


def results(function: Any, hidden: Tensor, weight: Tensor, factors: Tensor, train: str) -> Any:
    """The values, and the gradients of the leaves in `train` ("h", "w" or "hw")."""
    hidden = hidden.detach().clone().requires_grad_("h" in train)
    weight = weight.detach().clone().requires_grad_("w" in train)
    values = function(hidden, weight)
    (values * factors.to(values.dtype)).sum().backward()
    return [values.detach(), *(t.grad for t in (hidden, weight) if t.requires_grad)]


SHAPES = [(1, 1, 2), (3, 5, 7), (7, 3, 11), (5, 8, 1)]


@pytest.mark.parametrize("train", ["h", "w", "hw"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_plain_computation_at_every_chunk_size(shape: Any, train: str) -> None:
    hidden, weight, targets, factors = case(*shape)
    expected = results(lambda h, w: plain(h, w, targets), hidden, weight, factors, train)
    for chunk in range(1, len(hidden) + 3):
        found = results(
            lambda h, w, chunk=chunk: linear_logps(h, w, targets, chunk),
            hidden,
            weight,
            factors,
            train,
        )
        for own, truth in zip(found, expected, strict=True):
            torch.testing.assert_close(own, truth, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("train", ["h", "w", "hw"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 4, None])
def test_gradients_pass_gradcheck(train: str, chunk: int | None) -> None:
    hidden, weight, targets, _ = case(3, 4, 5)
    hidden.requires_grad_("h" in train)
    weight.requires_grad_("w" in train)
    assert torch.autograd.gradcheck(
        lambda h, w: linear_logps(h, w, targets, chunk), (hidden, weight)
    )


@pytest.mark.parametrize("train", ["h", "w", "hw"])
def test_empty_selection_has_empty_value_and_zero_gradient(train: str) -> None:
    hidden, weight, targets, factors = case(0, 4, 5)
    values, *slopes = results(
        lambda h, w: linear_logps(h, w, targets), hidden, weight, factors, train
    )
    assert values.shape == (0,)
    assert len(slopes) == len(train)
    assert all(not slope.any() for slope in slopes)


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    hidden, weight, targets, _ = case(3, 4, 5)
    hidden.requires_grad_()
    loss = linear_logps(hidden, weight, targets).square().sum()
    (slope,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_output_is_float32_and_gradients_keep_the_inputs_type(dtype: torch.dtype) -> None:
    hidden, weight, targets, factors = case(4, 8, 16, dtype)
    values, *slopes = results(
        lambda h, w: linear_logps(h, w, targets, 3), hidden, weight, factors, "hw"
    )
    assert values.dtype == torch.float32
    assert [slope.dtype for slope in slopes] == [dtype, dtype]


@pytest.mark.parametrize("train", ["h", "hw"])
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0], ids=["flat", "usual", "confident"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_less_precise_than_the_naive_computation(
    dtype: torch.dtype, scale: float, train: str
) -> None:
    """Against float64 on the same rounded inputs, with targets that are mostly the likeliest token
    (what a fine-tuned model sees) as well as random ones.
    """
    hidden, weight, targets, factors = case(96, 32, 500, dtype, scale)
    targets[::2] = (hidden @ weight.T).argmax(-1)[::2]
    truth = results(
        lambda h, w: plain(h, w, targets), hidden.double(), weight.double(), factors, train
    )
    naive = results(lambda h, w: plain(h, w, targets), hidden, weight, factors, train)
    found = results(lambda h, w: linear_logps(h, w, targets, 7), hidden, weight, factors, train)
    names = ["logps", "hidden", "weight"][: len(truth)]
    # float32 sums of 500 terms, in another order than the naive product's
    slack, factor = (2.0, 3.0) if dtype == torch.float32 else (0.5, 1.5)
    for name, own, other, right in zip(names, found, naive, truth, strict=True):
        eps = torch.finfo(dtype).eps * float(right.abs().mean())
        own_error = (own.double() - right).abs()
        other_error = (other.double() - right).abs()
        assert own_error.mean() <= other_error.mean() + slack * eps, name
        assert own_error.max() <= factor * other_error.max() + eps, name


def test_gradient_of_a_nearly_certain_token_is_small_and_not_rounding_noise() -> None:
    """The slope is (1 - p) times a difference of rows: far below the bfloat16 rounding of a row."""
    _, weight, _, _ = case(0, 16, 50, torch.bfloat16)
    targets = torch.arange(20)
    hidden, factors = 2 * weight[targets], torch.ones(20)  # each meets its own row
    truth = results(
        lambda h, w: plain(h, w, targets), hidden.double(), weight.double(), factors, "h"
    )
    found = results(lambda h, w: linear_logps(h, w, targets), hidden, weight, factors, "h")
    certain = truth[0].exp() > 0.998
    assert certain.sum() > 10
    error = (found[1].double() - truth[1])[certain].norm() / truth[1][certain].norm()
    assert error < 0.1


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that any result of any operation had."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.largest = max(self.largest, leaf.numel())
        return out


@pytest.mark.parametrize("train", ["h", "w", "hw"])
def test_never_holds_more_than_a_chunk_of_logits(
    train: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, d, v, chunk = 60, 4, 500, 7
    hidden, weight, targets, factors = case(n, d, v, torch.float32)
    with LargestTensor() as watch:
        results(lambda h, w: linear_logps(h, w, targets, chunk), hidden, weight, factors, train)
    assert watch.largest == chunk * v
    monkeypatch.setattr(fused, "CHUNK_BYTES", 4 * v * 11)  # the default size is told in bytes
    with LargestTensor() as watch:
        results(lambda h, w: linear_logps(h, w, targets), hidden, weight, factors, train)
    assert watch.largest == 11 * v
    with LargestTensor() as watch:  # the same watch sees the plain computation's logits
        results(lambda h, w: plain(h, w, targets), hidden, weight, factors, train)
    assert watch.largest == n * v


def test_forward_alone_keeps_nothing_for_a_backward_pass() -> None:
    hidden, weight, targets, _ = case(4, 3, 9)
    assert linear_logps(hidden, weight, targets).grad_fn is None
    with torch.no_grad():
        assert linear_logps(hidden.requires_grad_(), weight, targets).grad_fn is None


# ---- linear_kl ----


def plain_kl(hidden: Tensor, reference: Tensor, weight: Tensor, temperature: float) -> Tensor:
    log_q = (hidden @ weight.T / temperature).log_softmax(-1)
    log_p = (reference @ weight.T / temperature).log_softmax(-1)
    return torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kl_equals_the_plain_computation_at_every_chunk_size(
    shape: Any, temperature: float
) -> None:
    hidden, weight, _, factors = case(*shape)
    reference = hidden.flip(0) + 0.5
    own, other = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    expected = plain_kl(other, reference, weight, temperature)
    (expected * factors).sum().backward()
    for chunk in range(1, len(hidden) + 3):
        own.grad = None
        found = linear_kl(own, reference, weight, temperature, chunk)
        (found * factors).sum().backward()
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-10, atol=1e-12)


def test_kl_passes_gradcheck() -> None:
    hidden, weight, *_ = case(4, 3, 6)
    reference = hidden + 1
    hidden.requires_grad_()
    assert torch.autograd.gradcheck(lambda h: linear_kl(h, reference, weight, 1.5, 3), hidden)


def test_kl_of_a_model_from_itself_is_zero_with_no_gradient() -> None:
    hidden, weight, *_ = case(5, 8, 11, torch.float32)
    own = hidden.clone().requires_grad_()
    divergence = linear_kl(own, hidden, weight)
    divergence.sum().backward()
    assert divergence.abs().max() == 0
    assert own.grad is not None and own.grad.abs().max() == 0


def test_kl_goes_from_the_reference_to_the_policy() -> None:
    """KL(reference || policy): where the reference is certain, it is the policy's surprise."""
    weight = torch.eye(3)
    reference, policy = torch.tensor([[100.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0]])
    assert float(linear_kl(policy, reference, weight)) == pytest.approx(math.log(3))
    assert float(linear_kl(reference, policy, weight)) == pytest.approx(200 / 3 - math.log(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kl_is_float32_and_its_gradient_keeps_the_inputs_type(dtype: torch.dtype) -> None:
    hidden, weight, *_ = case(4, 8, 16, dtype)
    own = hidden.clone().requires_grad_()
    divergence = linear_kl(own, hidden * 2, weight)
    divergence.sum().backward()
    assert divergence.dtype == torch.float32
    assert own.grad is not None and own.grad.dtype == dtype


def test_kl_gives_the_reference_no_gradient_and_refuses_a_trained_head() -> None:
    hidden, weight, *_ = case(4, 8, 16)
    reference = (hidden * 2).requires_grad_()
    own = hidden.clone().requires_grad_()
    linear_kl(own, reference, weight).sum().backward()
    assert reference.grad is None
    with pytest.raises(ValueError, match="frozen head"):
        linear_kl(own, reference, weight.clone().requires_grad_())
