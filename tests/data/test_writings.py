"""From a mailbox of 300 messages to the owner's own words: each kept whole, or dropped for a reason
that is said, and not a word of anybody else.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from helpers.mails import KEPT, LEFT_OUT, ME, message, own, plain, write_mailbox, write_mbox
from helpers.refusals import refusal

from minialign.data.mail import Written
from minialign.data.writings import Writings, owners, read_writings


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mailbox(tmp_path_factory.mktemp("mail") / "Sent.mbox")


@pytest.fixture(scope="module")
def found(box: Path) -> Writings:
    return read_writings(box, [ME], {}, 20)


def read(path: Path, **columns: str) -> list[Written]:
    return read_writings(path, [ME], columns, 1).texts


# ---- the mailbox of 300 ----


def test_every_message_is_kept_or_dropped_with_its_reason(found: Writings) -> None:
    assert len(found.texts) + len(found.dropped) == 300
    expected = {reason: 112 // len(LEFT_OUT) for reason in LEFT_OUT}
    counted = Counter(drop.reason for drop in found.dropped)
    assert counted == expected | {"nearly the same as another": 8}
    sources = [one.source for one in (*found.texts, *found.dropped)]
    assert len(set(sources)) == 300 and "Sent.mbox, message 300" in sources


def test_every_own_word_is_kept_and_nobody_elses(found: Writings) -> None:
    assert len(found.texts) == 180
    for number, written in enumerate(found.texts):
        maker = KEPT[number % len(KEPT)].__name__
        assert "theirs" not in written.text.lower(), maker
        missing = set(re.findall(r"\w+", own(number))) - set(re.findall(r"\w+", written.text))
        assert not missing, (maker, missing)
        assert written.text.endswith("Maud") and "\n" in written.text, maker


def test_encodings_come_out_whole(found: Writings) -> None:
    texts = "\n".join(written.text for written in found.texts)
    assert all(word in texts for word in ("Grüße", "“Ça”", "Привет 🍞"))


# ---- whose ----


def test_the_owner_of_sent_mail_and_of_a_whole_mailbox_is_guessed(
    box: Path, tmp_path: Path
) -> None:
    assert owners(box)[0][0] == ME and owners(box)[1]
    senders = [f"{name}@example.com" for name in "abcdefgh"]
    inbox = [message("hello", sender=sender) for sender in senders]
    for mail in inbox:
        mail.replace_header("To", ME)
    sent = message("hello")
    mixed = write_mbox(tmp_path / "all.mbox", [m.as_bytes() for m in (*inbox, sent)])
    assert owners(mixed)[0][0] == ME and owners(mixed)[1]


def test_where_it_is_anybodys_the_guess_is_not_sure(tmp_path: Path) -> None:
    two = [message("hello", sender=f"{name}@example.com").as_bytes() for name in "abcd"]
    assert not owners(write_mbox(tmp_path / "x.mbox", two))[1]


# ---- other places ----


def test_a_maildir_a_folder_and_a_single_mail(tmp_path: Path) -> None:
    folder, maildir = tmp_path / "folder", tmp_path / "maildir" / ".Sent" / "cur"
    folder.mkdir()
    maildir.mkdir(parents=True)
    for number in range(3):
        raw = plain(own(number), number).as_bytes()
        (folder / f"{number}.eml").write_bytes(raw)
        (maildir / f"{number}.host:2,S").write_bytes(raw)
    (folder / ".DS_Store").write_bytes(b"\x00")
    expected = [written.text for written in read(folder)]
    assert len(expected) == 3
    assert [written.text for written in read(tmp_path / "maildir")] == expected
    assert [written.text for written in read(folder / "1.eml")] == expected[1:2]


def test_texts_take_their_titles_and_may_share_a_file(tmp_path: Path) -> None:
    (tmp_path / "on-bread.txt").write_text("Bread is good.", encoding="utf-16")
    (tmp_path / "two.md").write_text("# Tea\n\nTea is wet.\n\n---\n\nMilk is not.\n")
    found = read(tmp_path)
    assert [(w.subject, w.text) for w in found] == [
        ("on bread", "Bread is good."),
        ("Tea", "Tea is wet."),
        ("", "Milk is not."),
    ]


def test_a_table_by_the_usual_names_of_its_columns_or_by_those_given(tmp_path: Path) -> None:
    file = tmp_path / "sent.csv"
    file.write_text('Subject;Body;Recipient\nRe: Buns;"Hot; and ""fresh""\nones";Kim\n')
    (row,) = read(file)
    assert (row.subject, row.reply, row.text) == ("Buns", True, 'Hot; and "fresh"\nones')
    file.write_text("Thema,Wortlaut\nBuns,Hot ones\n")
    assert refusal(lambda: read(file)).endswith("name it with --columns text=NAME")
    (row,) = read(file, text="Wortlaut", subject="Thema")
    assert (row.subject, row.text) == ("Buns", "Hot ones")


@pytest.mark.parametrize(
    "content",
    [
        '[{"instruction": "Say hi", "input": "to Kim", "output": "Hi Kim!"}]',
        '[{"conversations": [{"from": "human", "value": "Say hi\\n\\nto Kim"},'
        ' {"from": "gpt", "value": "Hi Kim!"}]}]',
        '[{"prompt": "Say hi\\n\\nto Kim", "completion": "Hi Kim!"}]',
    ],
    ids=["Alpaca", "ShareGPT", "prompts"],
)
def test_a_list_in_another_tools_form_brings_its_own_instructions(
    tmp_path: Path, content: str
) -> None:
    file = tmp_path / "list.json"
    file.write_text(content)
    (written,) = read(file)
    assert written.messages == ({"role": "user", "content": "Say hi\n\nto Kim"},)
    assert written.text == "Hi Kim!"


REFUSED = {
    "letter.docx": (b"PK\x03\x04word", "a Word document (.docx): save its text as .txt"),
    "letter.pdf": (b"%PDF-1.7", "a PDF"),
    "mail.pst": (b"!BDN....", "an Outlook folder (.pst): export it as .mbox"),
    "mail.mbox.gz": (b"\x1f\x8b\x08", "a gzip archive: unpack it"),
    "page.html": (b"<!DOCTYPE html><p>", "a web page"),
    "blob": (b"abc\x00def", "a binary file"),
    "empty.mbox": (b" \n", "the file is empty"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_named(tmp_path: Path, name: str) -> None:
    content, said = REFUSED[name]
    file = tmp_path / name
    file.write_bytes(content)
    assert refusal(lambda: read(file)).startswith(f"{file}: {said}")
