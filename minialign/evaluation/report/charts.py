"""Small charts as inline SVG: lines, bars with whiskers, stacked columns.

A chart is a `<figure>` that brings no colour of its own: classes `k0` .. `k7` name the series, and
the page's style sheet says what they look like in light, in dark and on paper. It is drawn 360
units wide and scales to its column. Every chart says in words what it shows (`aria-label`), and a
pointer on a mark finds its figures (`<title>`). Values that are not finite are gaps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from minialign.evaluation.report.axes import (
    Format,
    Point,
    finite,
    label_form,
    number,
    percent,
    thinned,
    tick_labels,
    ticks,
    widened,
)

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 42, 48, 10, 36  # room for the labels around a plot
LABEL_GAP = 14  # between the baselines of two direct labels
MARKS = 40  # tooltips a series, or dotted lines, at most
PATH_POINTS = 200  # corners a line at most: more cannot be seen at this size
COLUMNS = 80
COLORS = 8


@dataclass(frozen=True)
class Series:
    """A line: points in the order of x. `color` picks the class."""

    name: str
    points: Sequence[Point]
    color: int = 0


@dataclass(frozen=True)
class Bar:
    """A bar, with a whisker from `low` to `high` where both are given. `shown` is its figure."""

    name: str
    value: float
    shown: str
    low: float | None = None
    high: float | None = None
    color: int = 0


# ---- lines ----


def _plottable(series: Sequence[Series]) -> list[Point]:
    return [(x, y) for line in series for x, y in line.points if finite(x) and finite(y)]


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    unit: str = "",
    x_name: str = "step",
    form: Format = number,
    marks: Sequence[float] = (),
    level: tuple[float, str] | None = None,
) -> Markup:
    """Lines over whole steps; empty markup where there is not one point to draw.

    `marks` are the x of dotted lines, which are left out where they are many; `level` is the y of a
    dashed line, and its name.
    """
    drawn = [line for line in series if _plottable([line])]
    if not drawn:
        return Markup("")
    known = _plottable(drawn)
    xs = [x for x, _ in known]
    ys = [y for _, y in known] + ([level[0]] if level else [])
    y_ticks = ticks(min(ys), max(ys))
    x_low, x_high = widened(min(xs), max(xs))
    x_ticks = [t for t in ticks(x_low, x_high, 5, whole=True) if x_low <= t <= x_high]
    plot = _Plot((x_low, x_high), (y_ticks[0], y_ticks[-1]))
    labels = [form(t) for t in y_ticks] if form is percent else tick_labels(y_ticks)
    parts = [plot.grid(y_ticks, labels), plot.x_axis(x_ticks, x_name)]
    if len(marks) <= MARKS:
        parts += [plot.mark(x) for x in marks if x_low <= x <= x_high]
    if level:
        parts.append(plot.level(*level))
    parts += [plot.line(line, form, x_name) for line in drawn]
    if len(drawn) <= 4:
        parts.append(plot.end_labels(drawn, form if form is percent else label_form(y_ticks)))
    summary = "; ".join(_summary(line, form, x_name) for line in drawn)
    legend = [(line.name, line.color) for line in drawn] if len(drawn) > 1 else []
    return _figure(title, unit, legend, Markup("").join(parts), HEIGHT, f"{title}: {summary}.")


def _summary(line: Series, form: Format, x_name: str) -> str:
    """What a line shows, in words."""
    points = _plottable([line])
    (first_x, first), (last_x, last) = points[0], points[-1]
    if len(points) == 1:
        return f"{line.name} {form(first)} at {x_name} {first_x:g}"
    low, high = min(y for _, y in points), max(y for _, y in points)
    return (
        f"{line.name} from {form(first)} at {x_name} {first_x:g} to {form(last)} at {x_name} "
        f"{last_x:g}, between {form(low)} and {form(high)}"
    )


@dataclass(frozen=True)
class _Plot:
    """The coordinates of one line chart."""

    x_range: Point
    y_range: Point

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def grid(self, places: Sequence[float], labels: Sequence[str]) -> Markup:
        row = Markup('<path class="rule" d="M{} {:.1f}H{}"/><text x="{}" y="{:.1f}" class="end">{}')
        return Markup("").join(
            row.format(LEFT, self.y(t), WIDTH - RIGHT, LEFT - 6, self.y(t) + 4, label)
            + Markup("</text>")
            for t, label in zip(places, labels, strict=True)
        )

    def x_axis(self, places: Sequence[float], name: str) -> Markup:
        tick = Markup('<text x="{:.1f}" y="{}" class="mid">{:,.0f}</text>')
        shown = [tick.format(self.x(t), HEIGHT - BOTTOM + 15, t) for t in places]
        middle = (LEFT + WIDTH - RIGHT) / 2
        caption = Markup('<text x="{}" y="{}" class="mid">{}</text>')
        return Markup("").join([*shown, caption.format(middle, HEIGHT - 5, name)])

    def mark(self, value: float) -> Markup:
        line = Markup('<path class="mark" d="M{:.1f} {}V{}"/>')
        return line.format(self.x(value), TOP, HEIGHT - BOTTOM)

    def level(self, value: float, name: str) -> Markup:
        y = self.y(value)
        line = Markup('<path class="level" d="M{} {:.1f}H{}"/><text x="{}" y="{:.1f}">{}</text>')
        return line.format(LEFT, y, WIDTH - RIGHT, LEFT + 4, y - 4, name)

    def line(self, line: Series, form: Format, x_name: str) -> Markup:
        points = [(x, y) for x, y in line.points if finite(x)]
        path = self._path(thinned(points, PATH_POINTS))
        known = _plottable([line])
        dots = "dot" if len(known) <= 8 else "hit"
        mark = Markup(
            '<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="{}"><title>{}</title></circle>'
        )
        shown = [
            mark.format(
                dots,
                self.x(x),
                self.y(y),
                3.5 if dots == "dot" else 6,
                f"{line.name}, {x_name} {x:g}: {form(y)}",
            )
            for x, y in thinned(known, MARKS)
        ]
        group = Markup('<g class="k{}"><path class="line" d="{}"/>{}</g>')
        return group.format(line.color % COLORS, path, Markup("").join(shown))

    def _path(self, points: Sequence[Point]) -> str:
        """SVG path data; a value that is not finite lifts the pen."""
        commands, pen = [], "M"
        for x, y in points:
            if not finite(y):
                pen = "M"
                continue
            commands.append(f"{pen}{self.x(x):.1f} {self.y(y):.1f}")
            pen = "L"
        return "".join(commands)

    def end_labels(self, series: Sequence[Series], form: Format) -> Markup:
        """The last value beside each line's end, moved apart where two would overlap."""
        ends = [(_plottable([line])[-1], line) for line in series]
        ends.sort(key=lambda end: self.y(end[0][1]))
        heights = _spread([self.y(y) for (_, y), _ in ends], TOP + 4, HEIGHT - BOTTOM + 4)
        label = Markup('<text class="value k{}" x="{:.1f}" y="{:.1f}">{}</text>')
        return Markup("").join(
            label.format(line.color % COLORS, self.x(x) + 6, height + 4, form(y))
            for ((x, y), line), height in zip(ends, heights, strict=True)
        )


