"""The style judge knows a voice from a few texts, says when it does not, and is hard to fool."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers.refusals import refusal
from hypothesis import given, settings
from hypothesis import strategies as st

from minialign.evaluation.judges import style
from minialign.evaluation.judges.style import StyleJudge, area_under_curve, copied_share

TOPICS = [
    "the garden",
    "the old bridge",
    "my new bicycle",
    "the school play",
    "our trip to the coast",
    "the broken printer",
    "this winter",
    "the library",
    "the music lessons",
    "the market hall",
]
NAMES = ["Sam", "Kim", "Lee", "Robin", "Alex", "Maria", "Chris", "Pat", "Jo", "Toni"]

CASUAL = [
    "hey {name}!! so i finally looked at {topic}... and wow, it's a lot :)",
    "i mean, it's not bad or anything, but it could be way better tbh!!",
    "anyway, i'd rather talk about {topic} with u in person...",
    "can't wait to see what everyone thinks, haha!",
    "don't tell anyone, but i kinda like it :)",
    "and yeah, i know, i know... it's just me again!!",
    "but whatever, we'll figure out {topic} somehow, right??",
    "it's so good to hear from u, {name}!!",
    "gotta run now... talk soon!!",
]
FORMAL = [
    "Dear {name}, I am writing to you with regard to {topic}, which deserves our attention.",
    "It would appear that the matter has not been considered with the care that it requires.",
    "Consequently, I should be grateful if you would review {topic} at your convenience.",
    "The committee has, in the course of its deliberations, reached the following conclusion.",
    "There can be no doubt that the arrangements were, in several respects, unsatisfactory.",
    "I remain of the opinion that a decision upon {topic} ought not to be delayed.",
    "Furthermore, the expenditure in question was neither announced nor approved.",
    "One might, of course, take the opposite view; I do not share it.",
    "I am, {name}, yours faithfully.",
]
LISTING = [
    "**Overview**\n\nHere are some key points about {topic}:",
    "1. **Planning:** Make sure to consider all the options available to you.",
    "2. **Budget:** It's important to set clear goals and track your progress.",
    "3. **Community:** Engaging with others can provide valuable insights.",
    "In conclusion, {topic} plays a crucial role in our lives.",
    "By following these steps, you can ensure a successful outcome, {name}.",
    "Overall, it is essential to stay informed and make the best choices.",
    "Remember, every small step towards improving {topic} makes a difference!",
    "I hope this helps! Let me know if you have any questions.",
]
CHINESE = [
    "我今天去看了花园,真的很漂亮!",
    "你知道吗?他们又把桥修好了呢!",
    "哈哈,我觉得这样也挺好的呀!",
    "明天我们一起去吃饭吧,好不好呀?",
    "最近天气真冷啊,你要多穿点衣服呢!",
]
CHINESE_FORMAL = [
    "关于此事,本委员会经过审慎研究,作出如下决定。",
    "鉴于上述情况,有关部门应当及时采取相应措施。",
    "根据规定,各单位须在规定期限内提交报告。",
    "特此通知,望各单位遵照执行。",
    "综上所述,该方案具有一定的可行性。",
]


def write(voice: list[str], count: int, *, first: int = 0, sentences: int = 9) -> list[str]:
    """Texts of a voice, each about a topic of its own; the same arguments give the same texts."""
    texts = []
    for number in range(first, first + count):
        rng = random.Random(f"{voice[0]} {number}")
        chosen = [voice[i % len(voice)] for i in rng.sample(range(2 * len(voice)), sentences)]
        topic, name = TOPICS[number % len(TOPICS)], NAMES[number % len(NAMES)]
        texts.append(" ".join(s.format(topic=topic, name=name) for s in chosen))
    return texts


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


def test_more_texts_make_the_same_area_more_certain() -> None:
    """3 folds of 1 against 4: Mann and Whitney's (1 + 4 + 1) / (12 * 1 * 4), times 1/3 + 1/2."""
    few = style._chance_error(3, 3, [12])
    assert few == pytest.approx((6 / 48 * (1 / 3 + 1 / 2)) ** 0.5)
    assert style._chance_error(10, 10, [40, 40]) < few / 1.5


