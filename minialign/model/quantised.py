"""Products in int8: four times the rate of float32, and half the bytes of a half type.

    W d ~ w s_w,  s_w = max |W d| / 127 of an output;   x / d ~ i s_x,  s_x = max |x / d| / 127 of a
    token;   x W^T ~ s_x s_w (i w^T)

A few inputs are far larger than the others and would leave them few steps: d, a number an input,
moves half of that (in orders of magnitude) into the weight (SmoothQuant, arXiv 2211.10438, its
alpha .5). It is known from what an ordinary text brings.

The sum in the brackets is of whole numbers and exact, so a token's result does not depend on which
others stand beside it. Only forward: what is learned from is never quantised.

Shape letters: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

LARGEST = 127
SMALLEST = 1e-5
BLOCK = 4096  # outputs that are quantised at a time


@cache
def sums_are_exact() -> bool:
    """Whether this processor adds up int8 products in full.

    One without VNNI may cut a sum of two products off at 16 bits.
    """
    largest = torch.full((8, 64), LARGEST, dtype=torch.int8)
    sums = torch._int_mm(largest, largest.t().neg())
    return bool((sums == -64 * LARGEST**2).all())


class Quantised(NamedTuple):
    """A linear layer's weight in int8."""

    whole: Tensor  # (O, I) int8
    scale: Tensor  # (O,) float32
    shrink: Tensor | None  # (I,) float32: 1 / d

    @classmethod
    def of(cls, weight: Tensor, largest: Tensor | None = None) -> Quantised:
        """Of a weight (O, I) of any type; `largest` are the largest of its inputs, (I,)."""
        shrink = None
        if largest is not None:
            own = torch.maximum(weight.amax(0), -weight.amin(0)).float().clamp_(min=SMALLEST)
            shrink = (own / largest.clamp(min=SMALLEST)).sqrt()
        # block by block: in float32 a head alone may be as large as all that is kept
        parts = [whole_rows(_over(part.float(), shrink)) for part in weight.split(BLOCK)]
        whole, scale = map(torch.cat, zip(*parts, strict=True))
        return cls(whole, scale[:, 0], shrink)

    def product(self, x: Tensor) -> Tensor:
        """x W^T, (N, I) -> (N, O), in the type of x."""
        whole, scale = whole_rows(x if self.shrink is None else x * self.shrink)
        sums = torch._int_mm(whole, self.whole.t()).to(x.dtype)
        return sums.mul_(self.scale).mul_(scale)


def _over(weight: Tensor, shrink: Tensor | None) -> Tensor:
    return weight if shrink is None else weight / shrink


def whole_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Each row in whole numbers of its own scale: int8 as x, and scales (rows, 1)."""
    # a row of zeros has a scale too
    scale = x.abs().amax(1, keepdim=True).clamp_(min=torch.finfo(x.dtype).tiny * LARGEST)
    scale = scale.div_(LARGEST)
    return (x / scale).round_().to(torch.int8), scale
