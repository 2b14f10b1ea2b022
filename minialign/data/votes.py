"""A person's votes on pairs of answers, as `minialign blind` saves them: JSON Lines.

A line holds `prompt` (or `messages`), `left` and `right` as they stood on the page, each an object
of `by` (who wrote it), `text` and, optionally, `finish_reason`; and `vote`: left, right or neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minialign.data.feedback import FINISH_REASONS, FeedbackData, Response, ScopeLine
from minialign.data.files import read_jsonl
from minialign.data.records import Messages, load_prompts
from minialign.errors import InputError

LEFT, RIGHT, NEITHER = CHOICES = ("left", "right", "neither")


@dataclass(frozen=True)
class Side:
    """One of the two answers, and who wrote it."""

    by: str
    answer: Response


@dataclass(frozen=True)
class Vote:
    """Which of two answers is more like the person's; `choice` is one of CHOICES."""

    messages: Messages
    left: Side
    right: Side
    choice: str
    source: str  # "votes.jsonl, line 3", for messages
    page: str = ""  # of which page, and which of its pairs
    pair: int = -1

    @property
    def prompt(self) -> str:
        return self.messages[-1]["content"]

    def share_of(self, name: str) -> float:
        """1 where `name` won, 0 where it lost, .5 where neither did."""
        if self.choice == NEITHER:
            return 0.5
        return float((self.left if self.choice == LEFT else self.right).by == name)


def read_votes(file: str | Path) -> list[Vote]:
    """Every vote of a file, in its order. Raises InputError naming the line."""
    lines = zip(read_jsonl(file), load_prompts(file), strict=True)
    return [_vote(record, asked, f"{file}, line {number}") for (number, record), asked in lines]


def _vote(record: dict[str, Any], messages: Messages, where: str) -> Vote:
    left, right = (_side(record, name, where) for name in (LEFT, RIGHT))
    if record.get("vote") not in CHOICES:
        raise InputError(f'{where}: "vote" must be one of {", ".join(CHOICES)}')
    if left.by == right.by:
        raise InputError(f"{where}: both answers are by {left.by}: delete the line")
    page, pair = record.get("page"), record.get("pair")
    return Vote(
        messages,
        left,
        right,
        record["vote"],
        where,
        page if isinstance(page, str) else "",
        pair if isinstance(pair, int) else -1,
    )


def _side(record: dict[str, Any], name: str, where: str) -> Side:
    side = record.get(name)
    if not isinstance(side, dict) or not all(isinstance(side.get(k), str) for k in ("by", "text")):
        raise InputError(f'{where}: "{name}" must be {{"by": ..., "text": ...}}')
    reason = side.get("finish_reason", "stop")
    if reason not in FINISH_REASONS or not side["by"]:
        raise InputError(f'{where}: "{name}" needs a name, and "finish_reason" stop or length')
    return Side(side["by"], Response(side["text"], reason))


def preference_pairs(votes: Sequence[Vote], file: str) -> FeedbackData:
    """Each decided vote as a pair to learn from. Raises InputError where there is none.

    An empty answer teaches nothing, and is left out.
    """
    pairs = []
    for vote in votes:
        sides = (vote.left, vote.right) if vote.choice == LEFT else (vote.right, vote.left)
        chosen, rejected = (Response(s.answer.text.strip(), s.answer.finish_reason) for s in sides)
        differ = chosen.text and rejected.text and chosen.text != rejected.text
        if vote.choice != NEITHER and differ:
            pairs.append(
                ScopeLine(vote.messages, rejected, chosen, None, None, "train", vote.source)
            )
    if not pairs:
        raise InputError(f"{file}: no vote prefers one answer: there is nothing to learn from")
    return FeedbackData("", "", "", (), tuple(pairs), (), ())
