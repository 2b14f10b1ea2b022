"""Who is seen when: the items of a step, a function of (seed, step) alone."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def deal(items: Sequence[T], size: int, step: int, purpose: str) -> list[T]:
    """The items of step `step`, `size` of them, or all where there are fewer.

    Each epoch is a shuffle of its own, dealt in order, and the next epoch follows. `purpose` seeds
    the shuffles: two callers with the same one see the same order.
    """
    size = min(size, len(items))
    places = range(step * size, (step + 1) * size)
    orders = {
        epoch: random.Random(f"{purpose}/{epoch}").sample(range(len(items)), len(items))
        for epoch in {place // len(items) for place in places}
    }
    return [items[orders[place // len(items)][place % len(items)]] for place in places]
