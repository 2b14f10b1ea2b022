"""A model in this process as a teacher."""

from __future__ import annotations

import pytest
from helpers.teachers import ask, asks, reason

from minialign.feedback.local_teacher import LocalTeacher
from minialign.feedback.teacher import Answer, Ask, Reply
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import active_adapter, adapter_parameters, apply_lora
from minialign.policy.knobs import LoRAConfig, SamplingConfig
from minialign.policy.sample import generate
from minialign.weights.tokenizer import Tokenizer


@pytest.fixture
def local(toy_model: CausalLM, toy_tokenizer: Tokenizer) -> LocalTeacher:
    return LocalTeacher(toy_model, toy_tokenizer, "toy")


def test_a_local_model_s_answers_are_what_the_sampler_writes(
    local: LocalTeacher, toy_model: CausalLM, toy_tokenizer: Tokenizer
) -> None:
    questions = [ask("Dear Sam"), ask("Hello all", max_tokens=20), ask("Best regards")]
    heard: dict[int, Answer] = {}
    answers = local.answer(questions, heard.__setitem__)
    assert heard == dict(enumerate(answers))
    for question, answer in zip(questions, answers, strict=True):
        ((expected,),) = generate(
            toy_model,
            toy_tokenizer,
            [question.chat],
            max_new_tokens=question.max_tokens,
            temperature=0,
        )
        assert answer == Reply(expected.text, expected.finish_reason)


def test_a_local_model_answers_without_its_adapter_and_gets_it_back(
    local: LocalTeacher, toy_model: CausalLM
) -> None:
    before = local.answer(asks(2))
    apply_lora(toy_model, LoRAConfig(rank=4), "mine")
    for parameter in adapter_parameters(toy_model, "mine"):
        parameter.data.fill_(0.5)
    assert local.answer(asks(2)) == before
    assert active_adapter(toy_model) == "mine"


def test_a_question_beyond_the_context_fails_alone(local: LocalTeacher) -> None:
    short, long, last = local.answer([ask("a"), ask("Dear Sam " * 200), ask("b")])
    assert isinstance(short, Reply) and isinstance(last, Reply)
    assert "the model's context holds 256" in reason(long)
    assert local.answer([ask("a"), ask("b")]) == [short, last]


def test_a_question_that_the_chat_template_refuses_fails_alone(
    local: LocalTeacher, toy_tokenizer: Tokenizer
) -> None:
    toy_tokenizer.template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "{{ messages[0].content }}"
    )
    refused, answered = local.answer([Ask((("system", "a"), ("user", "b")), 8, 0.0), ask("b")])
    assert "no system here" in reason(refused) and isinstance(answered, Reply)


def test_equal_calls_give_equal_answers_and_another_seed_others(local: LocalTeacher) -> None:
    questions = [ask(f"question {i}", temperature=1.0) for i in range(3)]
    assert local.answer(questions) == local.answer(questions)
    others = [ask(f"question {i}", temperature=1.0, seed=1) for i in range(3)]
    assert local.answer(questions) != local.answer(others)


def test_an_answer_depends_on_its_own_question_alone(local: LocalTeacher) -> None:
    """Whatever stands in the same batch, and in whichever batch it falls."""
    rows = SamplingConfig().max_rows
    heard: list[int] = []
    questions = [ask(f"q{i}", temperature=1.0) for i in range(rows + 1)]
    answers = local.answer(questions, lambda index, _: heard.append(index))
    assert sorted(heard) == list(range(rows + 1))
    for place in (0, 5, rows):
        assert local.answer([questions[place]]) == [answers[place]]
    assert len(set(answers)) > rows / 2  # each draws numbers of its own
