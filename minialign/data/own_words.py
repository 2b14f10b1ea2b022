"""Of a message's text, what its sender wrote: no quotations, forwards, signatures or disclaimers.

Answers between quoted lines are kept. Where a quotation has no marks (Outlook's header block, a
forwarded message), all that follows is left out, because whose words they are cannot be told.
The marks are known in English, German, French, Spanish, Italian, Dutch, Portuguese and the
Scandinavian languages.
"""

from __future__ import annotations

import itertools
import re

FORWARDED = re.compile(
    r"^[\s>*_]*(-{2,}|_{5,}|={5,})?\s*(begin forwarded message|forwarded message|original message"
    r"|original appointment|weitergeleitete nachricht"
    r"|anfang der weitergeleiteten (nachricht|e-?mail)"
    r"|urspr(ü|ue)ngliche nachricht|message (transf(é|e)r(é|e)|d'origine|original)"
    r"|d(é|e)but du message (transf(é|e)r(é|e)|r(é|e)exp(é|e)di(é|e))|mensaje (reenviado|original)"
    r"|messaggio (inoltrato|originale)|doorgestuurd bericht|oorspronkelijk bericht"
    r"|mensagem (encaminhada|original)|vidarebefordrat meddelande|opprinnelig melding"
    r"|forwarded by [^\n]{1,80})\s*:?\s*(-{2,}|_{5,}|={5,})?[\s*_]*$",
    re.I,
)
HEADER = r"(from|von|de|da|van|fra|från|mittente|expéditeur|remitente)"
HEADER_FIRST = re.compile(rf"^[\s>*_]*{HEADER}[\s*_]*:[\s*_]*\S", re.I)
HEADER_NEXT = re.compile(
    r"^[\s>*_]*(sent|date|to|subject|cc|gesendet|datum|an|betreff|envoyé|à|objet|enviado|para|asunto"
    r"|inviato|data|a|oggetto|verzonden|aan|onderwerp|assunto|skickat|till|ämne|sendt|til|emne)"
    r"[\s*_]*:",
    re.I,
)
# A line such as "On 3 May 2024, Kim wrote:", which may go over three.
WROTE = re.compile(
    r"^[\s>*_]*(on\b.{4,250}\bwrote|am\b.{4,250}\bschrieb\b.{0,120}|le\b.{4,250}\ba écrit"
    r"|el\b.{4,250}\bescribió|il\b.{4,250}\bha scritto|op\b.{4,250}\bschreef\b.{0,120}"
    r"|em\b.{4,250}\bescreveu|(den|på)\b.{4,250}\bskre[vf]\b.{0,120}"
    r"|[^\n]{1,120}<[^<>\s]+@[^<>\s]+>[^\n]{0,40}"
    r"\b(wrote|schrieb|a écrit|escribió|ha scritto|schreef))"
    r"\s?:[\s*_]*$",
    re.I | re.S,
)
QUOTED = re.compile(r"^\s{0,3}(>|\|\s)")
SENT_FROM = re.compile(
    r"^\s*[_*]*(sent (from|via|with) (my |the )?\w.{0,60}|get outlook for .{1,20}"
    r"|von meinem .{1,40} gesendet|gesendet (von|mit) .{1,60}|envoyé (de|depuis) (mon|ma) .{1,40}"
    r"|enviado desde (mi|el) .{1,40}|inviato da(l mio)? .{1,40}|verstuurd vanaf mijn .{1,40}"
    r"|télécharger outlook pour .{1,20}|outlook für .{1,20} (beziehen|herunterladen)"
    r"|virus-free\. .{1,60}|\[(image: |cid:|inline image)[^\]]{0,120}\])"
    r"[_*.]*\s*$",
    re.I,
)
SIGNATURE = re.compile(r"^(--|—|– )\s*$|^_{10,}\s*$|^-----BEGIN PGP SIGNATURE-----")
SIGN_OFF = re.compile(
    r"^\s*((with )?(kind|best|warm|many|my|all the|yours)\b.{0,30}|regards|cheers|thanks.{0,20}"
    r"|sincerely.{0,20}|love.{0,10}|mit (freundlichen|besten|lieben|herzlichen) .{0,30}"
    r"|(viele|beste|liebe|herzliche|schöne) grüße.{0,20}|mfg|lg|vg|gruß.{0,20}"
    r"|(bien )?cordialement.{0,10}|bien à (vous|toi)|amicalement|salutations.{0,20}|bises"
    r"|(un )?(saludos?|abrazo|cordial saludo).{0,20}|atentamente|(cordiali|distinti) saluti|saluti"
    r"|met vriendelijke groet.{0,5}|groet(en|jes)?|med (venlig|vänlig|vennlig) hilsen|mvh|abraços?)"
    r"[\s,.!]*$",
    re.I,
)
CONTACT = re.compile(
    r"@|https?:|www\.|\+?\d[\d\s()./-]{6,}\d"
    r"|\b(tel|phone|fon|mobile?|mobil|fax|tél|cell|direct)\b\.?\s*:"
    r"|\b(gmbh|ltd|inc|llc|s\.?a\.?r\.?l|s\.p\.a|plc|registered office|amtsgericht)\b",
    re.I,
)
DISCLAIMER = re.compile(
    r"(confidential|privileged|vertraulich|confidentiel|confidencial|riservat|vertrouwelijk)"
    r".{0,400}(recipient|addressee|intended|empfänger|adressat|destinat|geadresseerde|delete|löschen)"
    r"|(consider|think of) the environment before printing|to unsubscribe|unsubscribe (from|here)"
    r"|you received this (message|email) because|mailing list\s*$|/mailman/listinfo/"
    r"|(intended|solely) for the (addressee|use of|named|intended).{0,200}"
    r"|(diese e-?mail|ce (message|courriel)|este (mensaje|correo)).{0,200}(vertraulich|confidentiel"
    r"|confidencial)",
    re.I | re.S,
)
INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f\r\x00"))
LONGEST_TEXT = 200_000
# What is looked at of a paragraph that may be a disclaimer.
LONGEST_NOTICE = 3_000
# Longer lines are prose, and would cost the patterns much time.
LONGEST_MARK = 400
# Where no line is longer than the one, lines longer than the other were broken by a program.
WRAPPED_TO, WRAPPED_FROM = 80, 55
# A sentence that goes on in the next line was, if it is so long.
GOES_ON_FROM = 40
LISTED = re.compile(r"\s*([-*•]|\d+[.)])\s")