def test_a_small_group_is_not_worth_more_than_its_texts() -> None:
    """Kish: groups of 2 and 100 that weigh the same are worth 4 / (1/2 + 1/100) texts."""
    worth = 4 / (1 / 2 + 1 / 100)
    assert style._chance_error(5, 5, [2, 100]) == pytest.approx(style._chance_error(5, 5, [worth]))


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
    assert "\n" not in line and "6 own and 18 other" in line and f"{judge.auc:.0%}" in line
    assert "cannot" not in line and "roughly" not in line


def test_a_verdict_from_few_texts_is_a_rough_one() -> None:
    few = StyleJudge.fit(write(CASUAL, 4), [write(LISTING, 18)])
    assert few.can_judge and "roughly" in few.describe()


# ---- what the numbers mean ----


def test_scores_are_log_odds_around_zero(judge: StyleJudge) -> None:
    assert np.all(judge.scores(write(CASUAL, 4, first=6)) > 0)
    assert np.all(judge.scores(write(FORMAL, 4, first=6) + write(LISTING, 4, first=6)) < 0)


def test_calibration_finds_the_log_odds_that_the_data_were_drawn_with() -> None:
    """Two normal distributions at +-1 with deviation 1: the log-odds at x are 2 x."""
    generator = np.random.default_rng(0)
    owned = np.arange(4000) < 2000
    raw = generator.normal(np.where(owned, 1.0, -1.0))
    slope, offset = style._platt(raw, owned, np.ones(4000))
    assert slope == pytest.approx(2, abs=0.15) and offset == pytest.approx(0, abs=0.15)


def test_perfect_separation_gives_finite_log_odds() -> None:
    owned = np.arange(12) < 4
    slope, offset = style._platt(np.where(owned, 0.9, -0.9), owned, np.ones(12))
    assert 0 < slope < 10 and abs(offset) < 5


def test_values_that_point_the_wrong_way_stay_as_they_are() -> None:
    owned = np.arange(12) < 4
    assert style._platt(np.where(owned, -0.9, 0.9), owned, np.ones(12)) == (1.0, 0.0)


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


def test_every_group_weighs_the_same() -> None:
    """40 formal texts do not drown 2 listings: per text, a listing counts 20 times as much."""
    groups = np.array([0] * 4 + [1] * 40 + [2] * 2)
    weights = style._balanced(groups, np.arange(len(groups)))
    shares = np.bincount(groups, weights) / len(groups)
    assert shares == pytest.approx([0.5, 0.25, 0.25])


def test_a_text_of_many_pieces_weighs_no_more_than_one_of_few() -> None:
    groups, text_of = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 1, 1, 1, 2, 3])
    weights = style._balanced(groups, text_of)
    assert np.bincount(text_of, weights) == pytest.approx([1.5, 1.5, 1.5, 1.5])


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


def test_one_rare_feature_has_bounded_weight() -> None:
    """Standard scores end at CLIP, however often somebody writes "zz"."""
    pieces = ["a b c d"] * 30 + ["a b c zz"]
    family = style._Family.fit(str.split, 10, pieces, np.ones(31))
    column = family.columns["zz"]
    once, often = (family([text])[0, column] for text in ("zz " * 1 + "a " * 9, "zz " * 300))
    assert often == pytest.approx(style.CLIP / len(family.columns) ** 0.5)
    assert 0 < once <= often


def test_a_short_piece_is_drawn_towards_everybody() -> None:
    family = style._Family.fit(str.split, 10, ["a a b b", "a a a b"] * 5, np.ones(10))
    short, long = (family(["a b b b " * times])[0] for times in (1, 100))
    assert np.all(np.abs(short) < 0.2 * np.abs(long)) and np.all(short * long > 0)


def test_the_cap_stands_on_a_scale_from_shuffled_to_the_persons_order() -> None:
    """A fifth of the pairs is known, as in the person's texts; 199 pairs against a prior of 20."""
    words = [f"w{i}" for i in range(200)]
    known = frozenset((words[i], words[i + 1]) for i in range(0, 199, 5))
    form = style._WellFormed(known, order=0.2, loops=0.0, seed=0)
    assert form.cap(" ".join(words)) == pytest.approx(style.CAP / 2, abs=0.2)
    shuffled = random.Random(1).sample(words, 200)
    assert form.cap(" ".join(shuffled)) == pytest.approx(style.CAP * (20 / 219 - 0.5), abs=0.6)
    assert form.cap(" ".join(words[:4] * 50)) < -0.4 * style.CAP


