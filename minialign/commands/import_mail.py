"""`minialign import PATH --out mine.jsonl`: from a mailbox, or whatever a person has, to
demonstrations.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from minialign.commands.cli import OneLineParser, add_flags
from minialign.data.demonstrate import JUDGED, LEARNED, Told, demonstrations, told
from minialign.data.files import replace_whole
from minialign.data.formats import JSON_LINES, kind_of_file, refused_kind
from minialign.data.knobs import config_from_flags, knob, require
from minialign.data.mailbox import head_of
from minialign.data.records import plural
from minialign.data.scrub import GROUPS, Scrubber
from minialign.data.writings import COLUMNS, check_readable, owners, read_writings
from minialign.errors import InputError

if TYPE_CHECKING:
    from minialign.feedback.teacher import Teacher

PROGRAM = "minialign import"
DESCRIPTION = "Make demonstrations of a mailbox (.mbox, .eml, Maildir), of texts, or of a table."
FIRST = ("out", "me", "pick", "scrub", "instructions", "list_drops", "overwrite")
MADE = "data"


@dataclass(frozen=True)
class ImportOptions:
    """The flags of `minialign import`, after the path."""

    out: str = knob("", "the file of demonstrations, JSON Lines; by default NAME.jsonl of PATH")
    me: tuple[str, ...] = knob((), "the person's addresses; by default guessed, and asked for")
    pick: int = knob(8, "texts to learn from: typical ones, spread over topics and lengths")
    hold_out: int = knob(12, "texts to judge by, picked likewise; all others are kept as spare")
    min_words: int = knob(20, "shorter texts are left out")
    columns: tuple[str, ...] = knob(
        (), f"of a table: ROLE=NAME, where ROLE is one of {', '.join(COLUMNS)}"
    )
    scrub: tuple[str, ...] = knob(
        tuple(GROUPS), f"what is replaced, of {', '.join(GROUPS)}; or none"
    )
    instructions: Literal["template", "model", "teacher"] = knob(
        "template",
        "who writes what each text answers: a template, from the subject and the greeting; a local "
        "model (--model) or an endpoint (--teacher-url), which read the text",
    )
    model: str = knob("", "the model that writes instructions; by default the small one")
    teacher_url: str = knob(
        "", "an OpenAI-compatible endpoint; its key is taken from MINIALIGN_API_KEY"
    )
    teacher_model: str = knob("", "the model's name at --teacher-url")
    list_drops: bool = knob(False, "list what was left out, each with its reason")
    overwrite: bool = knob(False, "replace the file that --out names")

    def __post_init__(self) -> None:
        require(self.pick >= 1, f"pick must be at least 1, not {self.pick}")
        require(self.hold_out >= 0, f"hold_out must not be negative, not {self.hold_out}")
        require(self.min_words >= 1, f"min_words must be at least 1, not {self.min_words}")
        for group in self.scrub:
            known = (*GROUPS, "none")
            require(group in known, f"scrub: {group!r} is not one of {', '.join(known)}")
        for column in self.columns:
            role, _, name = column.partition("=")
            wanted = f"ROLE=NAME, ROLE one of {', '.join(COLUMNS)}"
            require(role in COLUMNS and bool(name), f"columns: {column!r} is not {wanted}")
        by_teacher = self.instructions == "teacher"
        both = bool(self.teacher_url) and bool(self.teacher_model)
        require(
            both if by_teacher else not (self.teacher_url or self.teacher_model),
            "--instructions teacher, --teacher-url and --teacher-model need each other",
        )
        require(
            not self.model or self.instructions == "model", "--model needs --instructions model"
        )


def parse(arguments: list[str]) -> tuple[str, ImportOptions]:
    parser = OneLineParser(PROGRAM, DESCRIPTION, arguments)
    parser.add_argument("path", help="a file or folder", metavar="PATH")
    add_flags(parser, ImportOptions, "options [default]", ImportOptions(), first=FIRST)
    given = parser.parse(arguments)
    path = given.pop("path")
    return path, config_from_flags(ImportOptions(), given)


def main(arguments: list[str]) -> None:
    path, options = parse(arguments)
    out = Path(options.out or f"{Path(path).stem}.jsonl")
    require(options.overwrite or not out.exists(), f"{out}: is there already: add --overwrite")
    make(Path(path), out, options)
    print(f"next: python train.py --demos {shlex.quote(str(out))}")


def make(path: Path, out: Path, options: ImportOptions) -> None:
    """Reads, scrubs, picks and writes `out`, whole or not at all; says what was done."""
    check_readable(path)
    require(out.resolve() != path.resolve(), f"{out}: would replace what is read: choose --out")
    me = options.me or _asked_owner(path)
    columns = dict(column.split("=", 1) for column in options.columns)
    with _bar("reading", "message") as bar:
        found = read_writings(path, me, columns, options.min_words, bar.update)
    if options.list_drops:
        print("\n".join(f"{drop.source}: {drop.reason}" for drop in found.dropped))
    reasons = Counter(drop.reason for drop in found.dropped).most_common()
    if not found.texts:
        why = ", ".join(f"{count:,} {reason}" for reason, count in reasons[:4])
        raise InputError(f"{path}: no text can be used: {why} (all of them: --list-drops)")
    print(f"{path}: {plural(len(found.texts), 'text')} of yours can be used")
    for reason, count in reasons:
        print(f"  left out  {count:6,} {reason}")
    scrubber = Scrubber(tuple(g for g in options.scrub if g != "none"), found.own_names)
    everything = [told(written, scrubber) for written in found.texts]
    for row in scrubber.table():
        print(f"  replaced  {row}")
    lines = demonstrations(
        everything, options.pick, options.hold_out, lambda told: _instructions(told, options, out)
    )
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    _write(out, text)
    splits = Counter(line["split"] for line in lines)
    spare = f", {splits['spare']:,} spare" if splits["spare"] else ""
    print(
        f"{out}: {splits[LEARNED]} to learn from, {splits[JUDGED]} to judge by{spare}; read it "
        "before you train: what a program does not know as private is still in it"
    )


def _write(out: Path, text: str) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        replace_whole(out, lambda file: file.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror}") from None


def _bar(title: str, unit: str, total: int | None = None) -> Any:
    """A bar that is quiet in a pipe."""
    from tqdm import tqdm

    quiet = not sys.stderr.isatty()
    return tqdm(desc=title, unit=unit, total=total, leave=False, dynamic_ncols=True, disable=quiet)


# ---- whose ----


def _asked_owner(path: Path) -> tuple[str, ...]:
    """The person's address, guessed; asked for where somebody is there to answer.

    Raises InputError where it cannot be guessed and nobody is there. Texts have no owner.
    """
    likely, sure = owners(path)
    if not likely:
        return ()
    listed = ", ".join(likely[:3])
    if sys.stdin.isatty():
        answer = input(f"whose texts? [{likely[0]}; also likely: {listed}] ").strip()
        return tuple(part.strip() for part in answer.split(",")) if answer else (likely[0],)
    if not sure:
        raise InputError(f"{path}: whose texts? give --me ADDRESS, perhaps one of {listed}")
    print(f"the texts of {likely[0]} (guessed; another: --me ADDRESS)")
    return (likely[0],)


# ---- instructions ----


def _instructions(texts: Sequence[Told], options: ImportOptions, out: Path) -> list[str]:
    """What each text answers; the template's where the model's answer cannot be used."""
    by_template = [one.messages[-1]["content"] for one in texts]
    if options.instructions == "template" or not texts:
        return by_template
    from minialign.feedback.playback import playback
    from minialign.feedback.teacher import Cached

    teacher = Cached(_teacher(options), out.with_suffix(".instructions.jsonl"))
    with _bar("instructions", "text", len(texts)) as bar:
        written = playback([one.text for one in texts], teacher, lambda *_: bar.update())
    unusable = sum(one is None for one in written)
    if unusable:
        print(f"{unusable} of {len(texts)} instructions were unusable: the template's instead")
    return [one or other for one, other in zip(written, by_template, strict=True)]


def _teacher(options: ImportOptions) -> Teacher:
    if options.instructions == "teacher":
        from minialign.feedback.endpoint import EndpointTeacher

        endpoint = EndpointTeacher(options.teacher_url, options.teacher_model)
        endpoint.check()
        return endpoint
    from minialign.feedback.local_teacher import LocalTeacher
    from minialign.weights.find import DEFAULT_MODEL
    from minialign.weights.load import load

    name = options.model or DEFAULT_MODEL
    return LocalTeacher(*load(name), name)


# ---- train.py --demos MAILBOX ----


def is_to_import(path: Path) -> bool:
    """Whether `--demos` names something else than JSON Lines, which has to be imported first."""
    if not path.exists():
        return False
    if path.is_dir():
        return True
    head, ending = head_of(path), path.suffix.lower()
    if refused_kind(head, ending):
        check_readable(path)
    kind = kind_of_file(head, ending)
    return kind != JSON_LINES and ending != ".jsonl" and bool(head.strip())


def imported(demos: str, out: str) -> tuple[str, str]:
    """The demonstrations made of `--demos`, once, then taken as they are; and the run's folder."""
    path = Path(demos)
    name = path.resolve().stem if path.is_file() else path.resolve().name
    file = Path(MADE) / f"{name}.jsonl"
    if file.exists():
        print(f"{file}: made of {path} before, and taken as it is; to make it anew, delete it")
    else:
        make(path, file, dataclasses.replace(ImportOptions(), out=str(file)))
    return str(file), out or str(Path("runs") / name)
