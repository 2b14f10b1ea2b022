"""An e-mail: who wrote it to whom about what, and what its sender wrote in it.

The standard library's `email` takes messages apart. Whatever it makes of a broken or hostile one,
the message is dropped with a reason and the next one is read.
"""

from __future__ import annotations

import email
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from email.header import decode_header, make_header
from email.message import Message
from email.utils import getaddresses

from minialign.data.html_text import html_text
from minialign.data.own_words import own_words

# What is not looked at further.
LONGEST_HEADERS, LONGEST_HEADER, DEEPEST, MOST_PARTS = 400_000, 5_000, 20, 100
AUTOMATIC_SUBJECT = re.compile(
    r"^(automatic reply|auto(matic)?-?reply|out of office|abwesenheit|réponse automatique"
    r"|respuesta automática|accepted|declined|tentative|canceled|cancelled"
    r"|undeliverable|delivery status notification|zugesagt|abgelehnt)\s*:",
    re.I,
)
REPLY = re.compile(r"^((re|aw|sv|antw|rif|res|tr|fwd?|wg|vs)\s*(\[\d+\])?\s*:\s*)+", re.I)
FORWARD = re.compile(r"^(fwd?|wg|tr|i|rv|enc)\s*:", re.I)
ARMOUR = "-----BEGIN PGP MESSAGE-----"


@dataclass(frozen=True)
class Envelope:
    """The outside of a message; addresses are in lower case."""

    sender: str
    sender_name: str
    to: tuple[tuple[str, str], ...]  # names and addresses
    subject: str


@dataclass(frozen=True)
class Written:
    """One text that a person wrote, and what is known of why."""

    source: str  # "Sent.mbox, message 12"
    text: str
    subject: str = ""
    names: tuple[str, ...] = ()  # of those that it is to, as the header has them
    reply: bool = False
    mail: bool = True
    messages: tuple[dict[str, str], ...] = ()  # where the file says what the text answers


@dataclass(frozen=True)
class Dropped:
    source: str
    reason: str


def envelope_of(raw: bytes) -> Envelope | None:
    """None of what has no sender, or cannot be read at all."""
    end = re.search(rb"\r?\n\r?\n", raw[:LONGEST_HEADERS])
    if end is None and len(raw) > LONGEST_HEADERS:
        return None
    try:
        message = email.message_from_bytes(raw[: end.end()] if end else raw)
        (name, sender), *_ = _addresses(message, "From") or [("", "")]
        to = (*_addresses(message, "To"), *_addresses(message, "Cc"))
        subject = " ".join(_header(message, "Subject").split())
    # A hostile header may make the library fail in any way.
    except Exception:
        return None
    return Envelope(sender, name, to, subject) if "@" in sender else None


def guess_me(envelopes: Iterable[Envelope]) -> tuple[list[str], bool]:
    """The addresses that may be the owner's, likeliest first, and whether there is little doubt.

    An owner wrote some messages and is in nearly all: as sender, or among those addressed.
    """
    wrote: Counter[str] = Counter()
    present: Counter[str] = Counter()
    messages = 0
    for envelope in envelopes:
        messages += 1
        wrote[envelope.sender] += 1
        present.update({envelope.sender, *(address for _, address in envelope.to)})
    score = {address: wrote[address] + present[address] for address in wrote}
    likely = sorted(score, key=lambda address: (-score[address], address))
    if not likely:
        return [], False
    second = score[likely[1]] if len(likely) > 1 else 0
    sure = present[likely[0]] >= 0.6 * messages and score[likely[0]] >= 1.5 * second
    return likely, sure


def read_mail(raw: bytes, source: str, me: frozenset[str]) -> Written | Dropped:
    """What one of `me` wrote in a message, or why nothing is taken from it."""
    envelope = envelope_of(raw)
    if envelope is None:
        return Dropped(source, "broken: no sender that can be read")
    if envelope.sender not in me:
        return Dropped(source, "written by somebody else")
    try:
        text, reason = _own_text(email.message_from_bytes(raw), envelope)
    # Nested a thousand times, say: as above.
    except Exception:
        return Dropped(source, "broken: its parts cannot be read")
    if reason:
        return Dropped(source, reason)
    return Written(
        source,
        text,
        subject=REPLY.sub("", envelope.subject),
        names=_names(envelope, me),
        reply=bool(REPLY.match(envelope.subject)),
    )


