"""The answers on the page: by round, by contestant, by scope, and what changed in them."""

from __future__ import annotations

import hashlib
import html
import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from report_helpers import BETTER, PREVIEW, Page, config, evaluation

from minialign.evaluation.judges.words import copied_share, known_runs, words_of
from minialign.evaluation.report.answers import MOST_WORDS, mark_copied, word_diff


def test_before_and_after_and_all_answers_are_there(run_page: Callable[..., Page]) -> None:
    text = run_page().text
    for expected in (*PREVIEW.values(), "First prompt?", "My own text.", "Another."):
        assert expected in text
    for name in ("base", "sft", "ditto"):
        for prompt in range(2):
            for answer in range(2):
                assert f"{name} says {prompt} {answer}" in text
    assert text.count("cut off at the limit") == 3 + 2  # an answer of each contestant; a round each


def test_the_rounds_show_one_demonstration_and_count_all(run_page: Callable[..., Page]) -> None:
    text = run_page().text
    for number in range(2):
        assert f"answer 0 of round {number} to 0" in text
        assert f"answer 1 of round {number} to 0" in text
    assert "to 1" not in re.findall(r"of round \d to \d", text)
    assert "3 of all 6 answers ended by themselves" in text


def test_the_demonstration_is_shown_only_while_its_file_is_the_one_learned_from(
    run_page: Callable[..., Page], tmp_path: Path
) -> None:
    demos = tmp_path / "mine.jsonl"
    demos.write_text('{"prompt": "About the heater.", "completion": "The heater has retired."}\n')
    record = config(demos_sha256=hashlib.sha256(demos.read_bytes()).hexdigest())
    record["options"]["demos"] = str(demos)
    assert "The heater has retired." in run_page(config=record).text
    demos.write_text('{"prompt": "About the heater.", "completion": "It works again."}\n')
    text = run_page(config=record).text
    assert "The heater has retired." not in text and "It works again." not in text


def test_the_answers_stand_by_scope_with_their_scores(feedback_page: Callable[..., Page]) -> None:
    page = feedback_page()
    places = [
        page.text.index(f"{scope} prompt 0") for scope in ("in_scope", "near_scope", "out_of_scope")
    ]
    assert places == sorted(places)
    for i in range(3):
        for part in (f"in_scope prompt {i}", f"Here is near_scope {i}.", f"Serves: {i} people."):
            assert part in page.text
    for said in ("1: follows it more", "0: follows it as much", "−1: follows it less"):
        assert page.source.count(f'class="score">{said}<') == 1
    assert page.text.count("1: changed") == 2 * 2  # 1 and -1, in two scopes
    assert page.text.count("Scores of the others: in-context –; base model, again 0") == 9
    folds = [a for tag, a in page.elements if tag == "details" and a.get("class") == "fold"]
    assert ["open" in fold for fold in folds[:9]] == [
        *(True, True, False),
        *(True, False, False) * 2,
    ]


def test_changed_words_are_marked_on_both_sides(feedback_page: Callable[..., Page]) -> None:
    source = feedback_page().source
    assert "<ins>Serves: 0 people.</ins>\n\nHere is in_scope 0." in source
    assert "Mix <del>it</del> and bake it. <del>Enjoy!</del>" in source


WORDS = st.text(st.sampled_from("ab<& \n"), max_size=30)


@given(WORDS, WORDS)
def test_marking_changes_neither_text(before: str, after: str) -> None:
    marked = word_diff(before, after)
    assert marked[2]
    for text, side, tag in zip((before, after), marked, ("del", "ins"), strict=False):
        Page(str(side))
        assert html.unescape(re.sub(f"</?{tag}>", "", str(side))) == text
        assert not re.search(rf"<{tag}>(\s|</)|\s</{tag}>", str(side))
        kept = html.unescape(re.sub(rf"<{tag}>.*?</{tag}>", " ", str(side), flags=re.DOTALL))
        other = re.sub("</?(del|ins)>", "", str(marked[1 if tag == "del" else 0]))
        assert set(kept.split()) <= set(html.unescape(other).split())


def test_marking_is_fast_whatever_the_texts_are() -> None:
    draw = random.Random(0)
    few, many = [f"w{i}" for i in range(40)], ["same"]
    began = time.process_time()
    for words in (few, many):
        before, after = (" ".join(draw.choices(words, k=MOST_WORDS)) for _ in range(2))
        assert word_diff(before, after)[2]
    assert time.process_time() - began < 2
    long = "<b> " * (MOST_WORDS + 1)
    assert word_diff(long, "short") == (html.escape(long), "short", False)


def test_copied_words_are_marked_in_every_answer(
    run_page: Callable[..., Page], tmp_path: Path
) -> None:
    demos = tmp_path / "mine.jsonl"
    copied = "base says 0 0 and seven other words follow"
    demos.write_text(json.dumps({"prompt": "a", "completion": f"{copied}, and more."}) + "\n")
    record = config(demos_sha256=hashlib.sha256(demos.read_bytes()).hexdigest())
    record["options"]["demos"] = str(demos)
    shown = evaluation(BETTER)
    shown["contestants"]["base"]["answers"][0] = [f"<b> {copied.upper()}! It ends", copied[:20]]
    source = run_page(config=record, evaluation=shown).source
    assert f"&lt;b&gt; <mark>{copied.upper()}</mark>! It ends" in source
    assert source.count("<mark>") == 1


@given(st.text(st.sampled_from("ab <&,"), max_size=60))
def test_marking_copies_changes_no_text(text: str) -> None:
    known = known_runs(["a b a b a b a b", "b b b b b b b b a a a"])
    marked = str(mark_copied(text, known))
    assert html.unescape(re.sub("</?mark>", "", marked)) == text
    words = words_of(" ".join(re.findall("<mark>(.*?)</mark>", marked)))
    share = copied_share(text, ["a b a b a b a b", "b b b b b b b b a a a"])
    assert len(words) == round(share * len(words_of(text)))


def test_one_of_the_columns_is_shown_without_a_script(run_page: Callable[..., Page]) -> None:
    page = run_page()
    radios = [a for tag, a in page.elements if tag == "input"]
    names = [a["name"] for a in radios if "checked" in a]
    assert names == ["answers-shown", "rounds-shown"]
    assert [a["value"] for a in radios if a["name"] == "answers-shown"] == ["0", "1", "2", "3"]
    sides = [a["data-side"] for _, a in page.elements if "data-side" in a]
    assert sides == ["1", "2", "3"] * 2 + ["1", "2"]
    assert page.source.count("]:checked) [data-side]") == 3
