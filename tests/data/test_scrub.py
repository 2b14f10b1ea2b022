"""What is replaced, what is left alone, and what is told of it."""

from __future__ import annotations

import pytest
from helpers.secrets import SECRETS, SENTENCES

from minialign.data.scrub import GROUPS, Scrubber, names_in_greeting, secrets_in

ALL = tuple(GROUPS)


def test_there_are_fifty_secrets() -> None:
    assert len(SECRETS) == len(set(SECRETS)) == len(SENTENCES) == 50


@pytest.mark.parametrize("place", range(50), ids=[s.replace("/", " ") for s in SECRETS])
def test_a_secret_goes_and_its_sentence_stays(place: int) -> None:
    scrubbed = Scrubber(ALL).scrub(f"Hello,\n{SENTENCES[place]}\nMaud")
    assert SECRETS[place] not in scrubbed and "[" in scrubbed
    assert secrets_in(scrubbed) == []
    first, last = SENTENCES[place].split()[0], SENTENCES[place].split()[-1]
    assert first in scrubbed and last in scrubbed and scrubbed.endswith("\nMaud")
    assert secrets_in(SENTENCES[place])


@pytest.mark.parametrize(
    "text",
    [
        "See you on 03.05.2024 at 10:30, or 2024-05-03, or 3/5/24.",
        "Between 2019-2024 we sold 1.250.000 buns, 12,500 of them on Saturdays.",
        "My password is expired, and the PIN was forgotten.",
        "Version 1.2.3 of the recipe needs 250 g of flour and 7 eggs.",
        "We meet in room 204 on 12 May, 14 of us, from 13:30-16:00.",
        "On the way to the place where the 3 Kings stand.",
    ],
)
def test_days_amounts_and_plain_words_stay(text: str) -> None:
    assert Scrubber(ALL).scrub(text) == text
    assert secrets_in(text) == []


def test_a_greeted_name_gets_the_same_stand_in_everywhere() -> None:
    scrubber = Scrubber(ALL, frozenset({"Maud"}))
    text = scrubber.scrub("Dear Mrs Petrova,\n\nPetrova & Sons, and Petrovas. Maud")
    name = text.split()[2].rstrip(",")
    assert text == f"Dear Mrs {name},\n\n{name} & Sons, and Petrovas. Maud"
    assert scrubber.scrub("Hi Petrova!") == f"Hi {name}!"
    assert scrubber.scrub("Hi Ngozi!") not in (f"Hi {name}!", "Hi Ngozi!")
    assert scrubber.scrub("Hi Maud,") == "Hi Maud,"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Dear Dr Kim Lee,\nhello", ["Kim", "Lee"]),
        ("Hi Kim and Sam!", ["Kim", "Sam"]),
        ("Hi Kim, Jean-Luc & all,", ["Kim", "Jean-Luc"]),
        ("Hi, Kim!", ["Kim"]),
        ("Hi Kim thanks for the Buns on Monday", ["Kim"]),
        ("Hello Kim, The Buns that you sent on Monday have come.", ["Kim"]),
        ("Hi Mum,", []),
        ("Liebe Jana, wie geht's", ["Jana"]),
        ("Chère Zoé,", ["Zoé"]),
        ("Hello all,", []),
        ("Hi there,", []),
        ("Good morning,", []),
        ("The buns are ready, Kim.", []),
    ],
)
def test_who_is_greeted(text: str, names: list[str]) -> None:
    assert names_in_greeting(text) == names


@pytest.mark.parametrize("group", ALL)
def test_each_group_can_be_left_alone(group: str) -> None:
    text = (
        "Hi Petrova, ring 07700 900456, see https://x.example/a, write to a@b.example, the PIN is "
        "4711."
    )
    others = Scrubber(tuple(g for g in ALL if g != group)).scrub(text)
    assert others != Scrubber(ALL).scrub(text)
    assert Scrubber(()).scrub(text) == text


def test_the_table_counts_and_shows_no_original() -> None:
    scrubber = Scrubber(ALL)
    for sentence in SENTENCES:
        scrubber.scrub(f"Hi Petrova,\n{sentence}")
    table = "\n".join(scrubber.table())
    assert "    50 name (1 different) by other names" in table
    assert "[password]" in table and "[postal address]" in table
    assert not any(secret in table for secret in (*SECRETS, "Petrova"))
