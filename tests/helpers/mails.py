"""A mailbox as people have them, made by a program: what the owner wrote, what others wrote, and
what a mail program, a list or a virus scanner put around it.

Every word that is not the owner's own contains "theirs".
"""

from __future__ import annotations

import mailbox
from collections.abc import Callable
from email.message import EmailMessage
from pathlib import Path

ME = "maud@example.org"
TOPICS = (
    *("the ovens", "Saturday's market", "the flour", "your invoice", "our walk", "the choir"),
    *("the roof", "grandmother's clock", "the ferry", "a lost parcel", "the garden", "exams"),
)
OTHERS = "These theirs are the words of theirs only, and theirs stay."
SIGNATURES = (
    "Maud\n-- \nMaud theirs\nBakery theirs GmbH\nTel.: 0123 4567890",
    "Kind regards,\nMaud\nHead of theirs\nwww.theirs.example\n+44 20 7946 0000",
    "Mit freundlichen Grüßen\nMaud\n\ntheirs GmbH, Amtsgericht Theirsstadt\nTel: 030 1234567",
    "Bien cordialement,\nMaud\n\nBoulangerie theirs\nTél : 01 23 45 67 89",
)
DISCLAIMER = (
    "This e-mail is confidential and intended for the addressee theirs only. If you are not the "
    "intended recipient, delete it."
)


def own(number: int) -> str:
    """A text of its own, which no other nearly repeats."""
    topic = TOPICS[number % len(TOPICS)]
    words = " ".join(f"word{number}x{place}" for place in range(18))
    return (
        f"Hi Kim,\n\nRight then, own{number} is about {topic}. I thought of {words} and then went "
        f"on.\n\nOnwards own{number},"
    )


def message(
    body: str = "", subject: str = "Re: Buns", sender: str = f"Maud <{ME}>"
) -> EmailMessage:
    made = EmailMessage()
    made["From"], made["To"], made["Subject"] = sender, "Kim Lee <kim@example.com>", subject
    made["Date"] = "Fri, 03 May 2024 10:00:00 +0000"
    if body:
        made.set_content(body)
    return made


# ---- what is kept: each makes a message around an own text ----


def plain(text: str, number: int) -> EmailMessage:
    return message(f"{text}\nMaud")


def top_posted(text: str, number: int) -> EmailMessage:
    quoted = "\n".join(f"> {line}" for line in (OTHERS, "", OTHERS))
    wrote = (
        "On Fri, 3 May 2024 at 10:00, Kim theirs <kim@example.com> wrote:",
        "On Fri, 3 May 2024 at 10:00, Kim theirs with a long name\n<kim@example.com> wrote:",
        "Am 03.05.2024 um 10:00 schrieb Kim theirs:",
        "Le ven. 3 mai 2024 à 10:00, Kim theirs <kim@example.com> a écrit :",
    )[number % 4]
    return message(f"{text}\nMaud\n\n{wrote}\n\n{quoted}")


def inline(text: str, number: int) -> EmailMessage:
    first, rest = text.split("\n\n", 1)
    return message(
        f"Kim theirs <kim@example.com> wrote:\n\n> {OTHERS}\n{first}\n\n> {OTHERS}\n> {OTHERS}\n\n"
        f"{rest}\nMaud"
    )


def outlook(text: str, number: int) -> EmailMessage:
    head = (
        "From: Kim theirs\nSent: Friday\nTo: Maud\nSubject: theirs",
        "Von: Kim\nGesendet: Freitag",
    )
    tail = "\nAn: Maud\nBetreff: theirs" if number % 2 else ""
    return message(f"{text}\nMaud\n\n{head[number % 2]}{tail}\n\n{OTHERS}")


def signed(text: str, number: int) -> EmailMessage:
    return message(f"{text}\n\n{SIGNATURES[number % len(SIGNATURES)]}\n\n{DISCLAIMER}")


def html_only(text: str, number: int) -> EmailMessage:
    made = message()
    paragraphs = "".join(f"<p>{part}</p>" for part in text.split("\n\n"))
    made.set_content(
        f"<html><head><style>p {{theirs: 1}}</style></head><body>{paragraphs}<div>Maud</div>"
        f'<img src="https://theirs.example/pixel.gif"><div style="display:none">theirs</div>'
        f'<div class="gmail_quote">On Friday Kim theirs wrote:<blockquote>{OTHERS}</blockquote>'
        "</div></body></html>",
        subtype="html",
    )
    return made