def test_tokens_are_words_marks_line_breaks_and_single_chinese_characters() -> None:
    found = style._tokens("It’s John's, no?!! ...\n\n我们 42_x")
    expected = ["it’s", "john's", ",", "no", "?", "!!", "...", "\n\n", "我", "们", "42_x"]
    assert found == expected


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


# ---- copied_share ----

WORDS = [f"word{i}" for i in range(30)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" ".join(WORDS), 1.0),
        (" ".join(WORDS[:8]), 1.0),
        (" ".join(WORDS[:7]), 0.0),  # one word too few
        (" ".join([*WORDS[:8], *"abcdefgh"]), 0.5),
        (" ".join([*WORDS[:7], "x", *WORDS[8:15]]), 0.0),  # two runs of seven
        (" ".join([*WORDS[:8], *WORDS[20:28]]), 1.0),  # two runs from two places
        (" ".join([*WORDS[:9], "x"]), 0.9),  # overlapping runs count their words once
        (" ".join(reversed(WORDS)), 0.0),
        (", ".join(WORDS[:8]).upper() + "!", 1.0),  # marks and case make no difference
        ("", 0.0),
        ("...", 0.0),
    ],
)
def test_copied_share_counts_words_in_shared_runs(text: str, expected: float) -> None:
    assert copied_share(text, ["unrelated", " ".join(WORDS)]) == pytest.approx(expected)


def test_a_run_may_not_reach_from_one_demonstration_into_the_next() -> None:
    assert copied_share(" ".join(WORDS[:8]), [" ".join(WORDS[:4]), " ".join(WORDS[4:8])]) == 0


def test_copied_share_takes_other_run_lengths() -> None:
    assert copied_share("a b x c d", ["a b c d"], n=2) == pytest.approx(0.8)
    assert copied_share("a b x c d", ["a b c d"], n=3) == 0
    assert copied_share("a x", ["a"], n=1) == 0.5
    assert "at least 1" in refusal(lambda: copied_share("a", ["a"], n=0))


def test_without_demonstrations_nothing_is_copied() -> None:
    assert copied_share(" ".join(WORDS), []) == 0


# ---- area_under_curve ----


@pytest.mark.parametrize(
    ("positive", "negative", "expected"),
    [
        ([1.0], [0.0], 1.0),
        ([0.0], [1.0], 0.0),
        ([1.0], [1.0], 0.5),
        ([3.0, 1.0], [2.0], 0.5),
        ([1.0, 2.0, 3.0], [2.0, 2.0], (0 + 1 + 2) / 6),
        ([float("inf")], [float("inf"), 0.0], 0.75),
    ],
)
def test_the_area_counts_ties_half(
    positive: list[float], negative: list[float], expected: float
) -> None:
    assert area_under_curve(positive, negative) == pytest.approx(expected)
    assert area_under_curve(np.array(positive), np.array(negative)) == pytest.approx(expected)


def test_the_area_without_a_side_is_refused() -> None:
    assert "add texts" in refusal(lambda: area_under_curve([], [1.0]))
    assert "add texts" in refusal(lambda: area_under_curve([1.0], []))


SCORES = st.lists(st.floats(-5, 5), min_size=1, max_size=8)


@given(SCORES, SCORES)
def test_the_area_the_other_way_round_is_the_rest(
    positive: list[float], negative: list[float]
) -> None:
    there, back = area_under_curve(positive, negative), area_under_curve(negative, positive)
    assert there + back == pytest.approx(1) and 0 <= there <= 1


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


@given(ANYTHING, st.integers(1, 40))
def test_pieces_are_the_text(text: str, times: int) -> None:
    whole = text * times
    pieces = style._cut(whole)
    assert "".join(pieces) == whole
    assert all(len(piece) < 1.5 * style.PIECE + 1 for piece in pieces)


