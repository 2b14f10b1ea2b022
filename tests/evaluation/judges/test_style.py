"""The style judge knows a voice from a few texts, says when it does not, and is hard to fool."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Callable

import numpy as np
import pytest
from helpers.refusals import refusal
from helpers.voices import CASUAL, CHINESE, CHINESE_FORMAL, FORMAL, LISTING, write
from hypothesis import given, settings
from hypothesis import strategies as st

from minialign.evaluation.judges.style import StyleJudge, area_under_curve, copied_share
from minialign.evaluation.judges.wellformed import CAP, WellFormed


@pytest.fixture(scope="module")
def judge() -> StyleJudge:
    """Casual against formal and listing; held-out texts start at number 6."""
    return StyleJudge.fit(write(CASUAL, 6), [write(FORMAL, 6), write(LISTING, 12)])


def area(judge: StyleJudge, own: list[str], others: list[str]) -> float:
    return area_under_curve(judge.scores(own), judge.scores(others))


# ---- telling voices apart ----


@pytest.mark.parametrize("voice", [CASUAL, FORMAL, LISTING], ids=["casual", "formal", "listing"])
def test_a_voice_is_known_in_texts_about_other_topics(voice: list[str]) -> None:
    rivals = [v for v in (CASUAL, FORMAL, LISTING) if v is not voice]
    judge = StyleJudge.fit(write(voice, 5), [write(rival, 5) for rival in rivals])
    held_out = [text for rival in rivals for text in write(rival, 4, first=5)]
    assert area(judge, write(voice, 4, first=5), held_out) == 1
    assert judge.auc > 0.95 and judge.can_judge


def test_the_voice_counts_and_not_the_topic() -> None:
    """Own texts on one half of the topics, others' on the other; the question swaps the halves."""
    judge = StyleJudge.fit(write(CASUAL, 5), [write(FORMAL, 5, first=5)])
    assert area(judge, write(CASUAL, 5, first=5), write(FORMAL, 5)) == 1


def test_three_short_demonstrations_are_enough_for_a_clear_voice() -> None:
    own = write(CASUAL, 3, sentences=4)
    judge = StyleJudge.fit(own, [write(LISTING, 12, sentences=4)])
    assert judge.can_judge
    assert area(judge, write(CASUAL, 4, first=4), write(LISTING, 4, first=4)) == 1


def test_layout_is_style() -> None:
    """The same sentences, one a line or all in a row."""
    rows = write(FORMAL, 12)
    lines = [text.replace(". ", ".\n\n") for text in rows]
    judge = StyleJudge.fit(lines[:6], [rows[:6]])
    assert area(judge, lines[6:], rows[6:]) == 1


def test_windows_line_ends_are_no_style(judge: StyleJudge) -> None:
    text = write(LISTING, 1, first=8)[0]
    assert judge.scores([text.replace("\n", "\r\n")]) == judge.scores([text])


@pytest.mark.parametrize(
    ("before", "after"),
    [("I", "i"), ("e", "é"), ("!", "."), ("'", "’"), (", ", " , ")],
    ids=["casing", "accents", "marks", "quotes", "spaces"],
)
def test_small_habits_are_style(before: str, after: str) -> None:
    plain = write([*FORMAL, "I'm here! It's me, I think!"], 12)
    changed = [text.replace(before, after) for text in plain]
    judge = StyleJudge.fit(changed[:6], [plain[:6]])
    assert area(judge, changed[6:], plain[6:]) == 1


def test_any_script_is_judged() -> None:
    own = [" ".join(CHINESE[i:] + CHINESE[:i]) for i in range(5)]
    others = [" ".join(CHINESE_FORMAL[i:] + CHINESE_FORMAL[:i]) for i in range(5)]
    judge = StyleJudge.fit(own[:3], [others[:3]])
    assert (
        area(judge, ["你要不要一起去看桥呀?真的很好呢!"], ["有关单位应当按照规定提交方案。"]) == 1
    )


def test_scripts_are_not_mixed_up() -> None:
    judge = StyleJudge.fit(write(CASUAL, 4), [write(LISTING, 4)])
    assert judge.scores(write(CASUAL, 1, first=6))[0] > judge.scores(["".join(CHINESE)])[0]


