"""From a sentence to a data folder: messy teachers, lost answers, interruptions, and the examples'
edits.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from helpers.loopback import Handler, Loopback, Request, cuts, fails, html, raw, says, says_by
from helpers.refusals import refusal

from minialign.data.checks import parse_checks
from minialign.data.feedback import SCOPES, load_feedback_data
from minialign.data.general import general_prompts
from minialign.errors import InputError
from minialign.feedback import endpoint as endpoint_module
from minialign.feedback.endpoint import EndpointTeacher
from minialign.feedback.knobs import PipelineConfig
from minialign.feedback.lists import (
    Distinct,
    after_label,
    category_name,
    labelled_line,
    parse_list,
    strip_introduction,
)
from minialign.feedback.pipeline import (
    ENTRIES,
    FILES,
    PipelineReport,
    complete_responses,
    make_feedback_data,
    split_prompts,
)
from minialign.feedback.stages import GIVE_UP_AFTER, Stage
from minialign.feedback.teacher import Answer, Ask, Failure, OnDone, Reply

FEEDBACK = "Use no exclamation marks in e-mails to my boss."
CHECK = {"kind": "contains_none", "texts": ["!"]}
SMALL = PipelineConfig(categories=3, prompts_per_category=4, out_of_scope=5, tries=2)


# ---- teachers ----


def noise(text: str, count: int = 4) -> str:
    """Words that no other text gives."""
    digest = hashlib.sha256(text.encode()).hexdigest()
    return " ".join(digest[4 * i : 4 * i + 4] for i in range(count))


def numbered(entries: Sequence[str]) -> str:
    return "\n".join(f"{number}. {entry}" for number, entry in enumerate(entries, start=1))


def helpful(question: str) -> str:
    """What an able teacher answers to each of the pipeline's questions."""
    if "DOMAIN:" in question:
        return "DOMAIN: e-mails to my boss\nEFFECT: contain no exclamation marks"
    if "categories of requests" in question:
        return numbered([f"kind {noise(str(i), 1)}" for i in range(3)])
    if "REVISED PROMPTS:" in question:
        listed = [line.split(". ", 1)[1] for line in question.splitlines() if line[:1].isdigit()]
        return "THOUGHTS: The last one is vague.\nREVISED PROMPTS:\n" + numbered(
            [*listed[:-1], f"{listed[-1]} today"]
        )
    if "numbered list with one request" in question:
        return numbered([f"please write about {noise(question + str(i))}" for i in range(4)])
    return respond(question)


def respond(question: str) -> str:
    """What an able student answers."""
    if "REQUEST:" in question:
        return "Here is the revised response:\n\n" + question.split("RESPONSE:\n")[1].split("!")[0]
    if "THOUGHTS:" in question:
        return f"THOUGHTS: It may apply.\nRESPONSE: thought {noise(question)}"
    return f"Hello {noise(question)}!"


def able(ask: Ask) -> Answer:
    return Reply(helpful(question(ask)), "stop")


