"""The stages of the pipeline: prompts, responses, and what cannot be read."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.pipelines import CHECK, FEEDBACK, SMALL, make, read, stage
from helpers.refusals import refusal
from helpers.teachers import Scripted, helpful, noise, numbered, plain, question, respond

from minialign.data.feedback import SCOPES, load_feedback_data
from minialign.data.general import general_prompts
from minialign.feedback.knobs import PipelineConfig
from minialign.feedback.pipeline import FILES
from minialign.feedback.teacher import Answer, Ask, Reply

PATIENT = replace(SMALL, stop_early=False)

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

    report = make(tmp_path, PATIENT, teacher=plain(write), say=said.append)
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

    report = make(tmp_path, PATIENT, teacher=plain(write))
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

    message = refusal(lambda: make(tmp_path, PATIENT, teacher=plain(write)))
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

    report = make(tmp_path, PATIENT, student=Scripted(write))
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
