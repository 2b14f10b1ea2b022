"""What training measured, as charts: a run's curves and pairs, and many runs over one another."""

from __future__ import annotations

import math

from markupsafe import Markup

from minialign.evaluation.report import charts
from minialign.evaluation.report.axes import number, percent
from minialign.evaluation.report.charts import Series
from minialign.evaluation.report.labels import stage_title
from minialign.evaluation.report.run_files import RunFiles, figure, figures
from minialign.methods.cards import UNSEEN, Curve, PairKind

PLAIN = (Curve("loss", "", (("loss", "loss", 2),)),)
UNDECIDED = (math.log(2), "ln 2: undecided")
COUNTED = "pairs/"  # so begin the metrics that count comparisons
OTHER_PAIRS = 4  # the colour of pairs that no card knows


def stage_curves(run: RunFiles, stage: str) -> list[Markup]:
    """The charts that the method's card names for a stage; a stage that no card knows: its loss."""
    known = run.stage(stage)
    curves = known.curves(run.config["knobs"], run.source) if known else PLAIN
    drawn = [_curve(run, stage, curve) for curve in curves]
    return [chart for chart in drawn if chart]


def _curve(run: RunFiles, stage: str, curve: Curve) -> Markup:
    """Nothing where there are no figures for it."""
    return charts.line_chart(
        f"{stage_title(run, stage)}: {curve.title}",
        [Series(name, run.points(stage, metric), color) for metric, name, color in curve.lines],
        unit=curve.unit,
        marks=round_marks(run, stage),
        form=percent if curve.percent else number,
        level=UNDECIDED if curve.undecided else None,
    )


def overlays(runs: dict[str, RunFiles]) -> list[Markup]:
    """What the cards lay over one another: one metric of many runs a chart, in their order.

    Of a run's stages that have a place in a chart the last one is drawn. A run keeps its colour.
    """
    found: dict[tuple[str, str], dict[str, Series]] = {}
    for place, (name, run) in enumerate(runs.items()):
        for stage in run.stages:
            known = run.stage(stage)
            for overlay in known.overlays(run.config["knobs"], run.source) if known else ():
                if points := run.points(stage, overlay.metric):
                    lines = found.setdefault((overlay.title, overlay.unit), {})
                    lines[name] = Series(name, points, place)
    drawn = [
        charts.line_chart(title, list(lines.values()), unit=unit)
        for (title, unit), lines in found.items()
    ]
    return [chart for chart in drawn if chart]


def round_marks(run: RunFiles, stage: str) -> list[float]:
    """The steps before which new answers were written."""
    lines = [line for line in run.metrics if line.get("stage") == stage and "step" in line]
    return [line["step"] + 1.0 for line in lines if "sample" in figures(line.get("seconds"))]


def unseen(run: RunFiles) -> float | None:
    """Nats per token on texts that were not trained on, as last measured while training."""
    points = [point for stage in run.stages for point in run.points(stage, UNSEEN)]
    return figure(points[-1][1]) if points else None


def pairs_chart(run: RunFiles, stage: str) -> Markup:
    """How many comparisons of which kind each step learned from."""
    lines = [line for line in run.metrics if line.get("stage") == stage and "step" in line]
    names = list(dict.fromkeys(key for line in lines for key in line if key.startswith(COUNTED)))
    columns = [
        (line["step"] + 1, [figure(line.get(name)) or 0.0 for name in names]) for line in lines
    ]
    known = {COUNTED + kind.name: (kind.label, kind.color) for kind in pair_kinds(run)}
    kinds = [
        known.get(name, (name.removeprefix(COUNTED).replace("_", "-"), OTHER_PAIRS))
        for name in names
    ]
    return charts.stacked_columns(
        "Pairs a step", kinds, columns if names else [], unit="comparisons"
    )


def pair_kinds(run: RunFiles) -> list[PairKind]:
    """Those that the stages of the run's method compare, each once."""
    stages = run.card.stages if run.card else ()
    return list(dict.fromkeys(kind for stage in stages for kind in stage.pair_kinds))


def pairs_caption(run: RunFiles) -> str:
    """What each kind of pair prefers to what."""
    said = "; ".join(f"{kind.label}: {kind.said}" for kind in pair_kinds(run))
    return "What each step compared." + (f" {said[0].upper()}{said[1:]}." if said else "")
