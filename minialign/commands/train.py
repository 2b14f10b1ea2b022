"""`train.py` from its flags: which method is meant, and whether one run is asked for or many."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from minialign.commands.cli import OneLineParser, add_flags
from minialign.commands.config_file import flags_in
from minialign.commands.session import prepare, run_job
from minialign.data.knobs import config_from_flags, require
from minialign.data.records import DEMONSTRATIONS, EDITS, FEEDBACK
from minialign.methods.cards import CARDS, FLAGS, Card, card_of, method_names
from minialign.training.knobs import TrainOptions

PROGRAM, AUTO = "train.py", "auto"
DESCRIPTION = "Teach a language model one person's way of writing, or one sentence of feedback."
FIRST = (
    *("method", "demos", "data", "feedback", "out", "model", "prompt"),
    *("resume", "overwrite", "inspect"),
)


def main(arguments: list[str]) -> None:
    """One run, or those of a sweep."""
    options, given = parse(arguments)
    if options.model == AUTO and not options.resume:
        from minialign.commands.choose import choose

        options = dataclasses.replace(options, model=choose(options, given))
    if options.sweep and not options.resume:
        from minialign.commands.sweep import run_sweep

        run_sweep(options, given)
        return
    if options.plan:
        from minialign.commands.ahead import memory_plan

        print(memory_plan(options, given))
        return
    run_job(prepare(options, given))


# ---- flags ----


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
    names = TrainOptions.__dataclass_fields__
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

    A resumed run is looked up in its record.
    """
    from minialign.training.folder import read_run_record, source_of

    peek = OneLineParser(PROGRAM, DESCRIPTION)
    for name in ("--method", "--data", "--votes", "--edits", "--feedback", "--resume", "--config"):
        peek.add_argument(name, default="")
    found, _ = peek.parse_known_args(
        [a for a in arguments if a not in ("-h", "--help", "--help-all")]
    )
    seen = {name: value for name, value in vars(found).items() if value}
    if "config" in seen:
        seen = flags_in(Path(seen["config"]), seen) | seen
    if "resume" in seen:
        record = read_run_record(seen["resume"])
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
