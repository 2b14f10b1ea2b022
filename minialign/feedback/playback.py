"""The instruction that a text answers, written by a model that reads the text ("data playback",
PANZA, arXiv 2407.10994).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from minialign.feedback.teacher import Ask, OnDone, Reply, Teacher

ASKED = """Here is an e-mail or text that somebody wrote.

<text>
{text}
</text>

Which instruction would make an assistant write this text? Name the addressee and the points that \
it makes, in one or two sentences that begin with "Write". Answer with the instruction alone."""
LONGEST_TEXT, LONGEST_INSTRUCTION = 4_000, 400
COPIED_WORDS = 12


def playback(
    texts: Sequence[str], teacher: Teacher, on_done: OnDone | None = None
) -> list[str | None]:
    """An instruction each; None where the answer is none, or gives the text away."""
    asks = [
        Ask((("user", ASKED.format(text=text[:LONGEST_TEXT])),), max_tokens=120, temperature=0.0)
        for text in texts
    ]
    answers = teacher.answer(asks, on_done)
    return [
        _instruction(answer.text, text) if isinstance(answer, Reply) else None
        for answer, text in zip(answers, texts, strict=True)
    ]


def _instruction(answer: str, text: str) -> str | None:
    """The answer's first paragraph, if it reads as an instruction and does not copy the text."""
    first = answer.strip().split("\n\n")[0].replace("\n", " ").strip().strip("\"'`*")
    first = re.sub(r"^instruction:\s*", "", first, flags=re.I).strip("\"'`* ")
    if not re.match(r"(write|compose|draft|reply|answer|respond|ask|tell|send)\b", first, re.I):
        return None
    words = first.lower().split()
    whole = " ".join(text.lower().split())
    runs = (" ".join(words[i : i + COPIED_WORDS]) for i in range(len(words) - COPIED_WORDS + 1))
    return None if len(first) > LONGEST_INSTRUCTION or any(run in whole for run in runs) else first
