"""int8 products: exact sums, the same whoever stands beside, and close to float32."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from helpers.toys import small_model, with_adapter
from torch import Tensor

from minialign.model import matmul
from minialign.model.matmul import Linear, input_ranges, packed_weights
from minialign.model.quantised import Quantised

IDS = torch.tensor([[5, 9, 200, 7, 3, 40, 41]])


def case(rows: int, inputs: int = 33, outputs: int = 7) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, inputs, generator=generator)
    return x * 10.0 ** torch.arange(-3, rows - 3)[:, None], torch.randn(
        outputs, inputs, generator=generator
    )


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_product_is_that_of_the_rounded_numbers_exactly(rows: int) -> None:
    x, weight = case(rows)
    held = Quantised.of(weight)
    w = (weight / (weight.abs().amax(1, keepdim=True) / 127)).round()
    s = x.abs().amax(1, keepdim=True) / 127 if rows else x[:, :1]
    sums = (x / s).round().double() @ w.double().T
    expected = sums.float() * (weight.abs().amax(1) / 127) * s
    torch.testing.assert_close(held.product(x), expected, rtol=1e-6, atol=0)


def test_a_product_is_close_to_that_of_float32_and_takes_a_quarter_of_the_bytes() -> None:
    x, weight = case(6, 256, 64)
    held = Quantised.of(weight)
    error = (held.product(x) - x @ weight.T).norm(dim=1) / (x @ weight.T).norm(dim=1)
    assert held.whole.nbytes * 4 == weight.nbytes
    assert 1e-3 < error.max() < 2e-2


def test_a_row_s_product_does_not_depend_on_the_others() -> None:
    x, weight = case(6, 256, 64)
    held = Quantised.of(weight)
    alone = torch.cat([held.product(row[None]) for row in x])
    assert torch.equal(held.product(x), alone)


def test_an_input_that_is_far_larger_than_the_others_leaves_them_their_steps() -> None:
    x, weight = (
        torch.randn(20, 256, generator=torch.Generator().manual_seed(0)),
        case(1, 256, 64)[1],
    )
    x[:, 7] *= 100
    truth = x @ weight.T
    plain, smooth = Quantised.of(weight), Quantised.of(weight, x.abs().amax(0))
    errors = [float((held.product(x) - truth).norm()) for held in (plain, smooth)]
    assert errors[1] < errors[0] / 2


def test_the_ranges_are_the_largest_inputs_and_no_hook_stays() -> None:
    layer = Linear(3, 2)
    with input_ranges(layer) as ranges:
        layer(torch.tensor([[1.0, -5.0, 0.0]]))
        layer(torch.tensor([[-2.0, 1.0, 0.0]]))
    layer(torch.full((1, 3), 9.0))
    assert ranges[layer].tolist() == [2.0, 5.0, 0.0]


def test_zeros_stay_zeros() -> None:
    held = Quantised.of(torch.zeros(3, 5))
    assert torch.equal(held.product(torch.zeros(2, 5)), torch.zeros(2, 3))


def test_a_model_in_int8_has_its_adapter_inside_and_comes_back() -> None:
    model = with_adapter(small_model(), scale=0.3)
    with torch.no_grad():
        expected = model.logits(IDS)
        with packed_weights(model, "int8"):
            packed = [m.packed for m in model.modules() if isinstance(m, matmul.SharedInput)]
            found = model.logits(IDS)
        after = model.logits(IDS)
    assert all(isinstance(held, Quantised) for held in packed)
    assert 1e-4 < (found - expected).norm() / expected.norm() < 0.1
    assert torch.equal(after, expected)


def test_what_is_learned_is_never_quantised() -> None:
    layer = Linear(5, 7)
    x = torch.randn(3, 5)
    expected = layer(x)
    with packed_weights(layer, "int8"):
        assert torch.equal(layer(x), expected)
        with torch.no_grad():
            assert not torch.equal(layer(x), expected)


WITHOUT = """
import torch
from minialign.errors import InputError
from minialign.model.matmul import Linear, packed_weights
from minialign.weights.devices import pick_dtype, pick_precision, product_seconds
generator = torch.Generator().manual_seed(0)
x, weight = torch.randn(9, 64, generator=generator), torch.randn(48, 64, generator=generator)
truth = x @ weight.T
layer = Linear(64, 48)
layer.weight.data = weight.bfloat16()
with torch.no_grad(), packed_weights(layer):
    assert (layer(x) - truth).norm() < 1e-2 * truth.norm()
pick_dtype("auto", torch.device("cpu"), 512)
seconds = product_seconds()
if {slow}:
    assert seconds["bfloat16"] > seconds["float32"]
    assert pick_dtype("auto", torch.device("cpu"), 512) is torch.float32
    assert pick_precision("auto", torch.device("cpu"), 512) == "model"
    try:
        pick_precision("int8", torch.device("cpu"), 512)
        raise AssertionError("int8 without exact sums was not refused")
    except InputError as error:
        assert "use auto" in str(error)
"""


@pytest.mark.parametrize(("isa", "slow"), [("AVX2", True), ("AVX512_CORE", True), ("ALL", False)])
def test_a_processor_without_the_instructions_computes_the_same(isa: str, slow: bool) -> None:
    """oneDNN is told in a process of its own that it runs on a lesser processor."""
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": isa, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WITHOUT.replace("{slow}", str(slow))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
