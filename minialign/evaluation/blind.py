"""The blind page: pairs of answers to unseen prompts, for the person to choose between.

Made of evaluation.json alone, in one file that asks nothing of any network. Who wrote what is in
it, but not where a reader sees it: the page opens that part only when the votes are saved.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from minialign.data.feedback import Response
from minialign.data.files import read_json
from minialign.data.records import DEMONSTRATIONS, Messages
from minialign.data.votes import Side, Vote
from minialign.errors import InputError
from minialign.evaluation.names import BASE, PERSON
from minialign.evaluation.report.duels import contestant_of
from minialign.evaluation.report.labels import shown
from minialign.evaluation.report.render import page_of
from minialign.evaluation.report.run_files import read_run, readable
from minialign.methods.cards import warm_starts

SCRIPT = Path(__file__).parent / "report" / "blind.js"
PAGE = "blind.html"

Answers = dict[str, list[list[Side]]]  # contestant -> prompt -> answers


@dataclass(frozen=True)
class Pair:
    messages: Messages
    left: Side
    right: Side


@dataclass(frozen=True)
class Blind:
    """The pairs of one page, in the order in which they are shown."""

    name: str  # of the run
    place: str  # the run's folder, as a command names it
    pairs: tuple[Pair, ...]

    @property
    def key(self) -> str:
        """Who wrote what, so that a reader of the page's source does not see it."""
        by = [[[s.by, s.answer.finish_reason] for s in (p.left, p.right)] for p in self.pairs]
        names = sorted({side.by for pair in self.pairs for side in (pair.left, pair.right)})
        hidden = {"by": by, "titles": {name: readable(shown(name)) for name in names}}
        return base64.b64encode(json.dumps(hidden).encode()).decode()

    @property
    def page(self) -> str:
        """Tells this page's votes from another's."""
        texts = [[p.messages, p.left.answer.text, p.right.answer.text] for p in self.pairs]
        return hashlib.sha256(json.dumps([texts, self.key]).encode()).hexdigest()[:12]

    def command(self, live: bool = False) -> str:
        """The one that reads the votes; `live`, a server has saved them in the run's folder."""
        file = f"{self.place}/votes.jsonl" if live else "votes.jsonl"
        return f"python evaluate.py {self.place} --votes {file}"

    def content(self, votes: Sequence[Vote], live: bool) -> dict[str, Any]:
        """What the page's script is handed; `votes` were cast before."""
        return {
            "page": self.page,
            "pairs": [
                {"messages": p.messages, "left": p.left.answer.text, "right": p.right.answer.text}
                for p in self.pairs
            ],
            "key": self.key,
            "cast": [
                [v.pair, v.choice]
                for v in votes
                if v.page == self.page and 0 <= v.pair < len(self.pairs)
            ],
            "command": self.command(live),
            "live": live,
        }


def read_answers(folder: Path, person: bool = False) -> tuple[Answers, list[Messages]]:
    """Everybody's answers, the person's own texts too if wanted, and what they answer.

    Raises InputError where the run was not evaluated, or learned from something else.
    """
    run = read_run(folder)
    if run.source != DEMONSTRATIONS:
        raise InputError(f"{folder}: learned from {run.source}: only a voice is judged blind")
    if not run.evaluation:
        raise InputError(f"{folder}: has no answers yet: python evaluate.py {run.place} --show 0")
    found = read_json(folder / "evaluation.json")
    prompts = found.get("messages") or [[{"role": "user", "content": p}] for p in found["prompts"]]
    answers = {name: _sides(name, entry) for name, entry in found["contestants"].items()}
    if person:
        answers[PERSON] = [[Side(PERSON, Response(text))] for text in found["texts"]]
    return answers, prompts


def _sides(name: str, entry: dict[str, Any]) -> list[list[Side]]:
    return [
        [Side(name, Response(text, why)) for text, why in zip(texts, reasons, strict=True)]
        for texts, reasons in zip(entry["answers"], entry["finish_reasons"], strict=True)
    ]


def make_blind(
    folder: Path, sides: Sequence[str], count: int, seed: int, person: bool = False
) -> Blind:
    """`count` pairs at most, of the run's own answer and a rival's; `sides` names the rivals.

    Raises InputError for a rival that was not evaluated, and where there is nothing to choose.
    """
    answers, prompts = read_answers(folder, person)
    run = read_run(folder)
    own = contestant_of(run)
    usual = [name for name in (BASE, *warm_starts()) if name in answers]
    rivals = [name for name in sides or usual if name != own] + [PERSON] * person
    for name in rivals:
        if name not in answers:
            known = ", ".join(answers)
            raise InputError(f"{folder}: no answers of {name} in evaluation.json, only of {known}")
    dealt = deal(answers, prompts, own, list(dict.fromkeys(rivals)), seed)
    pairs = tuple(itertools.islice(dealt, count))
    if not pairs:
        raise InputError(f"{folder}: nothing to choose between: evaluate it against a rival")
    return Blind(run.name, run.place, pairs)


def deal(
    answers: Answers, prompts: Sequence[Messages], own: str, rivals: Sequence[str], seed: int
) -> Iterator[Pair]:
    """Pairs without end of what there is: every prompt before one comes again, rivals in turn.

    Whoever stops early has voted on as many prompts as can be, and on all rivals alike. Which side
    is whose is drawn; a pair of two equal texts is left out.
    """
    chance = random.Random(seed)
    order = list(range(len(prompts)))
    most = max((len(group) for name in rivals for group in answers[name]), default=0)
    chance.shuffle(order)
    for answer in range(most):
        for turn in range(len(rivals)):
            block = [
                (prompt, rivals[(place + turn) % len(rivals)]) for place, prompt in enumerate(order)
            ]
            chance.shuffle(block)
            for prompt, rival in block:
                groups = answers[own][prompt], answers[rival][prompt]
                if answer >= min(map(len, groups)):
                    continue
                pair = [group[answer] for group in groups]
                chance.shuffle(pair)
                if pair[0].answer.text.strip() != pair[1].answer.text.strip():
                    yield Pair(list(prompts[prompt]), *pair)


def blind_page(blind: Blind, votes: Sequence[Vote] = (), *, live: bool = False) -> str:
    """The page's source; `live`: it hands each vote to the server that it came from."""
    script = SCRIPT.read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return page_of(
        "blind.html.jinja",
        [],
        name=readable(blind.name),
        count=len(blind.pairs),
        content=blind.content(votes, live),
        script=Markup(script),
        digest=digest,
        live=live,
    )