# ---- knowing what it cannot do ----


def test_random_labels_cannot_be_judged() -> None:
    """Texts of one voice, dealt out: the area is near chance, on average over deals."""
    areas, verdicts = [], []
    for deal in range(12):
        texts = random.Random(deal).sample(write(FORMAL, 18), 18)
        judge = StyleJudge.fit(texts[:6], [texts[6:]])
        areas.append(judge.auc)
        verdicts.append(judge.can_judge)
    assert 0.35 < np.mean(areas) < 0.65
    assert sum(verdicts) <= 1


@pytest.mark.parametrize(
    ("auc", "error", "can_judge"),
    [
        (0.58, 0.01, False),  # certain, but of no use
        (0.62, 0.01, True),
        (0.70, 0.15, False),  # of use, but uncertain: 0.5 + 1.645 * 0.15 = 0.75
        (0.80, 0.15, True),
        (0.94, 0.40, False),
        (0.96, 0.40, True),
    ],
)
def test_an_area_must_be_useful_and_certain(
    judge: StyleJudge, auc: float, error: float, can_judge: bool
) -> None:
    assert dataclasses.replace(judge, auc=auc, _chance_error=error).can_judge is can_judge


def test_two_demonstrations_look_alike_by_luck_and_cannot_judge() -> None:
    judge = StyleJudge.fit(write(CASUAL, 2), [write(LISTING, 8)])
    assert judge.auc == 1 and not judge.can_judge


def test_one_demonstration_is_held_out_in_pieces() -> None:
    own = " ".join(write(CASUAL, 4))
    judge = StyleJudge.fit([own], [write(LISTING, 40)])
    assert judge.own_texts == 1
    assert judge.auc == 1 and not judge.can_judge  # its pieces share a topic
    assert area(judge, write(CASUAL, 4, first=5), write(LISTING, 4, first=45)) == 1


def test_one_short_demonstration_scores_but_cannot_judge() -> None:
    judge = StyleJudge.fit(["hey sam!! talk soon :)"], [write(LISTING, 8)])
    assert judge.auc == 0.5 and not judge.can_judge
    assert "cannot judge" in judge.describe()
    assert area(judge, write(CASUAL, 2, first=5), write(LISTING, 2, first=9)) == 1


def test_one_own_and_one_other_text_are_enough_to_score() -> None:
    judge = StyleJudge.fit(["hey sam!!"], [["Dear Sir or Madam,"]])
    assert not judge.can_judge
    assert judge.scores(["hey kim!!"])[0] > judge.scores(["Dear Madam,"])[0]


@pytest.mark.parametrize("blank", [[], [""], ["  \n\t"], ["", " "]])
def test_a_side_without_text_is_refused_in_one_line(blank: list[str]) -> None:
    assert "add one" in refusal(lambda: StyleJudge.fit(blank, [["Hello."]]))
    assert "base model" in refusal(lambda: StyleJudge.fit(["Hello."], [blank]))
    assert "base model" in refusal(lambda: StyleJudge.fit(["Hello."], []))


def test_blank_texts_and_groups_are_left_out() -> None:
    own, others = write(CASUAL, 4), write(LISTING, 6)
    plain = StyleJudge.fit(own, [others])
    padded = StyleJudge.fit(["", *own, "  "], [[], [*others, "\n"], [""]])
    assert (padded.own_texts, padded.other_texts) == (4, 6)
    question = write(CASUAL, 2, first=6)
    assert np.array_equal(plain.scores(question), padded.scores(question))


def test_the_description_is_one_line_with_the_numbers(judge: StyleJudge) -> None:
    line = judge.describe()
    assert (
        "\n" not in line
        and "6 own (training texts) and 18 other" in line
        and f"{judge.auc:.0%}" in line
    )
    assert "cannot" not in line and "roughly" not in line


def test_a_verdict_from_few_texts_is_a_rough_one() -> None:
    few = StyleJudge.fit(write(CASUAL, 4), [write(LISTING, 18)])
    assert few.can_judge and "roughly" in few.describe()


# ---- what the numbers mean ----


