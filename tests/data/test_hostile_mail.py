"""Fifty files that are broken or meant to do harm: each is survived, in a few seconds at most, or
refused in one line.
"""

from __future__ import annotations

import base64
import os
import random
import time
from pathlib import Path

import pytest
from helpers.mails import ME, own, plain

from minialign.data.writings import owners, read_writings
from minialign.errors import InputError

FROM = f"From: {ME}\r\nTo: k@example.com\r\n".encode()
GOOD = plain(own(1), 1).as_bytes()
BIG = 300_000


def mail(headers: str, body: bytes | str = own(1)) -> bytes:
    body = body.encode() if isinstance(body, str) else body
    return FROM + headers.encode("utf-8", "surrogateescape") + b"\r\n\r\n" + body


def typed(kind: str, body: bytes | str = own(1), transfer: str = "8bit") -> bytes:
    return mail(f"Content-Type: {kind}\r\nContent-Transfer-Encoding: {transfer}", body)


def nested(depth: int) -> bytes:
    head = "".join(
        f'Content-Type: multipart/mixed; boundary="b{i}"\r\n\r\n--b{i}\r\n' for i in range(depth)
    )
    return FROM + (head + "Content-Type: text/plain\r\n\r\n" + own(1)).encode()


def many_parts(count: int) -> bytes:
    part = "--b\r\nContent-Type: text/plain\r\n\r\nhello\r\n"
    return typed('multipart/mixed; boundary="b"', part * count)


HOSTILE: dict[str, bytes] = {
    "random bytes": random.Random(0).randbytes(20_000),
    "random bytes behind headers": FROM + b"\r\n" + random.Random(1).randbytes(20_000),
    "zeros": bytes(10_000),
    "headers alone": FROM,
    "no line end": FROM.rstrip(),
    "only a colon": b"From:\n:\n\n:",
    "a header of 300 KB": mail("Subject: " + "a" * BIG),
    "a header of 300 KB of brackets": mail("Cc: " + "(" * BIG),
    "a header of quotes": mail('To: "' + '\\"' * 50_000),
    "addresses without end": mail("To: " + "a@b.c, " * 40_000),
    "group addresses": mail("To: a:" * 20_000),
    "encoded words without end": mail("Subject: " + "=?utf-8?q?=41?= " * 20_000),
    "an encoded word of no charset": mail("Subject: =?no-such?q?=41?="),
    "an encoded word of bad base64": mail("Subject: =?utf-8?b?A?="),
    "null in a header": mail("Subject: a\x00b"),
    "surrogates in a header": mail("Subject: \udcff\udcfe"),
    "a folded header that never ends": mail("Subject: a" + "\r\n b" * 50_000),
    "100,000 headers": mail("\r\n".join(f"X-{i}: a" for i in range(100_000))),
    "the sender twice": mail("From: other@example.com\r\nFrom: third@example.com"),
    "a charset that is none": typed("text/plain; charset=no-such"),
    "a charset that is a program": typed("text/plain; charset=../../etc/passwd"),
    "a codec that is no charset": typed("text/plain; charset=zip", b"\x00\x01"),
    "hex as a charset": typed("text/plain; charset=hex", b"zz"),
    "UTF-7": typed("text/plain; charset=utf-7", b"+ADw-script+AD4-"),
    "UTF-16 of odd length": typed("text/plain; charset=utf-16", b"\xff\xfea"),
    "bad base64": typed("text/plain", "A" * 4097, "base64"),
    "bad quoted-printable": typed("text/plain", "=" * 10_000, "quoted-printable"),
    "an unknown transfer encoding": typed("text/plain", transfer="x-rot13"),
    "base64 of zeros": typed("text/plain", base64.b64encode(bytes(BIG)), "base64"),
    "a content type that is none": mail("Content-Type: ////;;;=;"),
    "a boundary that is missing": typed("multipart/mixed"),
    "a boundary of 10,000": typed(f'multipart/mixed; boundary="{"b" * 10_000}"'),
    "an empty boundary": typed('multipart/mixed; boundary=""', "--\r\n\r\nhello\r\n--"),
    "nested 50 times": nested(50),
    "nested 1,500 times": nested(1_500),
    "3,000 parts": many_parts(3_000),
    "RFC 2231 parameters": typed("text/plain; charset*0*=a''%ff; charset*99999999999=b"),
    "a line of 300 KB": typed("text/plain", "a" * BIG),
    "underscores": typed("text/plain", "_" * BIG),
    "quotation marks": typed("text/plain", ">" * BIG),
    "blank lines": typed("text/plain", "\n" * BIG),
    "digits and spaces": typed("text/plain", "1 " * 150_000),
    "who wrote without end": typed("text/plain", ("On a, " * 60 + "wrote\n") * 800),
    "confidential without end": typed("text/plain", "confidential " * 25_000),
    "open tags": typed("text/html", "<div>" * 20_000),
    "closed tags": typed("text/html", "</div>" * 50_000),
    "half a tag": typed("text/html", "<a " * 100_000),
    "half a comment": typed("text/html", "<!--" * 20_000),
    "entities": typed("text/html", "&#99999999;&#xD800;&" * 5_000),
    "half a script": typed("text/html", "<script>" + own(1)),
}


def test_there_are_fifty() -> None:
    assert len(HOSTILE) == 50


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_survived_or_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / "evil.eml"
    file.write_bytes(HOSTILE[name])
    began = time.process_time()
    try:
        owners(file)
        found = read_writings(file, [ME], {}, 1)
        assert len(found.texts) + len(found.dropped) >= 1
        assert all(one.text.encode() and "\x00" not in one.text for one in found.texts)
    except InputError as error:
        assert "\n" not in str(error)
    assert time.process_time() - began < 5


def test_a_mailbox_of_hostile_files_still_gives_the_good_mail(tmp_path: Path) -> None:
    folder = tmp_path / "mail"
    folder.mkdir()
    for place, content in enumerate([*HOSTILE.values()][::7]):
        (folder / f"{place:02}.eml").write_bytes(content)
    (folder / "good.eml").write_bytes(GOOD)
    os.symlink(folder, folder / "loop")
    os.mkfifo(folder / "pipe.eml")
    found = read_writings(folder, [ME], {}, 20)
    assert "good.eml" in {one.source for one in (*found.texts, *found.dropped)}
    assert any("own1" in one.text for one in found.texts)


def test_a_line_that_begins_with_from_is_no_new_message(tmp_path: Path) -> None:
    file = tmp_path / "x.mbox"
    body = f"{own(1)}\nFrom here on it is easy.\n\nFrom 2024 on too.\n>From me.\nMaud"
    head = b"From MAILER-DAEMON Fri May  3 10:00:00 2024\n"
    file.write_bytes(2 * (head + FROM.replace(b"\r", b"") + b"\n" + body.encode() + b"\n\n"))
    found = read_writings(file, [ME], {}, 1)
    assert len(found.texts) == 1 and len(found.dropped) == 1
    assert found.texts[0].text.endswith("easy.\n\nFrom 2024 on too.\nFrom me.\nMaud")
