"""What did it learn? A run and its rivals answer unseen prompts, and are judged."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
import textwrap
from pathlib import Path
from typing import Any

from minialign.commands.cli import OneLineParser, add_flags, join
from minialign.data.knobs import config_from_flags
from minialign.errors import InputError
from minialign.evaluation.judges import judges_help
from minialign.evaluation.knobs import EvaluateOptions

WIDTH = 100
DESCRIPTION = "What did it learn? Lets a run and its rivals answer unseen prompts, and judges."
FIRST = (
    *("against", "judges", "test", "n", "others", "judge_model", "judge_url", "compare"),
    *("show", "seed"),
)


def parse(arguments: list[str]) -> tuple[list[Path], dict[str, Any]]:
    """The run folders, and the flags that were given."""
    parser = OneLineParser("evaluate.py", DESCRIPTION, arguments)
    parser.add_argument("runs", type=Path, nargs="+", help="run folders", metavar="RUN")
    helps = {"judges": f"who judges: {judges_help()}"}
    add_flags(parser, EvaluateOptions, "options", EvaluateOptions(), first=FIRST, helps=helps)
    given = parser.parse(arguments)
    return given.pop("runs"), given


def main(arguments: list[str]) -> None:
    join()
    folders, given = parse(arguments)
    if config_from_flags(EvaluateOptions(), given).compare:
        compare(folders)
        return
    from minialign.evaluation.contest import hold, measure_of, prepare
    from minialign.evaluation.report.card import write_card
    from minialign.evaluation.report.page import write_report

    measure = measure_of(folders[0])
    check_flags(given, measure.useless)
    options = config_from_flags(measure.usual, given)
    known = len(folders) == 1 and (folders[0] / "evaluation.json").exists()
    if known and given.keys() == {"votes"}:
        add_votes(folders[0], options.votes)
        return
    contest = prepare(folders, options)
    places = folders if measure.everywhere else folders[:1]
    for folder in places:
        check_writable(folder)
    results = hold(contest, options, folders[0] / "judge.jsonl")
    content, agreed = results.content(), ""
    if options.votes:
        content, agreed = with_agreed(content, options.votes)
    files = [write(folder, content, options) for folder in places]
    print("\n\n".join(map(verdict, places)), end="\n\n")
    print(results.table(options.show) + agreed)
    for folder, file in zip(places, files, strict=True):
        write_card(folder, folder / "adapter")
        print(f"\nall answers and figures: {file}\non one page: {write_report(folder)}")


def verdict(folder: Path) -> str:
    """The report's first sentences, for the terminal."""
    from minialign.evaluation.report.findings import find
    from minialign.evaluation.report.run_files import read_run

    finding = find(read_run(folder))
    text = f"{finding.sentence} {finding.more}".replace("\u00a0", " ")
    return "\n".join(textwrap.wrap(text, WIDTH))


def check_flags(given: dict[str, Any], useless: tuple[str, ...]) -> None:
    """Raises InputError for flags that the runs' measure has no use for."""
    if flags := [f"--{name}" for name in useless if name in given]:
        raise InputError(
            f"{', '.join(flags)}: of no use for a run that learned from feedback: leave out"
        )


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


def add_votes(folder: Path, file: str) -> None:
    """A person's votes, as one more judge of a run that was evaluated before."""
    from minialign.data.files import read_json
    from minialign.data.votes import read_votes
    from minialign.evaluation.report.duels import contestant_of
    from minialign.evaluation.report.page import write_report
    from minialign.evaluation.report.run_files import read_run
    from minialign.evaluation.tables import win_table
    from minialign.evaluation.voted import judged_by, with_judgement

    check_writable(folder)
    judgement, asked = judged_by(read_votes(file), contestant_of(read_run(folder)))
    print("\n".join(win_table(judgement, asked)))
    evaluation, agreed = with_agreed(
        with_judgement(read_json(folder / "evaluation.json"), judgement), file
    )
    print(agreed)
    write_json(folder, evaluation)
    print(f"\non one page: {write_report(folder)}")


def with_agreed(evaluation: dict[str, Any], file: str) -> tuple[dict[str, Any], str]:
    """The evaluation with how far the other judges agree with the votes, and that as text."""
    from minialign.data.votes import read_votes
    from minialign.evaluation.voted import with_agreement

    evaluation, lines = with_agreement(evaluation, read_votes(file))
    lines = lines or ["unknown: no judge compared these answers"]
    title = "\nagreement with the votes (half is chance)"
    return evaluation, "\n".join([title, *(f"  {line}" for line in lines)])


def write(folder: Path, content: dict[str, Any], options: EvaluateOptions) -> Path:
    """evaluation.json, with the command that made it."""
    command = {
        "command": f"python {shlex.join(sys.argv)}",
        "options": dataclasses.asdict(options),
    }
    return write_json(folder, command | content)


def write_json(folder: Path, evaluation: dict[str, Any]) -> Path:
    """Whole or not at all; a figure that is unknown is null."""
    from minialign.data.files import replace_whole

    file = folder / "evaluation.json"
    text = json.dumps(_without_nan(evaluation), indent=2, ensure_ascii=False, allow_nan=False)
    replace_whole(file, lambda path: path.write_text(text + "\n", encoding="utf-8"))
    return file


def _without_nan(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if value != value else value
