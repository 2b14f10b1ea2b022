"""Distillation from the same model that is shown more: its divergence, its run, and its knobs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import call, evaluate, train
from helpers.feedback_runs import write_data
from helpers.refusals import refusal
from helpers.runs import without_seconds
from helpers.toys import Outcome, change, gradients, outcome, small_model, with_adapter
from helpers.workplaces import write_workplace

from minialign.commands.sources import Scopes
from minialign.data.feedback import load_data
from minialign.data.knobs import flags_of
from minialign.data.records import FEEDBACK, Example
from minialign.feedback.questions import in_context
from minialign.losses import top_divergence
from minialign.methods import sdft
from minialign.methods.cards import card_of
from minialign.methods.knobs import DistilConfig
from minialign.methods.lessons import Lessons
from minialign.policy.adapters import apply_lora
from minialign.policy.knobs import LoRAConfig, SamplingConfig
from minialign.policy.reference import reference_policy
from minialign.policy.shown import shown_divergence
from minialign.training.run import Run
from minialign.weights.tokenizer import Tokenizer

TEXTS = [Example((1, 80, 81 + n), tuple(range(90, 95 + n)) + (2,)) for n in range(4)]
CONFIG = DistilConfig(
    lora=LoRAConfig(rank=4, alpha=8.0, dropout=0.0, target_modules=("q_proj", "v_proj")),
    sampling=SamplingConfig(max_new_tokens=6),
    max_steps=3,
    prompts_per_step=2,
    samples_per_prompt=2,
    shown=2,
    learning_rate=3e-3,
    warmup_ratio=0.5,
    max_length=64,
)


def small_training(folder: Path, **changes: Any) -> Outcome:
    config: Any = change(CONFIG, changes)  # type: ignore[arg-type]
    model = small_model()
    apply_lora(model, config.lora, sdft.ADAPTER, torch.Generator().manual_seed(0))
    sdft.train(model, Lessons(TEXTS, TEXTS[:1]), config, Run.create(folder, {}))
    return outcome(folder, model)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return small_training(tmp_path_factory.mktemp("runs") / "baseline")


# ---- the divergence ----


def test_the_divergence_is_the_definition_however_often_an_answer_stands() -> None:
    model = with_adapter(small_model(), scale=0.3)
    prompt, shown = (1, 80, 81), (1, 70, 71, 72, 2, 1, 80, 81)
    answers = [Example(prompt, ids) for ids in ((90, 91, 2), (95,), (90, 91, 2), (90, 99, 98, 97))]

    def logits(before: tuple[int, ...], ids: tuple[int, ...]) -> torch.Tensor:
        return model.logits(torch.tensor([before + ids]))[0, len(before) - 1 : -1]

    expected = torch.zeros(())
    for answer in answers:
        with reference_policy(model, None):
            theirs = logits(shown, answer.completion_ids)
        expected = expected + top_divergence(logits(prompt, answer.completion_ids), theirs, 5).sum()
    expected.backward()
    slopes = gradients(model)
    found = shown_divergence(model, answers, shown, None, 5)
    torch.testing.assert_close(found, expected)
    found.backward()
    for own, other in zip(gradients(model), slopes, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-5)


def test_a_teacher_that_is_shown_nothing_teaches_nothing() -> None:
    model = with_adapter(small_model(), scale=0.0)
    answers = [Example((1, 80, 81), (90, 91, 2))]
    found = shown_divergence(model, answers, (1, 80, 81), None, 20)
    assert found.item() == pytest.approx(0, abs=1e-5)


# ---- what the teacher is shown ----


def test_the_prompts_own_demonstration_is_shown_last_and_only_what_fits() -> None:
    turns = [text.prompt_ids + text.completion_ids for text in TEXTS]
    first = sdft.questions(TEXTS, CONFIG)[0]
    assert first.prompt == TEXTS[0].prompt_ids
    assert first.shown == turns[1] + turns[0] + first.prompt
    room = len(turns[0]) + len(first.prompt) + 6
    tight: Any = change(CONFIG, {"max_length": max(16, room)})  # type: ignore[arg-type]
    assert sdft.questions(TEXTS, tight)[0].shown == turns[0] + first.prompt


def test_the_feedback_is_in_the_teachers_prompt_alone(tmp_path: Path) -> None:
    write_workplace(tmp_path)
    tokenizer = Tokenizer.from_folder(tmp_path / "toy")
    path = str(write_data(tmp_path / "sam"))
    lessons, *_ = Scopes(path, load_data(path)).encode(tokenizer, 256)
    told = lessons.train.told
    assert len(told) == 3 * 4
    assert told[0][0] == tuple(tokenizer.encode_prompt("in_scope 0"))
    assert told[0][1] == tuple(tokenizer.encode_prompt(in_context("Sign as Sam", "in_scope 0")))


# ---- the knobs ----

KNOBS: dict[str, dict[str, Any]] = {
    "lora.rank": {"lora.rank": 5},
    "lora.alpha": {"lora.alpha": 16.0},
    "lora.target_modules": {"lora.target_modules": ("q_proj", "up_proj")},
    "sampling.max_new_tokens": {"sampling.max_new_tokens": 4},
    "sampling.temperature": {"sampling.temperature": 0.0},
    "sampling.top_p": {"sampling.top_p": 0.3},
    "sampling.top_k": {"sampling.top_k": 2},
    "sampling.rollout_dtype": {"sampling.rollout_dtype": "int8"},
    "max_steps": {"max_steps": 2},
    "prompts_per_step": {"prompts_per_step": 1},
    "samples_per_prompt": {"samples_per_prompt": 1},
    "shown": {"shown": 1},
    "top_tokens": {"top_tokens": 2},
    "learning_rate": {"learning_rate": 1e-3},
    "warmup_ratio": {"warmup_ratio": 0.0},
    "max_grad_norm": {"max_grad_norm": 0.001},
    "weight_decay": {"weight_decay": 0.5},
    "max_length": {"max_length": 20},
}


def test_every_knob_stands_in_the_list_above() -> None:
    """But for dropout, which must be 0, and two on which memory alone depends."""
    elsewhere = {"lora.dropout", "sampling.max_rows", "sampling.cache_gb"}
    assert set(KNOBS) == {".".join(flag.path) for flag in flags_of(DistilConfig)} - elsewhere


@pytest.mark.parametrize("path", KNOBS)
def test_every_knob_changes_something(path: str, tmp_path: Path, baseline: Outcome) -> None:
    found = small_training(tmp_path / "r", **KNOBS[path])
    assert found.adapters[sdft.ADAPTER] != baseline.adapters[sdft.ADAPTER]


@pytest.mark.parametrize(
    "changes",
    [{"prompts_per_step": 0}, {"shown": 0}, {"top_tokens": 0}, {"learning_rate": 0.0}]
    + [{"max_steps": -1}, {"warmup_ratio": 2.0}, {"max_length": 3}, {"lora.dropout": 0.1}],
    ids=str,
)
def test_impossible_knobs_are_refused_by_name(changes: dict[str, Any]) -> None:
    (name,) = changes
    said = refusal(lambda: change(CONFIG, changes))  # type: ignore[arg-type]
    assert name.replace(".", "_") in said


def test_the_feedbacks_teacher_is_shown_no_demonstrations() -> None:
    card = card_of("context-distillation", FEEDBACK)
    said = refusal(lambda: card.with_flags(card.recipe("laptop"), {"shown": "2"}))
    assert "makes no use of --shown" in said


# ---- a run ----


def test_it_comes_nearer_to_its_teacher(tmp_path: Path) -> None:
    found = small_training(
        tmp_path / "r",
        **{"max_steps": 30, "learning_rate": 0.02, "prompts_per_step": 4, "lora.rank": 8},
    )
    losses = [step["loss"] for step in found.steps(sdft.ADAPTER)]
    assert losses[0] > 0 and sum(losses[-5:]) < 0.8 * sum(losses[:5])


TINY = (
    *("--model", "toy", "--max-steps", "4", "--max-new-tokens", "8", "--learning-rate", "0.003"),
    *("--lora-rank", "4"),
)


@pytest.mark.parametrize("method", ["sdft", "context-distillation"])
def test_a_run_is_planned_resumed_bit_for_bit_and_evaluated(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_workplace(tmp_path)
    write_data(tmp_path / "sam")
    source = ("--demos", "demos.jsonl") if method == "sdft" else ("--data", "sam")
    arguments = ("--method", method, *source, *TINY)
    outcome = call(train, *arguments, "--out", "runs/whole", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "the teacher is shown" in outcome.out
    log = Run.log

    def stop(self: Run, stage: str, step: int, found: dict[str, Any]) -> None:
        log(self, stage, step, found)
        self.interrupted = step == 1

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", stop)
        assert call(train, *arguments, "--out", "runs/cut", cwd=tmp_path).code == 130
    outcome = call(train, "--resume", "runs/cut", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    whole, cut = tmp_path / "runs" / "whole", tmp_path / "runs" / "cut"
    file = "adapter/adapter_model.safetensors"
    assert (whole / file).read_bytes() == (cut / file).read_bytes()
    assert without_seconds(whole) == without_seconds(cut)
    page = (whole / "report.html").read_text(encoding="utf-8")
    assert "divergence from the teacher" in page
    flags = ("--against", "base", "-n", "1", "--max-new-tokens", "4", "--general", "0")
    flags = flags if method == "sdft" else flags[2:6]
    outcome = call(evaluate, "runs/whole", *flags, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert f'"{method}"' in (whole / "evaluation.json").read_text()
