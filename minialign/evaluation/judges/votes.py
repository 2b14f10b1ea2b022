"""The person as a judge: votes on pairs of answers, cast without knowing who wrote them.

No automatic judge knows a person's voice as the person does, so the others are measured by these
votes. When there are enough is told by the width of an interval and never by who is ahead: whoever
stops when a favourite leads finds a leader too often.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minialign.data.records import plural
from minialign.data.votes import LEFT, NEITHER, Vote
from minialign.evaluation.judges.verdicts import Shares, Texts, Trial
from minialign.evaluation.judges.winrates import WinRate, pairs_of, win_rates

WIDE = 0.3  # an interval no wider says enough: 15 points to either side


@dataclass(frozen=True)
class Place:
    """Where a vote's two answers stand in a contest, and what it says of them."""

    first: str
    second: str
    prompt: int
    answers: tuple[int, int]
    share: float


class ByVotes:
    """A judge that repeats what a person has voted."""

    name = "votes"

    def __init__(self, votes: Sequence[Vote]) -> None:
        self._votes = votes
        self._shares: Shares = {}

    @property
    def can_judge(self) -> bool:
        return any(not np.isnan(outcomes).all() for outcomes in self._shares.values())

    def compare(self, texts: Texts) -> Shares:
        """Outcomes (P, C, 1): C is the most votes that a prompt got; NaN stands for none."""
        found: dict[tuple[str, str], list[list[float]]] = {
            pair: [[] for _ in texts[pair[0]]] for pair in pairs_of(list(texts))
        }
        for place in places_of(self._votes, texts):
            found[place.first, place.second][place.prompt].append(place.share)
        self._shares = {pair: _padded(rows) for pair, rows in found.items()}
        return self._shares

    def describe(self) -> str:
        judged = sum(int((~np.isnan(o)).sum()) for o in self._shares.values())
        neither = sum(vote.choice == NEITHER for vote in self._votes)
        decided = len(self._votes) - neither
        left = sum(vote.choice == LEFT for vote in self._votes)
        parts = [f"{plural(len(self._votes), 'vote')} of a person, {neither} for neither"]
        if judged < len(self._votes):
            parts.append(f"{len(self._votes) - judged} are about other answers and do not count")
        if decided:
            parts.append(f"{left} of {decided} went to the left or upper text")
        return "; ".join([*parts, enough(win_rates(self._shares)[0])])


def places_of(votes: Sequence[Vote], texts: Texts) -> list[Place]:
    """The votes whose answers are among `texts`; a prompt is known by its answers."""
    where: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for name, groups in texts.items():
        for prompt, group in enumerate(groups):
            for place, text in enumerate(group):
                where.setdefault((name, text), []).append((prompt, place))
    found = []
    for vote in votes:
        for first, second in pairs_of([name for name in texts if name in names_of(vote)]):
            sides = {side.by: side.answer.text for side in (vote.left, vote.right)}
            found += [
                Place(first, second, prompt, (i, j), vote.share_of(first))
                for prompt, i in where.get((first, sides[first]), [])
                for other, j in where.get((second, sides[second]), [])
                if prompt == other
            ][:1]
    return found


def names_of(vote: Vote) -> tuple[str, str]:
    return vote.left.by, vote.right.by


def texts_of(votes: Sequence[Vote], asked: str = "") -> Texts:
    """All that was voted on; `asked` comes last, as the one who is asked about."""
    prompts = list(dict.fromkeys(vote.prompt for vote in votes))
    names = dict.fromkeys(name for vote in votes for name in names_of(vote))
    ordered = [*(n for n in names if n != asked), *(n for n in names if n == asked)]
    texts: Texts = {name: [[] for _ in prompts] for name in ordered}
    for vote in votes:
        for side in (vote.left, vote.right):
            group = texts[side.by][prompts.index(vote.prompt)]
            if side.answer.text not in group:
                group.append(side.answer.text)
    return texts


def _padded(rows: list[list[float]]) -> np.ndarray:
    most = max(1, *map(len, rows))
    return np.array([[*row, *[math.nan] * (most - len(row))] for row in rows])[:, :, None]


def enough(wins: Sequence[WinRate]) -> str:
    """Says whether every pair that was voted on has an interval of at most WIDE."""
    voted = [win for win in wins if win.comparisons]
    more = [_more(win) for win in voted]
    if not voted or None in more:
        return "not enough votes yet: each pair needs three prompts at least"
    missing = sum(count for count in more if count)
    said = f"every interval at most {100 * WIDE:.0f} points wide"
    if not missing:
        return f"enough votes are in: {said}"
    return f"not enough votes yet: about {missing} more make {said}, and new prompts do most"


def _more(win: WinRate) -> int | None:
    """Votes that are missing, as widths go by the root of their number; None: not to be told."""
    width = win.high - win.low
    if math.isnan(width):
        return None
    return max(0, math.ceil(win.comparisons * ((width / WIDE) ** 2 - 1)))


# ---- agreement with the others ----


def agreement(votes: Sequence[Vote], evaluation: dict[str, Any]) -> dict[str, WinRate]:
    """judge -> how often it prefers the same answer, of the votes where both prefer one.

    `evaluation` is evaluation.json. A judge that threw coins would agree half of the time. Its
    interval goes by the prompts.
    """
    texts = {name: entry["answers"] for name, entry in evaluation["contestants"].items()}
    places = places_of(votes, texts)
    found = {}
    others = [j for j in evaluation["judges"] if j["can_judge"] and j["name"] != ByVotes.name]
    for judge in others:
        agreed: list[list[float]] = [[] for _ in evaluation["prompts"]]
        for place in places:
            other = _outcome(judge, place, texts)
            if other is not None and 0.5 not in (place.share, other):
                agreed[place.prompt].append(float((place.share > 0.5) == (other > 0.5)))
        if any(agreed):
            (found[judge["name"]],), _ = win_rates({(judge["name"], "votes"): _padded(agreed)})
    return found


def _outcome(judge: dict[str, Any], place: Place, texts: Texts) -> float | None:
    """What another judge said of the same two answers, if it said anything."""
    i, j = place.answers
    for win, outcomes in zip(judge["wins"], judge.get("outcomes") or [], strict=False):
        if (win["first"], win["second"]) != (place.first, place.second):
            continue
        rows = outcomes[place.prompt]
        crosswise = len(rows[0]) == len(texts[place.second][place.prompt])
        if not crosswise and i != j:
            return None
        said = rows[i][j if crosswise else 0] if i < len(rows) else None
        return said if said == said else None
    return None


def build(trial: Trial) -> ByVotes:
    return ByVotes(trial.votes)
