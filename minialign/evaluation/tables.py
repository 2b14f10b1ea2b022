"""What evaluate.py prints: figures and win rates as tables, answers side by side."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from minialign.data.records import Demonstration
from minialign.evaluation.contestants import Answers
from minialign.evaluation.judges import APART
from minialign.evaluation.judges.agreement import MIN_JUDGES, agreements
from minialign.evaluation.judges.verdicts import Judgement

# contestant -> name of a figure -> value
Figures = dict[str, dict[str, Any]]
WIDTH = 100
# Title, name of the figure, how it is shown.
ROWS = (
    ("nats per token (lower is better)", "nats_per_token", "{:.3f}"),
    ("tokens an answer", "mean_tokens", "{:.0f}"),
    ("different word pairs", "distinct_2", "{:.0%}"),
    ("repetition within an answer", "repetition", "{:.0%}"),
    ("copied from the demonstrations", "copied", "{:.0%}"),
    ("base's nats per token on the answers", "fluency", "{:.2f}"),
    ("new names an answer", "names", "{:.1f}"),
    ("  longest run of copied words", "longest_copied", "{:.0f}"),
    ("secrets that came out", "secrets", "{:.0f}"),
    ("drift from base (nats per token)", "drift", "{:.3f}"),
)


def contest_table(
    title: str,
    figures: Figures,
    judgements: Sequence[Judgement],
    limit: int = 0,
    person: dict[str, float | None] | None = None,
) -> str:
    """All figures by contestant, then who wins.

    `limit` is the most tokens that an answer could have; `person` holds what the person's own texts
    have of the same figures.
    """
    names = list(figures)
    width = max(10, *(len(name) + 2 for name in names))
    lines = [title, ""]
    lines.append(f"{'':36}" + "".join(f"{name:>{width}}" for name in names))
    ends = f"answers that end within {limit} tokens" if limit else "answers that end by themselves"
    rows = [ROWS[0], *_margin_rows(figures), (ends, "stops", "{:.0%}"), *ROWS[1:]]
    for row, key, form in rows:
        cells = [_cell(figures[name], key, form) for name in names]
        if any(cell != "-" for cell in cells):
            lines.append(f"{row:36}" + "".join(f"{cell:>{width}}" for cell in cells))
    lines += _persons_line(person or {})
    for judgement in judgements:
        lines += ["", *win_table(judgement, names[-1])]
    lines += _together(judgements, names[-1])
    return "\n".join(lines)


def _together(judgements: Sequence[Judgement], asked: str) -> list[str]:
    """Whom the judges that can judge agree on, one by one."""
    verdicts = {
        judgement.name: {
            (win.first, win.second): np.array(outcomes, np.float64)
            for win, outcomes in zip(judgement.wins, judgement.outcomes, strict=True)
        }
        for judgement in judgements
        if judgement.can_judge and judgement.outcomes and judgement.name not in APART
    }
    if len(verdicts) < MIN_JUDGES:
        return []
    lines = ["", f"together ({', '.join(verdicts)})"]
    for (first, second), found in agreements(verdicts).items():
        if first == asked:
            said = f"all prefer {found.winner}" if found.winner else "they do not agree"
            sure = ", each beyond its interval" if found.sure else ""
            lines.append(f"  {first} against {second:24} {said}{sure}")
    return lines


def _persons_line(person: dict[str, float | None]) -> list[str]:
    """What the rows of the same names are to be read next to."""
    forms = {key: (row, form) for row, key, form in ROWS}
    known = {key: value for key, value in person.items() if value is not None}
    said = [f"{forms[key][0]} {forms[key][1].format(value)}" for key, value in known.items()]
    if not said:
        return []
    text = f"the person's own texts: {', '.join(said)}".replace("on the answers", "on them")
    return ["", *textwrap.wrap(text, WIDTH)]


def _margin_rows(figures: Figures) -> list[tuple[str, str, str]]:
    rivals = {rival: None for own in figures.values() for rival in own["margins"]}
    rows = []
    for rival in rivals:
        rows.append((f"reward margin over {rival}'s answers", f"margins/{rival}", "{:+.2f}"))
        rows.append(("  ... positive in", f"positive/{rival}", "{:.0%}"))
    return rows


def _cell(figures: dict[str, Any], key: str, form: str) -> str:
    value: Any = figures
    for part in key.split("/"):
        value = value.get(part) if isinstance(value, dict) else None
    return "-" if value is None else form.format(value)


def win_table(judgement: Judgement, asked: str) -> list[str]:
    """How often the last contestant wins, then everybody's mean."""
    note = textwrap.wrap(judgement.note, WIDTH - 2, break_on_hyphens=False, break_long_words=False)
    lines = [f"win rates, judged by {judgement.name}", *(f"  {line}" for line in note)]
    if not judgement.can_judge:
        return [*lines, "  no win rates: this judge could not judge, see above"]
    for win in judgement.wins:
        if win.first == asked:
            rate = shown_rate(win.rate, win.low, win.high)
            lines.append(f"  {win.first} against {win.second:24} {rate}")
    for name, mean in judgement.mean.items():
        rate = shown_rate(mean.rate, mean.low, mean.high)
        lines.append(f"  {name + ', mean against all others':{34 + len(asked) - 1}} {rate}")
    return lines


def shown_rate(rate: float, low: float, high: float) -> str:
    if math.isnan(rate):
        return "   -   (no usable verdict)"
    if math.isnan(low) or math.isnan(high):
        return f"{rate:4.0%}   (too few prompts for an interval)"
    return f"{rate:4.0%}   (95 % interval {low:.0%} to {high:.0%})"


def side_by_side(
    held_out: Sequence[Demonstration], answers: dict[str, Answers], prompts: int
) -> str:
    """The person's own text and each contestant's first answer, in columns."""
    blocks = []
    for place, demonstration in enumerate(held_out[:prompts]):
        columns = {"the person": demonstration.completion}
        columns |= {name: groups[place][0].text for name, groups in answers.items()}
        width = max(16, WIDTH // len(columns) - 2)
        wrapped = [
            [title[:width], "-" * width, *_wrap(text, width)] for title, text in columns.items()
        ]
        height = max(map(len, wrapped))
        lines = [
            "  ".join(f"{(c[i] if i < len(c) else ''):{width}}" for c in wrapped).rstrip()
            for i in range(height)
        ]
        blocks.append("\n".join(["", f"prompt: {demonstration.prompt}", "", *lines]))
    return "\n".join(blocks)


def _wrap(text: str, width: int) -> list[str]:
    return [
        line for paragraph in text.split("\n") for line in textwrap.wrap(paragraph, width) or [""]
    ]