def _own_text(message: Message, envelope: Envelope) -> tuple[str, str]:
    """The text and no reason, or a reason."""
    if _is_automatic(message, envelope):
        return "", "written by a program"
    kind = message.get_content_type()
    if kind in ("multipart/encrypted", "application/pkcs7-mime", "application/x-pkcs7-mime"):
        return "", "encrypted"
    bodies = list(_bodies(message))
    if any(ARMOUR in plain for plain, _ in bodies):
        return "", "encrypted"
    plain = "\n\n".join(plain if plain.strip() else html_text(html) for plain, html in bodies)
    if not plain.strip():
        return "", "no text, only attachments" if message.is_multipart() else "no text"
    text, reason = own_words(plain)
    pages = [html for _, html in bodies if html]
    # "Your program cannot show this message": the page has the words.
    if len(text.split()) < 8 and pages:
        other, _ = own_words(html_text("\n".join(pages)))
        text, reason = (other, "") if len(other) > len(text) else (text, reason)
    if reason and FORWARD.match(envelope.subject):
        reason = "only a forwarded message"
    return text, reason


def _is_automatic(message: Message, envelope: Envelope) -> bool:
    submitted = _header(message, "Auto-Submitted").lower()
    bulk = _header(message, "Precedence").lower() in ("bulk", "auto_reply", "junk")
    return (
        submitted not in ("", "no")
        or bulk
        or message.get_content_type() in ("multipart/report", "text/calendar")
        or bool(AUTOMATIC_SUBJECT.match(envelope.subject))
    )


def _bodies(part: Message, depth: int = 0) -> list[tuple[str, str]]:
    """The texts of a message as (plain, HTML), either may be empty; attachments are left out."""
    kind = part.get_content_type()
    if depth > DEEPEST or part.get_content_maintype() == "message":
        return []
    if part.is_multipart():
        payload = part.get_payload()
        inner = payload[:MOST_PARTS] if isinstance(payload, list) else []
        found = [b for p in inner if isinstance(p, Message) for b in _bodies(p, depth + 1)]
        if kind != "multipart/alternative" or not found:
            return found
        first_plain = next((plain for plain, _ in found if plain.strip()), "")
        return [(first_plain, next((html for _, html in found if html), ""))]
    if part.get_content_disposition() == "attachment" or part.get_filename():
        return []
    if kind == "text/html":
        return [("", _decoded(part))]
    return [(_unflowed(part, _decoded(part)), "")] if kind == "text/plain" else []


def _decoded(part: Message) -> str:
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return ""
    for charset in (str(part.get_content_charset() or "utf-8"), "utf-8", "cp1252"):
        try:
            return payload.decode(charset)
        except (LookupError, ValueError):
            continue
    return payload.decode("utf-8", errors="replace")


def _unflowed(part: Message, text: str) -> str:
    """RFC 3676: a line that ends in a space goes on in the next."""
    if str(part.get_param("format") or "").lower() != "flowed":
        return text
    out: list[str] = []
    soft = False
    for line in text.replace("\r\n", "\n").split("\n"):
        stuffed = line.removeprefix(" ")
        if soft and not line.startswith(">"):
            out[-1] += stuffed
        else:
            out.append(stuffed)
        soft = line.endswith(" ") and line != "-- " and not line.startswith(">")
    return "\n".join(out)


def _header(message: Message, name: str) -> str:
    raw = str(message.get(name) or "")[:LONGEST_HEADER]
    try:
        return str(make_header(decode_header(raw)))
    except (LookupError, ValueError):
        return raw


def _addresses(message: Message, name: str) -> list[tuple[str, str]]:
    values = [str(value)[:LONGEST_HEADER] for value in message.get_all(name, [])[:20]]
    return [(_decoded_name(n), address.lower()) for n, address in getaddresses(values) if address]


def _decoded_name(name: str) -> str:
    try:
        return str(make_header(decode_header(name)))
    except (LookupError, ValueError):
        return name


def _names(envelope: Envelope, me: frozenset[str]) -> tuple[str, ...]:
    to = envelope.to[:20]
    return tuple(name for name, address in to if name and address not in me and "@" not in name)
