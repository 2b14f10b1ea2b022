"""Judges the answers of a study of DITTO: judges of style, each fitted in two ways.

* On texts that no arm was trained on: the author's other unseen ones, left out prompt by prompt.
* On the texts that the arms were trained on. What such a judge takes for style may be their words.

Each learns the author's texts from the base model's answers and from the other authors' texts, all
of them whole, and is asked about pieces of the length of the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ditto_authors import UNSEEN, Author, cut_text, topic_of
from ditto_results import key_of, read_answers, replace_judged

from minialign.data.records import Demonstration
from minialign.evaluation.judges.corpus import Text
from minialign.evaluation.judges.crossfit import CrossFitted, fit_on_training
from minialign.evaluation.judges.panel import MEMBERS, PanelJudge
from minialign.evaluation.judges.pieces import PieceJudge

KINDS: tuple[type[PieceJudge], ...] = (PanelJudge, *MEMBERS)
BASE = "zero-shot"
STRANGERS = 40  # other authors' texts at most that a scale's floor is taken from


def judge_author(
    author: Author, others: Sequence[Author], fixed: dict[str, Any], answers: Path, out: Path
) -> None:
    """Writes a line for each judge and each way of fitting it; nothing without base answers."""
    written = read_answers(answers, fixed)
    if BASE not in written:
        return
    lines = []
    for kind in KINDS:
        for fitted_on in ("unseen texts", "training texts"):
            judge = fitted(kind, fitted_on, author, others, written[BASE])
            lines.append(
                {
                    "judge": kind.name,
                    "fitted_on": fitted_on,
                    "key": key_of(fixed),
                    "auc": round(judge.auc, 4),
                    "areas": [round(area, 4) for area in judge.areas],
                    "can_judge": judge.can_judge,
                    "own_texts": judge.whole.own_texts,
                    **scores(judge, author, others, written, fixed["words"]),
                }
            )
    replace_judged(out, fixed, lines)


def fitted(
    kind: type[PieceJudge],
    fitted_on: str,
    author: Author,
    others: Sequence[Author],
    base: dict[str, list[str]],
) -> CrossFitted[PieceJudge]:
    answered = [Text(text, topic_of(prompt)) for prompt, group in base.items() for text in group]
    theirs = [text for other in others for text in as_texts(other.whole)]
    unseen, learned = as_texts(author.uncut(*UNSEEN)), as_texts(author.uncut("train"))
    if fitted_on == "unseen texts":
        return CrossFitted.fit(kind, unseen, [answered, theirs])
    return fit_on_training(kind, unseen, learned, [answered, theirs])


def as_texts(demonstrations: Sequence[Demonstration]) -> list[Text]:
    return [Text(d.completion, topic_of(d.prompt)) for d in demonstrations]


def scores(
    judge: CrossFitted[PieceJudge],
    author: Author,
    others: Sequence[Author],
    written: dict[str, dict[str, list[str]]],
    words: int,
) -> dict[str, Any]:
    """By arm and split, a list a prompt; the author's own texts; strangers' on the same topic."""
    asked = {split: author.cut(split) for split in UNSEEN}

    def by_split(texts: dict[str, list[str]]) -> dict[str, list[list[float]]]:
        return {
            split: [_scored(judge, texts[d.prompt], d.prompt) for d in group]
            for split, group in asked.items()
        }

    own = {d.prompt: [d.completion] for group in asked.values() for d in group}
    return {
        "person": by_split(own),
        "others": strangers(judge, author, others, words),
        "scores": {arm: by_split(texts) for arm, texts in written.items()},
    }


def strangers(
    judge: CrossFitted[PieceJudge], author: Author, others: Sequence[Author], words: int
) -> list[float]:
    """Scores of other authors' texts, cut alike: on the author's unseen topics where there are."""
    topics = {topic_of(d.prompt) for d in author.cut(*UNSEEN)}
    theirs = [d for other in others for d in other.whole]
    same = [d for d in theirs if topic_of(d.prompt) in topics] or theirs
    step = max(1, len(same) // STRANGERS)
    cut = [(cut_text(d.completion, words) if words else d.completion, d) for d in same[::step]]
    return [_scored(judge, [text], d.prompt)[0] for text, d in cut]


def _scored(judge: CrossFitted[PieceJudge], texts: list[str], prompt: str) -> list[float]:
    return np.round(judge.scores(texts, topic_of(prompt)), 4).tolist()