def html_below(text: str, number: int) -> EmailMessage:
    made = message()
    page = text.replace("\n", "<br>")
    made.set_content(
        f"<div>On Friday, Kim theirs wrote:</div><blockquote>{OTHERS}</blockquote>{page}<br>Maud",
        subtype="html",
    )
    return made


def alternative(text: str, number: int) -> EmailMessage:
    made = plain(text, number)
    made.add_alternative(f"<p>{text}</p><blockquote>{OTHERS}</blockquote>", subtype="html")
    return made


def attached(text: str, number: int) -> EmailMessage:
    made = plain(text, number)
    made.add_attachment(OTHERS.encode(), maintype="text", subtype="plain", filename="theirs.txt")
    made.add_attachment(message(OTHERS, sender="kim@example.com"))
    return made


def encoded(text: str, number: int) -> EmailMessage:
    charset, greeting = (("latin-1", "Grüße"), ("cp1252", "“Ça”"), ("utf-8", "Привет 🍞"))[
        number % 3
    ]
    transfer = ("quoted-printable", "base64")[number % 2]
    made = message()
    made.set_content(f"{text} {greeting}\nMaud", charset=charset, cte=transfer)
    return made


def to_a_list(text: str, number: int) -> EmailMessage:
    footer = "_______________________________________________\nBuns theirs mailing list\ntheirs"
    made = message(f"{text}\nMaud\n\n{footer}")
    made["List-Id"] = "<buns.theirs.example>"
    return made


def pgp_signed(text: str, number: int) -> EmailMessage:
    return message(
        f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{text}\nMaud\n"
        "-----BEGIN PGP SIGNATURE-----\n\ntheirs\n-----END PGP SIGNATURE-----"
    )


def from_a_phone(text: str, number: int) -> EmailMessage:
    sent = ("Sent from my theirsPhone", "Von meinem theirs gesendet", "Envoyé de mon theirs")
    return message(f"{text}\nMaud\n\n{sent[number % 3]}")


KEPT: tuple[Callable[[str, int], EmailMessage], ...] = (
    *(plain, top_posted, inline, outlook, signed, html_only, html_below, alternative, attached),
    *(encoded, to_a_list, pgp_signed, from_a_phone),
)


# ---- what is left out, and why ----


def by_another(number: int) -> bytes:
    return message(f"{OTHERS} {number}" * 9, sender="Kim <kim@example.com>").as_bytes()


def forwarded(number: int) -> bytes:
    made = message(
        f"---------- Forwarded message ---------\nFrom: Kim\n\n{OTHERS * 9}", "Fwd: theirs"
    )
    return made.as_bytes()


def only_attachments(number: int) -> bytes:
    made = message()
    made.make_mixed()
    made.add_attachment(b"\x00theirs", maintype="image", subtype="png", filename="theirs.png")
    return made.as_bytes()


def short(number: int) -> bytes:
    return message(f"Fine with me, theirs {number}.").as_bytes()


def encrypted(number: int) -> bytes:
    return message("-----BEGIN PGP MESSAGE-----\n\ntheirs=\n-----END PGP MESSAGE-----").as_bytes()


def automatic(number: int) -> bytes:
    made = message(OTHERS * 9, "Out of office")
    made["Auto-Submitted"] = "auto-replied"
    return made.as_bytes()


def broken(number: int) -> bytes:
    return f"Subject: theirs {number}\n\n{OTHERS}\n".encode()


def only_quoted(number: int) -> bytes:
    return message("\n".join(f"> {OTHERS}" for _ in range(9))).as_bytes()


LEFT_OUT: dict[str, Callable[[int], bytes]] = {
    "written by somebody else": by_another,
    "only a forwarded message": forwarded,
    "no text, only attachments": only_attachments,
    "fewer than 20 words": short,
    "encrypted": encrypted,
    "written by a program": automatic,
    "broken: no sender that can be read": broken,
    "none of your own words": only_quoted,
}


def write_mailbox(file: Path, kept: int = 180, left_out: int = 112, repeated: int = 8) -> Path:
    """An mbox of 300 messages: `kept` own ones of all kinds, the last `repeated` over again."""
    raw = [KEPT[n % len(KEPT)](own(n), n // len(KEPT)).as_bytes() for n in range(kept)]
    raw += raw[:repeated]
    makers = list(LEFT_OUT.values())
    raw += [makers[n % len(makers)](n) for n in range(left_out)]
    return write_mbox(file, raw)


def write_mbox(file: Path, messages: list[bytes]) -> Path:
    box = mailbox.mbox(file)
    for one in messages:
        box.add(one)
    box.close()
    return file
