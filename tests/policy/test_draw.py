"""Drawing a token: exactly the right probabilities, whatever the filters and the block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from minialign.policy import draw
from minialign.policy.draw import _first_exceeding
from minialign.policy.knobs import SamplingConfig


def draw_tokens(logits: Tensor, uniforms: Tensor, config: SamplingConfig) -> Tensor:
    return draw.draw_tokens(logits, uniforms, config)[0]


# ---- the probabilities ----


LOGITS = torch.tensor([[2.0, -1.0, 0.5, 0.4, -3.0, 1.0, 0.0, -0.5, 0.9, -2.0]])
KNOBS = [
    {},
    {"temperature": 0.3},
    {"temperature": 2.0},
    {"top_k": 1},
    {"top_k": 3},
    {"top_p": 0.35},
    {"top_p": 0.8},
    {"temperature": 0.5, "top_k": 6, "top_p": 0.9},
]


def exact_probabilities(logits: torch.Tensor, knobs: dict[str, Any]) -> torch.Tensor:
    """transformers' warpers in its order, with its defaults for what is not asked for."""
    ids = torch.zeros(1, 1, dtype=torch.long)
    if "temperature" in knobs:
        logits = TemperatureLogitsWarper(knobs["temperature"])(ids, logits)
    if "top_k" in knobs:
        logits = TopKLogitsWarper(knobs["top_k"])(ids, logits)
    if "top_p" in knobs:
        logits = TopPLogitsWarper(knobs["top_p"])(ids, logits)
    return logits.double().softmax(-1)[0]


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_draw_tokens_has_exactly_the_right_probabilities(knobs: dict[str, Any]) -> None:
    """Evenly spaced uniforms hit each token in proportion to its probability, to 1 in 20,000."""
    count = 20_000
    uniforms = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    logps = LOGITS.log_softmax(-1)
    ids = draw_tokens(logps.expand(count, -1), uniforms, SamplingConfig(**knobs))
    exact = exact_probabilities(LOGITS, knobs)
    frequencies = ids.bincount(minlength=LOGITS.shape[1]) / count
    torch.testing.assert_close(frequencies.double(), exact, rtol=0, atol=1.5 / count)
    assert set(ids.tolist()) <= set(exact.nonzero().flatten().tolist())


def test_rows_with_different_filters_in_effect_do_not_mix() -> None:
    """Row by row, the same answer as each row alone."""
    logps = torch.stack([LOGITS[0], LOGITS[0].flip(0), 5 * LOGITS[0]]).log_softmax(-1)
    uniforms = torch.tensor([0.1, 0.6, 0.95])
    for knobs in KNOBS:
        config = SamplingConfig(**knobs)
        alone = [
            draw_tokens(logps[i : i + 1], uniforms[i : i + 1], config).item() for i in range(3)
        ]
        assert draw_tokens(logps, uniforms, config).tolist() == alone


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_the_largest_and_smallest_uniform_draw_allowed_tokens(knobs: dict[str, Any]) -> None:
    """The first and last tokens of this vocabulary are impossible: 0 must not draw the first; and
    1 - 2^-53 is 1 in float32, which no cumulative probability exceeds.
    """
    uniforms = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    impossible = torch.full((1, 3), -torch.inf)
    logps = torch.cat((impossible, LOGITS, impossible), dim=1).log_softmax(-1)
    exact = exact_probabilities(logps, knobs)
    ids = draw_tokens(logps.expand(2, -1), uniforms, SamplingConfig(**knobs))
    allowed = exact.nonzero().flatten()
    assert ids[0] == allowed[0]
    assert ids[1] == allowed[exact[allowed] > 1e-6][-1]


def test_temperature_zero_is_argmax_whatever_the_uniform() -> None:
    uniforms = torch.tensor([0.0, 0.5, 0.999])
    ids = draw_tokens(LOGITS.expand(3, -1), uniforms, SamplingConfig(temperature=0))
    assert ids.tolist() == [0, 0, 0]


# ---- the draw, block by block ----


SIZES = [1, 2, 255, 256, 257, 1000]
ALMOST_ONE = {torch.float32: 1 - 2**-24, torch.float64: 1 - 2**-53}


