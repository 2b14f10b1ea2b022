"""Which is more like you? A page of pairs of answers, for the person to judge blind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from minialign.commands.cli import OneLineParser, add_flags
from minialign.data.files import replace_whole
from minialign.data.knobs import config_from_flags, knob, require
from minialign.errors import InputError

if TYPE_CHECKING:
    from minialign.evaluation.blind import Blind

DESCRIPTION = "Make a page on which a person says, blind, which of two answers is more like theirs."
FIRST = ("against", "pairs", "person", "serve", "out", "seed")


@dataclass(frozen=True)
class BlindOptions:
    """The flags of `minialign blind`."""

    against: tuple[str, ...] = knob(
        (), "rivals of the run's own answers, as evaluation.json calls them [base, sft if there]"
    )
    pairs: int = knob(40, "pairs on the page at most")
    person: bool = knob(False, "the person's own texts take part too")
    serve: bool = knob(
        False, "serve the page to this machine alone, and save each vote in RUN/votes.jsonl"
    )
    port: int = knob(0, "of --serve; 0: any that is free")
    out: str = knob("", "the page; by default RUN/blind.html")
    seed: int = knob(0, "another one draws other pairs, and other sides")

    def __post_init__(self) -> None:
        require(self.pairs >= 1, f"pairs must be at least 1, not {self.pairs}")
        require(0 <= self.port < 65536, f"port must lie in [0, 65535], not {self.port}")
        require(self.serve or not self.port, "--port needs --serve")
        require(not (self.serve and self.out), "--serve writes no page: leave out --out")


def parse(arguments: list[str]) -> tuple[Path, BlindOptions]:
    parser = OneLineParser("minialign blind", DESCRIPTION, arguments)
    parser.add_argument("run", type=Path, help="run folder", metavar="RUN")
    add_flags(parser, BlindOptions, "options [default]", BlindOptions(), first=FIRST)
    given = parser.parse(arguments)
    return given.pop("run"), config_from_flags(BlindOptions(), given)


def main(arguments: list[str]) -> None:
    folder, options = parse(arguments)
    from minialign.evaluation.blind import make_blind

    blind = make_blind(folder, options.against, options.pairs, options.seed, options.person)
    if options.serve:
        from minialign.commands.serve import serve

        serve(blind, folder / "votes.jsonl", options.port)
        return
    write(blind, folder, Path(options.out) if options.out else folder / "blind.html")


def write(blind: Blind, folder: Path, target: Path) -> None:
    from minialign.evaluation.blind import blind_page
    from minialign.evaluation.report.page import write_report

    page = blind_page(blind)
    try:
        replace_whole(target, lambda path: path.write_text(page, encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror}") from None
    write_report(folder)
    print(f"{len(blind.pairs)} pairs, for any browser, offline too: {target}")
    print(f"then: {blind.command()}")