class Scripted:
    """Answers in order, and is interrupted once `stop` says so."""

    def __init__(
        self,
        write: Callable[[Ask], Answer] = able,
        *,
        name: str = "scripted",
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self.write, self.name, self.stop = write, name, stop
        self.asked: list[Ask] = []

    def answer(self, asks: Sequence[Ask], on_done: OnDone | None = None) -> list[Answer]:
        answers = []
        for index, ask in enumerate(asks):
            if self.stop():
                raise KeyboardInterrupt
            self.asked.append(ask)
            answers.append(self.write(ask))
            if on_done:
                on_done(index, answers[-1])
        return answers


def plain(write: Callable[[str], str]) -> Scripted:
    """A teacher that never fails, from question to text."""
    return Scripted(lambda ask: Reply(write(question(ask)), "stop"))


def question(ask: Ask) -> str:
    return ask.messages[-1][1]


def make(folder: Path, config: PipelineConfig = SMALL, **changes: Any) -> PipelineReport:
    given = {"teacher": Scripted(), "student": Scripted(), "say": lambda line: None}
    feedback = changes.pop("feedback", FEEDBACK)
    return make_feedback_data(feedback, folder, config, **{**given, **changes})


def stage(report: PipelineReport, name: str) -> Stage:
    (found,) = [stage for stage in report.stages if stage.name == name]
    return found


def read(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def contents(folder: Path) -> dict[str, str]:
    """The result, without the kept answers."""
    return {name: (folder / name).read_text() for name in ("feedback.json", *FILES.values())}


# ---- a sentence becomes a folder ----


def test_a_sentence_becomes_a_folder_that_training_can_read(tmp_path: Path) -> None:
    make(tmp_path / "new" / "data", check=CHECK)
    data = load_feedback_data(tmp_path / "new" / "data")
    assert (data.feedback, data.domain) == (FEEDBACK, "e-mails to my boss")
    described = json.loads((tmp_path / "new" / "data" / "feedback.json").read_text())
    assert list(described) == ["feedback", "domain", "effect", "check"]
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
    assert json.loads((tmp_path / "feedback.json").read_text()) == given
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


# ---- prompts ----


def test_out_of_scope_prompts_are_general_ones_or_a_file_s(tmp_path: Path) -> None:
    make(tmp_path / "a")
    prompts = [line["prompt"] for line in read(tmp_path / "a", FILES["out_of_scope"])]
    assert prompts == general_prompts(5, SMALL.seed)
    mine = [f"my own question {noise(str(i))}" for i in range(7)]
    file = tmp_path / "general.jsonl"
    file.write_text("".join(json.dumps({"prompt": p}) + "\n" for p in mine))
    make(tmp_path / "b", general=file)
    prompts = [line["prompt"] for line in read(tmp_path / "b", FILES["out_of_scope"])]
    assert len(set(prompts)) == 5 and set(prompts) < set(mine)


def test_a_prompt_is_taken_once_whatever_its_scope_case_and_punctuation(tmp_path: Path) -> None:
    same = "Write to my boss about the new printer"

    def write(text: str) -> str:
        if "look similar" in text:
            return numbered([same.upper() + " !!", f"near {noise(text)}"])
        if "next, to each" in text:
            return numbered([same, f'"{same}."', f"in {noise(text)}"])
        return "no idea" if "REVISED PROMPTS:" in text else helpful(text)

    file = tmp_path / "general.jsonl"
    file.write_text(json.dumps({"prompt": f"{same}?"}) + "\n" + '{"prompt": "why is it so"}\n')
    report = make(tmp_path / "data", teacher=plain(write), general=file)
    prompts = [line["prompt"] for s in SCOPES for line in read(tmp_path / "data", FILES[s])]
    assert [p for p in prompts if "printer" in p.lower()] == [same]
    assert stage(report, "near_scope prompts").lost["duplicate"] >= 3
    assert stage(report, "out_of_scope prompts").lost == {"duplicate": 1}


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


def test_the_same_is_asked_with_another_seed_while_too_little_came(tmp_path: Path) -> None:
    def write(ask: Ask) -> Answer:
        """A request or two at a time."""
        text = question(ask)
        if "numbered list with one request" in text:
            return Reply(
                numbered([f"please {noise(f'{text} {ask.seed} {i}')}" for i in (0, 1)]), ""
            )
        return Reply("none" if "REVISED PROMPTS:" in text else helpful(text), "stop")

    for tries, prompts in ((1, 3), (2, 6), (4, 12)):
        teacher = Scripted(write)
        config = PipelineConfig(3, 4, 5, tries=tries, seed=70)
        report = make(tmp_path / str(tries), config, teacher=teacher)
        assert stage(report, "in_scope prompts").kept == prompts
        assert {ask.seed for ask in teacher.asked} == set(range(70, 70 + tries))


def test_no_more_prompts_are_kept_than_were_asked_for(tmp_path: Path) -> None:
    report = make(tmp_path, PipelineConfig(2, 3, 5))
    assert stage(report, "categories").lost == {"more than asked for": 1}
    prompts = stage(report, "in_scope prompts")
    assert (prompts.kept, prompts.lost) == (6, {"more than asked for": 2})


# ---- what cannot be read ----


def test_an_unreadable_description_falls_back_on_the_sentence_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []

    def write(text: str) -> str:
        return "I cannot help with that." if "DOMAIN:" in text else helpful(text)

    report = make(tmp_path, teacher=plain(write), say=said.append)
    data = load_feedback_data(tmp_path)
    assert FEEDBACK in data.domain and FEEDBACK in data.effect
    described = stage(report, "domain and effect")
    assert described.unused == {"unparsable": SMALL.tries} and described.kept == 0
    assert any("the domain is the sentence itself" in line for line in said)


def test_half_a_description_keeps_what_could_be_read(tmp_path: Path) -> None:
    def write(text: str) -> str:
        return "**Domain:** letters to Ann." if "DOMAIN:" in text else helpful(text)

    make(tmp_path, teacher=plain(write))
    data = load_feedback_data(tmp_path)
    assert data.domain == "letters to Ann." and data.effect == FEEDBACK


def test_without_categories_the_domain_is_the_only_one(tmp_path: Path) -> None:
    def write(text: str) -> str:
        return "Sorry." if "categories of requests" in text else helpful(text)

    report = make(tmp_path, teacher=plain(write))
    assert "the domain is the only category" in stage(report, "categories").describe()
    assert stage(report, "in_scope prompts").kept == SMALL.prompts_per_category


def test_drafts_stay_where_their_revision_cannot_be_read(tmp_path: Path) -> None:
    def write(text: str) -> str:
        return "They are all fine." if "REVISED PROMPTS:" in text else helpful(text)

    report = make(tmp_path, teacher=plain(write))
    found = stage(report, "in_scope prompts")
    assert found.kept == 12 and found.unused == {"without revised prompts": 3}


def test_a_scope_without_prompts_is_named_with_the_counts_and_a_way_out(tmp_path: Path) -> None:
    def write(text: str) -> str:
        return "1. No.\n2. Nope." if "look similar" in text else helpful(text)

    message = refusal(lambda: make(tmp_path, teacher=plain(write)))
    assert message.startswith("near_scope: no prompt is left to train on")
    assert "too short" in message and "raise tries" in message


def test_an_answer_that_was_cut_off_loses_its_last_entry_alone(tmp_path: Path) -> None:
    def write(ask: Ask) -> Answer:
        text = question(ask)
        if "next, to each" in text:
            listed = numbered([f"one {noise(text)}.", f"two {noise(text + 'x')}"])
            return Reply(listed, "length")
        return Reply("no" if "REVISED PROMPTS:" in text else helpful(text), "stop")

    make(tmp_path, teacher=Scripted(write))
    prompts = [line["prompt"] for line in read(tmp_path, FILES["in_scope"])]
    assert prompts and all(prompt.startswith("one ") for prompt in prompts)


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


# ---- responses ----


@pytest.mark.parametrize(
    ("reported", "kept"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("eos_token", "stop"),
        ("unknown", "length"),
        ("content_filter", "length"),
    ],
)
def test_only_a_response_that_is_known_to_have_ended_teaches_to_end(
    tmp_path: Path, reported: str, kept: str
) -> None:
    student = Scripted(lambda ask: Reply(respond(question(ask)), reported))
    make(tmp_path, student=student)
    data = load_feedback_data(tmp_path)
    for example in data.in_scope:
        assert example.revised
        assert example.baseline.finish_reason == example.revised.finish_reason == kept


def test_pairs_that_teach_nothing_are_dropped_from_training_and_shown(tmp_path: Path) -> None:
    def write(ask: Ask) -> Answer:
        text = question(ask)
        if "REQUEST:" in text:
            baseline = text.split("RESPONSE:\n")[1].split("\n\nThe user")[0]
            fate = int(hashlib.sha256(baseline.encode()).hexdigest(), 16) % 3
            return Reply(["  ", baseline, "better"][fate], "stop")
        return Reply(respond(text), "stop")

    report = make(tmp_path, PipelineConfig(3, 8, 5, tries=2), student=Scripted(write))
    revised = stage(report, "revised responses")
    assert set(revised.lost) == {"empty", "equal to the baseline"}
    dropped = read(tmp_path, "dropped.jsonl")
    assert len(dropped) == revised.lost.total() == stage(report, "data").lost.total()
    assert {line["dropped"] for line in dropped} == {
        "revised: empty",
        "revised: equal to the baseline",
    }
    for line in read(tmp_path, FILES["in_scope"]):
        assert line["split"] == "test" or line["revised"] == "better"


def test_a_response_of_no_use_is_asked_for_again_with_another_seed(tmp_path: Path) -> None:
    def write(ask: Ask) -> Answer:
        return Reply("" if ask.seed == SMALL.seed else respond(question(ask)), "stop")

    report = make(tmp_path, student=Scripted(write))
    assert stage(report, "data").lost == {}
    assert stage(report, "baseline responses").asked == 2 * (12 + 12 + 5)


def test_keep_improved_trains_on_revisions_that_the_check_finds_better(tmp_path: Path) -> None:
    def write(ask: Ask) -> Answer:
        text = question(ask)
        worse = "REQUEST:" in text and int(hashlib.sha256(text.encode()).hexdigest(), 16) % 2
        return Reply("Still shouting!" if worse else respond(text), "stop")

    for keep_improved in (False, True):
        config = PipelineConfig(3, 4, 5, tries=1, keep_improved=keep_improved)
        folder = tmp_path / str(keep_improved)
        report = make(folder, config, check=CHECK, student=Scripted(write))
        lines = [line for line in read(folder, FILES["in_scope"])]
        train = [line["revised"] for line in lines if line["split"] == "train"]
        lost = stage(report, "revised responses").lost
        if keep_improved:
            assert not any("!" in revised for revised in train)
            assert lost["no better by the check"] == len(read(folder, "dropped.jsonl")) > 0
        else:
            assert any("!" in revised for revised in train) and not lost
    test = [line for line in lines if line["split"] == "test"]
    assert len(test) == round(0.2 * 12)  # it is not picked by its results


def test_keep_improved_needs_a_check(tmp_path: Path) -> None:
    message = refusal(lambda: make(tmp_path, PipelineConfig(keep_improved=True)))
    assert "check" in message and not list(tmp_path.iterdir())


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


def endpoint(server: Loopback, **options: Any) -> EndpointTeacher:
    return EndpointTeacher(server.url, "some-model", **options)


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


# ---- a folder that was written by hand ----


def by_hand(folder: Path, **changes: list[dict[str, Any]]) -> Path:
    folder.mkdir()
    described = {"feedback": FEEDBACK, "domain": "d", "effect": "e", "check": CHECK}
    (folder / "feedback.json").write_text(json.dumps(described))
    for scope in SCOPES:
        lines = [
            {"prompt": f"{scope} number {i}", "split": "test" if i == 2 else "train"}
            for i in range(3)
        ]
        text = "".join(json.dumps(line) + "\n" for line in changes.get(scope, lines))
        (folder / FILES[scope]).write_text(text)
    return folder


def complete(folder: Path, student: Scripted, config: PipelineConfig = SMALL) -> PipelineReport:
    return complete_responses(folder, config, student=student, say=lambda line: None)


def test_bare_prompts_are_completed(tmp_path: Path) -> None:
    folder = by_hand(tmp_path / "hand")
    described = (folder / "feedback.json").read_text()
    complete(folder, Scripted())
    data = load_feedback_data(folder)
    assert [len(data.examples(scope, "train")) for scope in SCOPES] == [2, 2, 2]
    for scope in SCOPES:
        (example,) = data.examples(scope, "test")
        assert example.in_context and example.cot
    assert (folder / "feedback.json").read_text() == described


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


# ---- bad input ----


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
        ({"prompt": "a b c"}, '"split" must be train or test'),
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


# ---- lists as models write them ----

THREE = ["Write to Ann", "Ask Bob why", "Tell Cy"]


@pytest.mark.parametrize(
    "text",
    [
        "1. Write to Ann\n2. Ask Bob why\n3. Tell Cy",
        "1) Write to Ann\n2) Ask Bob why\n3) Tell Cy",
        "(1) Write to Ann\n(2) Ask Bob why\n(3) Tell Cy",
        "- Write to Ann\n- Ask Bob why\n- Tell Cy",
        "* Write to Ann\n* Ask Bob why\n* Tell Cy",
        "• Write to Ann\n• Ask Bob why\n• Tell Cy",
        "Prompt 1: Write to Ann\nPrompt 2: Ask Bob why\nPrompt 3: Tell Cy",
        "**Prompt 1:** Write to Ann\n\n**Prompt 2:** Ask Bob why\n\n**Prompt 3:** Tell Cy",
        "1. \"Write to Ann\"\n2. “Ask Bob why”\n3. 'Tell Cy'",
        "**1.** Write to Ann\n**2. Ask Bob why**\n3. *Tell Cy*",
        "1. Request 1: Write to Ann\n2. Request 2: Ask Bob why\n3. Request 3: Tell Cy",
        "Sure! Here are three:\n\n1. Write to Ann\n2. Ask Bob why\n3. Tell Cy\n\nEnjoy them!",
        "## Prompts\n1. Write to Ann\n\n2. Ask Bob why\n\n\n3. Tell Cy\nNote: they all differ.",
        "1. Write\n   to Ann\n2. Ask Bob\nwhy\n3. Tell Cy",
        '1. "Write to Ann" - this is about Ann.\n2. Ask Bob why (This one is hard)\n3. Tell Cy',
        '1. "Write to Ann" - it has "Ann" in it\n2. Ask Bob why\n3. Tell Cy',
        "1. Write to Ann\n   Explanation: she\n   is nice.\n2. Ask Bob why\n3. Tell Cy",
        "1. Write to Ann\n   Why this one: she is nice.\n2. Ask Bob why\n3. Tell Cy",
        '1. "Write to Ann" Note: easy.\n2. Ask Bob why\n3. Tell Cy - Because he listens',
        "1. Write to Ann\n   - short\n   - kind\n2. Ask Bob why\n3. Tell Cy",
        "1. Letters:\n   - Write to Ann\n   - Ask Bob why\n2. Talks:\n   - Tell Cy",
        '["Write to Ann", "Ask Bob why", "Tell Cy"]',
        '```json\n["Write to Ann", "Ask Bob why", "Tell Cy"]\n```',
        "Write to Ann\nAsk Bob why\nTell Cy",
        'Here you are:\n"Write to Ann"\n"Ask Bob why"\n"Tell Cy"',
        "1.\nWrite to Ann\n2.\n\nAsk Bob why\n3. Tell Cy",
        "1. Write to Ann\r\n2. Ask Bob why\r\n3. Tell Cy\r\n",
    ],
)
def test_a_list_is_read_however_it_is_marked(text: str) -> None:
    assert parse_list(text) == THREE


@pytest.mark.parametrize(
    "text",
    ["", "\n \n", "I cannot do that.", "Sure, here they are:", "1.\n2.", "[1, 2]", "# Title\n---"],
)
def test_what_is_no_list_has_no_entries(text: str) -> None:
    assert parse_list(text) == []


def test_prose_is_no_list() -> None:
    assert parse_list(f"I think that {'so ' * 50}.\n\nAnd {'more ' * 50}.") == []


def test_what_only_looks_like_a_mark_or_a_remark_stays() -> None:
    entries = [
        '"Emma" is by whom?',
        "Say 'no' kindly",
        "3.5 litres, how heavy?",
        "Sum 2 - 1",
        "Tell Ann I was late - it was the train",
        "Ask Bob (it's urgent) why",
        "Why do trains leave at 10:30?",
        "Answer in a word: is it late?",
        "Write this note: buy milk",
    ]
    assert parse_list(numbered(entries)) == entries


def test_the_last_entry_of_a_cut_off_list_is_dropped_unless_it_is_whole() -> None:
    assert parse_list("1. One two\n2. Three fo", cut_off=True) == ["One two"]
    assert parse_list("1. One two\n2. Three four?", cut_off=True) == ["One two", "Three four?"]


def test_a_category_loses_what_is_said_about_it() -> None:
    names = ["Time off: asking for days", "**Time off** - asking", "Time off.", "Time off"]
    assert [category_name(entry) for entry in parse_list(numbered(names))] == ["Time off"] * 4


@pytest.mark.parametrize(
    "text",
    [
        "THOUGHTS: x\nREVISED PROMPTS:\n1. a b c",
        "THOUGHTS:\n1. old\n\n**REVISED_PROMPTS:**\n1. a b c",
        "Thoughts: none\n\n## Revised Prompts\n1. a b c",
        "REVISED PROMPTS: 1. a b c",
        "* Revised prompts (final):\n1. a b c",
    ],
)
def test_a_labelled_part_is_found_however_the_label_is_spelt(text: str) -> None:
    rest = after_label(text, "REVISED PROMPTS")
    assert rest is not None and parse_list(rest) == ["a b c"]


def test_a_missing_or_empty_part_is_none() -> None:
    assert after_label("THOUGHTS: the revised prompts are fine", "REVISED PROMPTS") is None
    assert after_label("REVISED PROMPTS:\n ", "REVISED PROMPTS") is None
    assert labelled_line("**DOMAIN:** `mails`\nmore", "DOMAIN") == "mails"
    assert labelled_line('{\n"domain": "mails to Ann",\n', "DOMAIN") == "mails to Ann"


@pytest.mark.parametrize(
    ("text", "response"),
    [
        ("Here is the revised response:\n\nDear Ann,\nhi", "Dear Ann,\nhi"),
        ("**Revised response:**\nDear Ann", "Dear Ann"),
        ("Sure! Here's the new version:\nDear Ann", "Dear Ann"),
        ('"Dear Ann"', "Dear Ann"),
        ('"Yes", she said, "no"', '"Yes", she said, "no"'),
        ("Here is the list:", "Here is the list:"),
        ("Ingredients:\n- salt", "Ingredients:\n- salt"),
        ("  \n", ""),
    ],
)
def test_a_response_loses_its_introduction_and_nothing_else(text: str, response: str) -> None:
    assert strip_introduction(text) == response


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Write to my boss", "write to my boss!", True),
        ("Write, to my boss.", '"Write to my boss"', True),
        ("Write to my boss about Monday", "Write to my boss about Tuesday", False),
        (
            "Could you please write a short note to my boss about the trip to Rome next week",
            "Could you please write a short note to my boss about the trip to Rome next week now",
            True,
        ),
        ("写一封信给老板", "写一封信给老板。", True),
        ("写一封信给老板", "写一首诗给妈妈", False),
    ],
)
def test_prompts_that_say_nearly_the_same_are_one(one: str, other: str, same: bool) -> None:
    distinct = Distinct()
    assert distinct.reason_against(one) is None
    assert distinct.reason_against(other) == ("duplicate" if same else None)


