"""A file of votes: what is read, what is refused, and the preference pairs that it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.files import write_jsonl
from helpers.refusals import refusal

from minialign.data.feedback import Response
from minialign.data.votes import preference_pairs, read_votes


def line(vote: str = "left", **changes: Any) -> dict[str, Any]:
    left = {"by": "ditto", "text": "Right then.\n"}
    right = {"by": "base", "text": "I hope this", "finish_reason": "length"}
    return {"prompt": "Write to Sam.", "left": left, "right": right, "vote": vote} | changes


def test_a_vote_is_read_with_who_won(tmp_path: Path) -> None:
    dialogue = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]
    records = [line(), line("right", messages=dialogue, page="p", pair=3), line("neither")]
    first, second, third = read_votes(write_jsonl(tmp_path / "v.jsonl", records))
    assert [v.share_of("ditto") for v in (first, second, third)] == [1.0, 0.0, 0.5]
    assert [v.share_of("base") for v in (first, second, third)] == [0.0, 1.0, 0.5]
    assert first.right.answer == Response("I hope this", "length")
    assert (second.messages, second.prompt) == (dialogue, "hi")
    assert (second.page, second.pair, first.page, first.pair) == ("p", 3, "", -1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"vote": "up"}, '"vote" must be one of left, right, neither'),
        ({"vote": None}, '"vote" must be one of'),
        ({"left": "text"}, '"left" must be {"by": ..., "text": ...}'),
        ({"right": {"by": "base"}}, '"right" must be'),
        ({"right": {"by": "ditto", "text": "a"}}, "both answers are by ditto"),
        ({"right": {"by": "", "text": "a"}}, '"right" needs a name'),
        ({"left": {"by": "a", "text": "b", "finish_reason": "bored"}}, "stop or length"),
        ({"prompt": " "}, "the prompt is empty"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    file = write_jsonl(tmp_path / "v.jsonl", [line(), line(**changes)])
    message = refusal(lambda: read_votes(file))
    assert message.startswith(f"{file}, line 2: ") and said in message


def test_votes_that_prefer_one_answer_are_preference_pairs(tmp_path: Path) -> None:
    empty = line(left={"by": "ditto", "text": " "})
    records = [line(), line("right"), line("neither"), empty]
    votes = read_votes(write_jsonl(tmp_path / "v.jsonl", records))
    first, second = preference_pairs(votes, "v.jsonl").examples("in_scope", "train")
    assert (first.revised, first.baseline) == (
        Response("Right then."),
        Response("I hope this", "length"),
    )
    assert (second.revised, second.baseline) == (first.baseline, first.revised)
    assert second.source.endswith("line 2") and second.prompt == "Write to Sam."


def test_votes_for_neither_teach_nothing(tmp_path: Path) -> None:
    votes = read_votes(write_jsonl(tmp_path / "v.jsonl", [line("neither")]))
    assert "v.jsonl: no vote prefers" in refusal(lambda: preference_pairs(votes, "v.jsonl"))
