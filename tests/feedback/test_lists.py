"""Lists as models write them."""

from __future__ import annotations

import pytest
from helpers.teachers import numbered

from minialign.feedback.lists import (
    Distinct,
    after_label,
    category_name,
    labelled_line,
    parse_list,
    strip_introduction,
)

THREE = ["Write to Ann", "Ask Bob why", "Tell Cy"]


@pytest.mark.parametrize(
    "text",
    [
        "1. Write to Ann\n2. Ask Bob why\n3. Tell Cy",
        "1) Write to Ann\n2) Ask Bob why\n3) Tell Cy",
        "(1) Write to Ann\n(2) Ask Bob why\n(3) Tell Cy",
        "- Write to Ann\n- Ask Bob why\n- Tell Cy",
        "* Write to Ann\n* Ask Bob why\n* Tell Cy",
        "• Write to Ann\n• Ask Bob why\n• Tell Cy",
        "Prompt 1: Write to Ann\nPrompt 2: Ask Bob why\nPrompt 3: Tell Cy",
        "**Prompt 1:** Write to Ann\n\n**Prompt 2:** Ask Bob why\n\n**Prompt 3:** Tell Cy",
        "1. \"Write to Ann\"\n2. “Ask Bob why”\n3. 'Tell Cy'",
        "**1.** Write to Ann\n**2. Ask Bob why**\n3. *Tell Cy*",
        "1. Request 1: Write to Ann\n2. Request 2: Ask Bob why\n3. Request 3: Tell Cy",
        "Sure! Here are three:\n\n1. Write to Ann\n2. Ask Bob why\n3. Tell Cy\n\nEnjoy them!",
        "## Prompts\n1. Write to Ann\n\n2. Ask Bob why\n\n\n3. Tell Cy\nNote: they all differ.",
        "1. Write\n   to Ann\n2. Ask Bob\nwhy\n3. Tell Cy",
        '1. "Write to Ann" - this is about Ann.\n2. Ask Bob why (This one is hard)\n3. Tell Cy',
        '1. "Write to Ann" - it has "Ann" in it\n2. Ask Bob why\n3. Tell Cy',
        "1. Write to Ann\n   Explanation: she\n   is nice.\n2. Ask Bob why\n3. Tell Cy",
        "1. Write to Ann\n   Why this one: she is nice.\n2. Ask Bob why\n3. Tell Cy",
        '1. "Write to Ann" Note: easy.\n2. Ask Bob why\n3. Tell Cy - Because he listens',
        "1. Write to Ann\n   - short\n   - kind\n2. Ask Bob why\n3. Tell Cy",
        "1. Letters:\n   - Write to Ann\n   - Ask Bob why\n2. Talks:\n   - Tell Cy",
        '["Write to Ann", "Ask Bob why", "Tell Cy"]',
        '```json\n["Write to Ann", "Ask Bob why", "Tell Cy"]\n```',
        "Write to Ann\nAsk Bob why\nTell Cy",
        'Here you are:\n"Write to Ann"\n"Ask Bob why"\n"Tell Cy"',
        "1.\nWrite to Ann\n2.\n\nAsk Bob why\n3. Tell Cy",
        "1. Write to Ann\r\n2. Ask Bob why\r\n3. Tell Cy\r\n",
    ],
)
def test_a_list_is_read_however_it_is_marked(text: str) -> None:
    assert parse_list(text) == THREE


@pytest.mark.parametrize(
    "text",
    ["", "\n \n", "I cannot do that.", "Sure, here they are:", "1.\n2.", "[1, 2]", "# Title\n---"],
)
def test_what_is_no_list_has_no_entries(text: str) -> None:
    assert parse_list(text) == []


def test_prose_is_no_list() -> None:
    assert parse_list(f"I think that {'so ' * 50}.\n\nAnd {'more ' * 50}.") == []


def test_what_only_looks_like_a_mark_or_a_remark_stays() -> None:
    entries = [
        '"Emma" is by whom?',
        "Say 'no' kindly",
        "3.5 litres, how heavy?",
        "Sum 2 - 1",
        "Tell Ann I was late - it was the train",
        "Ask Bob (it's urgent) why",
        "Why do trains leave at 10:30?",
        "Answer in a word: is it late?",
        "Write this note: buy milk",
    ]
    assert parse_list(numbered(entries)) == entries


def test_the_last_entry_of_a_cut_off_list_is_dropped_unless_it_is_whole() -> None:
    assert parse_list("1. One two\n2. Three fo", cut_off=True) == ["One two"]
    assert parse_list("1. One two\n2. Three four?", cut_off=True) == ["One two", "Three four?"]


def test_a_category_loses_what_is_said_about_it() -> None:
    names = ["Time off: asking for days", "**Time off** - asking", "Time off.", "Time off"]
    assert [category_name(entry) for entry in parse_list(numbered(names))] == ["Time off"] * 4


@pytest.mark.parametrize(
    "text",
    [
        "THOUGHTS: x\nREVISED PROMPTS:\n1. a b c",
        "THOUGHTS:\n1. old\n\n**REVISED_PROMPTS:**\n1. a b c",
        "Thoughts: none\n\n## Revised Prompts\n1. a b c",
        "REVISED PROMPTS: 1. a b c",
        "* Revised prompts (final):\n1. a b c",
    ],
)
def test_a_labelled_part_is_found_however_the_label_is_spelt(text: str) -> None:
    rest = after_label(text, "REVISED PROMPTS")
    assert rest is not None and parse_list(rest) == ["a b c"]


def test_a_missing_or_empty_part_is_none() -> None:
    assert after_label("THOUGHTS: the revised prompts are fine", "REVISED PROMPTS") is None
    assert after_label("REVISED PROMPTS:\n ", "REVISED PROMPTS") is None
    assert labelled_line("**DOMAIN:** `mails`\nmore", "DOMAIN") == "mails"
    assert labelled_line('{\n"domain": "mails to Ann",\n', "DOMAIN") == "mails to Ann"


@pytest.mark.parametrize(
    ("text", "response"),
    [
        ("Here is the revised response:\n\nDear Ann,\nhi", "Dear Ann,\nhi"),
        ("**Revised response:**\nDear Ann", "Dear Ann"),
        ("Sure! Here's the new version:\nDear Ann", "Dear Ann"),
        ('"Dear Ann"', "Dear Ann"),
        ('"Yes", she said, "no"', '"Yes", she said, "no"'),
        ("Here is the list:", "Here is the list:"),
        ("Ingredients:\n- salt", "Ingredients:\n- salt"),
        ("  \n", ""),
    ],
)
def test_a_response_loses_its_introduction_and_nothing_else(text: str, response: str) -> None:
    assert strip_introduction(text) == response


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Write to my boss", "write to my boss!", True),
        ("Write, to my boss.", '"Write to my boss"', True),
        ("Write to my boss about Monday", "Write to my boss about Tuesday", False),
        (
            "Could you please write a short note to my boss about the trip to Rome next week",
            "Could you please write a short note to my boss about the trip to Rome next week now",
            True,
        ),
        ("写一封信给老板", "写一封信给老板。", True),
        ("写一封信给老板", "写一首诗给妈妈", False),
    ],
)
def test_prompts_that_say_nearly_the_same_are_one(one: str, other: str, same: bool) -> None:
    distinct = Distinct()
    assert distinct.reason_against(one) is None
    assert distinct.reason_against(other) == ("duplicate" if same else None)


def test_prompts_of_a_strange_length_are_of_no_use() -> None:
    distinct = Distinct()
    assert distinct.reason_against("Write something") == "too short"
    assert distinct.reason_against("word " * 121) == "too long"
