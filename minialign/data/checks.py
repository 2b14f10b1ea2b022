"""Checks that a program can verify: does a response do what the feedback asks for?

A check is a JSON object with a `kind` and what that kind needs; a list of them must hold together.

    {"kind": "starts_with", "text": "Ahoy"}        also ends_with
    {"kind": "contains_any", "texts": ["a", "b"]}  also contains_all, contains_none
    {"kind": "regex", "pattern": "^[^A-Z]*$"}      found anywhere; also not_regex
    {"kind": "phone_number", "text": "845-498-6857"}  however it is spaced
    {"kind": "language", "text": "es"}             ISO 639-1, by py3langid
    {"kind": "shorter"}                            than the baseline; also longer

All but the last three take `"ignore_case": true`. As a person would, the first two rows forgive
curly quotation marks for straight ones, and `starts_with` and `ends_with` white space, quotation
marks and emphasis around the response. Patterns are Python's, and match the response as it is.

A pattern with nested repeats can take longer than anyone lives. Where the platform allows it (the
main thread of a Unix process) one that is still at work after `PATTERN_SECONDS` is refused;
elsewhere nothing stops it.
"""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from minialign.errors import InputError

NEEDS = {
    "starts_with": "text",
    "ends_with": "text",
    "contains_any": "texts",
    "contains_all": "texts",
    "contains_none": "texts",
    "regex": "pattern",
    "not_regex": "pattern",
    "phone_number": "text",
    "language": "text",
    "shorter": None,
    "longer": None,
}
CASELESS = ("phone_number", "language")
BETWEEN_DIGITS = re.compile(r"[\s().\-/\u2010-\u2015\u00a0]")
PATTERN_SECONDS = 2.0
AROUND = " \t\r\n\"'`*_«»„"
STRAIGHT = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})


@dataclass(frozen=True)
class Check:
    """One check; `texts` holds the one text of starts_with and ends_with too."""

    kind: str
    texts: tuple[str, ...] = ()
    pattern: str = ""
    ignore_case: bool = False
    source: str = "check"  # for messages

    @property
    def compares(self) -> bool:
        """Whether it says nothing of a response alone, but compares two."""
        return NEEDS[self.kind] is None

    def holds(self, response: str) -> bool:
        """Whether a response alone does what is asked.

        Raises InputError for a pattern that does not come to an end.
        """
        if self.kind in ("regex", "not_regex"):
            return self._found(response) == (self.kind == "regex")
        if self.kind == "phone_number":
            return BETWEEN_DIGITS.sub("", self.texts[0]) in BETWEEN_DIGITS.sub("", response)
        if self.kind == "language":
            return _language(response, self.source) == self.texts[0]
        response, *texts = (self._plain(text) for text in (response, *self.texts))
        if self.kind == "starts_with":
            starts = (response, response.lstrip(), response.lstrip(AROUND))
            return any(start.startswith(texts[0]) for start in starts)
        if self.kind == "ends_with":
            ends = (response, response.rstrip(), response.rstrip(AROUND))
            return any(end.endswith(texts[0]) for end in ends)
        contained = [text in response for text in texts]
        if self.kind == "contains_none":
            return not any(contained)
        return all(contained) if self.kind == "contains_all" else any(contained)

    def _plain(self, text: str) -> str:
        text = text.translate(STRAIGHT)
        return text.casefold() if self.ignore_case else text

    def _found(self, response: str) -> bool:
        with _time_limit(PATTERN_SECONDS, f"{self.source}: the pattern {self.pattern!r}"):
            flags = re.IGNORECASE if self.ignore_case else re.NOFLAG
            return re.search(self.pattern, response, flags) is not None

    def compare(self, trained: str, baseline: str) -> float:
        """In [-1, 1]: how much shorter (or longer) the trained response is.

        The difference of the lengths, in characters without outer white space, by the larger one:
        half as long is .5 shorter and -.5 longer.
        """
        ours, theirs = len(trained.strip()), len(baseline.strip())
        shorter = (theirs - ours) / max(theirs, ours, 1)
        return shorter if self.kind == "shorter" else -shorter


