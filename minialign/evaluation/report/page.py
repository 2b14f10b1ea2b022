"""report.html: the page that a run leaves behind, made from the files in its folder alone.

One file that needs nothing else: no script, no font, no address. Whatever the folder lacks is left
out. All figures are the files' own, and the sentence at the top says no more than they do. The
templates decide what is shown and in which words. `write_comparison` puts many runs on one page.
"""

from __future__ import annotations

import difflib
import hashlib
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from minialign.data.feedback import SCOPES
from minialign.data.files import replace_whole
from minialign.data.records import Demonstration, load_demonstrations, training_split
from minialign.errors import InputError
from minialign.evaluation.report import charts
from minialign.evaluation.report.charts import Bar, Series, number, percent
from minialign.evaluation.report.findings import (
    INTERVAL,
    LABELS,
    Duel,
    called,
    contestant_of,
    duel,
    duels_of,
    find,
    hundredths,
    method_of,
    scores_of,
    shown,
)
from minialign.evaluation.report.run_files import (
    UNSEEN,
    Json,
    RunFiles,
    evaluate_command,
    figure,
    figures,
    knobs,
    read_run,
    readable,
    sample_command,
    train_command,
)
from minialign.evaluation.scopes import AGAIN, COT, IN_CONTEXT

COLORS = {
    **{"base": 0, "sft": 1, "ditto": 2, "few-shot": 3, "spin": 4},
    **{"c3po": 2, "dpo": 4, "sft-weighted": 6, AGAIN: 0, IN_CONTEXT: 3, COT: 7},
}
PAIR_COLORS = {"pairs/expert": 2, "pairs/replay": 1, "pairs/inter_model": 3}
FORMS: dict[str, Callable[[float], str]] = {
    "nats": lambda value: f"{value:.3f}",
    "fraction": hundredths,
    "score": lambda value: f"{round(value, 2) + 0.0:g}".replace("-", "−"),
    "whole": lambda value: f"{value:,.0f}",
}
SCORES = ("s_in", "s_near", "s_far")
SCOPE_NAMES = dict(zip(SCOPES, ("In scope", "Near its scope", "Far from its scope"), strict=True))
OPEN = {"in_scope": 2}  # answers that are not folded; elsewhere one
SHOWN_BYTES = 400_000  # of a scope's answers: the page holds three
MOST_WORDS = 400  # of a text whose changes are marked: finding them takes the square of it


# ---- the parts of the page ----


def color(name: str) -> int:
    return COLORS.get(name, 5)


def curve(
    run: RunFiles,
    stage: str,
    title: str,
    unit: str,
    lines: Sequence[tuple[str, str, int]],
    **how: Any,
) -> Markup:
    """A chart of a stage's metrics: (metric, name, color) each; nothing where there are none."""
    series = [Series(name, run.points(stage, metric), color) for metric, name, color in lines]
    return charts.line_chart(title, series, unit=unit, marks=round_marks(run, stage), **how)


def round_marks(run: RunFiles, stage: str) -> list[float]:
    """The steps before which new answers were written."""
    lines = [line for line in run.metrics if line.get("stage") == stage and "step" in line]
    return [line["step"] + 1.0 for line in lines if "sample" in figures(line.get("seconds"))]


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


def pairs_chart(run: RunFiles, stage: str) -> Markup:
    """How many comparisons of which kind each step learned from."""
    lines = [line for line in run.metrics if line.get("stage") == stage and "step" in line]
    names = list(dict.fromkeys(key for line in lines for key in line if key.startswith("pairs/")))
    columns = [
        (line["step"] + 1, [figure(line.get(name)) or 0.0 for name in names]) for line in lines
    ]
    kinds = [
        (name.removeprefix("pairs/").replace("_", "-"), PAIR_COLORS.get(name, 4)) for name in names
    ]
    return charts.stacked_columns(
        "Pairs a step", kinds, columns if names else [], unit="comparisons"
    )


def rounds(run: RunFiles) -> Json:
    """The first demonstration's samples, round by round; with what it says, if that is known."""
    if not run.samples:
        return {}
    place = min(sample["demonstration"] for sample in run.samples)
    found = []
    for number_of_round in sorted({sample["round"] for sample in run.samples}):
        everything = [sample for sample in run.samples if sample["round"] == number_of_round]
        own = [sample for sample in everything if sample["demonstration"] == place]
        found.append(
            {
                "name": number_of_round + 1,
                "answers": [{"text": s["text"], "reason": s.get("finish_reason")} for s in own],
                "total": len(everything),
                "ended": sum(sample.get("finish_reason") == "stop" for sample in everything),
            }
        )
    known = _demonstrations(run)
    demonstration = known[place] if place < len(known) else None
    return {"place": place + 1, "demonstration": demonstration, "rounds": found}


