"""`train.py` from its flags: which method is meant, and whether one run is asked for or many."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

from minialign.commands.cli import OneLineParser, add_flags, join
from minialign.commands.config_file import flags_in
from minialign.commands.session import prepare, run_job
from minialign.data.knobs import config_from_flags, flags_of, require
from minialign.data.records import DEMONSTRATIONS, EDITS, FEEDBACK
from minialign.methods.cards import CARDS, FLAGS, Card, card_of, method_names
from minialign.training.knobs import TrainOptions, seconds_of

PROGRAM, AUTO = "train.py", "auto"
DESCRIPTION = "Teach a language model one person's way of writing, or one sentence of feedback."
FIRST = (
    *("method", "demos", "data", "feedback", "out", "model", "prompt"),
    *("resume", "overwrite", "inspect"),
)


def main(arguments: list[str]) -> None:
    """One run, those of a sweep, or one for each of several people."""
    files, arguments = several_demos(arguments)
    if not files:
        join()
    options, given = parse(arguments)
    if files:
        from minialign.commands.people import run_people

        run_people(files, options, given)
        return
    if options.model == AUTO and not options.resume:
        from minialign.commands.choose import choose

        options = dataclasses.replace(
            options, model=choose(options, given, seconds_of(options.time_budget))
        )
    if options.sweep and not options.resume:
        from minialign.commands.sweep import run_sweep

        run_sweep(options, given)
        return
    if options.plan:
        from minialign.commands.ahead import memory_plan

        print(memory_plan(options, given))
        return
    from minialign.training import ranks

    # What one finds in a folder another one must not have put there meanwhile.
    with ranks.in_turn():
        job = prepare(options, given)
    run_job(job)


# ---- flags ----


def several_demos(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The files behind --demos, if there are several, and the arguments with the first alone."""
    start = arguments.index("--demos") + 1 if "--demos" in arguments else len(arguments)
    files = list(itertools.takewhile(lambda word: word[:1] != "-", arguments[start:]))
    if len(files) < 2:
        return [], arguments
    return files, [*arguments[: start + 1], *arguments[start + len(files) :]]


def parse(arguments: list[str]) -> tuple[TrainOptions, dict[str, Any]]:
    """The options, and the knobs that were given: which there are depends on the method."""
    card = _peek(arguments)
    parser = OneLineParser(PROGRAM, DESCRIPTION, arguments)
    parser.add_argument("file", nargs="?", default="", help="demonstrations, as --demos")
    add_flags(
        parser,
        TrainOptions,
        "options",
        TrainOptions(),
        first=FIRST,
        helps={"method": _methods_help()},
    )
    add_flags(parser, card.knobs_class, "knobs", card.recipes["laptop"])
    parser.epilog = (
        f"--help-all shows the knobs of {card.title}, each with its value in the laptop recipe "
        "(--recipe paper: the sources' values). Other methods have others: --method NAME "
        "--help-all."
    )
    given = parser.parse(arguments)
    if file := given.pop("file"):
        require(
            "demos" not in parser.typed, f"{file}: --demos names a file already: give one of them"
        )
        given["demos"] = file
    names = {flag.name for flag in flags_of(TrainOptions)}
    options = config_from_flags(TrainOptions(), {k: v for k, v in given.items() if k in names})
    require(
        bool(options.prompt.strip()) or "prompt" not in given,
        "--prompt is empty: give a text, or leave it out",
    )
    knobs = {k: v for k, v in given.items() if k not in names}
    return options, _without_swept(options, knobs, parser.typed) if options.sweep else knobs


def _without_swept(options: TrainOptions, knobs: dict[str, Any], typed: set[str]) -> dict[str, Any]:
    """A sweep's values win over those of --config, as the command line does."""
    from minialign.commands.sweep import grid

    swept = grid(options.sweep)[0]
    return {name: value for name, value in knobs.items() if name in typed or name not in swept}


def _peek(arguments: list[str]) -> Card:
    """Decides from the raw arguments whose knobs are meant, because the flags depend on it.

    A run that goes on is looked up in its record.
    """
    from minialign.training.folder import read_run_record, source_of

    peek = OneLineParser(PROGRAM, DESCRIPTION)
    flags = ("--method", "--data", "--votes", "--edits", "--feedback")
    for name in (*flags, "--resume", "--continue", "--config"):
        peek.add_argument(name, default="")
    found, _ = peek.parse_known_args(
        [a for a in arguments if a not in ("-h", "--help", "--help-all")]
    )
    seen = {name: value for name, value in vars(found).items() if value}
    if "config" in seen:
        seen = flags_in(Path(seen["config"]), seen) | seen
    if before := seen.get("resume") or seen.get("continue"):
        record = read_run_record(before)
        return card_of(record["options"].get("method", ""), source_of(record))
    fed = any(seen.get(name) for name in ("data", "votes", "feedback"))
    source = FEEDBACK if fed else DEMONSTRATIONS
    source = EDITS if seen.get(FLAGS[EDITS].removeprefix("--")) else source
    named = [card for card in CARDS if card.name == seen.get("method")]
    fitting = [card for card in named if source in card.learns_from]
    return (fitting or named or [card_of(str(seen.get("method", "")), source)])[0]


def _methods_help() -> str:
    """The methods by what they learn from, each with a few words."""
    parts = []
    for source, flag in ((DEMONSTRATIONS, "--demos"), (FEEDBACK, "--data"), (EDITS, "--edits")):
        cards = [card_of(name, source) for name in method_names(source)]
        listed = ", ".join(f"{card.name} ({card.help})" for card in cards)
        parts.append(f"from {flag}: {listed}")
    return "; ".join(parts) + "; by default the first one"