def _spread(heights: list[float], top: float, bottom: float) -> list[float]:
    """Ascending heights, moved by as little as keeps LABEL_GAP between them and within bounds."""
    placed: list[float] = []
    for height in heights:
        placed.append(max(height, placed[-1] + LABEL_GAP if placed else top))
    for place in reversed(range(len(placed))):
        below = placed[place + 1] - LABEL_GAP if place + 1 < len(placed) else bottom
        placed[place] = min(placed[place], below)
    return placed


# ---- bars and columns ----


def bar_chart(
    title: str,
    bars: Sequence[Bar],
    *,
    unit: str = "",
    middle: float | None = None,
    span: Point = (0, 0),
) -> Markup:
    """Horizontal bars from 0. The scale is `span`, and goes on to the largest value beyond it.

    `middle` draws a dashed line. Bars without a finite value are left out.
    """
    bars = [bar for bar in bars if finite(bar.value)]
    if not bars:
        return Markup("")
    row, thick, (bottom, top) = 40, 12, span
    whole = max([top, *(bar.value for bar in bars), *(bar.high or 0.0 for bar in bars)]) or 1.0
    scale = (WIDTH - 4) / (whole - bottom)

    def x(value: float) -> float:
        return 2 + (min(max(value, bottom), whole) - bottom) * scale

    parts = []
    for place, bar in enumerate(bars):
        y = place * row + 20
        left, right = sorted((x(0.0), x(bar.value)))
        parts.append(
            Markup(
                '<g class="k{}"><title>{}: {}</title><text x="2" y="{}">{}</text>'
                '<text x="{}" y="{}" class="end strong">{}</text>'
                '<rect class="track" x="2" y="{}" width="{}" height="{}" rx="2"/>'
                '<rect class="bar" x="{:.1f}" y="{}" width="{:.1f}" height="{}" rx="2"/></g>'
            ).format(
                *(bar.color % COLORS, bar.name, bar.shown, y - 6, _shortened(bar.name)),
                *(WIDTH - 2, y - 6, bar.shown, y, WIDTH - 4, thick, left, y, right - left, thick),
            )
        )
        if bar.low is not None and bar.high is not None and finite(bar.low) and finite(bar.high):
            low, high, at = x(bar.low), x(bar.high), y + thick / 2
            whisker = Markup(
                '<path class="whisker" d="M{0:.1f} {2}H{1:.1f}M{0:.1f} {3}v8M{1:.1f} {3}v8"/>'
            )
            parts.append(whisker.format(low, high, at, at - 4))
    height = len(bars) * row
    if middle is not None:
        parts.append(Markup('<path class="level" d="M{:.1f} 2V{}"/>').format(x(middle), height))
    summary = "; ".join(f"{bar.name} {bar.shown}" for bar in bars)
    return _figure(title, unit, [], Markup("").join(parts), height, f"{title}: {summary}.")


