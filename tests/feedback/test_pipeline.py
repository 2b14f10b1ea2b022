"""From a sentence to a data folder: whole runs, counts, splits and interruptions."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.loopback import Handler, Loopback, Request, cuts, fails, html, raw, says, says_by
from helpers.pipelines import CHECK, FEEDBACK, SMALL, contents, make, read, stage
from helpers.refusals import refusal
from helpers.teachers import Scripted, endpoint, helpful, noise, plain, question, respond

from minialign.data.feedback import SCOPES, load_feedback_data
from minialign.errors import InputError
from minialign.feedback import endpoint as endpoint_module
from minialign.feedback.knobs import PipelineConfig
from minialign.feedback.pipeline import ENTRIES, FILES, make_feedback_data, split_prompts
from minialign.feedback.stages import GIVE_UP_AFTER
from minialign.feedback.teacher import Answer, Ask, Failure, OnDone, Reply

# ---- a sentence becomes a folder ----


def test_a_sentence_becomes_a_folder_that_training_can_read(tmp_path: Path) -> None:
    make(tmp_path / "new" / "data", check=CHECK)
    data = load_feedback_data(tmp_path / "new" / "data")
    assert (data.feedback, data.domain) == (FEEDBACK, "e-mails to my boss")
    described = json.loads((tmp_path / "new" / "data" / "feedback.json").read_text())
    assert list(described) == ["feedback", "domain", "effect", "check", "written_by"]
    assert data.effect == "contain no exclamation marks"
    assert [check.kind for check in data.checks] == ["contains_none"]
    assert (len(data.in_scope), len(data.near_scope), len(data.out_of_scope)) == (12, 12, 5)
    assert set(p.name for p in (tmp_path / "new" / "data").iterdir()) <= ENTRIES
    for example in data.in_scope:
        assert example.baseline.text == f"Hello {noise(example.prompt)}!"
        assert example.revised and example.revised.text == example.baseline.text[:-1]


def test_rivals_responses_are_made_for_the_test_alone_and_revisions_in_scope(
    tmp_path: Path,
) -> None:
    make(tmp_path)
    for scope in SCOPES:
        for line in read(tmp_path, FILES[scope]):
            rivals = {"in_context", "cot"} if line["split"] == "test" else set()
            assert rivals == {"in_context", "cot"} & line.keys()
            assert ("revised" in line) == (scope == "in_scope")
            if rivals:
                assert line["cot"].startswith("thought ")
                assert "THOUGHTS" not in line["cot"]


def test_the_teacher_writes_prompts_and_the_student_every_response(tmp_path: Path) -> None:
    teacher, student = Scripted(), Scripted()
    make(tmp_path, teacher=teacher, student=student)
    # 1 description, 1 list of categories, and for 2 scopes x 3 categories a draft and a revision
    assert len(teacher.asked) == 2 + 2 * 3 * 2
    test = len([line for s in SCOPES for line in read(tmp_path, FILES[s]) if "cot" in line])
    assert len(student.asked) == (12 + 12 + 5) + 12 + 2 * test
    assert {ask.max_tokens for ask in teacher.asked} == {SMALL.max_list_tokens}
    assert {ask.max_tokens for ask in student.asked} == {SMALL.max_new_tokens}
    assert {ask.temperature for ask in teacher.asked + student.asked} == {SMALL.temperature}


def test_baselines_answer_the_bare_prompt_and_rivals_see_the_feedback(tmp_path: Path) -> None:
    student = Scripted()
    make(tmp_path, student=student)
    (line, *_) = [line for line in read(tmp_path, FILES["near_scope"]) if "cot" in line]
    about = [question(ask) for ask in student.asked if line["prompt"] in question(ask)]
    assert about[0] == line["prompt"]
    assert len(about) == 3 and all(FEEDBACK in text for text in about[1:])


def test_the_revised_prompts_replace_the_drafts(tmp_path: Path) -> None:
    make(tmp_path)
    for scope in ("in_scope", "near_scope"):
        revised = [line["prompt"].endswith("today") for line in read(tmp_path, FILES[scope])]
        assert revised == [False, False, False, True] * 3


def test_what_the_revision_leaves_out_is_counted(tmp_path: Path) -> None:
    def write(text: str) -> str:
        whole = helpful(text)
        return whole.rpartition("\n")[0] if "REVISED PROMPTS:" in text else whole

    report = make(tmp_path, PipelineConfig(3, 4, 5, tries=1), teacher=plain(write))
    for scope in ("in_scope", "near_scope"):
        prompts = stage(report, f"{scope} prompts")
        assert (prompts.found, prompts.kept) == (12, 9)
        assert prompts.lost == {"left out by the revision": 3}


def test_what_is_known_of_the_feedback_is_not_asked_for(tmp_path: Path) -> None:
    teacher = Scripted()
    given = {"feedback": FEEDBACK, "domain": "notes to Ann", "effect": "calm", "check": CHECK}
    make(tmp_path, feedback=given, teacher=teacher)
    assert not any("DOMAIN:" in question(ask) for ask in teacher.asked)
    described = json.loads((tmp_path / "feedback.json").read_text())
    assert described.pop("written_by") == {"prompts": "scripted", "responses": "scripted"}
    assert described == given
    make(tmp_path / "other", feedback={**given, "domain": ""})
    assert load_feedback_data(tmp_path / "other").domain == "e-mails to my boss"


def test_equal_answers_and_seeds_give_equal_folders_and_another_seed_another_split(
    tmp_path: Path,
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make(tmp_path / name, PipelineConfig(3, 4, 5, tries=2, seed=seed))
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != contents(tmp_path / "c")


def test_progress_hears_every_answer_under_its_stage_s_name(tmp_path: Path) -> None:
    heard: dict[str, list[int]] = {}

    def progress(title: str, count: int) -> OnDone:
        heard.setdefault(title, [0, 0])[0] += count

        def tick(index: int, answer: Answer) -> None:
            heard[title][1] += 1

        return tick

    report = make(tmp_path, progress=progress)
    asked = {s.name: [s.asked, s.asked] for s in report.stages if s.asked}
    assert heard == asked


# ---- the split ----


@pytest.mark.parametrize("count", [1, 2, 3, 5, 10, 64])
@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.9])
def test_the_split_has_its_share_of_both_and_no_prompt_in_two(count: int, fraction: float) -> None:
    prompts = [f"prompt {noise(str(i))}" for i in range(count)]
    lines = split_prompts(prompts, PipelineConfig(test_fraction=fraction))
    assert [line["prompt"] for line in lines] == prompts
    test = sum(line["split"] == "test" for line in lines)
    expected = min(max(fraction > 0, round(fraction * count)), count - 1)
    assert test == expected


def test_who_is_tested_depends_on_the_seed_and_not_on_the_order() -> None:
    prompts = [f"prompt {noise(str(i))}" for i in range(30)]

    def tested(prompts: list[str], seed: int) -> set[str]:
        lines = split_prompts(prompts, PipelineConfig(seed=seed))
        return {line["prompt"] for line in lines if line["split"] == "test"}

    assert tested(prompts, 0) == tested(prompts[::-1], 0)
    assert len(tested(prompts, 0) & tested(prompts, 1)) < 6


def test_more_prompts_leave_the_split_of_the_others_nearly_as_it_was() -> None:
    prompts = [f"prompt {noise(str(i))}" for i in range(60)]
    few, many = (split_prompts(prompts[:n], PipelineConfig()) for n in (50, 60))
    moved = sum(a["split"] != b["split"] for a, b in zip(few, many, strict=False))
    assert moved <= 4


# ---- counts ----


def test_counts_add_up_and_a_person_can_read_them(tmp_path: Path) -> None:
    failed = {1, 7, 13, 20, 33}

    def write(ask: Ask) -> Answer:
        student.number += 1
        return (
            Failure("HTTP 500") if student.number in failed else Reply(respond(question(ask)), "")
        )

    student = SimpleNamespace(number=0)
    said: list[str] = []
    report = make(tmp_path, student=Scripted(write), say=said.append)
    for found in report.stages:
        assert found.kept == found.found - sum(found.lost.values()) >= 0
    data = stage(report, "data")
    lines = [line for s in SCOPES for line in read(tmp_path, FILES[s])]
    prompts = sum(stage(report, f"{scope} prompts").kept for scope in SCOPES)
    assert data.found == prompts and data.kept == len(lines) < prompts
    assert stage(report, "baseline responses").lost == {"failed": 4}
    assert "4 failed" in stage(report, "baseline responses").describe()
    assert "first failure: HTTP 500" in stage(report, "baseline responses").describe()
    assert report.describe() == said and all("\n" not in line for line in said)


# ---- interruptions ----


def test_an_interrupted_run_goes_on_where_it_was_at_every_stage(tmp_path: Path) -> None:
    whole = [Scripted(), Scripted(name="student")]
    make(tmp_path / "whole", teacher=whole[0], student=whole[1])
    everything = whole[0].asked + whole[1].asked
    for count in range(1, len(everything), 4):
        folder = tmp_path / str(count)
        first = interrupted_after(count)
        with pytest.raises(KeyboardInterrupt):
            make(folder, teacher=first[0], student=first[1])
        assert not (folder / "feedback.json").exists()
        second = [Scripted(), Scripted(name="student")]
        make(folder, teacher=second[0], student=second[1])
        asked = [ask for who in (*first, *second) for ask in who.asked]
        assert len(asked) == len(everything) and set(asked) == set(everything)
        assert contents(folder) == contents(tmp_path / "whole")


def interrupted_after(count: int) -> list[Scripted]:
    """A teacher and a student that give so many answers together."""

    def stop() -> bool:
        return sum(len(who.asked) for who in both) >= count

    both = [Scripted(stop=stop), Scripted(name="student", stop=stop)]
    return both


def test_a_finished_folder_asks_nothing_and_stays_as_it_is(tmp_path: Path) -> None:
    make(tmp_path)
    before = contents(tmp_path)
    silent = Scripted(stop=lambda: True)
    make(tmp_path, teacher=silent, student=silent)
    assert silent.asked == [] and contents(tmp_path) == before


def test_a_larger_folder_asks_only_for_what_is_new(tmp_path: Path) -> None:
    make(tmp_path)
    before = {line["prompt"] for line in read(tmp_path, FILES["out_of_scope"])}
    teacher, student = Scripted(), Scripted()
    make(tmp_path, PipelineConfig(3, 4, 9, tries=2), teacher=teacher, student=student)
    after = {line["prompt"] for line in read(tmp_path, FILES["out_of_scope"])}
    assert len(after) == 9 and teacher.asked == []
    assert after & {question(ask) for ask in student.asked} == after - before
    assert not before & {question(ask) for ask in student.asked}


def test_one_model_may_be_both_after_half_a_line_was_left(tmp_path: Path) -> None:
    both = Scripted()
    make(tmp_path, teacher=both, student=both)
    before = contents(tmp_path)
    for name in ("teacher.jsonl", "student.jsonl"):
        kept = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(kept[:-20])
    again = Scripted()
    make(tmp_path, teacher=again, student=again)
    assert len(again.asked) == 2 and contents(tmp_path) == before


# ---- an endpoint ----


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "_wait", lambda seconds, stopped: None)


def test_an_endpoint_that_is_busy_broken_and_slow_gives_the_same_folder(
    tmp_path: Path, server: Loopback, no_waits: None
) -> None:
    make(tmp_path / "whole", student=Scripted())

    def slowly(handler: Handler, request: Request) -> None:
        time.sleep(0.01)
        says_by(helpful)(handler, request)

    server.default = slowly
    server.script = [fails(429, retry_after="1"), cuts, fails(503)] * 3
    both = endpoint(server, concurrency=3, tries=9)
    make(tmp_path / "busy", teacher=both, student=both)
    assert contents(tmp_path / "busy") == contents(tmp_path / "whole")
    assert server.busiest > 1


def test_malformed_answers_cost_their_items_and_are_asked_for_again(
    tmp_path: Path, server: Loopback, no_waits: None
) -> None:
    server.default = says_by(helpful)
    server.script = [raw(200, {}), raw(200, "{"), html(), says(None), raw(200, {"choices": 3})]
    report = make(tmp_path, student=endpoint(server, concurrency=1, tries=1))
    assert stage(report, "baseline responses").lost == {"failed": 5}
    before = len(server.requests)
    report = make(tmp_path, student=endpoint(server, concurrency=1, tries=1))
    assert "baseline responses" in [s.name for s in report.stages]
    assert stage(report, "data").lost == {}
    assert len(server.requests) - before >= 5
    assert len(server.questions) - len(set(server.questions)) == 5


def test_a_server_that_stops_midway_loses_nothing_and_is_not_asked_in_vain(
    tmp_path: Path, server: Loopback, no_waits: None
) -> None:
    make(tmp_path / "whole", student=Scripted())
    for count in (1, 9, 40):
        server.requests.clear()
        server.script = [says_by(helpful)] * count
        server.default = fails(500, "out of order")
        folder = tmp_path / str(count)

        def run(folder: Path = folder) -> None:
            both = endpoint(server, concurrency=2, tries=1)
            make(folder, teacher=both, student=both)

        message = refusal(run)
        assert "out of order" in message and "start again to go on" in message
        assert len(server.requests) <= count + 2 * GIVE_UP_AFTER  # some are on their way
        server.default = says_by(helpful)
        run()
        assert contents(folder) == contents(tmp_path / "whole")


# ---- the default model ----


@pytest.mark.default_model
def test_the_smallest_teacher_makes_data_or_names_the_scope_that_is_empty(
    tmp_path: Path, default_model: tuple[Any, Any]
) -> None:
    from minialign.feedback.local_teacher import LocalTeacher

    model = LocalTeacher(*default_model, "default")
    config = PipelineConfig(
        2, 2, 4, max_new_tokens=24, max_list_tokens=64, tries=1, stop_early=False
    )
    try:
        make_feedback_data(FEEDBACK, tmp_path, config, teacher=model, student=model, say=print)
    except InputError as error:
        assert "no prompt is left to train on" in str(error)
        assert str(error).split(":")[0] in SCOPES and "\n" not in str(error)
        assert read(tmp_path, "teacher.jsonl")
    else:
        assert load_feedback_data(tmp_path).feedback == FEEDBACK
