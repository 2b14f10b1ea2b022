"""From texts to lines: near-duplicates, the choice of a few, instructions by a template, splits."""

from __future__ import annotations

import numpy as np
import pytest

from minialign.data.alike import near_duplicates, typicality
from minialign.data.demonstrate import Told, demonstrations, instruction, told
from minialign.data.mail import Written
from minialign.data.pick import pick
from minialign.data.scrub import GROUPS, Scrubber

WORDS = {
    "bread": "flour oven dough crust yeast loaf".split(),
    "boats": "ferry harbour tide rope anchor mast".split(),
    "music": "choir tenor hymn organ verse chord".split(),
}


def text(topic: str, number: int, length: int = 40) -> str:
    words = [WORDS[topic][(number * 7 + i * (number + 1)) % 6] for i in range(length)]
    return " ".join(f"and the {word} {i}" for i, word in enumerate(words[: length // 4]))


# ---- near-duplicates ----


def test_a_text_with_a_few_words_changed_is_nearly_the_same() -> None:
    first = " ".join(f"word{i}" for i in range(60))
    changed = first.replace("word30", "else")
    other = " ".join(f"other{i}" for i in range(60))
    assert near_duplicates([first, other, changed, first]) == {2: 0, 3: 0}
    assert near_duplicates(["Thanks!", "Thanks!", "Yes.", ""]) == {1: 0}


def test_a_common_opening_does_not_make_two_texts_the_same() -> None:
    opening = "I hope that this e-mail finds you well and that the family is too."
    texts = [f"{opening} " + " ".join(f"w{n}x{i}" for i in range(30)) for n in range(300)]
    assert near_duplicates(texts) == {}


# ---- the choice ----


def test_the_few_are_spread_over_topics() -> None:
    texts = [text(topic, n) for topic in WORDS for n in range(6)]
    for count in (3, 6):
        chosen = pick(texts, count)
        topics = [place // 6 for place in chosen]
        assert chosen == sorted(set(chosen)) and len(chosen) == count
        assert {topics.count(topic) for topic in range(3)} == {count // 3}


def test_lengths_differ_and_what_is_out_of_bounds_comes_last() -> None:
    texts = [text("bread", n, 40 + 30 * (n % 5)) for n in range(20)]
    lengths = [len(texts[place].split()) for place in pick(texts, 4)]
    assert max(lengths) > 1.8 * min(lengths)
    texts = ["Too short.", *texts, "far too long " * 200]
    assert not {0, 21} & set(pick(texts, 20))
    assert pick(texts, 22) == list(range(22))


def test_a_stranger_among_the_texts_is_not_typical() -> None:
    texts = [text("bread", n) for n in range(9)]
    ranks = typicality([*texts, "ZZQ 12/7 %% XK-9 #### QWXZ 99 !!"])
    assert int(np.argmin(ranks)) == 9 and ranks.min() == 0 and ranks.max() == 1


# ---- what a text answers ----


@pytest.mark.parametrize(
    ("subject", "names", "reply", "mail", "said"),
    [
        ("Buns", ["Kim"], False, True, 'Write an e-mail to Kim with the subject "Buns".'),
        (
            "Buns",
            ["Kim", "Lee"],
            True,
            True,
            'Write a reply to Kim and Lee with the subject "Buns".',
        ),
        ("Buns", [], True, True, 'Write a reply to an e-mail with the subject "Buns".'),
        ("", ["Kim"], False, True, "Write an e-mail to Kim."),
        ("", [], False, True, "Write an e-mail."),
        ("On  bread.", [], False, False, 'Write a text with the title "On bread".'),
        ("", [], False, False, "Write a text."),
    ],
)
def test_the_template(subject: str, names: list[str], reply: bool, mail: bool, said: str) -> None:
    assert instruction(subject, names, reply, mail) == said


def test_what_is_replaced_in_a_text_is_replaced_in_its_instruction_too() -> None:
    written = Written(
        "x",
        "Dear Petra,\nSee you.",
        subject="Petra Novak's ring, 07700 900123",
        names=("Petra Novak",),
    )
    one = told(written, Scrubber(tuple(GROUPS)))
    asked = one.messages[-1]["content"]
    assert not {"Petra", "Novak", "900123"} & set(asked.replace("'", " ").replace(",", " ").split())
    name = one.text.split()[1].rstrip(",")
    assert name in asked and "[phone number]" in asked


def one(number: int, given: bool = False) -> Told:
    asked = [{"role": "user", "content": f"asked {number}"}]
    return Told(f"line {number}", text("music", number, 40 + number), asked, given)


def test_the_lines_say_what_is_learned_from_and_what_is_judged_by() -> None:
    lines = demonstrations([one(n) for n in range(12)], 4, 3)
    assert [line["split"] for line in lines] == ["train"] * 4 + ["test"] * 3 + ["spare"] * 5
    assert len({line["source"] for line in lines}) == 12
    assert [line["split"] for line in demonstrations([one(0), one(1)], 4, 3)] == ["train"] * 2


def test_a_model_writes_the_instructions_that_are_used_and_were_not_given() -> None:
    asked: list[str] = []

    def instruct(texts: object) -> list[str]:
        assert isinstance(texts, list)
        asked.extend(t.source for t in texts)
        return [f"Write {t.source}" for t in texts]

    everything = [one(n, given=n == 0) for n in range(6)]
    lines = demonstrations(everything, 3, 2, instruct)
    prompts = {line["source"]: line["prompt"] for line in lines}
    used = {line["source"] for line in lines if line["split"] != "spare"}
    assert set(asked) == used - {"line 0"}
    assert prompts["line 0"] == "asked 0"
    assert all(prompts[source] == f"Write {source}" for source in asked)


def test_a_conversation_stays_whole() -> None:
    asked = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi?"})
    scrubber = Scrubber(())
    (line,) = demonstrations([told(Written("x", "Hello.", messages=asked), scrubber)], 1, 0)
    assert line["messages"] == [*asked, {"role": "assistant", "content": "Hello."}]