def test_scores_are_log_odds_around_zero(judge: StyleJudge) -> None:
    assert np.all(judge.scores(write(CASUAL, 4, first=6)) > 0)
    assert np.all(judge.scores(write(FORMAL, 4, first=6) + write(LISTING, 4, first=6)) < 0)


def test_log_odds_are_right_about_texts_that_were_not_learned_from() -> None:
    """Two voices that overlap: of the texts with log-odds around x, about 1 / (1 + exp(-x))."""
    odds, truth = [], []
    for deal in range(6):
        mixed = [CASUAL[:5] + FORMAL[:7], CASUAL[:4] + FORMAL[2:]]
        own, others = (write(voice, 40, first=40 * deal, sentences=5) for voice in mixed)
        judge = StyleJudge.fit(own[:10], [others[:10]])
        odds += judge.scores(own[10:] + others[10:]).tolist()
        truth += [1] * 30 + [0] * 30
    chances = 1 / (1 + np.exp(-np.array(odds)))
    sure, found = chances > 0.5, np.array(truth)
    assert chances[sure].mean() == pytest.approx(found[sure].mean(), abs=0.15)
    assert chances[~sure].mean() == pytest.approx(found[~sure].mean(), abs=0.15)


def test_the_same_texts_and_seed_give_the_same_scores(judge: StyleJudge) -> None:
    again = StyleJudge.fit(write(CASUAL, 6), [write(FORMAL, 6), write(LISTING, 12)])
    question = [*write(CASUAL, 3, first=6), *write(FORMAL, 3, first=6), "one", ""]
    assert np.array_equal(again.scores(question), judge.scores(question))
    assert again.auc == judge.auc


def test_the_seed_draws_the_word_orders() -> None:
    fits = [StyleJudge.fit(write(CASUAL, 3), [write(FORMAL, 3)], seed=seed) for seed in (0, 1)]
    assert fits[0]._well_formed.order != fits[1]._well_formed.order


def test_scores_do_not_depend_on_the_company(judge: StyleJudge) -> None:
    texts = [*write(CASUAL, 3, first=6), "", "one", *write(FORMAL, 3, first=6)]
    alone = [judge.scores([text])[0] for text in texts]
    assert judge.scores(texts) == pytest.approx(alone)
    assert judge.scores([]).shape == (0,)


def test_grouping_changes_the_judge() -> None:
    own, rare, common = write(CASUAL, 4), write(LISTING, 2), write(FORMAL, 20)
    question = write(LISTING, 4, first=6)
    grouped = StyleJudge.fit(own, [rare, common]).scores(question)
    together = StyleJudge.fit(own, [rare + common]).scores(question)
    assert grouped.mean() < together.mean()


# ---- length does not decide ----


@pytest.mark.parametrize("words", [25, 50])
def test_cut_off_texts_are_ranked_against_whole_ones_by_their_voice(
    judge: StyleJudge, words: int
) -> None:
    def cut(texts: list[str]) -> list[str]:
        return [" ".join(text.split(" ")[:words]) for text in texts]

    own, others = write(CASUAL, 6, first=6), write(FORMAL, 6, first=6)
    assert area(judge, cut(own), others) > 0.95
    assert area(judge, own, cut(others)) > 0.95


def test_a_judge_of_long_against_short_texts_does_not_go_by_length() -> None:
    judge = StyleJudge.fit(write(CASUAL, 5, sentences=18), [write(FORMAL, 10, sentences=4)])
    own, others = write(CASUAL, 5, first=10, sentences=4), write(FORMAL, 5, first=10, sentences=18)
    assert area(judge, own, others) == 1


def test_a_text_written_twice_as_long_scores_alike(judge: StyleJudge) -> None:
    """Long texts are the mean over their pieces, not the sum."""
    short = judge.scores(write(CASUAL, 8, first=10, sentences=9)).mean()
    long = judge.scores(write(CASUAL, 8, first=10, sentences=18)).mean()
    assert abs(short - long) < 0.25 * abs(short)


@pytest.mark.parametrize("text", ["hey", "Dear", "!!", "我", "x"])
def test_a_single_word_is_next_to_no_evidence(judge: StyleJudge, text: str) -> None:
    assert abs(judge.scores([text])[0]) < 0.1


