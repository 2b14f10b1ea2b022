"""Charts as SVG: axes, lines, bars, columns."""

from __future__ import annotations

import itertools
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_helpers import (
    Page,
)

from minialign.evaluation.report import axes, charts
from minialign.evaluation.report.charts import Bar, Series


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0.13, 0.69, [0, 0.2, 0.4, 0.6, 0.8]),
        (-0.9, 2.1, [-1, 0, 1, 2, 3]),
        (3.103, 3.105, [3.103, 3.1035, 3.104, 3.1045, 3.105]),
        (0, 12_000, [0, 5000, 10_000, 15_000]),
        (2.5, 2.5, [2.2, 2.4, 2.6, 2.8]),
        (0, 0, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_and_hold_the_values(
    low: float, high: float, expected: list[float]
) -> None:
    assert axes.ticks(low, high) == pytest.approx(expected)


FINITE = st.floats(-1e12, 1e12)


@given(FINITE, FINITE, st.booleans())
def test_ticks_are_few_even_and_around_the_values(a: float, b: float, whole: bool) -> None:
    low, high = sorted((a, b))
    places = axes.ticks(low, high, whole=whole)
    steps = {round((y - x) / (places[1] - places[0]), 3) for x, y in itertools.pairwise(places)}
    assert 2 <= len(places) <= 7 and steps == {1.0}
    slack = 1e-6 * (places[1] - places[0]) + 1e-9 * max(abs(low), abs(high))
    assert places[0] <= low + slack and places[-1] >= high - slack
    labels = axes.tick_labels(places)
    if abs(high - low) > 1e-3 and max(map(abs, places)) < 1e6:
        assert len(set(labels)) == len(labels)
    if whole and max(map(abs, places)) < 1e6:
        assert all(place == int(place) for place in places)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((0, "0"), (3.1049, "3.10"), (0.01234, "0.0123"), (82.6, "82.6"), (1250, "1,250")),
        *((-0.6, "−0.600"), (1e-6, "1e−06"), (2.5e8, "2.5e+08"), (math.nan, "–"), (9.999, "10.00")),
    ],
)
def test_numbers_have_three_digits(value: float, expected: str) -> None:
    assert axes.number(value) == expected


def test_a_line_breaks_where_a_value_is_not_finite() -> None:
    ys = [1.0, 2.0, math.nan, 3.0, math.inf, 4.0]
    drawn = charts.line_chart("t", [Series("s", list(enumerate(ys)))])
    (path,) = re.findall(r'class="line" d="([^"]*)"', drawn)
    assert path.count("M") == 3 and path.count("L") == 1
    assert drawn.count("<circle") == 4


@pytest.mark.parametrize("points", [[], [(1.0, math.nan)], [(1.0, math.inf), (math.nan, 2.0)]])
def test_a_chart_without_a_point_is_nothing(points: list[tuple[float, float]]) -> None:
    assert charts.line_chart("t", [Series("s", points)]) == ""
    assert (
        charts.bar_chart("t", [Bar("b", y, "?") for _, y in points if not math.isfinite(y)]) == ""
    )
    assert charts.stacked_columns("t", [("n", 0)], [], unit="") == ""


ANY = st.floats() | st.sampled_from([0.0, 5e-324, 1e308, -1e308, 1e-90, 2.5])


@given(st.lists(st.tuples(ANY, ANY), max_size=12), st.booleans())
def test_no_values_break_a_chart(points: list[tuple[float, float]], many: bool) -> None:
    lines = [Series(f"s{i}", points, i) for i in range(6 if many else 2)]
    bars = [Bar("b", x, "?", y, x) for x, y in points]
    columns = [(i, [x, y]) for i, (x, y) in enumerate(points)]
    names = [("a", 0), ("b", 1)]
    drawn = [
        charts.line_chart("t", lines, marks=[1.0], level=(0.5, "half")),
        charts.bar_chart("t", bars, middle=0.5, span=(0, 1)),
        charts.stacked_columns("t", names, columns, unit="pairs"),
    ]
    for chart in filter(None, drawn):
        Page(chart)
        places = re.findall(r' (?:d|x|y|cx|cy|width|height)="([^"]*)"', chart)
        assert not re.search("nan|inf", " ".join(places))


def test_a_thousand_steps_keep_their_last_and_stay_small() -> None:
    points = [(float(step), math.sin(step / 40)) for step in range(1, 1001)]
    drawn = charts.line_chart("t", [Series("s", points)])
    assert len(drawn) < 9_000
    assert f"s, step 1000: {axes.number(points[-1][1])}" in drawn


def test_direct_labels_never_overlap() -> None:
    lines = [Series(f"s{i}", [(1.0, 0.0), (2.0, 5.0 + i / 1000)], i) for i in range(4)]
    drawn = charts.line_chart("t", lines)
    heights = sorted(map(float, re.findall(r'class="value[^"]*" x="[^"]*" y="([^"]*)"', drawn)))
    assert len(heights) == 4
    assert all(b - a >= charts.LABEL_GAP - 0.2 for a, b in itertools.pairwise(heights))
    assert 0 < heights[0] and heights[-1] < charts.HEIGHT


def test_bars_and_whiskers_stand_in_proportion() -> None:
    bars = [Bar("a", 0.25, "25 %", 0.0, 0.5), Bar("b", 0.75, "75 %")]
    drawn = charts.bar_chart("t", bars, span=(0, 1))
    widths = [float(w) for w in re.findall(r'class="bar"[^>]* width="([^"]*)"', drawn)]
    assert widths[1] == pytest.approx(3 * widths[0], abs=0.2)
    (whisker,) = re.findall(r'class="whisker" d="M([\d.]+) [\d.]+H([\d.]+)', drawn)
    assert float(whisker[1]) - float(whisker[0]) == pytest.approx(2 * widths[0], abs=0.2)
