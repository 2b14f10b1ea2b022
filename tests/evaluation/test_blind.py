"""Which pairs the blind page shows, and what its source gives away."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest
from helpers.blind import HOSTILE, PROMPTS, blind_run, content_of
from helpers.refusals import refusal
from report_helpers import Page, check_self_contained, check_well_formed, make_feedback_run

from minialign.data.feedback import Response
from minialign.data.votes import Side, Vote
from minialign.evaluation.blind import Blind, blind_page, make_blind
from minialign.evaluation.names import PERSON


def by_of(blind: Blind) -> list[tuple[str, str]]:
    return [(pair.left.by, pair.right.by) for pair in blind.pairs]


def rivals_of(blind: Blind) -> list[str]:
    return [next(name for name in pair if name != "ditto") for pair in by_of(blind)]


def test_every_pair_is_the_runs_answer_and_a_rivals_to_one_prompt(tmp_path: Path) -> None:
    blind = make_blind(blind_run(tmp_path / "run"), (), 80, 0)
    assert len(blind.pairs) == 80 == PROMPTS * 4 * 2
    for pair in blind.pairs:
        sides = {side.by: side.answer for side in (pair.left, pair.right)}
        assert "ditto" in sides and sides.keys() <= {"base", "sft", "ditto"}
        places = {answer.text.split()[1] for answer in sides.values()}
        assert len(places) == 1
        (place,) = places
        assert pair.messages == [{"role": "user", "content": f"Prompt {place.split('.')[0]}?"}]
        reason = "length" if place.endswith(".1") else "stop"
        assert {a.finish_reason for a in sides.values()} == {reason}
    assert len({(p.left.answer.text, p.right.answer.text) for p in blind.pairs}) == 80


def test_whoever_stops_early_has_seen_every_prompt_and_rival_alike(tmp_path: Path) -> None:
    folder = blind_run(tmp_path / "run")
    blind = make_blind(folder, (), 40, 0)
    for count in (10, 20, 30, 40):
        prompts = Counter(pair.messages[0]["content"] for pair in blind.pairs[:count])
        assert set(prompts.values()) == {count // PROMPTS}
        assert set(Counter(rivals_of(blind)[:count]).values()) == {count // 2}
    left = sum(left == "ditto" for left, _ in by_of(blind))
    assert 10 <= left <= 30
    assert make_blind(folder, (), 40, 0) == blind != make_blind(folder, (), 40, 1)


def test_rivals_are_chosen_and_the_person_is_one(tmp_path: Path) -> None:
    folder = blind_run(tmp_path / "run")
    assert set(rivals_of(make_blind(folder, ("few-shot",), 9, 0))) == {"few-shot"}
    blind = make_blind(folder, ("base",), 99, 0, person=True)
    assert Counter(rivals_of(blind)) == {"base": PROMPTS * 4, PERSON: PROMPTS}
    own = {s.answer.text for p in blind.pairs for s in (p.left, p.right) if s.by == PERSON}
    assert own == {f"My own {p}." for p in range(PROMPTS)}
    assert "no answers of spin in evaluation.json, only of base, few" in refusal(
        lambda: make_blind(folder, ("spin",), 9, 0)
    )


def test_equal_texts_are_no_choice(tmp_path: Path) -> None:
    entry = {"answers": [["same"], ["same"]], "finish_reasons": [["stop"], ["stop"]]}
    other = {"answers": [["same "], ["other"]], "finish_reasons": [["stop"], ["stop"]]}
    folder = blind_run(tmp_path / "run", 2, contestants={"base": entry, "ditto": other})
    assert len(make_blind(folder, (), 9, 0).pairs) == 1
    folder = blind_run(tmp_path / "same", 2, contestants={"base": entry, "ditto": entry})
    assert "nothing to choose between" in refusal(lambda: make_blind(folder, (), 9, 0))


def test_a_run_without_answers_or_without_a_voice_is_refused(tmp_path: Path) -> None:
    folder = blind_run(tmp_path / "run")
    (folder / "evaluation.json").unlink()
    assert "has no answers yet: python evaluate.py" in refusal(lambda: make_blind(folder, (), 9, 0))
    feedback = make_feedback_run(tmp_path / "feedback")
    assert "learned from feedback" in refusal(lambda: make_blind(feedback, (), 9, 0))


def test_a_dialogue_is_kept_whole(tmp_path: Path) -> None:
    dialogue = [{"role": "system", "content": "Brief."}, {"role": "user", "content": "Prompt 0?"}]
    messages = [dialogue] * PROMPTS
    blind = make_blind(blind_run(tmp_path / "run", messages=messages), (), 5, 0)
    assert {json.dumps(pair.messages) for pair in blind.pairs} == {json.dumps(dialogue)}


# ---- the page ----


@pytest.mark.parametrize("text", ["", HOSTILE], ids=["plain", "hostile"])
@pytest.mark.parametrize("live", [False, True])
def test_the_page_needs_nothing_else_and_names_nobody(
    tmp_path: Path, text: str, live: bool
) -> None:
    blind = make_blind(blind_run(tmp_path / "run", text=text), (), 40, 0, person=True)
    source = blind_page(blind, live=live)
    page = Page(source)
    check_self_contained(page)
    check_well_formed(page)
    for name in ("ditto", "DITTO", "sft", "SFT", "base model", "the person"):
        assert name not in source
    assert [tag for tag, _ in page.elements].count("script") == 2
    (script,) = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for t, a in page.elements if "Content-Security" in str(a)) or ""
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")
    assert ("connect-src 'self'" in policy) == live
    found = content_of(source)
    assert [p["left"] for p in found["pairs"]] == [p.left.answer.text for p in blind.pairs]
    assert f"{text}Prompt" in found["pairs"][0]["messages"][0]["content"]


def test_the_key_says_who_wrote_what(tmp_path: Path) -> None:
    blind = make_blind(blind_run(tmp_path / "run"), (), 40, 0)
    key = json.loads(base64.b64decode(content_of(blind_page(blind))["key"]))
    assert [(left[0], right[0]) for left, right in key["by"]] == by_of(blind)
    assert key["titles"] == {"base": "base model", "ditto": "DITTO", "sft": "SFT"}


def test_votes_of_this_page_are_taken_up_again(tmp_path: Path) -> None:
    blind = make_blind(blind_run(tmp_path / "run"), (), 4, 0)
    sides = Side("ditto", Response("a")), Side("base", Response("b"))
    places = [(blind.page, 2), (blind.page, 9), ("another", 1)]
    votes = [Vote([], *sides, "left", "", page, pair) for page, pair in places]
    assert content_of(blind_page(blind, votes))["cast"] == [[2, "left"]]
    other = make_blind(tmp_path / "run", (), 4, 1)
    assert other.page != blind.page