# ---- hard to fool ----


def loop(text: str) -> str:
    return " ".join([" ".join(text.split(" ")[:6])] * 20)


def salad(text: str) -> str:
    words = text.split(" ")
    return " ".join(random.Random(0).sample(words, len(words)))


def one_word(text: str) -> str:
    return " ".join([text.split(" ")[1]] * 80)


def letters(text: str) -> str:
    return "".join(random.Random(0).sample(text, len(text)))


@pytest.mark.parametrize("spoil", [loop, salad, one_word, letters])
def test_spoiled_demonstrations_count_against_the_person_and_real_texts_for(
    judge: StyleJudge, spoil: Callable[[str], str]
) -> None:
    spoiled = judge.scores([spoil(text) for text in write(CASUAL, 6)])
    assert spoiled.max() < 0 < judge.scores(write(CASUAL, 6, first=6)).min()


def test_the_cap_stands_on_a_scale_from_shuffled_to_the_persons_order() -> None:
    """A fifth of the pairs is known, as in the person's texts; 199 pairs against a prior of 20."""
    words = [f"w{i}" for i in range(200)]
    known = frozenset((words[i], words[i + 1]) for i in range(0, 199, 5))
    form = WellFormed(known, order=0.2, loops=0.0, seed=0)
    assert form.cap(" ".join(words)) == pytest.approx(CAP / 2, abs=0.2)
    shuffled = random.Random(1).sample(words, 200)
    assert form.cap(" ".join(shuffled)) == pytest.approx(CAP * (20 / 219 - 0.5), abs=0.6)
    assert form.cap(" ".join(words[:4] * 50)) < -0.4 * CAP


def test_a_blank_text_scores_below_a_real_one(judge: StyleJudge) -> None:
    blank = judge.scores(["", "  \n"])
    assert np.all(blank == blank[0])
    assert blank[0] < 0 < judge.scores(write(CASUAL, 1, first=6))[0]


def test_a_person_who_repeats_on_purpose_is_not_taken_for_a_loop() -> None:
    refrain = " oh my my, here we go again!! oh my my, here we go again!! oh my my, here we go!!"
    own = [text + refrain for text in write(CASUAL, 6, sentences=3)]
    judge = StyleJudge.fit(own[:4], [write(LISTING, 8)])
    assert judge.scores(own[4:]).min() > 0


def test_a_demonstration_itself_scores_high_and_is_flagged_as_copied(judge: StyleJudge) -> None:
    own = write(CASUAL, 6)
    assert judge.scores(own).min() > judge.scores(write(FORMAL, 6, first=6)).max()
    assert all(copied_share(text, own) == 1 for text in own)


# ---- whatever is thrown at it ----

ANYTHING = st.text(st.characters(), max_size=60)


@given(ANYTHING)
def test_any_text_gets_a_finite_score(judge: StyleJudge, text: str) -> None:
    assert np.isfinite(judge.scores([text, text * 30])).all()
    assert 0 <= copied_share(text, [text, "other"], n=2) <= 1


@settings(max_examples=60)
@given(
    st.lists(ANYTHING, min_size=1, max_size=4),
    st.lists(st.lists(ANYTHING, max_size=4), min_size=1, max_size=3),
)
def test_any_texts_can_be_learned_from(own: list[str], others: list[list[str]]) -> None:
    judge = StyleJudge.fit(["a", *own], [["b"], *others])
    assert np.isfinite(judge.scores([*own, "", "a", "b"])).all()
    assert 0 <= judge.auc <= 1
    assert "\n" not in judge.describe()


def test_it_is_fast() -> None:
    """10 texts of about 300 words against 80; generous, so that a busy machine passes."""
    own = write(CASUAL * 3, 10, sentences=30)
    others = write(FORMAL * 3, 80, sentences=20)
    start = time.process_time()
    judge = StyleJudge.fit(own, [others])
    assert time.process_time() - start < 4
    start = time.process_time()
    judge.scores(others[:20])
    assert (time.process_time() - start) / 20 < 0.05
