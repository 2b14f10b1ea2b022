"""Where messages lie: an mbox file, a folder of .eml files, a Maildir. Each as raw bytes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from minialign.data.formats import HEAD
from minialign.errors import InputError

# An mbox's line between messages; a "From here on" in a text is not one.
BETWEEN = re.compile(rb"From \S+.*\b\d{4}\b.{0,12}$")
# Of a larger message the rest is not looked at: it is attachments.
LARGEST = 20_000_000
LINE = 1_000_000


def files_below(folder: Path) -> list[Path]:
    """The files of a folder and of those in it, hidden ones left out, in the order of their names.

    A Maildir's folders are looked into although their names may begin with a dot.
    """
    found = []
    for place, folders, names in os.walk(folder):
        folders.sort()
        maildir = Path(place).name in ("cur", "new")
        for name in sorted(names):
            file = Path(place, name)
            if (maildir or not name.startswith(".")) and file.is_file():
                found.append(file)
    return found


def head_of(file: Path) -> bytes:
    """The first bytes. Raises InputError for a file that cannot be read."""
    # A pipe or a device may never end.
    if file.exists() and not file.is_file():
        raise InputError(f"{file}: not a plain file: save its content as one")
    try:
        with file.open("rb") as opened:
            return opened.read(HEAD)
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None


def mbox_messages(file: Path) -> Iterator[bytes]:
    """The messages of an mbox file, one after another; the file may be larger than the memory."""
    lines: list[bytes] = []
    size, blank_before = 0, True
    with file.open("rb") as opened:
        while line := opened.readline(LINE):
            if blank_before and line.startswith(b"From ") and BETWEEN.match(line.rstrip()[:300]):
                if lines:
                    yield b"".join(lines)
                lines, size = [], 0
            elif size < LARGEST:
                # ">From " is how a line that begins with "From " is written.
                lines.append(re.sub(rb"^>(>*From )", rb"\1", line))
                size += len(line)
            blank_before = line in (b"\n", b"\r\n")
    if lines:
        yield b"".join(lines)


def mail_file(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(LARGEST)
