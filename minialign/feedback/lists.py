"""Lists as models write them: numbers, bullets, labels, quotation marks and remarks in any mixture.

    1. Write ...       1) ...     - ...     * ...     Prompt 3: ...     **2.** "..." - this asks ...
    ["...", "..."]     or lines without any mark

What is read is what a person would take for the entries. Of two lists in one answer, one below the
other's headings, the inner one counts. Nothing here raises: what cannot be read is no entry.
"""

from __future__ import annotations

import json
import re

MIN_WORDS, MAX_WORDS = 3, 120  # of a prompt
SAME = 0.85  # shared words by all words: from here on, two prompts are nearly the same
MAX_PLAIN_WORDS = 40  # of a line in a list without marks; longer ones are prose
LABEL = re.compile(
    r"(?:(?:in|near|out)[- ](?:of[- ])?scope\s+)?(?:revised\s+)?"
    r"(?:user\s+)?(?:prompt|request|query|question|example|category)"
    r"(?:\s*#?\d+\s*[:.)\-–—]|\s*:)\s*",
    re.IGNORECASE,
)
NUMBER = re.compile(r"(?:\(\d{1,3}\)|#?\d{1,3}\s?[.):](?!\d)|\[\d{1,3}\])\s*")
BULLET = re.compile(r"(?:[-+–—](?:\s+|(?=[^\W\d]|[\"“']))|[•◦‣▪●·]\s*|\*\s+)")
REMARK = re.compile(
    r"(?:explanation|reason(?:ing)?|rationale|note|why|thoughts?|comment|response|answer|output)s?"
    r"(?:\s(?:of|for|to)?\s?(?:this|it|prompt|request)\b[^:]{0,30})?:",
    re.IGNORECASE,
)
INTRODUCTION = re.compile(
    r"(?:sure|certainly|of course|okay|ok|absolutely|here (?:is|are)|here's|below|the following|"
    r"i hope|let me know|these (?:are|requests|prompts))\b",
    re.IGNORECASE,
)
ABOUT_IT = (
    r"(?:this (?:is (?:in|near|out|about|not)|one|prompt|request|tests|asks|requires)|because|note|"
    r"explanation|reason|(?:in|near)[- ]scope)"
)
REMARK_AT_END = re.compile(
    rf"\s*(?:\({ABOUT_IT}\b[^()]*\)|\s[-–—]+\s{ABOUT_IT}\b.*"
    r"|(?<=[.?!\"”)])\s(?-i:Explanation|Reason|Rationale|Note):.*)$",
    re.IGNORECASE,
)
QUOTES = {'"': '"', "“": "”", "«": "»", "„": "“", "'": "'", "‘": "’", "`": "`"}
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+?(?=[\u3040-\u9fff])|\w+")
END = (".", "!", "?", '"', "”", ")", "'", "。", "！", "？")  # of a prompt that was not cut off


# ---- lists ----


def parse_list(text: str, cut_off: bool = False) -> list[str]:
    """The entries of an answer, in order. `cut_off`: the last one is dropped unless it is whole."""
    entries = _json_list(text)
    if entries is None:
        lines = [line.replace("**", "") for line in text.splitlines()]
        entries = _marked(lines) or _plain(lines)
    if cut_off and entries and not entries[-1].rstrip().endswith(END):
        entries = entries[:-1]
    return [entry for entry in map(clean_entry, entries) if entry]


def _json_list(text: str) -> list[str] | None:
    found = re.fullmatch(r"\s*(?:```\w*\s)?\s*(\[.*\])\s*(?:```)?\s*", text, re.DOTALL)
    try:
        entries = json.loads(found[1]) if found else None
    except (ValueError, RecursionError):
        return None
    texts = isinstance(entries, list) and all(isinstance(entry, str) for entry in entries)
    return entries if texts else None


def _marked(lines: list[str]) -> list[str]:
    """Numbered entries, or else bullets. Bullets below a number that ends in a colon are entries,
    and the number a heading; below any other they are details, and left out.
    """
    entries: list[tuple[bool, str]] = []  # (numbered, text)
    is_open = False  # whether the next line may go on with the last entry
    for line in map(str.strip, lines):
        number = NUMBER.match(line) or LABEL.match(line)
        mark = number or BULLET.match(line)
        rest = line[mark.end() :] if mark else line
        if not line:
            is_open = is_open and not entries[-1][1]  # "1." may stand in a line of its own
        elif REMARK.match(rest) or (_is_heading(line) and not mark):
            is_open = False
        elif mark:
            entries.append((number is not None, rest))
            is_open = True
        elif is_open:
            numbered, text = entries[-1]
            entries[-1] = (numbered, f"{text} {line}".strip())
    if not any(numbered for numbered, _ in entries):
        return [text for _, text in entries]
    found: list[str] = []
    below_heading = False
    for place, (numbered, text) in enumerate(entries):
        if numbered:
            bullets_follow = place + 1 < len(entries) and not entries[place + 1][0]
            below_heading = bullets_follow and text.rstrip().endswith(":")
        if numbered != below_heading:
            found.append(text)
    return found


