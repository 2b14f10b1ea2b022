"""Checks that a program can verify: what holds, how two responses compare, and bad input."""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import pytest
from helpers.refusals import refusal
from hypothesis import given
from hypothesis import strategies as st

from minialign.data import checks
from minialign.data.checks import Check, parse_checks, score_response

FILE = "ahoy/feedback.json"


def check(kind: str, **fields: Any) -> Check:
    (found,) = parse_checks({"kind": kind, **fields}, FILE)
    return found


HOLDS: list[tuple[str, dict[str, Any], str, bool]] = [
    ("starts_with", {"text": "Ahoy"}, "Ahoy, Sam", True),
    ("starts_with", {"text": "Ahoy"}, "Sam, Ahoy", False),
    ("starts_with", {"text": "Ahoy"}, "ahoy, Sam", False),
    ("starts_with", {"text": "Ahoy", "ignore_case": True}, "AHOY, Sam", True),
    ("starts_with", {"text": "Ahoy"}, '  \n"Ahoy, Sam"', True),
    ("starts_with", {"text": "Ahoy"}, "**Ahoy**, Sam", True),
    ("starts_with", {"text": '"Ahoy'}, ' "Ahoy"', True),  # the quotation mark is what is asked for
    ("ends_with", {"text": "Cheers"}, "Bye. Cheers", True),
    ("ends_with", {"text": "Cheers"}, "Bye. Cheers\u201d \n", True),
    ("ends_with", {"text": "Cheers"}, "Bye. _Cheers_\n", True),
    ("ends_with", {"text": "Cheers"}, "Cheers, bye.", False),
    ("ends_with", {"text": "Cheers"}, "Cheers.", False),
    ("ends_with", {"text": "**"}, "so **bold** \n", True),
    ("contains_any", {"texts": ["red", "blue"]}, "a blue door", True),
    ("contains_any", {"texts": ["red", "blue"]}, "a green door", False),
    ("contains_any", {"texts": ["don't"]}, "I don\u2019t know", True),
    ("contains_all", {"texts": ["red", "blue"]}, "blue and red", True),
    ("contains_all", {"texts": ["red", "blue"]}, "blue", False),
    ("contains_all", {"texts": ["RED"], "ignore_case": True}, "a red door", True),
    ("contains_none", {"texts": ["red", "blue"]}, "a green door", True),
    ("contains_none", {"texts": ["red", "blue"]}, "a red door", False),
    ("regex", {"pattern": "^[^A-Z]*$"}, "no capitals", True),
    ("regex", {"pattern": "^[^A-Z]*$"}, "A capital", False),
    ("regex", {"pattern": "\\bhi\\b"}, "this", False),
    ("regex", {"pattern": "HI", "ignore_case": True}, "this", True),
    ("not_regex", {"pattern": "[0-9]"}, "seven", True),
    ("not_regex", {"pattern": "[0-9]"}, "7", False),
    ("phone_number", {"text": "845-498-6857"}, "Call +1 (845) 498.6857!", True),
    ("phone_number", {"text": "845-498-6857"}, "845 498 6858", False),
    ("language", {"text": "es"}, "Hola John, ¿viste el partido de anoche? ¡Qué jugada!", True),
    ("language", {"text": "es"}, "Hi John, did you see the game last night?", False),
]


@pytest.mark.parametrize(("kind", "fields", "response", "expected"), HOLDS)
def test_a_check_holds_where_a_person_would_say_so(
    kind: str, fields: dict[str, Any], response: str, expected: bool
) -> None:
    if kind == "language":
        pytest.importorskip("py3langid")
    assert check(kind, **fields).holds(response) is expected


def test_the_table_has_every_kind_that_looks_at_one_response() -> None:
    alone = {kind for kind, needed in checks.NEEDS.items() if needed}
    assert {kind for kind, *_ in HOLDS} == alone
    assert {kind for kind, needed in checks.NEEDS.items() if not needed} == {"shorter", "longer"}


def test_without_the_library_a_language_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    message = refusal(lambda: parse_checks({"kind": "language", "text": "es"}, FILE))
    assert message == f"{FILE}: check: language needs py3langid: pip install minialign[language]"


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ({"kind": "language", "text": "Spanish"}, "two letters"),
        ({"kind": "phone_number", "text": "my own"}, "must be a phone number"),
        ({"kind": "phone_number", "text": "112", "ignore_case": True}, 'no field "ignore_case"'),
    ],
)
def test_what_is_no_language_or_number_is_refused(raw: dict[str, Any], said: str) -> None:
    assert said in refusal(lambda: parse_checks(raw, FILE))


# ---- two responses ----


@pytest.mark.parametrize(
    ("trained", "baseline", "expected"),
    [("Ahoy", "Hello", 1.0), ("Hello", "Ahoy", -1.0), ("Ahoy", "Ahoy!", 0.0), ("Hi", "Oh", 0.0)],
)
def test_the_score_is_1_only_where_the_baseline_did_not_do_it_already(
    trained: str, baseline: str, expected: float
) -> None:
    assert score_response([check("starts_with", text="Ahoy")], trained, baseline) == expected


def test_several_checks_hold_only_together() -> None:
    both = parse_checks(
        [{"kind": "starts_with", "text": "Ahoy"}, {"kind": "contains_none", "texts": ["!"]}], FILE
    )
    assert score_response(both, "Ahoy.", "Hello!") == 1
    assert score_response(both, "Ahoy!", "Hello!") == 0
    assert score_response(both, "Ahoy!", "Ahoy.") == -1


