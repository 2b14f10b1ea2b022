"""Many feedbacks in one file, with C3PO's own fields."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from helpers.files import write_jsonl
from helpers.refusals import refusal

from minialign.data.checks import parse_checks
from minialign.data.feedback_list import METRICS, Entry, load_entries, select_entries

# C3PO's metrics as its repository has them (src/dataset/feedback_utils.py), without the two that
# compare numbers and those that need a library.
THEIRS: dict[str, Any] = {
    "contains_any_string": lambda x, y: any(s.lower() in x.lower() for s in y),
    "contains_all_strings": lambda x, y: all(s.lower() in x.lower() for s in y),
    "contains_none_strings": lambda x, y: not any(s.lower() in x.lower() for s in y),
    "contains_phone_number": lambda x, y: _digits(y) in _digits(x),
    "ends_with": lambda x, y: x.lower().strip().endswith(y.lower().strip()),
    "regex_search": lambda x, y: bool(re.search(y, x)),
    "regex_search_false": lambda x, y: not re.search(y, x),
    "starts_with": lambda x, y: x.lower().strip().startswith(y.lower().strip()),
    "doesnt_start_with": lambda x, y: not x.lower().strip().startswith(y.lower().strip()),
}
VALUES: dict[str, Any] = {
    **{name: ["Red", "blue"] for name in THEIRS if "string" in name},
    **{"contains_phone_number": "845-498-6857", "ends_with": "Sam", "regex_search": "[.!?]$"},
    **{"regex_search_false": "[.!?]$", "starts_with": "dear", "doesnt_start_with": "dear"},
}
TEXTS = (
    *("Dear Sam", " dear all, red and BLUE.", "red", "nothing", "Yours, SAM \n", "So dear!"),
    *("(845) 498-6857 or so", "845 498 6857", "845-498-6858", "Red.dear Sam"),
)


def _digits(text: str) -> str:
    return text.replace("-", " ").replace("(", "").replace(")", "")


def entry(tmp_path: Path, **fields: Any) -> Entry:
    file = write_jsonl(tmp_path / "f.jsonl", [{"content": "Be so", **fields}])
    (found,) = load_entries(str(file))
    return found


@pytest.mark.parametrize("metric", THEIRS)
def test_a_metric_judges_as_c3po_s_own(tmp_path: Path, metric: str) -> None:
    found = entry(tmp_path, metric=metric, metric_value=VALUES[metric])
    (check,) = parse_checks(found.described["check"], "x")
    ours = [check.holds(text) for text in TEXTS]
    assert ours == [THEIRS[metric](text, VALUES[metric]) for text in TEXTS]
    assert {True, False} == set(ours)


def test_every_metric_of_c3po_s_is_known() -> None:
    others = {"ends_with_cleaned", "is_language"}
    assert set(METRICS) == set(THEIRS) | others


def test_several_metrics_hold_together(tmp_path: Path) -> None:
    found = entry(
        tmp_path,
        metric=["contains_all_strings", "contains_none_strings"],
        metric_value=[["colour"], ["color"]],
    )
    assert [check.kind for check in parse_checks(found.described["check"], "x")] == [
        "contains_all",
        "contains_none",
    ]


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"comparison": "less_eq_than"}, "shorter"),
        ({"comparison": "greater_eq_than"}, "longer"),
        ({"effect": "be more concise"}, "shorter"),
        ({"effect": "be more detailed"}, "longer"),
    ],
)
def test_a_length_is_compared_as_it_says_or_as_the_effect_does(
    tmp_path: Path, fields: dict[str, str], kind: str
) -> None:
    found = entry(tmp_path, metric=["length"], **fields)
    assert found.described["check"] == [{"kind": kind}]
    assert found.note == ("" if "comparison" in fields else "check guessed from the effect")


@pytest.mark.parametrize(
    ("fields", "note"),
    [
        ({"metric": "length", "effect": "be nice"}, "no check: length has no metric_value"),
        ({"metric": ["regex_search"], "effect": "use hearts"}, "no check: regex_search has no"),
        ({"metric": "sentiment_polarity"}, "no check: sentiment_polarity is none"),
    ],
)
def test_what_cannot_be_checked_is_taken_without_a_check(
    tmp_path: Path, fields: dict[str, Any], note: str
) -> None:
    found = entry(tmp_path, type="quantitative", **fields)
    assert "check" not in found.described and found.note.startswith(note)


def test_a_value_that_is_missing_stands_in_the_effect_in_quotation_marks(tmp_path: Path) -> None:
    effect = "format it as 'Background:', 'Event:', and 'Consequences:', don't add 'more'"
    found = entry(tmp_path, metric=["contains_all_strings"], effect=effect)
    (check,) = found.described["check"]
    assert check["texts"] == ["Background:", "Event:", "Consequences:", "more"]
    assert found.note == "check guessed from the effect"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"metric": "no_such"}, "unknown metric 'no_such': choose from length, "),
        ({"metric": ["length"], "metric_value": [1, 2]}, "lists of one length"),
        ({"metric": "regex_search", "metric_value": "("}, "no regular expression"),
        ({"categories": "a"}, "categories"),
        ({"content": " "}, '"content" is empty'),
        ({"effect": 7}, '"effect" must be a text'),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_line(
    tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    message = refusal(lambda: entry(tmp_path, **fields))
    assert "f.jsonl, line 1" in message and said in message


def test_filters_leave_what_all_of_them_let_pass() -> None:
    entries = [
        Entry({"feedback": f"{who} {scope}"}, scope, kind, ("a", who), "")
        for who in ("Ann", "Bob")
        for scope in ("local", "global")
        for kind in ("quantitative", "qualitative")
    ]
    assert select_entries(entries) == entries
    assert len(select_entries(entries, prefix="Ann", scope="local")) == 2
    assert len(select_entries(entries, category="Bob", kind="qualitative")) == 2
    assert select_entries(entries, prefix="nn") == []