def _demonstrations(run: RunFiles) -> list[Demonstration]:
    """What the run was trained on, if the file is still there and still the same."""
    file = Path(str(run.config["options"].get("demos", "")))
    try:
        same = hashlib.sha256(file.read_bytes()).hexdigest() == run.config.get("demos_sha256")
        return training_split(load_demonstrations(file)) if same else []
    except (OSError, InputError):
        return []


def answers(entry: Json, place: int) -> list[Json]:
    """A contestant's answers to one prompt, each with the reason that it ended for."""
    texts, reasons = (entry.get(key) or [] for key in ("answers", "finish_reasons"))
    own = texts[place] if place < len(texts) else []
    why = [*(reasons[place] if place < len(reasons) else []), *[""] * len(own)]
    return [{"text": text, "reason": why[i]} for i, text in enumerate(own)]


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


def in_scopes(run: RunFiles) -> list[Json]:
    """The trained method's first answer to each test prompt beside the base model's, by scope.

    As many as the page has room for; `left_out` counts the others.
    """
    own = method_of(run)
    found = []
    for scope, title in SCOPE_NAMES.items():
        entries = (run.evaluation.get("scopes") or {}).get(scope) or []
        pairs, room = [], SHOWN_BYTES
        for entry in entries:
            answer = (entry["answers"].get(own) or [None])[0]
            if answer is None:
                continue
            before, after, marked = word_diff(entry["baseline"], answer)
            room -= len((before + after + entry["prompt"]).encode())
            if room < 0:
                break
            scores = {name: figure(values[0]) for name, values in entry["scores"].items() if values}
            pairs.append(
                {
                    **{"prompt": entry["prompt"], "before": before, "after": after},
                    **{"marked": marked, "score": scores.pop(own, None), "others": scores},
                }
            )
        if entries:
            record = {"title": title, "pairs": pairs, "left_out": len(entries) - len(pairs)}
            found.append(record | {"open": OPEN.get(scope, 1), "inside": scope == "in_scope"})
    return found


def word_diff(before: str, after: str) -> tuple[Markup, Markup, bool]:
    """Both texts with the words that only one of them has marked, and whether they are.

    A text of more than MOST_WORDS words is left as it is.
    """
    sides = [re.findall(r"\S+\s*|\s+", text) for text in (before, after)]
    if max(map(len, sides)) > MOST_WORDS:
        return Markup.escape(before), Markup.escape(after), False
    words = [[word.strip() for word in side] for side in sides]
    made: list[list[Markup]] = [[], []]
    for kind, *span in difflib.SequenceMatcher(a=words[0], b=words[1]).get_opcodes():
        for place, tag in enumerate(("del", "ins")):
            text = "".join(sides[place][span[2 * place] : span[2 * place + 1]])
            made[place].append(Markup.escape(text) if kind == "equal" else _marked(tag, text))
    return Markup("").join(made[0]), Markup("").join(made[1]), True


def _marked(tag: str, text: str) -> Markup:
    """Without the white space around it, which would be marked too."""
    inner = text.strip()
    if not inner:
        return Markup.escape(text)
    start = text.index(inner)
    return Markup("{0}<{1}>{2}</{1}>{3}").format(
        text[:start], tag, inner, text[start + len(inner) :]
    )


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


# ---- the pages ----


def write_report(folder: Path) -> Path:
    """Writes `folder`/report.html, whole or not at all, and returns its path.

    Raises InputError, naming the file, where one in the folder is broken.
    """
    run = read_run(Path(folder))
    scopes = in_scopes(run)
    sections = {
        "before-after": ("Before and after", run.preview),
        "win-rates": ("Win rates", run.evaluation.get("judges")),
        "scores": ("Scores", run.evaluation.get("methods")),
        "contestants": ("Figures", run.evaluation.get("contestants")),
        "answers": ("Answers", run.evaluation.get("prompts")),
        "scopes": ("Answers", any(scope["pairs"] for scope in scopes)),
        "curves": ("Curves", any(run.points(stage, "loss") for stage in run.stages)),
        "rounds": ("Rounds", run.samples),
        "pairs": ("Pairs", any(pairs_chart(run, stage) for stage in run.stages)),
        "costs": ("Time", cost_charts(run)),
        "commands": ("Commands", True),
    }
    there = {name: title for name, (title, content) in sections.items() if content}
    return _write(
        run.folder / "report.html", "report.html.jinja", run=run, scopes=scopes, sections=there
    )