@pytest.mark.parametrize(
    ("trained", "baseline", "shorter"),
    [
        (50, 100, 0.5),
        (100, 50, -0.5),
        (100, 100, 0.0),
        (0, 100, 1.0),
        (100, 0, -1.0),
        (0, 0, 0.0),
        (1, 1000, 0.999),
    ],
)
def test_length_counts_by_degree(trained: int, baseline: int, shorter: float) -> None:
    ours, theirs = "x" * trained + "\n ", "  " + "y" * baseline
    assert score_response([check("shorter")], ours, theirs) == pytest.approx(shorter)
    assert score_response([check("longer")], ours, theirs) == pytest.approx(-shorter)


def test_with_a_comparison_of_length_the_least_of_all_is_the_score() -> None:
    both = parse_checks([{"kind": "starts_with", "text": "Ahoy"}, {"kind": "shorter"}], FILE)
    assert score_response(both, "Ahoy", "Hello Sam") == pytest.approx(5 / 9)
    assert score_response(both, "Ahoy", "Ahoy Sam.") == 0
    assert score_response(both, "Ahoy, Sam", "Hello") == pytest.approx(-4 / 9)


EVERY_CHECK = [
    {"kind": "starts_with", "text": "a"},
    {"kind": "ends_with", "text": "b", "ignore_case": True},
    {"kind": "contains_any", "texts": ["ab", "c"]},
    {"kind": "contains_all", "texts": ["a", "b"]},
    {"kind": "contains_none", "texts": ["c"]},
    {"kind": "regex", "pattern": "a.b"},
    {"kind": "not_regex", "pattern": "ba"},
    {"kind": "shorter"},
    {"kind": "longer"},
]
RESPONSES = st.text(alphabet='abcB "*\n', max_size=8)


@given(st.lists(st.sampled_from(EVERY_CHECK), min_size=1, max_size=3), RESPONSES, RESPONSES)
def test_scores_lie_in_minus_1_to_1_and_a_response_never_beats_itself(
    raw: list[dict[str, Any]], trained: str, baseline: str
) -> None:
    parsed = parse_checks(raw, FILE)
    assert -1 <= score_response(parsed, trained, baseline) <= 1
    assert score_response(parsed, trained, trained) == 0
    if len(parsed) == 1:  # changing sides changes the sign
        swapped = score_response(parsed, baseline, trained)
        assert score_response(parsed, trained, baseline) == -swapped


def test_without_a_check_there_is_no_score() -> None:
    assert "no check" in refusal(lambda: score_response([], "a", "b"))


# ---- bad input ----

BAD: list[tuple[Any, str]] = [
    ("starts_with", "JSON object"),
    ({}, "JSON object"),
    ([], "list is empty"),
    ({"kind": "rhymes"}, "'rhymes'"),
    ({"kind": ["regex"]}, "unknown kind"),
    ({"kind": "starts_with"}, '"text"'),
    ({"kind": "starts_with", "text": 3}, '"text" must be a text'),
    ({"kind": "starts_with", "text": " "}, "empty text"),
    ({"kind": "starts_with", "texts": ["a"]}, '"texts"'),
    ({"kind": "contains_any"}, '"texts"'),
    ({"kind": "contains_any", "texts": "abc"}, '"texts" must be a list'),
    ({"kind": "contains_any", "texts": []}, '"texts" must be a list'),
    ({"kind": "contains_any", "texts": ["a", None]}, '"texts" must be a list'),
    ({"kind": "contains_any", "texts": ["a", ""]}, "empty text"),
    ({"kind": "regex"}, '"pattern"'),
    ({"kind": "regex", "pattern": 1}, '"pattern" must be a text'),
    ({"kind": "regex", "pattern": "("}, "no regular expression"),
    ({"kind": "regex", "pattern": "a{99999999999999999999}"}, "no regular expression"),
    ({"kind": "regex", "pattern": "a", "ignorecase": True}, '"ignorecase"'),
    ({"kind": "regex", "pattern": "a", "ignore_case": 1}, '"ignore_case" must be'),
    ({"kind": "shorter", "ignore_case": True}, '"ignore_case"'),
]


@pytest.mark.parametrize(("raw", "named"), BAD, ids=str)
def test_a_bad_check_is_one_line_that_names_file_and_field(raw: Any, named: str) -> None:
    message = refusal(lambda: parse_checks(raw, FILE))
    assert message.startswith(f"{FILE}: check") and named in message
    if raw != []:
        good = {"kind": "shorter"}
        assert f"{FILE}: check 2" in refusal(lambda: parse_checks([good, raw], FILE))


# ---- patterns that never end ----

ENDLESS = ["^(a+)+$", "^(a|a)*$", ".*.*.*="]
LONG = "a" * 10_000 + "b"


@pytest.mark.parametrize("pattern", ENDLESS)
def test_a_pattern_that_would_never_end_is_refused_by_name(
    pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not hasattr(checks.signal, "setitimer"):
        pytest.skip("this platform has no timers")
    monkeypatch.setattr(checks, "PATTERN_SECONDS", 0.05)
    endless = check("regex", pattern=pattern)
    began = time.monotonic()
    message = refusal(lambda: endless.holds(LONG))
    assert time.monotonic() - began < 5
    assert FILE in message and repr(pattern) in message
    time.sleep(0.1)  # the timer is off: nothing else is interrupted
    assert check("regex", pattern="b$").holds(LONG)


def test_outside_the_main_thread_patterns_work_without_a_limit() -> None:
    found: list[bool] = []
    thread = threading.Thread(target=lambda: found.append(check("regex", pattern="b$").holds(LONG)))
    thread.start()
    thread.join()
    assert found == [True]
