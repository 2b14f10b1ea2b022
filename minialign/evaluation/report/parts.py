"""Charts and columns of a report that are made of figures alone."""

from __future__ import annotations

from markupsafe import Markup

from minialign.evaluation.report import charts
from minialign.evaluation.report.charts import Bar
from minialign.evaluation.report.duels import duel
from minialign.evaluation.report.labels import color, shown
from minialign.evaluation.report.run_files import Json, RunFiles, figure, figures
from minialign.evaluation.report.scores import LABELS, hundredths, scores_of

SCORES = ("s_in", "s_near", "s_far")


def win_chart(judge: Json) -> Markup:
    """Each contestant against all others, one judge's figures."""
    means = ((name, duel(record)) for name, record in (judge.get("mean") or {}).items())
    bars = [Bar(shown(n), d.rate, str(d), d.low, d.high, color(n)) for n, d in means if d]
    return charts.bar_chart(
        "Won against all others", bars, unit="share of comparisons", middle=0.5, span=(0, 1)
    )


def prompts_ahead(win: Json) -> str:
    """On how many of the prompts that could be judged the first won more than half."""
    shares = [share for raw in win.get("per_prompt") or [] if (share := figure(raw)) is not None]
    return f"{sum(share > 0.5 for share in shares)} of {len(shares)}" if shares else "–"


def column(run: RunFiles, key: str, rival: str = "") -> list[float | None]:
    """One figure of every contestant: `key`, or its part for `rival`."""
    values = [entry.get(key) for entry in run.evaluation.get("contestants", {}).values()]
    return [figures(v).get(rival) if rival else figure(v) for v in values]


def score_charts(run: RunFiles) -> list[Markup]:
    """S_in, S_near and S_far of every method, with intervals."""
    names = list(run.evaluation.get("methods", {}))
    made = []
    for key in SCORES:
        least = -1.0 if key == "s_in" else 0.0
        bars = []
        for name in names:
            if score := scores_of(run, name).get(key):
                low, high = score.bounds(least)
                said = f"{hundredths(score.value)} ({hundredths(low)} to {hundredths(high)})"
                bars.append(Bar(shown(name), score.value, said, low, high, color(name)))
        lowest = min([0.0, *(bar.low or 0.0 for bar in bars)])
        unit = "1: follows it more" if key == "s_in" else "0: as the base model does"
        made.append(charts.bar_chart(LABELS[key], bars, unit=unit, span=(lowest, 1)))
    return [chart for chart in made if chart]


def cost_charts(run: RunFiles) -> list[Markup]:
    """Time and memory by phase."""
    seconds, peaks = run.seconds(), figures(run.summary.get("peak_bytes"))
    time = [Bar(name, spent, duration(spent), color=2) for name, spent in seconds.items()]
    memory = [Bar(name, peak, gigabytes(peak), color=1) for name, peak in peaks.items()]
    made = [
        charts.bar_chart("Time", time, unit=f"{duration(sum(seconds.values()))} in all"),
        charts.bar_chart("Memory", memory, unit="at most"),
    ]
    return [chart for chart in made if chart]


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
