"""A folder that was written by hand is completed."""

from __future__ import annotations

from pathlib import Path

from helpers.pipelines import by_hand, complete, contents, read, stage
from helpers.teachers import Scripted, question, respond

from minialign.data.feedback import SCOPES, load_feedback_data
from minialign.feedback.pipeline import FILES
from minialign.feedback.teacher import Answer, Ask, Failure, Reply


def test_bare_prompts_are_completed(tmp_path: Path) -> None:
    folder = by_hand(tmp_path / "hand")
    described = contents(folder)["feedback.json"]
    complete(folder, Scripted())
    data = load_feedback_data(folder)
    assert [len(data.examples(scope, "train")) for scope in SCOPES] == [2, 2, 2]
    for scope in SCOPES:
        (example,) = data.examples(scope, "test")
        assert example.in_context and example.cot
    assert contents(folder)["feedback.json"] == described


def test_what_is_there_stays_and_is_not_asked_for(tmp_path: Path) -> None:
    mine = {
        "prompt": "in_scope number 7",
        "split": "train",
        "baseline": "my own!",
        "baseline_finish_reason": "length",
        "revised": "my own!",  # even where it would be dropped, had the student written it
        "note": "keep me",
    }
    folder = by_hand(tmp_path / "hand", in_scope=[mine])
    student = Scripted()
    complete(folder, student)
    assert read(folder, FILES["in_scope"]) == [mine]
    assert not any("number 7" in question(ask) for ask in student.asked)


def test_lines_whose_answers_failed_stay_and_are_completed_later(tmp_path: Path) -> None:
    def write(ask: Ask) -> Answer:
        text = question(ask)
        broken = text == "near_scope number 1" or (
            "REQUEST" in text and "in_scope number 0" in text
        )
        return Failure("HTTP 500") if broken else Reply(respond(text), "stop")

    folder = by_hand(tmp_path / "hand")
    report = complete(folder, Scripted(write))
    assert stage(report, "data").kept == 7
    assert [len(read(folder, FILES[scope])) for scope in SCOPES] == [3, 3, 3]
    student = Scripted()
    report = complete(folder, student)
    assert len(student.asked) == 2 and stage(report, "data").kept == 9
    load_feedback_data(folder)


def test_dropped_lines_of_earlier_runs_stay_beside_new_ones(tmp_path: Path) -> None:
    def stubborn(ask: Ask) -> Answer:
        text = question(ask)
        return Reply("" if text.endswith("number 0") else respond(text), "stop")

    folder = by_hand(tmp_path / "hand")
    (folder / "dropped.jsonl").write_text('{"prompt": "from before", "dropped": "x"}\n')
    complete(folder, Scripted(stubborn))
    dropped = [(line["prompt"], line["dropped"]) for line in read(folder, "dropped.jsonl")]
    empty = [(f"{scope} number 0", "baseline: empty") for scope in SCOPES]
    assert dropped == [("from before", "x"), *empty]
    assert [len(read(folder, FILES[scope])) for scope in SCOPES] == [2, 2, 2]
