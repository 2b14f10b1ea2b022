"""From what a person wrote to demonstrations: scrubbed, each with the instruction that it answers,
a few picked to learn from.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from minialign.data.mail import Written
from minialign.data.pick import pick
from minialign.data.records import Messages
from minialign.data.scrub import NAME, Scrubber, names_in_greeting

LEARNED, JUDGED, SPARE = "train", "test", "spare"


@dataclass(frozen=True)
class Told:
    """A scrubbed text with the template's instruction; `given` where the file had one itself."""

    source: str
    text: str
    messages: Messages
    given: bool


Instruct = Callable[[Sequence[Told]], list[str]]


def told(written: Written, scrubber: Scrubber) -> Told:
    """The text without what is to go, and what it answers."""
    people = _people(written)
    text = scrubber.scrub(written.text, people)
    if written.messages:
        messages = [{**m, "content": scrubber.scrub(m["content"])} for m in written.messages]
        return Told(written.source, text, messages, True)
    subject = scrubber.scrub(written.subject, people)
    content = instruction(subject, names_in_greeting(text), written.reply, written.mail)
    return Told(written.source, text, [{"role": "user", "content": content}], False)


def _people(written: Written) -> list[str]:
    """The names greeted, and the other names of the same people as the header has them."""
    greeted = names_in_greeting(written.text)
    full = [NAME.findall(name) for name in written.names]
    others = [word for words in full if set(words) & set(greeted) for word in words]
    return [*greeted, *others]


def instruction(subject: str, names: Sequence[str], reply: bool, mail: bool) -> str:
    """What the text answers, without any model: from its subject and whom it greets."""
    subject = " ".join(subject.split())[:200].strip().rstrip(".")
    if not mail:
        return f'Write a text with the title "{subject}".' if subject else "Write a text."
    to = f" to {' and '.join(names[:2])}" if names else ""
    what = f"Write a reply{to} to an e-mail" if reply else f"Write an e-mail{to}"
    if reply and names:
        what = f"Write a reply to {' and '.join(names[:2])}"
    return f'{what} with the subject "{subject}".' if subject else f"{what}."


def demonstrations(
    everything: Sequence[Told], learned: int, judged: int, instruct: Instruct | None = None
) -> list[dict[str, Any]]:
    """The lines of a file: those to learn from, those to judge by, and the others.

    `instruct` writes the instructions of those that are used, where the file had none.
    """
    texts = [t.text for t in everything]
    first = pick(texts, learned)
    rest = [place for place in range(len(texts)) if place not in set(first)]
    second = [rest[place] for place in pick([texts[place] for place in rest], judged)]
    third = [place for place in rest if place not in set(second)]
    wanted = [place for place in (*first, *second) if not everything[place].given]
    by_place = {}
    if instruct:
        by_place = dict(zip(wanted, instruct([everything[p] for p in wanted]), strict=True))
    lines = []
    for places, split in ((first, LEARNED), (second, JUDGED), (third, SPARE)):
        lines += [_line(everything[place], split, by_place.get(place)) for place in places]
    return lines


def _line(one: Told, split: str, instruction: str | None) -> dict[str, Any]:
    kept = {"completion": one.text, "split": split, "source": one.source}
    if one.given and len(one.messages) > 1:
        messages = [*one.messages, {"role": "assistant", "content": one.text}]
        return {"messages": messages, "split": split, "source": one.source}
    return {"prompt": instruction or one.messages[-1]["content"], **kept}
