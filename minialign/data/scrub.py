"""Replaces what is nobody's business in a text: names in greetings, numbers, addresses, links.

What is found by its form can be missed by its form: a person should read what is learned from. The
same original always gets the same stand-in, so that a text stays readable.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

# What --scrub can name, and what the finer kinds of the table belong to.
GROUPS = {
    "names": ("name",),
    "numbers": ("account number", "card number", "phone number", "number"),
    "addresses": ("e-mail address", "postal address"),
    "links": ("link",),
    "secrets": ("password",),
}
STAND_IN_NAMES = (
    *("Robin", "Alex", "Jamie", "Kim", "Lee", "Sascha", "Toni", "Noor", "Charlie", "Jules"),
    *("Mika", "Sam", "Andrea", "Dominique", "Ariel", "Casey", "Morgan", "Quinn", "Remy", "Sky"),
)
_STREET = (
    r"street|st|road|rd|avenue|ave|lane|ln|drive|dr|close|way|court|ct|place|square|crescent|terrace"
    r"|boulevard|blvd|gardens|hill|row|mews|grove"
)
# In this order: what an earlier one replaced, a later one does not see.
PATTERNS = {
    "link": re.compile(r"\b(?:https?://|ftp://|www\.)[^\s<>\"')\]]+", re.I),
    "e-mail address": re.compile(r"[\w.+%'-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,6}"),
    # "password: x" and "the PIN is x1"; what names it stays.
    "password": re.compile(
        r"(?i:\b(?:pass ?word|pass ?phrase|pass ?code|passwort|kennwort|mot de passe|contraseña|pwd"
        r"|pin(?: code)?|api[ _-]?key|secret(?: key)?|access token|login code|wachtwoord)"
        r"(?:\s+for [^\n:]{1,40}?)?)"
        r"(?:\s*[:=]\s*[\"'“‘`]?(?P<named>[^\s\"'“”‘’`]{3,}[^\s\"'”’`.,;!?)])"
        r"|\s+(?i:(?:is|was|lautet|ist|est|es|to|now)\s+){0,3}[\"'“‘`]?(?P<secret>"
        r"[^\s\"'“”‘’`]*[\d!#$%&*+@^_~](?:[^\s\"'”’`]*[^\s\"'”’`.,;!?)])?))"
    ),
    "account number": re.compile(r"\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{2,4}){3,8}\b"),
    "card number": re.compile(r"(?<![\w-])\d{4}(?:[ -]?\d{4}){3}(?![\w-])"),
    "postal address": re.compile(
        rf"\b\d{{1,5}}[A-Za-z]?,?\s+(?:[A-Z][\w'’.-]+\s+){{1,4}}(?i:{_STREET})\b\.?"
        r"(?:,?\s+[A-Z][\w'’-]+){0,3}(?:,?\s+[A-Z]{1,2}\d[A-Z\d]?\s*\d[A-Z]{2}|,?\s+[A-Z]{2}\s+\d{5})?"
        r"|\b[A-ZÄÖÜ][\wäöüß-]*(?:straße|strasse|str\.|weg|platz|allee|gasse)\s+\d{1,4}[a-z]?"
        r"(?:,?\s+(?:[A-Z]-)?\d{5}\s+[A-ZÄÖÜ][\wäöüß-]+)?"
        r"|\b\d{1,4}(?:\s?bis)?,?\s+(?:rue|avenue|boulevard|place|chemin|impasse)\s+[^\n,;.]{3,40}"
        r"(?:,?\s+\d{5}\s+[A-ZÉ][\w'’-]+)?"
        r"|\b[A-Z]{1,2}\d[A-Z\d]?\s\d[A-Z]{2}\b"
    ),
    "phone number": re.compile(r"(?<![\w.,:/-])(?:\+|\()?\d[\d ()./-]{4,20}\d(?!\w)"),
    "number": re.compile(
        r"(?<![\w.,:/-])(?:\d{6,}|\d{2}-\d{2}-\d{2}|[A-Z]{2,}[- ]?\d{4,}[A-Z0-9-]*)(?!\w)"
    ),
}
# Digits in groups that are no telephone number: days, years, and thousands with dots.
DATE = re.compile(
    r"\d{1,4}([./-])\d{1,2}\1\d{1,4}.{0,3}|\d{4} ?- ?\d{4}|\d{1,3}(\.\d{3})+"
    r"|\d{1,2}[./-]\d{1,2}[ ./-]*"
)
FEWEST_DIGITS = 7
STAND_INS = {
    "link": "[link]",
    "e-mail address": "[e-mail address]",
    "password": "[password]",
    "account number": "[account number]",
    "card number": "[card number]",
    "postal address": "[postal address]",
    "phone number": "[phone number]",
    "number": "[number]",
}
TITLES = (
    r"(?:mr|mrs|ms|mx|dr|prof|professor|sir|madam|herrn?|frau|monsieur|madame|mme|señora?|sr|sra"
    r"|signora?|sig|heer|mevrouw)"
)
GREETING = re.compile(
    r"^\s*(?:hi|hey|hello|dear|hiya|good (?:morning|afternoon|evening|day)|morning|hallo|liebe[rs]?"
    r"|sehr geehrte[rs]?|guten (?:morgen|tag|abend)|moin|servus|bonjour|bonsoir|salut"
    r"|ch(?:er|ère)s?|hola|buenos días|buenas tardes|querid[oa]s?|estimad[oa]s?|ciao|buongiorno"
    r"|car[oaie]|gentile"
    r"|beste|geachte|hoi|dag|kære|hej|olá|oi|prezad[oa])[\s,]+"
    rf"(?:{TITLES}\b\.?\s*)*",
    re.I,
)
LONGEST_GREETING = 40
NOT_NAMES = frozenset(
    "& mum mom mummy dad daddy mama papa grandma granny grandpa service support department office"
    " all both everyone everybody team folks guys there friends colleagues sir madam whom it may"
    " concern again you this that and or to the from of und et y e en alle zusammen tous toutes"
    " todos a committee editor customer hiring manager friend neighbour parents students"
    " board".split()
)
NAME = re.compile(r"[A-ZÀ-ÖØ-ÞŁŚŠŽČ][\w'’-]+")


def _is_phone(text: str) -> bool:
    enough = sum(map(str.isdigit, text)) >= FEWEST_DIGITS
    return enough and not DATE.fullmatch(text.strip())


def secrets_in(text: str) -> list[str]:
    """What a program can tell from its form to be nobody's business; names are not among it."""
    found: list[str] = []
    Scrubber(tuple(GROUPS), found=found).scrub(text)
    return found


