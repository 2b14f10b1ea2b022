"""report.html: the page that a run leaves behind, made from the files in its folder alone.

One file that needs nothing else: no script, no font, no address. Whatever the folder lacks is left
out. All figures are the files' own, and the sentence at the top says no more than they do. The
templates decide what is shown and in which words; of a method, its card says what they are.
`write_comparison` puts many runs on one page.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minialign.evaluation.report.answers import answers, copies_of, in_scopes, mark_copied, rounds
from minialign.evaluation.report.comparison import write_comparison
from minialign.evaluation.report.curves import pairs_caption, pairs_chart, stage_curves
from minialign.evaluation.report.duels import duel
from minialign.evaluation.report.findings import find, notes
from minialign.evaluation.report.labels import color
from minialign.evaluation.report.parts import (
    column,
    cost_charts,
    duration,
    prompts_ahead,
    score_charts,
    win_chart,
)
from minialign.evaluation.report.render import write_page
from minialign.evaluation.report.run_files import (
    evaluate_command,
    figure,
    knobs,
    read_run,
    sample_command,
    train_command,
)
from minialign.evaluation.report.scores import method_of, scores_of

__all__ = ["write_comparison", "write_report"]
HELPERS: list[Callable[..., Any]] = [
    *(answers, color, column, cost_charts, duel, duration, evaluate_command, figure, find, knobs),
    *(method_of, pairs_caption, pairs_chart, prompts_ahead, rounds, sample_command, score_charts),
    *(scores_of, stage_curves, train_command, win_chart, copies_of, mark_copied, notes),
]


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
    return write_page(
        run.folder / "report.html",
        "report.html.jinja",
        HELPERS,
        run=run,
        scopes=scopes,
        sections=there,
    )