def score_response(checks: Sequence[Check], trained: str, baseline: str) -> float:
    """In [-1, 1]: how far the trained response follows the feedback where the baseline does not.

    The C3PO paper's heuristic score (arXiv 2402.10893): 1 if only the trained response holds, -1 if
    only the baseline does, else 0. Several checks hold where all do; comparisons of length count by
    degree, and the least of all is the score. Raises InputError without any check.
    """
    if not checks:
        raise InputError("there is no check to score a response by")
    alone = [check for check in checks if not check.compares]
    scores = [check.compare(trained, baseline) for check in checks if check.compares]
    if alone:
        ours, theirs = (all(check.holds(r) for check in alone) for r in (trained, baseline))
        scores.append(float(ours) - float(theirs))
    return min(scores)


def parse_checks(raw: Any, source: str) -> tuple[Check, ...]:
    """One check or a list of them, as they stand in a file that `source` names.

    Raises InputError, naming the file and the field, for whatever is wrong.
    """
    if not isinstance(raw, list):
        return (_parse(raw, f"{source}: check"),)
    if not raw:
        raise InputError(f"{source}: check: the list is empty: give a check or leave it out")
    return tuple(_parse(one, f"{source}: check {place}") for place, one in enumerate(raw, start=1))


def _parse(raw: Any, where: str) -> Check:
    if not isinstance(raw, dict) or "kind" not in raw:
        raise InputError(f'{where}: expected a JSON object like {{"kind": "shorter"}}')
    kind = raw["kind"]
    if not isinstance(kind, str) or kind not in NEEDS:
        raise InputError(f"{where}: unknown kind {kind!r}: choose from {', '.join(NEEDS)}")
    needed = NEEDS[kind]
    allowed = {"kind"} | ({needed} if needed else set())
    allowed |= {"ignore_case"} if needed and kind not in CASELESS else set()
    for field in raw.keys() - allowed:
        raise InputError(f'{where}: {kind} has no field "{field}": delete it')
    if needed is None:
        return Check(kind, source=where)
    if needed not in raw:
        raise InputError(f'{where}: {kind} needs the field "{needed}"')
    ignore_case = raw.get("ignore_case", False)
    if not isinstance(ignore_case, bool):
        raise InputError(f'{where}: "ignore_case" must be true or false')
    if needed == "pattern":
        return Check(kind, (), _pattern(raw[needed], where), ignore_case, where)
    texts = _texts(raw[needed], needed, where)
    if kind == "phone_number" and sum(map(str.isdigit, texts[0])) < 3:
        raise InputError(f'{where}: "text" must be a phone number')
    if kind == "language":
        if not re.fullmatch("[a-z]{2}", texts[0]):
            raise InputError(f'{where}: "text" must be a language in two letters, such as "es"')
        _language("", where)
    return Check(kind, texts, "", ignore_case, where)


def _texts(value: Any, field: str, where: str) -> tuple[str, ...]:
    texts = value if field == "texts" else [value]
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        wanted = "a text" if field == "text" else "a list of texts"
        raise InputError(f'{where}: "{field}" must be {wanted}')
    if not all(text.strip() for text in texts):
        raise InputError(f'{where}: "{field}" holds an empty text, which every response contains')
    return tuple(texts)


def _language(text: str, source: str) -> str:
    """The two letters of the language that a text is likeliest in."""
    try:
        from py3langid.langid import classify
    except ImportError:
        raise InputError(
            f"{source}: language needs py3langid: pip install minialign[language]"
        ) from None
    return str(classify(text)[0])


def _pattern(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise InputError(f'{where}: "pattern" must be a text')
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise InputError(f'{where}: "pattern" is no regular expression: {error}') from None
    return value


@contextmanager
def _time_limit(seconds: float, what: str) -> Iterator[None]:
    """Raises InputError once `seconds` are over; the regular expression engine listens to signals.

    Without effect where there are no timers, or outside the main thread, which alone hears them.
    """
    if not hasattr(signal, "setitimer") or threading.current_thread() != threading.main_thread():
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        raise InputError(f"{what} takes too long on a response: simplify its repeats")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
