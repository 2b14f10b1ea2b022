"""What a person wrote, from whatever they have: mailboxes, texts, tables, other tools' files.

`read_writings` reads everything and says why it left out what it left out.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minialign.data.alike import near_duplicates
from minialign.data.files import read_bytes, read_jsonl
from minialign.data.formats import (
    CSV,
    JSON_LINES,
    JSON_LIST,
    MAIL,
    MBOX,
    kind_of_file,
    refused_kind,
)
from minialign.data.mail import REPLY, Dropped, Envelope, Written, envelope_of, guess_me, read_mail
from minialign.data.mailbox import files_below, head_of, mail_file, mbox_messages
from minialign.data.records import TEXT_KEYS, parse_demonstration
from minialign.errors import InputError

# The names that a table's columns, or an object's fields, may have.
COLUMNS = {
    "text": TEXT_KEYS,
    "subject": ("subject", "title", "topic"),
    "to": ("to", "recipient", "addressee"),
    "prompt": ("prompt", "instruction", "question"),
    "completion": ("completion", "output", "response", "answer"),
}
LARGEST_TABLE = 200_000_000
# Spaces of one line alone: a search over thousands of empty ones would take very long.
BETWEEN_TEXTS = re.compile(r"^[^\S\n]*(?:-{3,}|\*{3,}|={3,})[^\S\n]*$", re.M)


@dataclass
class Writings:
    """What was read, what was left out and why, and how many messages there were."""

    texts: list[Written] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    me: tuple[str, ...] = ()
    own_names: frozenset[str] = frozenset()

    def add(self, found: Written | Dropped) -> None:
        if isinstance(found, Written):
            self.texts.append(found)
        else:
            self.dropped.append(found)


@dataclass(frozen=True)
class Message:
    """A message's raw bytes and where they are from."""

    source: str
    raw: bytes


def messages_of(path: Path) -> Iterator[Message]:
    """Every message of a mailbox, a mail file, or a folder of them."""
    for file in files_below(path) if path.is_dir() else [path]:
        kind = _kind(file)
        name = file.name if path.is_file() else str(file.relative_to(path))
        if kind == MBOX:
            for number, raw in enumerate(mbox_messages(file), start=1):
                yield Message(f"{name}, message {number}", raw)
        elif kind == MAIL:
            yield Message(name, mail_file(file))


def _kind(file: Path) -> str:
    """Raises InputError for what cannot be read; "" for what is never read."""
    head = head_of(file)
    return (
        "" if refused_kind(head, file.suffix.lower()) else kind_of_file(head, file.suffix.lower())
    )


def check_readable(path: Path) -> None:
    """Raises InputError, which names what it is, for a path that nothing here reads."""
    if path.is_dir():
        return
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    head = head_of(path)
    if refused := refused_kind(head, path.suffix.lower()):
        raise InputError(f"{path}: {refused[0]}: {refused[1]}")
    if not head.strip():
        raise InputError(f"{path}: the file is empty")


def envelopes(path: Path) -> list[Envelope]:
    return [e for m in messages_of(path) if (e := envelope_of(m.raw)) is not None]


def owners(path: Path) -> tuple[list[str], bool]:
    """The addresses that may be the person's, and whether there is little doubt; none of texts."""
    return guess_me(envelopes(path))


def read_writings(
    path: Path,
    me: Sequence[str],
    columns: dict[str, str],
    min_words: int,
    seen: Callable[[], object] = lambda: None,
) -> Writings:
    """All texts of at least `min_words` words, without near-duplicates.

    `me` are the person's addresses; `seen` is called for each message that was read. Raises
    InputError where nothing can be read.
    """
    check_readable(path)
    found = Writings(me=tuple(address.lower() for address in me))
    own_names: set[str] = set()
    for message in _each_mail(path, found):
        envelope = envelope_of(message.raw)
        if envelope and envelope.sender in found.me:
            own_names.update(re.findall(r"[^\W\d_]{2,}", envelope.sender_name))
        found.add(read_mail(message.raw, message.source, frozenset(found.me)))
        seen()
    for written in _each_text(path, found, columns):
        found.add(written)
    found.own_names = frozenset(own_names)
    if not found.texts and not found.dropped:
        raise InputError(f"{path}: holds no mail and no text")
    _drop_short(found, min_words)
    _drop_repeated(found)
    return found


