"""What every judge of style must get right: the person and not the topic, held out whole."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest
from helpers.voices import CASUAL, FORMAL, LISTING, write

from minialign.evaluation.judges.characters import CharacterJudge
from minialign.evaluation.judges.corpus import Text
from minialign.evaluation.judges.delta import DeltaJudge
from minialign.evaluation.judges.pieces import PieceJudge
from minialign.evaluation.judges.style import StyleJudge
from minialign.evaluation.judges.trust import area_under_curve

KINDS = pytest.mark.parametrize("kind", [StyleJudge, CharacterJudge, DeltaJudge])


def words(rng: random.Random, count: int) -> list[str]:
    return ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(count)]


def about(topic: int, rng: random.Random) -> str:
    """Everybody's words, and half of them the topic's: there is no style in it."""
    common, own = words(random.Random(-1), 40), words(random.Random(topic), 15)
    return " ".join(rng.choice(rng.choice([common, own])) for _ in range(90))


def topical(deal: int) -> tuple[list[Text], list[Text]]:
    """One text of the person's to each of ten prompts, and from one to five of others'."""
    rng = random.Random(deal)
    own = [Text(about(topic, rng), f"p{topic}") for topic in range(10)]
    others = [
        Text(about(topic, rng), f"p{topic}") for topic in range(10) for _ in range(1 + topic % 5)
    ]
    return own, others


@KINDS
def test_topics_alone_tell_nobody_apart(kind: type[PieceJudge]) -> None:
    areas = []
    for deal in range(6):
        own, others = topical(deal)
        areas.append(kind.fit(own, [others]).auc)
    assert 0.4 < np.mean(areas) < 0.6


@KINDS
def test_topics_that_are_not_held_out_whole_do(kind: type[PieceJudge]) -> None:
    """The same texts without their prompts: this is the leak that the test above plants."""
    areas = []
    for deal in range(6):
        own, others = topical(deal)
        areas.append(kind.fit([t.text for t in own], [[t.text for t in others]]).auc)
    assert abs(np.mean(areas) - 0.5) > 0.15


@KINDS
def test_texts_that_are_alike_are_told_apart_by_chance_and_not_less(kind: type[PieceJudge]) -> None:
    """Words as rare as in writing: those of a held-out text must not choose features.

    Half of all weight is the person's, so that features are what her texts have. If a held-out one
    helps to choose, its own features are what the rest of hers lack, and it looks like the others.
    """
    vocabulary, rank = words(random.Random(-1), 2000), [1 / (1 + i) for i in range(2000)]
    areas = []
    for deal in range(12):
        rng = random.Random(deal)
        own, others = (
            [Text(" ".join(rng.choices(vocabulary, rank, k=300)), f"p{i % 4}") for i in range(n)]
            for n in (4, 30)
        )
        areas.append(kind.fit(own, [others]).auc)
    assert 0.4 < np.mean(areas) < 0.6


@KINDS
def test_labels_dealt_at_random_cannot_be_judged(kind: type[PieceJudge]) -> None:
    """Three texts of one voice to each prompt, of which one is called the person's."""
    verdicts = []
    for deal in range(12):
        texts = random.Random(deal).sample(write(FORMAL, 18), 18)
        asked = [Text(text, f"p{i % 6}") for i, text in enumerate(texts)]
        verdicts.append(kind.fit(asked[:6], [asked[6:]]).can_judge)
    assert sum(verdicts) <= 1


@KINDS
@pytest.mark.parametrize("voice", [CASUAL, FORMAL, LISTING], ids=["casual", "formal", "listing"])
def test_a_voice_is_known_in_texts_about_other_topics(
    kind: type[PieceJudge], voice: list[str]
) -> None:
    rivals = [v for v in (CASUAL, FORMAL, LISTING) if v is not voice]
    judge = kind.fit(write(voice, 5), [write(rival, 5) for rival in rivals])
    others = [text for rival in rivals for text in write(rival, 4, first=5)]
    own = write(voice, 4, first=5)
    assert area_under_curve(judge.scores(own), judge.scores(others)) == 1
    assert judge.auc > 0.95 and judge.can_judge


@KINDS
def test_spoiled_writing_scores_against_the_person(kind: type[PieceJudge]) -> None:
    judge = kind.fit(write(CASUAL, 6), [write(FORMAL, 6), write(LISTING, 12)])
    loops = [" ".join([" ".join(t.split(" ")[:6])] * 20) for t in write(CASUAL, 6)]
    salads = [" ".join(random.Random(0).sample(t.split(" "), 60)) for t in write(CASUAL, 6)]
    assert judge.scores([*loops, *salads, ""]).max() < 0


@KINDS
def test_the_area_is_that_of_pieces_of_the_judged_length(kind: type[PieceJudge]) -> None:
    """Two voices that overlap: a whole text says more than a hundred characters of it."""
    own = [Text(t, f"{i}") for i, t in enumerate(write(CASUAL[:5] + FORMAL[:7], 10, sentences=12))]
    others = [Text(t, f"{i}") for i, t in enumerate(write(CASUAL[:3] + FORMAL, 10, sentences=12))]
    short, long = (kind.fit(own, [others], piece=piece) for piece in (100, 1000))
    assert short.auc < long.auc - 0.05
    assert "about 18 held-out words" in short.describe()
    assert "about 182 held-out words" in long.describe()


@KINDS
def test_each_group_has_an_area_of_its_own(kind: type[PieceJudge]) -> None:
    own = [Text(t, f"{i}") for i, t in enumerate(write(CASUAL, 6))]
    twins = [Text(t, f"{i}") for i, t in enumerate(write(CASUAL, 6, first=10))]
    judge = kind.fit(own, [twins, write(FORMAL, 6), [""]])
    assert judge.areas[1] == 1 and abs(judge.areas[0] - 0.5) < 0.3
    assert np.isnan(judge.areas[2]) and judge.auc == pytest.approx(np.mean(judge.areas[:2]))


def test_what_was_learned_from_is_said() -> None:
    own, others = write(CASUAL, 4), [write(FORMAL, 4)]
    assert "4 own (training texts)" in StyleJudge.fit(own, others).describe()
    unseen = StyleJudge.fit(own, others, fitted_on="unseen texts")
    assert "4 own (unseen texts)" in unseen.describe()


def test_three_texts_to_two_prompts_are_too_few() -> None:
    own = write(CASUAL, 3)
    asked = [Text(text, prompt) for text, prompt in zip(own, "aab", strict=True)]
    others = [[Text(text, "ab"[i % 2]) for i, text in enumerate(write(LISTING, 12))]]
    assert StyleJudge.fit(own, others).can_judge
    assert not StyleJudge.fit(asked, others).can_judge


@KINDS
def test_a_fit_takes_seconds(kind: type[PieceJudge]) -> None:
    """12 texts of about 500 words against 100; generous, so that a busy machine passes."""
    own = write(CASUAL * 3, 12, sentences=50)
    others = write(FORMAL * 3, 100, sentences=40)
    start = time.process_time()
    kind.fit(own, [others])
    assert time.process_time() - start < 8


def test_the_note_says_how_sure_its_share_is() -> None:
    """Eight prompts of eight: 63 % is not ruled out (Clopper and Pearson's table)."""
    own = [Text(text, f"p{i}") for i, text in enumerate(write(CASUAL, 8))]
    others = [Text(text, f"p{i}") for i, text in enumerate(write(LISTING, 8))]
    judge = StyleJudge.fit(own, [others])
    assert judge.auc == 1.0
    assert "100% of the time (8 prompts: 63% to 100%; chance: 50%)" in judge.describe()