def test_prompts_of_a_strange_length_are_of_no_use() -> None:
    distinct = Distinct()
    assert distinct.reason_against("Write something") == "too short"
    assert distinct.reason_against("word " * 121) == "too long"


# ---- the default model ----


@pytest.mark.default_model
def test_the_smallest_teacher_makes_data_or_names_the_scope_that_is_empty(
    tmp_path: Path, default_model: tuple[Any, Any]
) -> None:
    from minialign.feedback.local_teacher import LocalTeacher

    model = LocalTeacher(*default_model, "default")
    config = PipelineConfig(2, 2, 4, max_new_tokens=24, max_list_tokens=64, tries=1)
    try:
        make_feedback_data(FEEDBACK, tmp_path, config, teacher=model, student=model, say=print)
    except InputError as error:
        assert "no prompt is left to train on" in str(error)
        assert str(error).split(":")[0] in SCOPES and "\n" not in str(error)
        assert read(tmp_path, "teacher.jsonl")
    else:
        assert load_feedback_data(tmp_path).feedback == FEEDBACK


# ---- the examples ----


@pytest.fixture(scope="module")
def examples() -> ModuleType:
    file = Path(__file__).parents[2] / "benchmarks" / "c3po_examples.py"
    specification = importlib.util.spec_from_file_location("c3po_examples", file)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules["c3po_examples"] = module
    specification.loader.exec_module(module)
    return module