def write_comparison(folders: Sequence[Path], target: Path) -> Path:
    """Writes one page about many runs to `target`, whole or not at all, and returns its path.

    Raises InputError where a folder is not a run's, or a file in it is broken.
    """
    runs = [read_run(folder) for folder in dict.fromkeys(map(Path, folders))]
    if not runs:
        raise InputError(f"{target}: there are no runs to compare: name at least one run folder")
    names = [run.name for run in runs]
    labels = [run.name if names.count(run.name) == 1 else readable(str(run.folder)) for run in runs]
    settings = [knobs(run) for run in runs]
    differing = [
        name
        for name in dict.fromkeys(name for own in settings for name in own)
        if name != "method" and len({repr(own.get(name)) for own in settings}) > 1
    ]
    return _write(
        Path(target),
        "comparison.html.jinja",
        runs=dict(zip(labels, runs, strict=True)),
        settings=settings,
        differing=differing,
    )


def overlay(
    runs: dict[str, RunFiles],
    among: Sequence[str],
    metric: str,
    title: str,
    unit: str,
    constraint: str = "",
) -> Markup:
    """One metric of all runs in a chart: of the last of their stages that is `among` these.

    With `constraint`, the runs whose constraint has this unit; they keep their colours.
    """
    series = []
    for place, (name, run) in enumerate(runs.items()):
        own = constraint in ("", constraint_unit(run))
        stages = [stage for stage in run.stages if stage in among and own]
        points = run.points(stages[-1], metric) if stages else []
        series.append(Series(name, points, place))
    return charts.line_chart(title, series, unit=unit)


def constraint_unit(run: RunFiles) -> str:
    """What a run's constraint is measured in."""
    summed = run.config["knobs"].get("constraint_reduction") == "sum"
    return "nats an answer" if summed else "nats per token"


def near_charts(runs: dict[str, RunFiles]) -> list[Markup]:
    """The constraint near the scope: a chart for each of its kinds and units, if there are runs."""
    made = []
    for metric, title, said in (
        ("nll/near", "Kept answers near the scope", ""),
        ("kl/near", "Divergence near the scope", "KL from the base model, "),
    ):
        for unit in dict.fromkeys(map(constraint_unit, runs.values())):
            made.append(overlay(runs, ["c3po"], metric, title, said + unit, constraint=unit))
    return made


def verdict(run: RunFiles) -> tuple[str, str, Duel] | None:
    """(judge, rival, share won) that stands for a run among others; None without a usable judge."""
    for judge in run.evaluation.get("judges") or []:
        for rival, (result, _) in duels_of(judge, contestant_of(run)).items():
            if judge.get("can_judge"):
                return str(judge.get("name", "unnamed")), rival, result
    return None


def unseen(run: RunFiles) -> float | None:
    """Nats per token on texts that were not trained on, as last measured while training."""
    points = [point for stage in run.stages for point in run.points(stage, UNSEEN)]
    return figure(points[-1][1]) if points else None


def _write(target: Path, template: str, **content: Any) -> Path:
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    helpers: list[Callable[..., Any]] = [answers, called, color, column, constraint_unit]
    helpers += [cost_charts, curve, duel, duration, evaluate_command, figure, find, knobs]
    helpers += [method_of, near_charts, overlay, pairs_chart, prompts_ahead, rounds]
    helpers += [sample_command, score_charts, scores_of, train_command, unseen, verdict, win_chart]
    pages.globals.update({helper.__name__: helper for helper in helpers})
    pages.globals.update(UNSEEN=UNSEEN, INTERVAL=INTERVAL, ln2=math.log(2), percent=percent)
    pages.filters.update(shown=shown, number=number, percent=percent, **FORMS)
    page = pages.get_template(template).render(**content)
    replace_whole(target, lambda path: path.write_text(page, encoding="utf-8"))
    return target
