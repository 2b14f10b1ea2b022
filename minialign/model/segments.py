"""Which tokens of a flat list belong together, and who may see whom.

A window of W means that a token sees itself and the W - 1 tokens before it, counted by position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Attend(Protocol):
    """An attention layout: called once a layer with the rotated queries and keys."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(N, H, Hd), (N, K, Hd), (N, K, Hd) -> (N, H, Hd)."""
        ...


@dataclass(frozen=True)
class Segment:
    """A run of tokens, `start:stop` of the flat list, that sees itself causally behind `prefix`.

    Worked example: a prompt of 3 tokens with completions of 2 and 4 is
    `Segment(0, 3)`, `Segment(3, 5, prefix=(0, 3))`, `Segment(5, 9, prefix=(0, 3))`, at positions
    `0 1 2  3 4  3 4 5 6`: both completions follow the one prompt, and neither sees the other.
    """

    start: int
    stop: int
    prefix: tuple[int, int] | None = None

    @property
    def prefix_length(self) -> int:
        return self.prefix[1] - self.prefix[0] if self.prefix else 0

    @property
    def positions(self) -> range:
        return range(self.prefix_length, self.prefix_length + self.stop - self.start)


def causal_mask(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """May the query at position i see the key at j?  j <= i, and i - j < window.

    Positions (.., Tq) and (.., Tk) -> bool (.., Tq, Tk).
    """
    distance = queries.unsqueeze(-1) - keys.unsqueeze(-2)
    allowed = distance >= 0
    return allowed if window is None else allowed & (distance < window)


def heads_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1).unsqueeze(0)  # (T, H, Hd) -> (1, H, T, Hd)


def seen(x: Tensor, segment: Segment) -> Tensor:
    """Keys or values of prefix and segment, (P + T, K, Hd)."""
    own = x[segment.start : segment.stop]
    return own if segment.prefix is None else torch.cat((x[slice(*segment.prefix)], own))