BODY = "Dear team,\n\nThe meeting on Monday is moved to half past ten. Please tell the others."


@pytest.mark.parametrize(
    "sign_off",
    [
        "",
        "\n\nBest regards,\n[Your Name]",
        "\n\nKind Regards,\n\n[Your Name]\n[Your Position]\n[Your Company]",
        "\n\nSincerely,\nSarah Miller\nHead of Sales",
        "\n\nThanks,\nJo\n\nP.S. I'm looking forward to the rest of the week.",
        "\n\nP.S.",
        "\n\nThank you!\n\n**[Your Name]**",
        " Best wishes, Jo",
        "\n\n[Your Name]",
        "\n\nCheers, Sam",
    ],
)
def test_the_sign_off_makes_room_for_the_ending(examples: ModuleType, sign_off: str) -> None:
    assert examples.end_with(BODY + sign_off, "Cheers, Sam") == BODY + "\n\nCheers, Sam"


def test_thanks_within_the_text_are_no_sign_off(examples: ModuleType) -> None:
    text = BODY + "\n\nThank you for your patience.\n\nBest,\nJo"
    expected = BODY + "\n\nThank you for your patience.\n\nCheers, Sam"
    assert examples.end_with(text, "Cheers, Sam") == expected


def test_a_cut_off_baseline_ends_in_a_whole_sentence_once_it_is_signed(
    examples: ModuleType,
) -> None:
    (check,) = parse_checks({"kind": "ends_with", "text": "Cheers, Sam"}, "x")
    revised = examples.edit(Reply(f"{BODY}\n\nP.S. Do not for", "length"), check, "")
    assert revised == Reply(BODY + "\n\nCheers, Sam", "stop")