def _plain(lines: list[str]) -> list[str]:
    """A list without marks: short lines, at least two of them or in quotation marks."""
    texts = [line.strip() for line in lines if line.strip()]
    texts = [t for t in texts if not (_is_heading(t) or INTRODUCTION.match(t) or REMARK.match(t))]
    is_prose = any(len(words(text)) > MAX_PLAIN_WORDS for text in texts)
    is_list = len(texts) > 1 or bool(texts and texts[0][0] in QUOTES)
    return texts if is_list and not is_prose else []


def _is_heading(line: str) -> bool:
    return line.startswith(("#", "```", "---", "===")) or line.endswith(":")


def clean_entry(text: str) -> str:
    """The entry alone: without label, emphasis, quotation marks around it and remarks behind it."""
    text = " ".join(text.split()).strip("*_ ")
    for mark in (LABEL, NUMBER, LABEL):  # "Prompt 1: ..." may stand behind "1." and the reverse
        text = text[found.end() :] if (found := mark.match(text)) else text
    text = REMARK_AT_END.sub("", text.strip("*_ "))
    return _unquoted(text).strip("*_ ")


def _unquoted(text: str) -> str:
    """What stands in quotation marks, if they hold the whole entry or all but a remark."""
    closing = QUOTES.get(text[:1])
    end = text.rfind(closing, 1) if closing else -1
    if closing == '"':
        end = text.find(closing, 1)  # a remark may have quotation marks of its own
    if end < 1:
        return text
    rest = text[end + 1 :].strip()
    is_remark = not rest or rest[0] in "-–—(:" or rest in (".", ",", ";")
    return text[1:end].strip() if is_remark else text


def category_name(entry: str) -> str:
    """A category without what is said about it behind a colon or a dash."""
    return re.split(r":\s|\s[-–—]+\s|:$", entry, maxsplit=1)[0].strip(" .*_\"'")


# ---- labelled parts ----


def after_label(text: str, label: str) -> str | None:
    """What stands behind a label at the start of a line; None where there is none, or nothing.

    >>> after_label("**Revised_Prompts:** 1. Why?", "REVISED PROMPTS")
    ' 1. Why?'
    """
    spelled = r"[\s_-]*".join(map(re.escape, label.split()))
    line = rf"^[^\w\n]*{spelled}\b(?:[ \t]*\([^()\n]*\))?[^\w\n:]*(?::[*_]*|$)"
    found = re.search(line, text, re.IGNORECASE | re.MULTILINE)
    return text[found.end() :] if found and text[found.end() :].strip() else None


def labelled_line(text: str, label: str) -> str | None:
    """The one line that stands behind a label, without the marks around it."""
    rest = after_label(text, label)
    return clean_entry(rest.strip().splitlines()[0]) or None if rest else None


def strip_introduction(text: str) -> str:
    """A response without "Here is the revised response:" before it, or quotation marks around."""
    text = text.strip()
    first, _, rest = text.partition("\n")
    if rest.strip() and first.rstrip("* ").endswith(":") and _introduces(first.strip("*# ")):
        text = rest.strip()
    opening, closing = text[:1], QUOTES.get(text[:1])
    whole = closing and text.endswith(closing) and not set(text[1:-1]) & {opening, closing}
    return text[1:-1].strip() if whole and len(text) > 1 else text


def _introduces(line: str) -> bool:
    about = r"(?:new|revised|updated|rewritten|improved|edited)?\s*(?:response|version|answer)\b"
    return bool(INTRODUCTION.match(line) or re.match(about, line, re.IGNORECASE))


# ---- one prompt or two ----


def words(text: str) -> list[str]:
    """In lower case, without punctuation. Scripts without spaces count each character."""
    return WORD.findall(text.casefold())


class Distinct:
    """Prompts of which no two are nearly the same, whatever their case and punctuation."""

    def __init__(self, shortest: int = MIN_WORDS, longest: int = MAX_WORDS) -> None:
        self.shortest, self.longest = shortest, longest  # in words
        self._known: list[frozenset[str]] = []
        self._spelled: set[tuple[str, ...]] = set()

    def reason_against(self, prompt: str) -> str | None:
        """Why a prompt is of no use. One that is of use is known from now on."""
        spelled = tuple(words(prompt))
        if not self.shortest <= len(spelled) <= self.longest:
            return "too short" if len(spelled) < self.shortest else "too long"
        bag = frozenset(spelled)
        if spelled in self._spelled or any(_alike(bag, other) for other in self._known):
            return "duplicate"
        self._spelled.add(spelled)
        self._known.append(bag)
        return None


def _alike(one: frozenset[str], other: frozenset[str]) -> bool:
    """By the Jaccard index of their words."""
    shared = len(one & other)
    return shared >= SAME * (len(one) + len(other) - shared)