def _each_mail(path: Path, found: Writings) -> Iterator[Message]:
    try:
        yield from messages_of(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def _each_text(path: Path, found: Writings, columns: dict[str, str]) -> Iterator[Written]:
    """The texts that are no mail; what is not read at all is noted in `found`."""
    for file in files_below(path) if path.is_dir() else [path]:
        kind = _kind(file)
        name = file.name if path.is_file() else str(file.relative_to(path))
        if not kind:
            what, _ = refused_kind(head_of(file), file.suffix.lower()) or ("", "")
            found.dropped.append(Dropped(name, f"not read: {what}"))
        elif kind not in (MBOX, MAIL):
            try:
                yield from _of_kind(kind, file, name, columns)
            except InputError as error:
                # One bad file of many is no reason to stop.
                if not path.is_dir():
                    raise
                found.dropped.append(Dropped(name, f"not read: {_reason(error, file)}"))


def _reason(error: InputError, file: Path) -> str:
    """What is wrong, without the line that it is in: many files may have the same fault."""
    return re.sub(r"^.*?(, (line|entry) \d+)?: ", "", str(error).replace(str(file), file.name))


def _of_kind(kind: str, file: Path, name: str, columns: dict[str, str]) -> Iterator[Written]:
    if kind == CSV:
        yield from _rows(file, name, columns)
    elif kind == JSON_LINES:
        for number, record in read_jsonl(file):
            yield _from_record(record, f"{name}, line {number}", columns)
    elif kind == JSON_LIST:
        yield from _entries(file, name, columns)
    else:
        yield from _texts(file, name)


def text_of(file: Path) -> str:
    """UTF-8, UTF-16 that says so, or else Windows' own."""
    raw = read_bytes(file, LARGEST_TABLE)
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16", errors="replace")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="replace")


def _texts(file: Path, name: str) -> Iterator[Written]:
    """A text file; several texts have a line of --- between them."""
    parts = [p.strip() for p in BETWEEN_TEXTS.split(text_of(file).replace("\r\n", "\n"))]
    parts = [part for part in parts if part]
    for number, part in enumerate(parts, start=1):
        title = re.match(r"(?:#+|subject:)[ \t]*(.{1,200})\n", part, re.I)
        source = name if len(parts) == 1 else f"{name}, text {number}"
        text = part[title.end() :].strip() if title else part
        stem = re.sub(r"[_-]+", " ", file.stem) if len(parts) == 1 else ""
        yield Written(source, text, subject=title[1].strip() if title else stem, mail=False)


def _rows(file: Path, name: str, columns: dict[str, str]) -> Iterator[Written]:
    text = text_of(file)
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    csv.field_size_limit(10_000_000)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for row in reader:
            record = {key.strip(): value for key, value in row.items() if key and value}
            yield _from_record(record, f"{name}, line {reader.line_num}", columns)
    except csv.Error as error:
        raise InputError(f"{file}, line {reader.line_num}: not a CSV table: {error}") from None


def _entries(file: Path, name: str, columns: dict[str, str]) -> Iterator[Written]:
    try:
        found = json.loads(text_of(file))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not valid JSON: {error}") from None
    for number, record in enumerate(found, start=1):
        if not isinstance(record, dict):
            raise InputError(f"{file}, entry {number}: expected a JSON object")
        yield _from_record(record, f"{name}, entry {number}", columns)


def _from_record(record: dict[str, Any], source: str, columns: dict[str, str]) -> Written:
    """A demonstration in any known form, or a text with perhaps its subject and addressee."""
    known = {key.lower(): key for key in record}

    def value(role: str) -> str:
        names = [columns[role]] if role in columns else [known.get(n, "") for n in COLUMNS[role]]
        return next((str(record[n]) for n in names if record.get(n)), "")

    prompt, text = value("prompt"), value("completion") or value("text")
    if prompt and not isinstance(record.get("input"), str):
        asked = ({"role": "user", "content": prompt},)
        return Written(source, text.strip(), messages=asked, mail=False)
    if {"instruction", "conversations", "messages"} & record.keys():
        demonstration = parse_demonstration(record, source)
        messages = tuple(demonstration.messages)
        return Written(source, demonstration.completion, messages=messages, mail=False)
    if not text:
        raise InputError(
            f"{source}: no column holds the text, among {', '.join(map(repr, record))}: "
            "name it with --columns text=NAME"
        )
    subject, to = value("subject"), value("to")
    return Written(
        source,
        text.strip(),
        subject=REPLY.sub("", subject),
        names=() if "@" in to else (to,),
        reply=bool(REPLY.match(subject)),
    )


def _drop_short(found: Writings, min_words: int) -> None:
    kept = []
    for written in found.texts:
        if len(written.text.split()) >= min_words:
            kept.append(written)
        else:
            found.dropped.append(Dropped(written.source, f"fewer than {min_words} words"))
    found.texts = kept


def _drop_repeated(found: Writings) -> None:
    repeated = near_duplicates([written.text for written in found.texts])
    for place in repeated:
        found.dropped.append(Dropped(found.texts[place].source, "nearly the same as another"))
    found.texts = [w for place, w in enumerate(found.texts) if place not in repeated]