def own_words(text: str) -> tuple[str, str]:
    """What the sender wrote, and why nothing is left where nothing is.

    Lines that a mail program broke are joined again.
    """
    text = text[:LONGEST_TEXT].replace("\r\n", "\n").replace("\u00a0", " ").translate(INVISIBLE)
    lines = _without_armour([line.rstrip() for line in text.split("\n")])
    kept, forwarded = _without_others(lines)
    kept = _without_signature(kept)
    paragraphs = re.split(r"\n\s*\n", "\n".join(kept))
    own = [p for p in paragraphs if p.strip() and not DISCLAIMER.search(p[:LONGEST_NOTICE])]
    found = unwrapped("\n\n".join(own)).strip()
    if found:
        return found, ""
    return "", "only a forwarded message" if forwarded else "none of your own words"


def _is(pattern: re.Pattern[str], line: str) -> bool:
    return len(line) <= LONGEST_MARK and pattern.match(line) is not None


def _without_armour(lines: list[str]) -> list[str]:
    """A signed message without the lines that say so."""
    if not lines or not any(line.startswith("-----BEGIN PGP SIGNED") for line in lines):
        return lines
    return [line for line in lines if not re.match(r"-----BEGIN PGP SIGNED|Hash: \S+$", line)]


def _without_others(lines: list[str]) -> tuple[list[str], bool]:
    """The lines that are not quoted, up to where a quotation without marks begins."""
    kept: list[str] = []
    place = 0
    while place < len(lines):
        line = lines[place]
        if _is(FORWARDED, line) or _is_header_block(lines, place):
            return kept, True
        if length := _attribution(lines, place):
            place += length
            # Without marks, what follows is the other's to the end.
            if not QUOTED.match(_next_text(lines, place)):
                return kept, False
            continue
        if not QUOTED.match(line) and not _goes_on_a_quote(lines, place):
            if not _is(SENT_FROM, line):
                kept.append(line)
        place += 1
    return kept, False


