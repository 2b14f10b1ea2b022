"""comparison.html: many runs on one page, made from the files in their folders alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from minialign.errors import InputError
from minialign.evaluation.report.curves import overlays, unseen
from minialign.evaluation.report.duels import Duel, contestant_of, duels_of
from minialign.evaluation.report.parts import duration
from minialign.evaluation.report.render import write_page
from minialign.evaluation.report.run_files import RunFiles, knobs, read_run, readable
from minialign.evaluation.report.scores import method_of, scores_of


def write_comparison(folders: Sequence[Path], target: Path) -> Path:
    """Writes one page about many runs to `target`, whole or not at all, and returns its path.

    Raises InputError where a folder is not a run's, or a file in it is broken.
    """
    runs = [read_run(folder) for folder in dict.fromkeys(map(Path, folders))]
    if not runs:
        raise InputError(f"{target}: there are no runs to compare: name at least one run folder")
    names = [run.name for run in runs]
    labels = [run.name if names.count(run.name) == 1 else readable(str(run.folder)) for run in runs]
    named = dict(zip(labels, runs, strict=True))
    settings = [knobs(run) for run in runs]
    differing = [
        name
        for name in dict.fromkeys(name for own in settings for name in own)
        if name != "method" and len({repr(own.get(name)) for own in settings}) > 1
    ]
    return write_page(
        Path(target),
        "comparison.html.jinja",
        HELPERS,
        runs=named,
        settings=settings,
        differing=differing,
        drawn=overlays(named),
    )


def verdict(run: RunFiles) -> tuple[str, str, Duel] | None:
    """(judge, rival, share won) that stands for a run among others; None without a usable judge."""
    for judge in run.evaluation.get("judges") or []:
        for rival, (result, _) in duels_of(judge, contestant_of(run)).items():
            if judge.get("can_judge"):
                return str(judge.get("name", "unnamed")), rival, result
    return None


HELPERS: list[Callable[..., Any]] = [duration, method_of, scores_of, unseen, verdict]