def names_in_greeting(text: str) -> list[str]:
    """The names that the first line greets: Kim, of "Dear Mr Kim,"."""
    first = next((line for line in text.split("\n") if line.strip()), "")[:200]
    greeted = GREETING.match(first)
    if not greeted:
        return []
    rest = first[greeted.end() :]
    # In a line of its own a greeting may list several; else a sentence follows.
    if len(first) > LONGEST_GREETING:
        rest = re.split(r"[,;:!.–—]", rest)[0]
    names: list[str] = []
    for word in re.findall(r"[\w'’&-]+", rest):
        if word.lower() in NOT_NAMES:
            continue
        if not NAME.fullmatch(word):
            break
        names.append(word)
    return names


@dataclass
class Scrubber:
    """Replaces in one text after another, and counts. `kept` are names that stay: the person's."""

    groups: tuple[str, ...]
    kept: frozenset[str] = frozenset()
    counts: Counter[str] = field(default_factory=Counter)
    originals: dict[str, set[str]] = field(default_factory=dict)
    found: list[str] | None = None
    _names: dict[str, str] = field(default_factory=dict)

    def scrub(self, text: str, names: Iterable[str] = ()) -> str:
        """The text without what is to go; `names` are the people that this message is to."""
        kinds = {kind for group in self.groups for kind in GROUPS[group]}
        for kind, pattern in PATTERNS.items():
            if kind in kinds:
                text = pattern.sub(functools.partial(self._replaced, kind), text)
        return self._without_names(text, names) if "name" in kinds else text

    def _replaced(self, kind: str, match: re.Match[str]) -> str:
        whole = match[0]
        if kind == "phone number" and not _is_phone(whole):
            return whole
        original = whole
        if kind == "password":
            original = match["named"] or match["secret"]
            # Scrubbed already.
            if original == STAND_INS[kind]:
                return whole
        self._count(kind, original)
        if self.found is not None:
            self.found.append(original)
        return whole.removesuffix(original) + STAND_INS[kind]

    def _count(self, kind: str, original: str) -> None:
        self.counts[kind] += 1
        self.originals.setdefault(kind, set()).add(original)

    def _without_names(self, text: str, names: Iterable[str]) -> str:
        own = {name.lower() for name in self.kept} | NOT_NAMES
        for name in dict.fromkeys((*names, *names_in_greeting(text))):
            if len(name) < 2 or name.lower() in own:
                continue
            stand_in = self._name_for(name)
            text, count = re.subn(rf"(?<!\w){re.escape(name)}(?!\w)", stand_in, text)
            for _ in range(count):
                self._count("name", name)
        return text

    def _name_for(self, name: str) -> str:
        if name not in self._names:
            free = [n for n in STAND_IN_NAMES if n not in self.kept]
            self._names[name] = free[len(self._names) % len(free)]
        return self._names[name]

    def table(self) -> list[str]:
        """A line a kind: how often, how many, by what; the originals are not shown."""
        lines = []
        for kind, count in self.counts.most_common():
            by = "other names (Robin, Alex, ...)" if kind == "name" else STAND_INS[kind]
            lines.append(f"{count:6,} {kind} ({len(self.originals[kind]):,} different) by {by}")
        return lines