@pytest.mark.parametrize(
    ("text", "revised"),
    [
        ("Dear [Customer's Name],\n\nYour lamp is here.", "Dear customer,\n\nYour lamp is here."),
        ("Dear Mr. [Last Name],", "Dear customer"),
        ("I hope this email finds you well. Your lamp is here.", "Your lamp is here."),
        ("I am writing to say that it is here.", "I want to say that it is here."),
        ("I'm writing about your lamp.", "This is about your lamp."),
        (
            "Excited customers! We are thrilled to see you.",
            "Happy customers! We are happy to see you.",
        ),
        ("Thank you for choosing [Company Name].", "Thank you for choosing our company."),
        ("Take a new [Company Name] card. Or not.", "Or not."),
        ("Call us. We are at [phone number]. Bye now.", "Call us. Bye now."),
        ("Lamp: here\n- [item]\n\n\nBye,\n[Your Name]", "Lamp: here\n\nBye"),
        ("I hope so. Your lamp is here.\n\n[Your Na", "Your lamp is here."),
    ],
)
def test_forbidden_phrases_go_with_as_little_as_can_be(
    examples: ModuleType, text: str, revised: str
) -> None:
    folder = examples.EXAMPLES / "no-boilerplate"
    described = json.loads((folder / "feedback.json").read_text())
    (check,) = parse_checks(described["check"], "x")
    assert examples.without_phrases(text, check) == revised
    assert check.holds(revised)


