"""Nobody is judged by a judge that has seen the prompt, nor by one that copies would convince."""

from __future__ import annotations

import random

import numpy as np
import pytest
from helpers.refusals import refusal
from helpers.voices import CASUAL, FORMAL, LISTING, write

from minialign.evaluation.judges.characters import CharacterJudge
from minialign.evaluation.judges.corpus import Text
from minialign.evaluation.judges.crossfit import CrossFitted, fit_unseen
from minialign.evaluation.judges.delta import DeltaJudge
from minialign.evaluation.judges.pieces import PieceJudge
from minialign.evaluation.judges.style import StyleJudge
from minialign.evaluation.judges.trust import area_under_curve

KINDS = pytest.mark.parametrize("kind", [StyleJudge, CharacterJudge, DeltaJudge])


def asked(texts: list[str], *, first: int = 0) -> list[Text]:
    """A prompt each."""
    return [Text(text, f"p{first + i}") for i, text in enumerate(texts)]


@KINDS
def test_each_prompts_judge_learned_from_all_others(kind: type[PieceJudge]) -> None:
    own, others = write(CASUAL, 5), write(LISTING, 5)
    fitted = CrossFitted.fit(kind, asked(own), [asked(others), write(FORMAL, 3)])
    assert list(fitted.judges) == [f"p{i}" for i in range(5)]
    by_hand = kind.fit(
        asked(own)[:2] + asked(own)[3:], [asked(others)[:2] + asked(others)[3:], write(FORMAL, 3)]
    )
    question = [*write(CASUAL, 2, first=7), *write(FORMAL, 2, first=7)]
    assert np.array_equal(fitted.scores(question, "p2"), by_hand.scores(question))
    assert np.array_equal(fitted.scores(question, "new"), fitted.whole.scores(question))


@KINDS
def test_what_stands_in_a_prompts_own_text_does_not_move_its_judge(kind: type[PieceJudge]) -> None:
    own, others = asked(write(CASUAL, 5)), [asked(write(LISTING, 5))]
    changed = [*own[:4], Text("Something else altogether; it is of no account.", "p4")]
    one, two = (CrossFitted.fit(kind, texts, others) for texts in (own, changed))
    question = write(CASUAL, 2, first=7)
    assert np.array_equal(one.scores(question, "p4"), two.scores(question, "p4"))
    assert not np.array_equal(one.scores(question, "p0"), two.scores(question, "p0"))


def test_few_unseen_texts_leave_the_training_texts_and_it_says_so() -> None:
    training, others = asked(write(CASUAL, 6)), [asked(write(LISTING, 12))]
    few = fit_unseen(StyleJudge, asked(write(CASUAL, 3, first=6), first=6), training, others)
    enough = fit_unseen(StyleJudge, asked(write(CASUAL, 4, first=6), first=6), training, others)
    assert few.fitted_on == "training texts" and "6 own (training texts)" in few.describe()
    assert enough.fitted_on == "unseen texts" and "4 own (unseen texts)" in enough.describe()
    assert few.judges["p7"].other_texts == 11 and few.judges["p7"].own_texts == 6


def test_one_prompt_cannot_be_left_out() -> None:
    own = [Text(text, "p") for text in write(CASUAL, 3)]
    assert "two or more" in refusal(lambda: CrossFitted.fit(StyleJudge, own, [["Hello."]]))


def person(number: int) -> str:
    """A voice that is slightly hers, about something that only this text is about."""
    rng = random.Random(number)
    words = ["".join(rng.choices("bdfgklmnprstvz", k=3)) + "a" for _ in range(12)]
    said = [" ".join(rng.sample(words, 6)) for _ in range(8)]
    return " ".join(rng.sample([*said, *CASUAL[1:4], *FORMAL[1:7]], 14))


def copycat(number: int, training: list[str]) -> str:
    """What the training texts say, in another order."""
    rng = random.Random(number)
    words = " ".join(training).split(" ")
    starts = [rng.randrange(len(words) - 10) for _ in range(12)]
    return " ".join(" ".join(words[start : start + 10]) for start in starts)


@KINDS
def test_copies_of_training_texts_convince_only_a_judge_that_learned_from_them(
    kind: type[PieceJudge],
) -> None:
    """How often a copy beats the person's own unseen text: half the time would be even."""
    fooled, kept = [], []
    for number in (0, 100, 200):
        training = [person(number + i) for i in range(6)]
        unseen = asked([person(number + 10 + i) for i in range(6)])
        base = [Text(text, f"p{i % 6}") for i, text in enumerate(write(FORMAL, 24))]
        copies = [copycat(i, training) for i in range(12)]
        naive = kind.fit(training, [base])
        judge = fit_unseen(kind, unseen, asked(training), [base])
        for text in unseen:
            assert text.prompt
            scores = [naive.scores([text.text]), judge.scores([text.text], text.prompt)]
            fooled.append(area_under_curve(naive.scores(copies), scores[0]))
            kept.append(area_under_curve(judge.scores(copies, text.prompt), scores[1]))
    assert np.mean(fooled) > 0.75 and np.mean(kept) < 0.65
