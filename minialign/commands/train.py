"""`train.py` from its flags: which method is meant, and whether one run is asked for or many."""

from __future__ import annotations

from typing import Any

from minialign.commands.cli import OneLineParser, add_flags
from minialign.commands.session import prepare, run_job
from minialign.data.knobs import config_from_flags, require
from minialign.data.records import DEMONSTRATIONS, FEEDBACK
from minialign.methods.cards import CARDS, Card, card_of, method_names
from minialign.training.knobs import TrainOptions

PROGRAM = "train.py"
DESCRIPTION = "Teach a language model one person's way of writing, or one sentence of feedback."
FIRST = (
    *("method", "demos", "data", "votes", "feedback", "out", "model", "prompt"),
    *("resume", "overwrite", "inspect"),
)


def main(arguments: list[str]) -> None:
    """One run, or those of a sweep."""
    options, given = parse(arguments)
    if options.sweep and not options.resume:
        from minialign.commands.sweep import run_sweep

        run_sweep(options, given)
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
        "options [default]",
        TrainOptions(),
        first=FIRST,
        helps={"method": _methods_help()},
    )
    title = f"knobs of {card.title} [laptop recipe]; --recipe paper has the sources' values"
    add_flags(parser, card.knobs_class, title, card.recipes["laptop"])
    parser.epilog = "Each method has knobs of its own: --method NAME --help-all shows them."
    given = parser.parse(arguments)
    if file := given.pop("file"):
        require("demos" not in given, f"{file}: --demos names a file already: give one of them")
        given["demos"] = file
    names = TrainOptions.__dataclass_fields__
    options = config_from_flags(TrainOptions(), {k: v for k, v in given.items() if k in names})
    require(
        bool(options.prompt.strip()) or "prompt" not in given,
        "--prompt is empty: give a text, or leave it out",
    )
    return options, {k: v for k, v in given.items() if k not in names}


def _peek(arguments: list[str]) -> Card:
    """Decides from the raw arguments whose knobs are meant, because the flags depend on it.

    A resumed run is looked up in its record.
    """
    from minialign.training.folder import read_run_record, source_of

    peek = OneLineParser(PROGRAM, DESCRIPTION)
    for name in ("--method", "--data", "--votes", "--feedback", "--resume"):
        peek.add_argument(name, default="")
    seen, _ = peek.parse_known_args(
        [a for a in arguments if a not in ("-h", "--help", "--help-all")]
    )
    if seen.resume:
        record = read_run_record(seen.resume)
        return card_of(record["options"].get("method", ""), source_of(record))
    source = FEEDBACK if seen.data or seen.votes or seen.feedback else DEMONSTRATIONS
    named = [card for card in CARDS if card.name == seen.method]
    fitting = [card for card in named if source in card.learns_from]
    return (fitting or named or [card_of(seen.method, source)])[0]


def _methods_help() -> str:
    """The methods by what they learn from, each with a few words."""
    parts = []
    for source, flag in ((DEMONSTRATIONS, "--demos"), (FEEDBACK, "--data")):
        cards = [card_of(name, source) for name in method_names(source)]
        listed = ", ".join(f"{card.name} ({card.help})" for card in cards)
        parts.append(f"from {flag}: {listed}")
    return "; ".join(parts) + "; by default the first one"
