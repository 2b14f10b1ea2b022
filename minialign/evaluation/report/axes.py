"""Axes of charts: round ticks, ranges, and figures as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

LIMIT = 1e100  # larger values are taken for infinite: their differences must not overflow
T = TypeVar("T")
Point = tuple[float, float]
Format = Callable[[float], str]


def number(value: float) -> str:
    """Three significant digits, without an exponent where it can be helped: 3.10, 0.0123, 1,250."""
    if not math.isfinite(value):
        return "–"
    value += 0.0  # -0.0 is 0
    size = abs(value)
    if size >= 1e7 or 0 < size < 1e-3:
        text = f"{value:.2g}"
    elif size >= 100 or value == 0:
        text = f"{value:,.0f}"
    else:
        text = f"{value:.{2 - math.floor(math.log10(size))}f}"
    return text.replace("-", "−")


def percent(value: float) -> str:
    return f"{100 * value:.0f}\u00a0%" if math.isfinite(value) else "–"


def ticks(low: float, high: float, count: int = 4, *, whole: bool = False) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about `count` steps apart.

    A step is 1, 2, 2.5 or 5 times a power of ten; with `whole`, at least 1 and never 2.5.
    """
    low, high = widened(low, high)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    factors = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    step = next((f * power for f in factors if f * power >= rough * (1 - 1e-9)), 10 * power)
    if whole:
        step = max(1.0, float(round(step)))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [place * step for place in range(first, max(first + 1, last) + 1)]


def tick_labels(places: Sequence[float]) -> list[str]:
    """The ticks as text, all with the decimals that their step needs."""
    step = places[1] - places[0]
    largest = max(map(abs, places))
    if largest >= 1e6 or step < 1e-4:
        return [f"{place:.3g}".replace("-", "−") for place in places]
    decimals = next((d for d in range(5) if abs(round(step, d) - step) < step * 1e-6), 5)
    return [f"{place:,.{decimals}f}".replace("-", "−") for place in places]


def label_form(places: Sequence[float]) -> Format:
    """A line's last value, a decimal finer than the ticks."""
    step = places[1] - places[0]
    if max(map(abs, places)) >= 1e5 or step < 1e-3:
        return number
    decimals = 0 if step >= 10 else max(2, 1 - math.floor(math.log10(step)))
    return lambda value: f"{round(value, decimals) + 0.0:,.{decimals}f}".replace("-", "−")


def widened(low: float, high: float) -> Point:
    """A range that has a length: a constant gets room above and below."""
    size = max(abs(low), abs(high))
    if high - low > 1e-9 * size and high - low > 1e-90:
        return low, high
    room = size * 0.1 if size > 1e-80 else 1.0
    return low - room, high + room


def finite(value: float) -> bool:
    return math.isfinite(value) and abs(value) < LIMIT


def thinned(points: Sequence[T], most: int) -> list[T]:
    """At most `most` + 1 of the points, evenly, the last one among them."""
    stride = -(-len(points) // most) if points else 1
    kept = list(points[::stride])
    return kept if not points or kept[-1] == points[-1] else [*kept, points[-1]]