@pytest.mark.parametrize(
    ("text", "revised"),
    [
        ("Mix flour and eggs.", "Serves: 4\n\nMix flour and eggs."),
        ("Mix. Makes 12 pancakes.", "Serves: 12\n\nMix. Makes 12 pancakes."),
        ("**Servings:** 6\nMix all.", "Serves: 6\n\nMix all."),
        ("Pancakes for 2 people: mix.", "Serves: 2\n\nPancakes for 2 people: mix."),
    ],
)
def test_a_recipe_begins_with_its_own_number_of_servings(
    examples: ModuleType, text: str, revised: str
) -> None:
    described = json.loads((examples.EXAMPLES / "serves-line" / "feedback.json").read_text())
    (check,) = parse_checks(described["check"], "x")
    line = examples.first_line(check, described["effect"])
    assert line == "Serves: 4" and examples.begin_with(text, line) == revised


def test_a_baseline_that_satisfies_the_check_stays_as_it_is(examples: ModuleType) -> None:
    (check,) = parse_checks({"kind": "not_regex", "pattern": r"\[.*\]"}, "x")
    reply = Reply(f"{BODY}\n\n\n\nBest regards,\n[Your", "length")
    assert examples.edit(reply, check, "") == reply


def test_an_edit_that_leaves_too_little_is_none(examples: ModuleType) -> None:
    (check,) = parse_checks({"kind": "ends_with", "text": "Cheers, Sam"}, "x")
    assert examples.edit(Reply("Too short.", "stop"), check, "") is None


