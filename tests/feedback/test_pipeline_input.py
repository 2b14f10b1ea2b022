"""What the pipeline refuses, in one line and before it asks or writes anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.pipelines import FEEDBACK, by_hand, complete, contents, make
from helpers.refusals import refusal
from helpers.teachers import Scripted

from minialign.feedback.knobs import PipelineConfig
from minialign.feedback.pipeline import FILES


def test_bad_input_is_one_line_and_asks_and_writes_nothing(tmp_path: Path) -> None:
    silent = Scripted(stop=lambda: True)

    def attempt(feedback: Any = FEEDBACK, folder: str = "data", **changes: Any) -> str:
        given = {"teacher": silent, "student": silent, **changes}
        return refusal(lambda: make(tmp_path / folder, feedback=feedback, **given))

    assert "it is empty: write a sentence" in attempt("  \n")
    assert "it is empty" in attempt({"domain": "d"})
    assert "must be a text" in attempt({"feedback": 3})
    assert "unknown kind" in attempt(check={"kind": "nicer"})
    assert "no such file" in attempt(general=tmp_path / "missing.jsonl")
    assert "there are" in refusal(
        lambda: make(tmp_path / "data", PipelineConfig(out_of_scope=10**6), teacher=silent)
    )
    (tmp_path / "general.jsonl").write_text('{"text": "x"}\n')
    assert 'general.jsonl, line 1: the field "prompt"' in attempt(
        general=tmp_path / "general.jsonl"
    )
    assert not (tmp_path / "data").exists()
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "mine.txt").write_text("dear")
    assert "mine.txt" in attempt(folder="letters")
    assert "is a file" in attempt(folder="general.jsonl")
    hand = by_hand(tmp_path / "hand")
    before = contents(hand)
    assert "written by hand" in attempt(folder="hand")
    assert contents(hand) == before
    assert silent.asked == []


def test_a_folder_of_another_feedback_is_left_alone(tmp_path: Path) -> None:
    make(tmp_path / "data")
    before = contents(tmp_path / "data")
    assert "another feedback" in refusal(lambda: make(tmp_path / "data", feedback="Be brief."))
    assert contents(tmp_path / "data") == before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "a b c"}, '"split" must be train, test or eval'),
        ({"split": "train"}, 'the field "prompt" must be a text'),
        ({"prompt": "a b c", "split": "train", "baseline": 5}, 'the field "baseline"'),
        ({"prompt": "in_scope number 0", "split": "test"}, "is in both splits"),
    ],
)
def test_a_wrong_line_is_named_before_anything_is_asked(
    tmp_path: Path, line: dict[str, Any], message: str
) -> None:
    folder = by_hand(tmp_path / "hand", near_scope=[line])
    student = Scripted()
    assert message in refusal(lambda: complete(folder, student))
    assert student.asked == []


def test_a_folder_to_complete_must_be_there_and_described(tmp_path: Path) -> None:
    assert "no such folder" in refusal(lambda: complete(tmp_path / "x", Scripted()))
    folder = by_hand(tmp_path / "hand")
    (folder / "feedback.json").write_text(json.dumps({"feedback": "f", "domain": "d"}))
    assert '"effect"' in refusal(lambda: complete(folder, Scripted()))
    (folder / FILES["near_scope"]).unlink()
    (folder / "feedback.json").write_text(
        json.dumps({"feedback": "f", "domain": "d", "effect": "e"})
    )
    assert "near_scope.jsonl: no such file" in refusal(lambda: complete(folder, Scripted()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"categories": 0},
        {"prompts_per_category": 0},
        {"out_of_scope": 0},
        {"tries": 0},
        {"max_new_tokens": 0},
        {"max_list_tokens": 0},
        {"test_fraction": 1.0},
        {"test_fraction": -0.1},
        {"temperature": -1.0},
        {"seed": -1},
    ],
)
def test_a_knob_out_of_range_is_named(wrong: dict[str, Any]) -> None:
    assert next(iter(wrong)) in refusal(lambda: PipelineConfig(**wrong))
