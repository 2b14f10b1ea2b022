"""The text of an HTML message, by the standard library's parser, without what others wrote.

Left out: quotations in the ways of the common mail programs (a line `> ...` stands in their place),
signatures, what is hidden, and pictures, which is what trackers are.
"""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser

VOID = frozenset("area base br col embed hr img input link meta source track wbr".split())
UNSEEN = frozenset("head script style title template noscript svg object iframe".split())
BLOCKS = frozenset("p div tr table ul ol h1 h2 h3 h4 h5 h6 section article pre".split())
# Classes and ids that mark quotations and signatures: Gmail, Thunderbird, Yahoo, Proton, Outlook.
LEFT_OUT = re.compile(
    r"gmail_(quote|extra|signature|attr)|moz-(cite-prefix|signature|email-headers)|yahoo_quoted"
    r"|protonmail_(quote|signature)|zmail_extra|tutanota_quote",
    re.I,
)
# From here on, to the end of the page, Outlook quotes.
QUOTES_FROM = re.compile(
    r"divRplyFwdMsg|appendonsend|OLK_SRC_BODY_SECTION|mail-editor-reference", re.I
)
HIDDEN = re.compile(
    r"display\s*:\s*none|visibility\s*:\s*hidden|font-size\s*:\s*[01](px|pt)?\s*(;|$)", re.I
)
DEEPEST = 500
LONGEST_PAGE = 500_000


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        # Open elements, with whether each is left out.
        self.open: list[tuple[str, bool]] = []
        self.counts: Counter[str] = Counter()
        self.unseen = 0
        self.ended = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        marks = {name: value or "" for name, value in attrs}
        named = f"{marks.get('class', '')} {marks.get('id', '')}"
        self.ended = self.ended or bool(QUOTES_FROM.search(named))
        if tag == "br":
            self._write("\n")
        elif tag == "li":
            self._write("\n- ")
        elif tag in BLOCKS:
            self._write("\n\n" if tag == "p" else "\n")
        if tag in VOID or len(self.open) >= DEEPEST:
            return
        quoted = tag == "blockquote" or bool(LEFT_OUT.search(named))
        if quoted:
            # For whoever looks for words of others: here some were.
            self._write("\n> ...\n")
        unseen = tag in UNSEEN or quoted or bool(HIDDEN.search(marks.get("style", "")))
        self.open.append((tag, unseen))
        self.counts[tag] += 1
        self.unseen += unseen

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        # What was left open within ends too; an end without a start is nothing.
        if not self.counts[tag]:
            return
        name = ""
        while name != tag:
            name, unseen = self.open.pop()
            self.counts[name] -= 1
            self.unseen -= unseen
        if tag in BLOCKS:
            self._write("\n\n" if tag == "p" else "\n")

    def handle_data(self, data: str) -> None:
        self._write(data if self.counts["pre"] else re.sub(r"\s+", " ", data))

    def _write(self, text: str) -> None:
        if not self.unseen and not self.ended:
            self.pieces.append(text)


def html_text(page: str) -> str:
    """The text that a reader sees and the sender wrote, a line for each line break and block."""
    page = _without_comments(page[:LONGEST_PAGE])
    reader = _Reader()
    # Tags that never end cost the parser the square of their number.
    reader.feed(re.sub(r"<[^<>]*(?=<|\Z)", "", page))
    reader.close()
    lines = [" ".join(line.split(" ")).strip() for line in "".join(reader.pieces).split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _without_comments(page: str) -> str:
    """One that never ends goes on to the end of the page, as in a browser."""
    first, *others = page.split("<!--")
    return first + "".join(other.partition("-->")[2] for other in others)