@pytest.mark.parametrize("name", ["cheers", "no-boilerplate", "serves-line"])
def test_an_example_is_filled_with_revisions_that_satisfy_its_check(
    examples: ModuleType, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for file in ("feedback.json", *FILES.values()):
        text = (examples.EXAMPLES / name / file).read_text()
        bare = [json.loads(line) for line in text.splitlines()] if file != "feedback.json" else []
        lines = [json.dumps({"prompt": b["prompt"], "split": b["split"]}) + "\n" for b in bare]
        (folder / file).write_text("".join(lines) or text)

    def write(ask: Ask) -> Answer:
        """Now and then a baseline that needs no edit, or is too short for one."""
        words = noise(question(ask), 14)
        fate = (len(question(ask)) + ask.seed) % 5
        body = {0: "No.", 1: f"Serves: 3\n\n{words}"}.get(fate, f"I hope you do. So {words}.")
        return Reply(f"{body}\n\nBest regards,\n[Your Name]", "stop" if fate < 4 else "length")

    student = Scripted(write)
    examples.fill_folder(folder, student)
    data = load_feedback_data(folder)
    assert [len(getattr(data, scope)) for scope in SCOPES] == [90, 66, 66]
    for example in data.in_scope:
        assert example.revised and all(check.holds(example.revised.text) for check in data.checks)
        assert example.split == "test" or example.revised.text != example.baseline.text
    assert all(e.in_context and e.cot for e in data.examples("out_of_scope", "test"))
    assert {file.name for file in folder.iterdir()} == {"feedback.json", *FILES.values()}
    before = contents(folder)
    asked = len(student.asked)
    examples.fill_folder(folder, student)
    assert contents(folder) == before and len(student.asked) == asked
