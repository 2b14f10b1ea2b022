"""`minialign import`, and train.py on a mailbox: what is asked, said, written and kept silent."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.commands import Outcome, call
from helpers.files import tree
from helpers.loopback import says, serve
from helpers.mails import ME, message, own, write_mailbox, write_mbox
from helpers.models import write_checkpoint
from helpers.secrets import SECRETS, SENTENCES

from minialign.commands import import_mail
from minialign.data.records import held_out_split, load_demonstrations, training_split


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_mailbox(tmp_path / "sent.mbox", 30, 16, 2)
    return tmp_path


def run(place: Path, *arguments: str) -> Outcome:
    return call(import_mail, *arguments, cwd=place)  # type: ignore[arg-type]


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


# ---- minialign import ----


def test_a_mailbox_becomes_demonstrations(place: Path) -> None:
    outcome = run(place, "sent.mbox", "--out", "mine.jsonl")
    assert (outcome.code, outcome.err) == (0, "")
    for said in (
        f"the texts of {ME} (guessed; another: --me ADDRESS)",
        "sent.mbox: 30 texts of yours can be used",
        "left out       2 nearly the same as another",
        "left out       2 encrypted",
        "30 name (1 different) by other names",
        "mine.jsonl: 8 to learn from, 12 to judge by, 10 spare; read it",
        "next: python train.py --demos mine.jsonl",
    ):
        assert said in outcome.out, said
    everything = load_demonstrations(place / "mine.jsonl")
    assert len(training_split(everything)) == 8 and len(held_out_split(everything)) == 12
    assert "theirs" not in (place / "mine.jsonl").read_text().lower()


def test_every_drop_is_listed_on_request(place: Path) -> None:
    outcome = run(place, "sent.mbox", "--list-drops")
    assert (place / "sent.jsonl").exists()
    listed = [line for line in outcome.out.split("\n") if line.startswith("sent.mbox, message ")]
    assert len(listed) == 18 and "sent.mbox, message 31: nearly the same as another" in listed


KNOBS = {
    "me": ("--me", "kim@example.com", "--min-words", "1"),
    "pick": ("--pick", "3"),
    "hold_out": ("--hold-out", "2"),
    "min_words": ("--min-words", "4"),
    "scrub": ("--scrub", "none"),
}


@pytest.mark.parametrize("name", KNOBS)
def test_every_knob_changes_the_file(place: Path, name: str) -> None:
    assert run(place, "sent.mbox", "--out", "plain.jsonl").code == 0
    assert run(place, "sent.mbox", "--out", "other.jsonl", *KNOBS[name]).code == 0
    assert (place / "plain.jsonl").read_bytes() != (place / "other.jsonl").read_bytes()


def test_columns_and_overwrite(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"Wortlaut,Thema\n{own(1).replace(',', '')!r},Buns\n")
    columns = ("--columns", "text=Wortlaut,subject=Thema")
    assert "--columns text=NAME" in run(tmp_path, "a.csv").err
    assert run(tmp_path, "a.csv", *columns).code == 0
    assert '"Buns\\"' in json.dumps(lines_of(tmp_path / "a.jsonl")[0]["prompt"])
    before = tree(tmp_path)
    again = run(tmp_path, "a.csv", *columns)
    assert (again.code, again.out) == (2, "") and "a.jsonl: is there already" in again.err
    assert tree(tmp_path) == before
    assert run(tmp_path, "a.csv", *columns, "--overwrite").code == 0


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "no such file": (("none.mbox",), "none.mbox: no such file or folder"),
    "an unknown group": (("sent.mbox", "--scrub", "dates"), "'dates' is not one of names, numbers"),
    "a column of no role": (("sent.mbox", "--columns", "a=b"), "'a=b' is not ROLE=NAME"),
    "none to learn from": (("sent.mbox", "--pick", "0"), "pick must be at least 1"),
    "no endpoint": (("sent.mbox", "--instructions", "teacher"), "need each other"),
    "a model for nothing": (("sent.mbox", "--model", "toy"), "needs --instructions model"),
    "nobody's mail": (
        ("sent.mbox", "--me", "x@example.com"),
        "no text can be used: 46 written by somebody else",
    ),
    "onto itself": (("sent.mbox", "--out", "sent.mbox", "--overwrite"), "would replace what is"),
    "a file as a folder": (("sent.mbox", "--out", "sent.mbox/a.jsonl"), "cannot be written"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_one_line(place: Path, case: str) -> None:
    arguments, said = REFUSED[case]
    before = tree(place)
    outcome = run(place, *arguments)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert said.split(": ")[-1] in outcome.err, outcome.err
    assert tree(place) == before


def test_whose_texts_is_asked_where_it_cannot_be_guessed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mails = [message(own(n), sender=f"{'ab'[n % 2]}@example.com") for n in range(4)]
    write_mbox(tmp_path / "x.mbox", [mail.as_bytes() for mail in mails])
    outcome = run(tmp_path, "x.mbox")
    assert outcome.code == 2 and "give --me ADDRESS, perhaps one of a@example.com" in outcome.err
    terminal = SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True), stderr=sys.stderr)
    monkeypatch.setattr(import_mail, "sys", terminal)
    monkeypatch.setattr("builtins.input", lambda _: "b@example.com")
    assert "2 texts of yours" in run(tmp_path, "x.mbox").out


MODEL = ("--teacher-model", "m")


@pytest.mark.usefixtures("direct")
def test_a_teacher_writes_the_instructions_once_and_sees_no_secret(place: Path) -> None:
    body = f"{SENTENCES[0]} {own(1)}\nMaud"
    write_mbox(place / "one.mbox", [message(body).as_bytes()])
    with serve(says("Write to Kim that the ovens are hot.")) as server:
        teacher = ("--instructions", "teacher", "--teacher-url", server.url, *MODEL)
        outcome = run(place, "one.mbox", *teacher)
        assert outcome.code == 0, outcome.err
        assert run(place, "one.mbox", *teacher, "--overwrite").code == 0
    asked = [question for question in server.questions if "<text>" in question]
    assert lines_of(place / "one.jsonl")[0]["prompt"] == "Write to Kim that the ovens are hot."
    assert len(asked) == 1 and SECRETS[0] not in asked[0] and "[phone number]" in asked[0]
    assert (place / "one.instructions.jsonl").exists()


@pytest.mark.usefixtures("direct")
def test_an_answer_that_is_no_instruction_leaves_the_template(place: Path) -> None:
    with serve(says("I cannot do that.")) as server:
        teacher = ("--instructions", "teacher", "--teacher-url", server.url, *MODEL)
        outcome = run(place, "sent.mbox", "--pick", "2", "--hold-out", "0", *teacher)
    assert "2 of 2 instructions were unusable" in outcome.out
    assert all(line["prompt"].startswith("Write a") for line in lines_of(place / "sent.jsonl"))


def test_a_local_model_writes_them_too(place: Path) -> None:
    """A toy's answers are none; the template stands in, and nothing is asked again."""
    write_checkpoint(place / "toy", max_position_embeddings=1024)
    flags = ("--instructions", "model", "--model", "toy", "--pick", "1", "--hold-out", "1")
    outcome = run(place, "sent.mbox", *flags)
    assert outcome.code == 0, outcome.err
    assert "2 of 2 instructions were unusable" in outcome.out
    kept = (place / "sent.instructions.jsonl").read_bytes()
    assert len(kept.splitlines()) == 2
    assert run(place, "sent.mbox", *flags, "--overwrite").code == 0
    assert (place / "sent.instructions.jsonl").read_bytes() == kept
