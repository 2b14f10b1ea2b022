"""Does it write like them now? Lets a run and its rivals answer unseen prompts, and judges.

python evaluate.py runs/emails
python evaluate.py runs/emails --against base,few-shot,sft,spin --test more_emails.jsonl
python evaluate.py --compare runs/*
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from minialign.cli import OneLineParser, add_flags, config_from_flags, run_main
from minialign.config import EvaluateOptions
from minialign.errors import InputError

if TYPE_CHECKING:
    from minialign.evaluation.contest import Contest, Results


def parse(arguments: list[str]) -> tuple[list[Path], EvaluateOptions]:
    parser = OneLineParser("evaluate.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders", metavar="RUN")
    add_flags(parser, EvaluateOptions, "options [default]", EvaluateOptions())
    given = vars(parser.parse_args(arguments))
    return given.pop("runs"), config_from_flags(EvaluateOptions(), given)


def main() -> None:
    folders, options = parse(sys.argv[1:])
    if options.compare:
        compare(folders)
        return
    from minialign.evaluation.contest import hold_contest, prepare_contest
    from minialign.evaluation.report import write_report
    from minialign.evaluation.tables import contest_table, side_by_side

    contest = prepare_contest(folders, options)
    results = hold_contest(contest, options, folders[0] / "judge.jsonl")
    print(contest_table(contest, results))
    print(side_by_side(contest, results, options.show))
    file = folders[0] / "evaluation.json"
    write(file, contest, results, options)
    print(f"\nall answers and figures: {file}\non one page: {write_report(folders[0])}")


def compare(folders: list[Path]) -> None:
    from minialign.evaluation.report import write_comparison

    parents = {folder.absolute().parent for folder in folders}
    if len(parents) > 1:
        raise InputError("--compare: the runs lie in different folders: move them into one")
    print(write_comparison(folders, folders[0].parent / "comparison.html"))


def write(file: Path, contest: Contest, results: Results, options: EvaluateOptions) -> None:
    """evaluation.json, whole or not at all; a share that is unknown is null."""
    content = {
        "command": f"python {shlex.join(sys.argv)}",
        "options": dataclasses.asdict(options),
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
    text = json.dumps(_without_nan(content), indent=2, ensure_ascii=False, allow_nan=False)
    partial = file.with_name(file.name + ".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    os.replace(partial, file)


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if value != value else value


if __name__ == "__main__":
    run_main("evaluate.py", main)
