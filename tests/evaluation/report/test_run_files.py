"""Reading a run folder: what is refused, what is made visible, and the commands that follow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.refusals import refusal
from report_helpers import (
    HOSTILE,
    PREVIEW,
    Page,
    config,
    evaluation,
    feedback_config,
    feedback_evaluation,
    make_feedback_run,
    make_run,
)

from minialign.data.records import DEMONSTRATIONS, FEEDBACK, PAIRS
from minialign.evaluation.report.findings import find
from minialign.evaluation.report.page import write_report
from minialign.evaluation.report.run_files import evaluate_command, knobs, read_run, train_command
from minialign.methods.cards import card_of, default_card


def test_the_command_is_the_one_given_or_one_that_does_the_same(
    run_page: Callable[..., Page],
) -> None:
    assert "the very command" in run_page(config=config(command="the very command")).text
    composed = run_page().text
    assert (
        "python train.py --method ditto --demos mine.jsonl --model smollm2-135m-instruct"
        in composed
    )
    assert "--max-steps 4" in composed and "--sft-max-steps" not in composed  # 30 is the recipe's
    assert "--beta" not in composed and composed.count("--out runs/mine") == 1


def test_the_commands_of_a_run_from_feedback(feedback_page: Callable[..., Page]) -> None:
    text = feedback_page(preview=None).text
    assert (
        "python train.py --method c3po --data 'serves line' --model smollm2-135m-instruct "
        "--out runs/mine" in text
    )
    assert "--prompt 'in_scope prompt 0' -n 3" in text and "evaluate.py runs/mine" in text


def test_control_characters_are_made_visible(run_page: Callable[..., Page]) -> None:
    text = run_page(preview=dict.fromkeys(PREVIEW, HOSTILE["control"])).text
    assert "a␀b␁c␛[31md�e�f␌g�h�i" in text


@pytest.mark.parametrize(
    "file", ["config.json", "metrics.jsonl", "samples.jsonl", "preview.json", "evaluation.json"]
)
@pytest.mark.parametrize("content", ['{"half', "[1, 2]", '"text"', '{"other": 1}'])
def test_a_broken_file_is_one_line_that_names_it_and_leaves_the_page_alone(
    tmp_path: Path, file: str, content: str
) -> None:
    folder = make_run(tmp_path / "mine")
    write_report(folder)
    before = (folder / "report.html").read_bytes()
    (folder / file).write_text(content)
    assert file in refusal(lambda: write_report(folder))
    assert (folder / "report.html").read_bytes() == before


@pytest.mark.parametrize("change", [{"contestants": {"base": 3}}, {"judges": ["style"]}])
def test_an_evaluation_with_broken_parts_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = make_run(tmp_path / "mine", evaluation=evaluation() | change)
    assert "evaluation.json" in refusal(lambda: write_report(folder))


@pytest.mark.parametrize(
    "change",
    [
        *({"methods": None}, {"methods": {"c3po": 3}}, {"methods": {"c3po": {"s_in": 1}}}),
        *({"scopes": []}, {"scopes": {"in_scope": ["text"]}}),
        {"scopes": {"in_scope": [{"prompt": "a", "baseline": "b", "answers": {"c3po": [3]}}]}},
        {"scopes": {"in_scope": [{"prompt": "a", "baseline": "b", "answers": {}, "scores": 1}]}},
    ],
)
def test_scores_with_broken_parts_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = make_feedback_run(tmp_path / "mine", evaluation=feedback_evaluation() | change)
    assert "evaluation.json" in refusal(lambda: write_report(folder))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    assert "not a run folder" in refusal(lambda: write_report(tmp_path))


@pytest.mark.parametrize(
    ("change", "source"),
    [
        ({"options": {"demos": "mine.jsonl"}}, DEMONSTRATIONS),
        ({"options": {"data": "folder"}, "feedback": "Be brief."}, FEEDBACK),
        ({"options": {"data": "pairs.jsonl"}, "feedback": ""}, PAIRS),
        ({"options": {"data": "pairs.jsonl"}, "learns_from": PAIRS}, PAIRS),
        ({"options": {"data": ""}, "feedback": ""}, DEMONSTRATIONS),
    ],
)
def test_a_record_says_what_the_run_learned_from(
    tmp_path: Path, change: dict[str, Any], source: str
) -> None:
    run = read_run(make_run(tmp_path / "mine", config=config() | change, evaluation=None))
    assert run.source == source
    assert run.method == run.card.name == default_card(source).name  # none is named


def test_knobs_go_by_their_flags_and_unknown_ones_by_their_place(tmp_path: Path) -> None:
    nested = {"lora": {"rank": 8, "target_modules": ["q_proj", "k_proj"]}, "old": {"name": 1}}
    record = config(knobs={**nested, "sampling": {"top_p": 0.9}})
    shown = knobs(read_run(make_run(tmp_path / "mine", config=record)))
    expected = {"lora_rank": 8, "lora_target_modules": "q_proj,k_proj", "top_p": 0.9}
    assert expected.items() <= shown.items() and shown["old_name"] == 1


def test_a_command_leaves_out_what_the_method_fixes(tmp_path: Path) -> None:
    record = config(knobs=dataclasses.asdict(card_of("spin", DEMONSTRATIONS).recipe("laptop")))
    record["options"] |= {"method": "spin", "sweep": []}
    command = train_command(read_run(make_run(tmp_path / "mine", config=record)))
    assert command == (
        "python train.py --method spin --demos mine.jsonl --model smollm2-135m-instruct "
        "--out runs/mine"
    )


def test_pairs_are_not_evaluated_by_scope(tmp_path: Path) -> None:
    record = feedback_config("dpo", feedback="")
    run = read_run(make_feedback_run(tmp_path / "mine", config=record, evaluation=None))
    assert evaluate_command(run) == ""
    assert find(run).sentence == "Trained on preference pairs: 4 DPO steps."