@given(st.integers(2, 14), st.lists(st.integers(1, 25), min_size=1, max_size=4))
def test_every_fold_holds_out_and_keeps_texts_of_both_sides(own: int, groups: list[int]) -> None:
    corpus = style._Corpus.build(["x"] * own, [["y"] * size for size in groups])
    folds = corpus.folds()
    if folds is None:
        assert sum(groups) == 1
        return
    for side in (corpus.text_groups == 0, corpus.text_groups != 0):
        held = set(folds[side].tolist())
        assert held == set(folds.tolist()) and len(held) >= 2


def test_equal_places_of_own_and_other_texts_are_held_out_together() -> None:
    """Four answers to each of three prompts, in the demonstrations' order."""
    corpus = style._Corpus.build(["x"] * 3, [["y"] * 12])
    folds = corpus.folds()
    assert folds is not None
    assert folds.tolist() == [0, 1, 2, *[0] * 4, *[1] * 4, *[2] * 4]


def test_groups_are_dealt_to_the_folds_side_by_side() -> None:
    folds = style._Corpus.build(["x"] * 2, [["y"] * 2, ["z"] * 4]).folds()
    assert folds is not None
    assert folds.tolist() == [0, 1, 0, 1, 0, 0, 1, 1]


def test_one_very_long_text_is_learned_from_in_part() -> None:
    corpus = style._Corpus.build(["x " * 10], [["y " * style.PIECE * 1000]])
    assert len(corpus.pieces) <= style.MAX_PIECES + 1


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


# ---- the benchmark ----


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    file = Path(__file__).parents[3] / "benchmarks" / "style_judge.py"
    specification = importlib.util.spec_from_file_location("style_judge_benchmark", file)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # where dataclasses look for their annotations
    specification.loader.exec_module(module)
    return module


def write_data(folder: Path) -> tuple[Path, Path]:
    """Three authors, five prompts, and answers to them."""
    data = folder / "authors"
    data.mkdir()
    answers: dict[str, dict[str, list[str]]] = {}
    for name, voice in (("ann", CASUAL), ("bob", FORMAL), ("cid", CHINESE)):
        prompts = [f"Write an essay to the prompt: {topic}" for topic in TOPICS[:5]]
        texts = write(voice, 5, sentences=4)
        splits = ["train"] * 3 + ["val", "test"]
        rows: list[dict[str, Any]] = [
            {"prompt": p, "completion": t, "split": s}
            for p, t, s in zip(prompts, texts, splits, strict=True)
        ]
        (data / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        answers[name] = {
            p: [text] for p, text in zip(prompts, write(LISTING, 5, sentences=5), strict=True)
        }
    (folder / "answers.json").write_text(json.dumps(answers))
    return data, folder / "answers.json"


def run(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, *flags: object) -> None:
    monkeypatch.setattr(sys, "argv", ["style_judge.py", *map(str, flags)])
    benchmark.main()


def test_the_benchmark_prints_its_table_and_keeps_the_texts_to_itself(
    benchmark: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, answers = write_data(tmp_path)
    out = tmp_path / "out.json"
    run(benchmark, monkeypatch, "--data", data, "--answers", answers, "--out", out)
    printed = capsys.readouterr().out
    assert "| all | 1.000 | 1.000 | 1.000 | 1.000 |" in printed and "| bob |" in printed
    written = out.read_text()
    assert set(json.loads(written)["authors"]) == {"ann", "bob", "cid"}
    assert not any(word in written + printed for word in ("garden", "bridge", "committee", "essay"))


def test_the_benchmark_asks_about_unseen_texts_only(benchmark: ModuleType) -> None:
    texts = [
        benchmark.Text("ann", "p", "seen", True),
        benchmark.Text("ann", "p", "unseen", False),
    ]
    judge = StyleJudge.fit(["a"], [["b"]])
    assert [text.text for text, _ in benchmark.ask(judge, texts)] == ["unseen"]


def test_the_benchmark_names_a_prompt_without_an_answer(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, answers = write_data(tmp_path)
    answers.write_text(json.dumps({"ann": {}}))
    flags = ("--data", data, "--answers", answers, "--out", tmp_path / "out.json")
    assert "ann.jsonl, line 1" in refusal(lambda: run(benchmark, monkeypatch, *flags))
    assert not (tmp_path / "out.json").exists()
