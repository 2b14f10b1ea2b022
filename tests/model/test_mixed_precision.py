"""Matrices of a half type under a float32 stream: what --dtype bfloat16 is on a processor."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from helpers.models import TOY_CONFIG, make_model
from torch import Tensor

from minialign.data.records import Example
from minialign.fused import linear_logps
from minialign.model import matmul
from minialign.model.matmul import linear, packed_weights, product, wide_product
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import apply_lora, copy_adapter, set_adapter, trainable_parameters
from minialign.policy.knobs import LoRAConfig
from minialign.policy.reference_scores import ReferenceScores
from minialign.policy.score import score
from minialign.weights.load import load_model

TEXTS = [Example((5, 9, 3), tuple(range(10, 30))), Example((5, 9, 3), (7, 8, 2))]


def mixed(model: CausalLM) -> CausalLM:
    """The matrices in bfloat16, norms and adapters as they are."""
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1 and "lora_" not in name:
            parameter.data = parameter.data.bfloat16()
    return model


def adapted(model: CausalLM) -> CausalLM:
    """With a trained adapter, whose numbers do not depend on the model's type."""
    apply_lora(model, LoRAConfig(rank=4, dropout=0), "own", torch.Generator().manual_seed(0))
    for number, parameter in enumerate(trainable_parameters(model)):
        generator = torch.Generator().manual_seed(number)
        parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


def gradient(model: CausalLM) -> Tensor:
    score(model, TEXTS).sum().backward()
    return torch.cat(
        [p.grad.flatten().double() for p in trainable_parameters(model) if p.grad is not None]
    )


@pytest.mark.parametrize(("precision", "limit"), [("float32", 3e-5), ("mixed", 4e-2)])
def test_the_gradient_is_near_that_of_float64(precision: str, limit: float) -> None:
    weights = make_model(TOY_CONFIG, std=0.1)
    for parameter in weights.parameters():  # both have the very same numbers
        parameter.data = parameter.data.bfloat16().float()
    own = adapted(copy.deepcopy(weights))
    own = mixed(own) if precision == "mixed" else own
    truth = gradient(adapted(weights).double())
    error = (gradient(own) - truth).norm() / truth.norm()
    assert 1e-9 < error < limit


def test_a_checkpoint_s_matrices_are_halved_and_its_norms_are_not(toy_checkpoint: Path) -> None:
    model = load_model(toy_checkpoint, torch.bfloat16, torch.device("cpu"))
    for name, parameter in model.named_parameters():
        half = parameter.dim() > 1
        assert parameter.dtype == (torch.bfloat16 if half else torch.float32), name
    assert model.dtype == torch.bfloat16 and model.stream_dtype == torch.float32
    ids = torch.tensor([[5, 9, 3]])
    assert model.model(ids[0], torch.arange(3), lambda _, q, k, v: q).dtype == torch.float32


def test_the_first_step_of_a_policy_is_its_reference_to_the_last_bit() -> None:
    model = mixed(adapted(make_model(TOY_CONFIG)))
    copy_adapter(model, "own", "policy")
    assert torch.equal(score(model, TEXTS).detach(), ReferenceScores(model, "own")(TEXTS))


@pytest.mark.parametrize("rows", [1, 5])
def test_a_product_rounds_its_input_and_its_result_and_nothing_else(rows: int) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, weight = torch.randn(rows, 300, generator=generator), torch.randn(70, 300).bfloat16()
    expected = (x.bfloat16().double() @ weight.double().T).bfloat16().float()
    torch.testing.assert_close(product(x, weight), expected, rtol=2**-7, atol=1e-5)
    exact = x.double() @ weight.double().T
    torch.testing.assert_close(wide_product(x, weight).double(), exact, rtol=1e-5, atol=1e-4)


def test_a_product_s_gradients_are_those_of_the_widened_weight() -> None:
    x = torch.randn(6, 30, generator=torch.Generator().manual_seed(0)).requires_grad_()
    weight = torch.randn(8, 30, generator=torch.Generator().manual_seed(1)).bfloat16()
    wide, narrow = weight.float().requires_grad_(), weight.clone().requires_grad_()
    slopes = []
    for w in (wide, narrow):
        linear(x, w).sin().sum().backward()
        slopes.append((x.grad, w.grad))
        x.grad = None
    for truth, own in zip(*slopes, strict=True):
        assert truth is not None and own is not None
        assert (own - truth).norm() < 2e-2 * truth.norm()


def test_a_log_probability_keeps_its_digits() -> None:
    """Rounded logits of 30 would be off by .06; what is rounded is the distance from the target."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(40, 64, generator=generator)
    weight = torch.randn(300, 64, generator=generator).bfloat16()
    hidden = hidden.bfloat16().float() * 4  # so that the input is not rounded
    targets = (hidden @ weight.float().T).argmax(1)
    logits = hidden.double() @ weight.double().T
    truth = logits.log_softmax(1).gather(1, targets[:, None])[:, 0]
    plain = (hidden.bfloat16() @ weight.T).double().log_softmax(1).gather(1, targets[:, None])[:, 0]
    found = linear_logps(hidden, weight, targets).double()
    assert (found - truth).abs().max() < 0.01 * truth.abs().max() < (plain - truth).abs().max()


def test_a_large_model_of_a_half_type_is_not_held_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = mixed(make_model(TOY_CONFIG))
    with packed_weights(model):
        assert model.lm_head.packed is not None
    monkeypatch.setattr(matmul, "PACKED_NUMBERS", 10)
    with packed_weights(model):
        assert model.lm_head.packed is None
    with packed_weights(model, "int8"):
        assert model.lm_head.packed is not None


def test_an_adapter_beside_packed_bfloat16_counts_as_it_does_without() -> None:
    model = mixed(adapted(make_model(TOY_CONFIG)))
    ids = torch.tensor([[5, 9, 3, 40]])
    with torch.no_grad():
        expected = model.logits(ids)
        with packed_weights(model):
            found = model.logits(ids)
        set_adapter(model, None)
        base = model.logits(ids)
    assert (found - expected).norm() < 1e-2 * expected.norm()
    assert (base - expected).norm() > 3e-2 * expected.norm()