def simple_places(weights: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """The definition, number by number, in float64."""
    cumulative = weights.double().cumsum(-1)
    thresholds = (shares[:, None] * weights.sum(-1, keepdim=True)).double()
    return torch.searchsorted(cumulative, thresholds, right=True).squeeze(1)


def whole_weights(size: int) -> dict[str, torch.Tensor]:
    """Whole numbers, whose float32 sums are exact in any order: so there is one right answer."""
    generator = torch.Generator().manual_seed(size)
    usual = torch.randint(0, 50, (size,), generator=generator).double()
    usual[torch.randint(size, (1,), generator=generator)] += 1  # not all of them zero
    first, last, middle, one_block, steep = (torch.zeros_like(usual) for _ in range(5))
    first[0] = last[-1] = middle[size // 2] = 1
    one_block[-(size % 256 or 256) :] = 3  # all blocks in front of the last one weigh nothing
    steep[[0, -1]] = torch.tensor([1e6, 1.0], dtype=steep.dtype) if size > 1 else 1.0
    gaps = usual.clone()
    gaps[256 : size - 1] = 0
    gaps[-1] += 1
    return {
        **{"usual": usual, "rare": (usual > 45).double(), "equal": torch.ones_like(usual)},
        **{"first": first, "last": last, "middle": middle},
        **{"last block": one_block, "steep": steep, "a gap": gaps},
    }


def shares_of(weights: torch.Tensor) -> torch.Tensor:
    """0, just below 1, an even grid, and what lies on the borders between tokens."""
    borders = (weights.cumsum(-1) / weights.sum())[:-1][:200]
    ends = torch.tensor([0.0, ALMOST_ONE[weights.dtype]], dtype=weights.dtype)
    return torch.cat((ends, torch.arange(1, 300).to(weights) / 300, borders[borders < 1]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_the_block_wise_draw_equals_the_simple_one(size: int, dtype: torch.dtype) -> None:
    for name, weights in whole_weights(size).items():
        if not weights.any():
            continue
        row = weights.to(dtype)
        shares = shares_of(row)
        rows = row.expand(len(shares), -1)
        found = _first_exceeding(rows, shares)
        assert torch.equal(found, simple_places(rows, shares)), name
        assert (row[found] > 0).all(), name
        assert found[0] == row.nonzero()[0]  # a share of 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES)
def test_the_block_wise_draw_is_right_to_rounding_and_never_draws_the_impossible(
    size: int, dtype: torch.dtype
) -> None:
    """Softmax-like weights over many orders of magnitude, half of them exactly 0."""
    generator = torch.Generator().manual_seed(size)
    logits = 8 * torch.randn(400, size, generator=generator, dtype=torch.float64)
    logits[:, 1:][torch.rand(400, size - 1, generator=generator) < 0.5] = -torch.inf
    weights = (logits - logits.amax(-1, keepdim=True)).exp().to(dtype)
    shares = torch.rand(400, generator=generator, dtype=dtype)
    shares[::4], shares[1::4] = 0, ALMOST_ONE[dtype]
    places = _first_exceeding(weights, shares)
    assert (weights.gather(1, places[:, None]) > 0).all()
    cumulative = weights.double().cumsum(-1) / weights.double().sum(-1, keepdim=True)
    reached = cumulative.gather(1, places[:, None]).squeeze(1)
    before = torch.nn.functional.pad(cumulative, (1, 0)).gather(1, places[:, None]).squeeze(1)
    rounding = 300 * torch.finfo(dtype).eps
    assert (before <= shares + rounding).all()
    assert (reached >= shares - rounding).all()


def test_rows_of_different_blocks_are_drawn_in_one_call() -> None:
    """Each row finds its own block."""
    weights = torch.eye(1000)[[999, 0, 256, 255, 511, 512]]
    assert _first_exceeding(weights, torch.full((6,), 0.5)).tolist() == [999, 0, 256, 255, 511, 512]


def test_random_uniforms_draw_each_token_as_often_as_its_weight_says() -> None:
    """Chi-square over 600 tokens, so three blocks: its mean is 599, its deviation 35."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(600, generator=generator) + 0.1
    count = 200_000
    shares = torch.rand(count, generator=generator)
    drawn = torch.cat(
        [_first_exceeding(weights.expand(len(s), -1), s) for s in shares.split(10_000)]
    )
    expected = count * weights.double() / weights.double().sum()
    chi_square = ((drawn.bincount(minlength=600) - expected) ** 2 / expected).sum()
    assert 450 < chi_square < 750


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
def test_a_constant_added_to_a_row_s_logits_changes_no_draw(knobs: dict[str, Any]) -> None:
    """Powers of two, so that adding is exact; far ones would overflow without a maximum."""
    logits = torch.round(LOGITS * 8) / 8
    uniforms = torch.arange(0.005, 1, 0.01)
    config = SamplingConfig(**knobs)
    expected = draw_tokens(logits.expand(100, -1), uniforms, config)
    for constant in (-1024.0, 512.0):
        moved = (logits + constant).expand(100, -1)
        assert torch.equal(draw_tokens(moved, uniforms, config), expected)


@pytest.mark.parametrize("knobs", [*KNOBS, {"temperature": 0}], ids=str)
def test_log_probabilities_are_those_of_the_logits_as_they_are(knobs: dict[str, Any]) -> None:
    uniforms = torch.tensor([0.0, 0.3, 0.999])
    logits = LOGITS.expand(3, -1)
    ids, logps = draw.draw_tokens(logits, uniforms, SamplingConfig(**knobs))
    expected = logits.log_softmax(-1).gather(1, ids[:, None]).squeeze(1)
    torch.testing.assert_close(logps, expected, rtol=1e-6, atol=1e-6)