def _is_header_block(lines: list[str], place: int) -> bool:
    """From:, and within four lines two of Sent:, To:, Subject:."""
    if not _is(HEADER_FIRST, lines[place]):
        return False
    return sum(_is(HEADER_NEXT, line) for line in lines[place + 1 : place + 5]) >= 2


def _attribution(lines: list[str], place: int) -> int:
    """How many lines, up to three, say who wrote what follows; 0 if none does."""
    for length in (1, 2, 3):
        block = lines[place : place + length]
        if not all(block):
            return 0
        if _is(WROTE, " ".join(block)):
            return length
    return 0


def _next_text(lines: list[str], place: int) -> str:
    return next((line for line in lines[place : place + 4] if line.strip()), "")


def _goes_on_a_quote(lines: list[str], place: int) -> bool:
    """Whether a quoted line that was too long was broken, and this is its short rest."""
    if not 0 < place < len(lines) - 1 or not lines[place].strip() or len(lines[place]) > 30:
        return False
    before, after = lines[place - 1], lines[place + 1]
    return bool(QUOTED.match(before)) and len(before) >= 65 and bool(QUOTED.match(after))


def _without_signature(lines: list[str]) -> list[str]:
    """Up to the line that begins a signature, and after the name without the contact details."""
    for place, line in enumerate(lines):
        if _is(SIGNATURE, line):
            lines = lines[:place]
            break
    while lines and not lines[-1].strip():
        lines = lines[:-1]
    for place in range(max(0, len(lines) - 15), len(lines)):
        if _is(SIGN_OFF, lines[place]):
            return _up_to_name(lines, place)
    return lines


def _up_to_name(lines: list[str], sign_off: int) -> list[str]:
    """The sign-off and the name after it; what follows is kept unless it holds contact details."""
    name = next((i for i in range(sign_off + 1, len(lines)) if lines[i].strip()), sign_off)
    if CONTACT.search(lines[name]) or len(lines[name].split()) > 5:
        name = sign_off
    rest = lines[name + 1 :]
    if not any(CONTACT.search(line) for line in rest):
        return lines
    first = next(
        (i for i, line in enumerate(rest) if re.match(r"\s*p\.?\s?p?s\b", line, re.I)), None
    )
    kept = [] if first is None else ["", *rest[first:]]
    return [*lines[: name + 1], *kept]


def unwrapped(text: str) -> str:
    """Sentences in one line each, where a mail program broke them at a column."""
    lines = text.split("\n")
    column = max(map(len, lines))
    joined = lines[:1]
    for last, line in itertools.pairwise(lines):
        if line.strip() and not LISTED.match(line) and _broken(last, line, column):
            joined[-1] += " " + line.lstrip()
        else:
            joined.append(line)
    return "\n".join(joined)


def _broken(last: str, line: str, column: int) -> bool:
    """Whether a program broke off `last`: in mid-sentence, or where the next word did not fit."""
    if len(last) >= GOES_ON_FROM and last[-1] not in ".!?:;" and line[:1].islower():
        return True
    if not WRAPPED_FROM <= column <= WRAPPED_TO or len(last) < WRAPPED_FROM:
        return False
    return len(last) + 1 + len(line.split(" ", 1)[0]) > column - 4
