"""A writer of no use is found out early, and what a sentence asks for is said before."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.pipelines import FEEDBACK, SMALL, make
from helpers.refusals import refusal
from helpers.teachers import Scripted, helpful, noise, plain, question, respond

from minialign.data.feedback import SCOPES, load_feedback_data
from minialign.feedback.knobs import EndpointConfig, PipelineConfig
from minialign.feedback.plan import Workload, describe_plan, workload
from minialign.feedback.teacher import Answer, Ask, Failure, Reply

CHOICES = ("--teacher-url", "--teacher", "--domain and --effect", "--no-stop-early")


@pytest.mark.parametrize(
    ("words", "said", "asked"),
    [
        ("DOMAIN:", "domain and effect: 0 of 2 of use (2 unparsable", 2),
        ("categories of requests", "categories: 0 of 3 of use (2 without a list)", 3),
        ("next, to each", "in_scope prompts: 0 of 12 of use (3 without a list)", 5),
    ],
)
def test_a_teacher_of_no_use_is_stopped_with_a_choice(
    tmp_path: Path, words: str, said: str, asked: int
) -> None:
    teacher = plain(lambda text: "I would rather not." if words in text else helpful(text))
    student = Scripted()
    message = refusal(lambda: make(tmp_path, teacher=teacher, student=student))
    assert message.startswith(said) and all(choice in message for choice in CHOICES)
    assert len(teacher.asked) == asked and student.asked == []


def test_a_student_that_does_not_revise_is_stopped_after_one_try(tmp_path: Path) -> None:
    def write(text: str) -> str:
        return text.split("RESPONSE:\n")[1].split("\n\nThe user")[0] if "REQUEST:" in text else "Hi"

    student = plain(write)
    config = PipelineConfig(3, 4, 5, test_fraction=0.05)
    message = refusal(lambda: make(tmp_path, config, student=student))
    assert message.startswith("revised responses: 1 of ")
    assert sum("REQUEST:" in question(ask) for ask in student.asked) == 12


def test_answers_that_failed_are_no_reason_to_stop(tmp_path: Path) -> None:
    def write(ask: Ask) -> Answer:
        text = question(ask)
        fails = "DOMAIN:" in text and ask.seed == 0
        return Failure("busy") if fails else Reply("?" if "DOMAIN:" in text else helpful(text), "")

    make(tmp_path, teacher=Scripted(write))
    assert load_feedback_data(tmp_path).effect == FEEDBACK


def test_few_prompts_of_use_are_enough_to_go_on(tmp_path: Path) -> None:
    """One a category, the same ones near the scope as in it."""

    def write(text: str) -> str:
        if "numbered list with one request" in text:
            return f"1. write about {noise(text.split('category:')[1].split()[1])}"
        return "no idea" if "REVISED PROMPTS:" in text else helpful(text)

    teacher = plain(write)
    message = refusal(lambda: make(tmp_path, teacher=teacher))
    assert message.startswith("near_scope prompts: 0 of 12")
    asked = ["next, to each" in question(ask) for ask in teacher.asked]
    assert sum(asked) == 3 * SMALL.tries


# ---- the plan ----


@pytest.mark.parametrize("described", [False, True])
def test_the_plan_counts_what_an_able_teacher_is_asked(tmp_path: Path, described: bool) -> None:
    teacher, student = Scripted(), Scripted(lambda ask: Reply(respond(question(ask)), "stop"))
    parts = {"domain": "e-mails", "effect": "calm"} if described else {}
    config = PipelineConfig(3, 4, 5, max_new_tokens=10, max_list_tokens=100)
    make(
        tmp_path, config, feedback={"feedback": FEEDBACK, **parts}, teacher=teacher, student=student
    )
    lists, responses = workload(config, described)
    assert lists == Workload(len(teacher.asked), 100 * len(teacher.asked))
    assert responses == Workload(len(student.asked), 10 * len(student.asked))


def test_max_prompts_bounds_the_plan_and_every_scope(tmp_path: Path) -> None:
    student = Scripted()
    config = PipelineConfig(3, 4, 5, max_prompts=4)
    make(tmp_path, config, student=student)
    data = load_feedback_data(tmp_path)
    assert [len(getattr(data, scope)) for scope in SCOPES] == [4, 4, 4]
    assert workload(config, False)[1].questions == len(student.asked)


def test_the_plan_says_how_long_it_takes_at_most() -> None:
    lists, responses, limits = Workload(34, 34_000), Workload(300, 120_000), EndpointConfig()
    local = ("toy", lists, 100.0), ("toy", responses, 100.0)
    assert describe_plan(*local, limits, 3) == (
        "plan: 34 lists by toy, 300 responses by toy, at most 154,000 tokens written here, "
        "about 26 min at most, 3 times that if all is asked again"
    )
    away = "m at http://a/v1", lists, 0.0
    mixed = away, ("toy", responses, 1000.0)
    assert "about 4 min at most" in describe_plan(*mixed, EndpointConfig(requests_per_minute=20), 3)
    assert describe_plan(away, away, limits, 3) == (
        "plan: 34 lists by m at http://a/v1, 34 responses by m at http://a/v1"
    )


# ---- the splits and the sampling ----


def test_the_evaluation_while_training_takes_its_share_of_what_is_not_tested(
    tmp_path: Path,
) -> None:
    make(tmp_path, PipelineConfig(3, 4, 5, test_fraction=0.25, eval_fraction=0.3))
    data = load_feedback_data(tmp_path)
    counts = {split: len(data.examples("in_scope", split)) for split in ("train", "eval", "test")}
    assert counts == {"train": 6, "eval": 3, "test": 3}
    assert all(e.in_context is None for e in data.examples("in_scope", "eval"))


def test_teacher_and_student_are_asked_with_the_pipeline_s_top_p(tmp_path: Path) -> None:
    teacher, student = Scripted(), Scripted()
    make(tmp_path, PipelineConfig(3, 4, 5, top_p=0.4), teacher=teacher, student=student)
    assert {ask.top_p for ask in teacher.asked + student.asked} == {0.4}
    assert PipelineConfig().top_p == 0.7
