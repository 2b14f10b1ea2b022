"""What a file is, told by its first bytes and its name: what is not read is at least named."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

MBOX, MAIL, CSV, JSON_LIST, JSON_LINES, TEXT = "mbox", "mail", "CSV", "JSON list", "JSONL", "text"
HEAD = 8192
# What these are to a person, where something else was wanted.
NAMES = {
    MBOX: "a mailbox (mbox)",
    MAIL: "an e-mail",
    CSV: "a CSV table",
    JSON_LIST: "one JSON list",
    JSON_LINES: "JSON Lines",
    TEXT: "plain text",
}
AS_TEXT = "save its text as .txt"
AS_MAIL = "export it as .mbox or as .eml files, with Thunderbird for instance"
UNPACK = "unpack it and name what is in it"
# First bytes, a name to a person, and what to do with it.
REFUSED = (
    (b"%PDF", "a PDF", AS_TEXT),
    (b"{\\rtf", "a rich text document (RTF)", AS_TEXT),
    (b"\x1f\x8b", "a gzip archive", UNPACK),
    (b"7z\xbc\xaf", "a 7z archive", UNPACK),
    (b"Rar!", "a RAR archive", UNPACK),
    (b"!BDN", "an Outlook folder (.pst)", AS_MAIL),
    (b"\x89PNG", "a picture", AS_TEXT),
    (b"\xff\xd8\xff", "a picture", AS_TEXT),
    (b"GIF8", "a picture", AS_TEXT),
    (b"SQLite format 3", "an SQLite database", AS_TEXT),
    (b"GGUF", "a model (GGUF)", "that is --model's"),
)
# What a zip archive or an OLE file is, its name's ending tells.
BY_ENDING = {
    ".docx": ("a Word document (.docx)", AS_TEXT),
    ".doc": ("a Word document (.doc)", AS_TEXT),
    ".odt": ("an OpenDocument text (.odt)", AS_TEXT),
    ".xlsx": ("an Excel table (.xlsx)", "save it as .csv"),
    ".xls": ("an Excel table (.xls)", "save it as .csv"),
    ".pptx": ("a PowerPoint file (.pptx)", AS_TEXT),
    ".msg": ("an Outlook message (.msg)", AS_MAIL),
    ".olm": ("an Outlook archive (.olm)", AS_MAIL),
    ".zip": ("a zip archive", UNPACK),
}
HEADERS = re.compile(
    rb"^(return-path|received|delivered-to|from|to|date|subject|message-id|mime-version|reply-to"
    rb"|x-[\w-]+|content-type|dkim-signature|sender|user-agent|authentication-results|status)"
    rb":[^\n]*\n",
    re.I,
)


def refused_kind(head: bytes, ending: str) -> tuple[str, str] | None:
    """What it is and what to do, of a file that nothing here reads."""
    for start, name, advice in REFUSED:
        if head.startswith(start):
            return name, advice
    if head.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        return BY_ENDING.get(ending, ("an archive or office document", AS_TEXT))
    if re.match(rb"\s*(<!doctype html|<html)", head, re.I):
        return "a web page (HTML)", AS_TEXT
    if b"\x00" in head and not head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "a binary file", AS_TEXT
    return None


def kind_of_file(head: bytes, ending: str) -> str:
    """One of the kinds above, of a file that `refused_kind` does not know."""
    head = head.removeprefix(b"\xef\xbb\xbf")
    start = head.lstrip()
    if re.match(rb"From \S+.*\d{4}[^\n]*\n", head):
        return MBOX
    if HEADERS.match(head) and re.search(rb"^from:", head, re.I | re.M):
        return MAIL
    if start.startswith(b"{"):
        return JSON_LINES
    if re.match(rb"\[\s*[{\]]", start):
        return JSON_LIST
    return CSV if ending in (".csv", ".tsv") or _looks_like_table(head) else TEXT


def _looks_like_table(head: bytes) -> bool:
    """A first line of short names with commas, semicolons or tabs between, then as many again."""
    lines = head.split(b"\n")[:3]
    names = re.split(rb"[,;\t]", lines[0].strip())
    named = len(names) > 1 and all(re.fullmatch(rb"\s*\"?[\w /-]{1,24}\"?\s*", n) for n in names)
    return named and len(lines) > 1 and len(re.split(rb"[,;\t]", lines[1])) >= len(names)


def not_json_lines(path: str | Path, content: bytes) -> str | None:
    """One line for a person who gave this file where JSON Lines were wanted; None if it may be."""
    ending = Path(path).suffix.lower()
    if refused := refused_kind(content[:HEAD], ending):
        name, advice = refused
        return f"{path}: {name}, not JSON Lines: {advice}"
    kind = kind_of_file(content[:HEAD], ending)
    if kind == JSON_LINES or (kind == TEXT and content[:2] in (b"\xff\xfe", b"\xfe\xff")):
        return None
    command = f"minialign import {shlex.quote(str(path))} --out mine.jsonl"
    return f"{path}: {NAMES[kind]}, not JSON Lines: {command} makes demonstrations of it"
