"""Many feedbacks in one file, JSON Lines with C3PO's own fields or this project's.

    content (or feedback)     the sentence
    domain, effect            when it applies, and what an answer that follows it looks like
    scope, type, categories   global, regional or local; quantitative or qualitative; a list
    metric, metric_value      the checks and what they need, each one or a list
    comparison                of the metric `length`: less_eq_than or greater_eq_than
    check                     or a check of this project's own (checks.py)

All but the sentence may be absent. A metric without a value takes the texts that the effect has in
quotation marks; where there are none, the feedback has no check, and its note says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minialign.data.checks import parse_checks
from minialign.data.feedback import text_field
from minialign.data.files import read_jsonl
from minialign.errors import InputError

# C3PO's metrics (its Metric enumeration) by the kind of check; all but patterns ignore case.
METRICS = {
    "contains_any_string": "contains_any",
    "contains_all_strings": "contains_all",
    "contains_none_strings": "contains_none",
    "contains_phone_number": "phone_number",
    "ends_with": "ends_with",
    "ends_with_cleaned": "ends_with",
    "starts_with": "starts_with",
    "doesnt_start_with": "not_starts_with",
    "regex_search": "regex",
    "regex_search_false": "not_regex",
    "is_language": "language",
}
MANY = ("contains_any", "contains_all", "contains_none")
FIELDS = {"regex": "pattern", "not_regex": "pattern", **dict.fromkeys(MANY, "texts")}
CASED = ("regex", "not_regex", "phone_number", "language")
QUOTED = re.compile(r"(?<!\w)['\"“‘]([^'\"“”‘’]+)['\"”’]")
BRIEF, LONG = re.compile(r"concise|brief|short"), re.compile(r"detail|long|thorough")


@dataclass(frozen=True)
class Entry:
    """One feedback of a file. `described` is as feedback.json has it, with what is known."""

    described: dict[str, Any]
    scope: str
    kind: str
    categories: tuple[str, ...]
    note: str  # about its check, where there is something to say

    @property
    def sentence(self) -> str:
        return str(self.described["feedback"])


def load_entries(file: str) -> list[Entry]:
    """Raises InputError, naming the line, for whatever is wrong with the file."""
    return [_entry(record, f"{file}, line {number}") for number, record in read_jsonl(file)]


def select_entries(
    entries: Sequence[Entry],
    *,
    prefix: str = "",
    category: str = "",
    scope: str = "",
    kind: str = "",
) -> list[Entry]:
    """Those that all filters let pass; an empty one lets pass everything."""
    return [
        entry
        for entry in entries
        if entry.sentence.startswith(prefix)
        and (not category or category in entry.categories)
        and scope in ("", entry.scope)
        and kind in ("", entry.kind)
    ]


def _entry(record: dict[str, Any], where: str) -> Entry:
    sentence = text_field(record, "content" if "content" in record else "feedback", where)
    described = {"feedback": " ".join(sentence.split())}
    described |= {n: text_field(record, n, where) for n in ("domain", "effect") if record.get(n)}
    note = ""
    raw = record.get("check")
    if raw is None and record.get("metric"):
        raw, note = _checks(record, described.get("effect", ""), where)
    if raw:
        parse_checks(raw, where)
        described["check"] = raw
    categories = record.get("categories") or []
    if not isinstance(categories, list):
        raise InputError(f'{where}: "categories" must be a list of texts')
    kind = record.get("type") or ("quantitative" if raw else "qualitative")
    scope = str(record.get("scope") or "")
    return Entry(described, scope.rstrip("_"), str(kind), tuple(map(str, categories)), note)


def _checks(record: dict[str, Any], effect: str, where: str) -> tuple[list[dict[str, Any]], str]:
    """The checks that C3PO's metrics are, and what there is to say about them."""
    metrics, values = record["metric"], record.get("metric_value")
    if not isinstance(metrics, list):
        metrics, values = [metrics], [values]
    if values is None:
        values = [None] * len(metrics)
    if not isinstance(values, list) or len(values) != len(metrics):
        raise InputError(f'{where}: "metric" and "metric_value" must be lists of one length')
    checks, guessed = [], False
    for metric, value in zip(metrics, values, strict=True):
        if metric == "length":
            check = _length(str(record.get("comparison") or ""), effect)
            guessed |= "comparison" not in record
        elif metric in METRICS:
            value, guessed = (value, guessed) if value else (QUOTED.findall(effect), True)
            check = _check(METRICS[metric], value) if value else None
        elif metric == "sentiment_polarity":
            return [], f"no check: {metric} is none that a program here can verify"
        else:
            known = ", ".join(["length", *METRICS])
            raise InputError(f"{where}: unknown metric {metric!r}: choose from {known}")
        if check is None:
            return [], f"no check: {metric} has no metric_value or comparison"
        checks.append(check)
    return checks, "check guessed from the effect" if guessed else ""


def _length(comparison: str, effect: str) -> dict[str, Any] | None:
    for kind, name, words in (("shorter", "less", BRIEF), ("longer", "greater", LONG)):
        if comparison.startswith(name) or (not comparison and words.search(effect.lower())):
            return {"kind": kind}
    return None


def _check(kind: str, value: Any) -> dict[str, Any]:
    if kind in MANY and isinstance(value, str):
        value = [value]
    if kind not in MANY and isinstance(value, list):
        value = value[0]
    if kind == "not_starts_with":
        return {"kind": "not_regex", "pattern": rf"\A\s*{re.escape(value)}", "ignore_case": True}
    check = {"kind": kind, FIELDS.get(kind, "text"): value}
    return check if kind in CASED else {**check, "ignore_case": True}