def stacked_columns(
    title: str,
    names: Sequence[tuple[str, int]],
    columns: Sequence[tuple[int, Sequence[float]]],
    *,
    unit: str,
) -> Markup:
    """One column a step: (x, a height for each name); the first (name, color) is at the bottom."""
    columns = [(x, [h if finite(h) and h > 0 else 0.0 for h in heights]) for x, heights in columns]
    if not columns:
        return Markup("")
    tallest = max(sum(heights) for _, heights in columns)
    y_ticks = ticks(0, tallest or 1, 3, whole=True)
    first, last = columns[0][0] - 0.5, columns[-1][0] + 0.5
    plot = _Plot((first, last), (0, y_ticks[-1]))
    x_ticks = [t for t in ticks(first, last, 5, whole=True) if first < t < last]
    parts = [plot.grid(y_ticks, tick_labels(y_ticks)), plot.x_axis(x_ticks, "step")]
    drawn = thinned(columns, COLUMNS)
    wide = min(40.0, 0.72 * (WIDTH - LEFT - RIGHT) / len(drawn))
    rect = Markup('<rect class="k{} bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>')
    for x, heights in drawn:
        base, stack, words = 0.0, [], []
        for (name, color), height in zip(names, heights, strict=True):
            low, high = plot.y(base), plot.y(base + height)
            stack.append(rect.format(color % COLORS, plot.x(x) - wide / 2, high, wide, low - high))
            words.append(f"{name} {height:g}")
            base += height
        group = Markup("<g><title>step {}: {}</title>{}</g>")
        parts.append(group.format(x, ", ".join(words), Markup("").join(stack)))
    totals = [sum(heights[i] for _, heights in columns) for i in range(len(names))]
    summary = ", ".join(f"{n} {total:g}" for (n, _), total in zip(names, totals, strict=True))
    said = f"{title}: {summary} in {len(columns)} steps."
    return _figure(title, unit, names, Markup("").join(parts), HEIGHT, said)


def _shortened(name: str, room: int = 28) -> str:
    return name if len(name) <= room else name[: room - 1] + "…"


def _figure(
    title: str,
    unit: str,
    legend: Sequence[tuple[str, int]],
    inside: Markup,
    height: int,
    words: str,
) -> Markup:
    entry = Markup('<li class="k{}"><i></i>{}</li>')
    entries = Markup("").join(entry.format(color % COLORS, name) for name, color in legend)
    return Markup(
        '<figure class="chart"><figcaption><b>{}</b>{}</figcaption>{}'
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg></figure>'
    ).format(
        title,
        Markup(" <small>{}</small>").format(unit) if unit else "",
        Markup('<ul class="legend">{}</ul>').format(entries) if legend else "",
        WIDTH,
        height,
        words,
        inside,
    )
