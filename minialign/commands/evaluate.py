"""What did it learn? A run and its rivals answer unseen prompts, and are judged."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minialign.commands.cli import OneLineParser, add_flags
from minialign.data.knobs import config_from_flags
from minialign.data.records import DEMONSTRATIONS
from minialign.errors import InputError
from minialign.evaluation.knobs import FEEDBACK_EVALUATION, EvaluateOptions

if TYPE_CHECKING:
    from minialign.evaluation.contest import Contest, Results

DESCRIPTION = "What did it learn? Lets a run and its rivals answer unseen prompts, and judges."
FIRST = (
    *("against", "judges", "test", "n", "others", "judge_model", "judge_url", "compare", "show"),
    "seed",
)
# Flags that only runs on demonstrations have a use for.
FOR_DEMONSTRATIONS = ("against", "others", "general", "show")


def parse(arguments: list[str]) -> tuple[list[Path], dict[str, Any]]:
    """The run folders, and the flags that were given."""
    parser = OneLineParser("evaluate.py", DESCRIPTION, arguments)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders", metavar="RUN")
    add_flags(parser, EvaluateOptions, "options [default]", EvaluateOptions(), first=FIRST)
    given = parser.parse(arguments)
    return given.pop("runs"), given


def main(arguments: list[str]) -> None:
    folders, given = parse(arguments)
    options = config_from_flags(EvaluateOptions(), given)
    if options.compare:
        compare(folders)
        return
    from minialign.training.folder import read_run_record, source_of

    if source_of(read_run_record(folders[0])) != DEMONSTRATIONS:
        check_flags(given)
        evaluate_feedback(folders, config_from_flags(FEEDBACK_EVALUATION, given))
    else:
        evaluate_voice(folders, options)


def check_flags(given: dict[str, Any]) -> None:
    """Raises InputError for flags that only runs on demonstrations have a use for."""
    flags = [f"--{name}" for name in FOR_DEMONSTRATIONS if name in given]
    if flags:
        raise InputError(
            f"{', '.join(flags)}: of no use for a run that learned from feedback: leave out"
        )


def evaluate_voice(folders: list[Path], options: EvaluateOptions) -> None:
    """Runs that learned from demonstrations."""
    from minialign.evaluation.contest import hold_contest, prepare_contest
    from minialign.evaluation.report.page import write_report
    from minialign.evaluation.tables import contest_table, side_by_side

    contest = prepare_contest(folders, options)
    check_writable(folders[0])
    results = hold_contest(contest, options, folders[0] / "judge.jsonl")
    print(contest_table(contest, results))
    print(side_by_side(contest, results, options.show))
    file = write(folders[0], voice_content(contest, results), options)
    print(f"\nall answers and figures: {file}\non one page: {write_report(folders[0])}")


def evaluate_feedback(folders: list[Path], options: EvaluateOptions) -> None:
    """Runs that learned from a sentence of feedback."""
    from minialign.evaluation.feedback_contest import (
        feedback_content,
        feedback_table,
        hold_feedback_contest,
        prepare_feedback_contest,
    )
    from minialign.evaluation.report.page import write_report

    contest = prepare_feedback_contest(folders, options)
    for folder in folders:
        check_writable(folder)
    results = hold_feedback_contest(contest, options, folders[0] / "judge.jsonl")
    print(feedback_table(contest, results))
    content = feedback_content(contest, results)
    for folder in folders:
        file = write(folder, content, options)
        print(f"\nall answers and figures: {file}\non one page: {write_report(folder)}")


def check_writable(folder: Path) -> None:
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: cannot be written to: evaluate a copy that can")


def compare(folders: list[Path]) -> None:
    from minialign.evaluation.report.page import write_comparison

    # `runs/*` names the page of the last comparison too, and folders of sweeps
    others = [f for f in folders if f.exists() and not (f / "config.json").exists()]
    if others and len(others) < len(folders):
        print(f"left out, no runs: {', '.join(map(str, others))}", file=sys.stderr)
        folders = [folder for folder in folders if folder not in others]
    parents = {folder.resolve().parent for folder in folders}
    if len(parents) > 1:
        raise InputError("--compare: the runs lie in different folders: move them into one")
    print(write_comparison(folders, folders[0].parent / "comparison.html"))


def voice_content(contest: Contest, results: Results) -> dict[str, Any]:
    """evaluation.json's own part: the prompts, everybody's figures and answers, the judges."""
    return {
        "prompts": contest.prompts,
        "texts": [d.completion for d in contest.held_out],
        "contestants": {
            name: {
                **figures,
                "answers": [[c.text for c in group] for group in results.answers[name]],
                "finish_reasons": [
                    [c.finish_reason for c in group] for group in results.answers[name]
                ],
            }
            for name, figures in results.figures.items()
        },
        "judges": [dataclasses.asdict(judgement) for judgement in results.judgements],
    }


def write(folder: Path, content: dict[str, Any], options: EvaluateOptions) -> Path:
    """evaluation.json, whole or not at all; a figure that is unknown is null."""
    from minialign.data.files import replace_whole

    file = folder / "evaluation.json"
    command = {
        "command": f"python {shlex.join(sys.argv)}",
        "options": dataclasses.asdict(options),
    }
    text = json.dumps(
        _without_nan(command | content), indent=2, ensure_ascii=False, allow_nan=False
    )
    replace_whole(file, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    return file


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if value != value else value
