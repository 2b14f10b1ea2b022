"""Two feedbacks that are learned at once, from joint data."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.commands import call, evaluate
from helpers.feedback_runs import metrics, record, train_toy, write_data
from helpers.files import tree, write_jsonl
from helpers.models import write_checkpoint

from minialign.data.feedback import SCOPES, join_feedbacks, load_feedback_data
from minialign.errors import InputError

BOTH = "data/sam,data/kim"


def renamed(folder: Path, name: str) -> Path:
    """The data of test_feedback.py, with prompts and a signature of its own."""
    write_data(folder)
    for file in (folder / "feedback.json", *(folder / f"{scope}.jsonl" for scope in SCOPES)):
        text = file.read_text().replace("Sam", name).replace("_scope ", f"_scope {name} ")
        file.write_text(text)
    return folder


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """toy/, two data folders and a run on both."""
    folder = tmp_path_factory.mktemp("joint")
    write_checkpoint(folder / "toy")
    renamed(folder / "data" / "sam", "Sam")
    renamed(folder / "data" / "kim", "Kim")
    outcome = train_toy(folder, "--data", BOTH)
    assert outcome.code == 0, outcome.err
    assert "Sign as Sam; Sign as Kim" in outcome.out
    assert "python evaluate.py runs/sam+kim --test data/sam\n" in outcome.out
    return folder


def test_every_scope_has_the_prompts_of_both(workplace: Path) -> None:
    parts = [load_feedback_data(workplace / "data" / name) for name in ("sam", "kim")]
    joint = join_feedbacks(parts)
    for scope in SCOPES:
        for split in ("train", "test"):
            own = [part.examples(scope, split) for part in parts]
            assert [*joint.examples(scope, split)] == [*own[0], *own[1]]
    assert not joint.checks and join_feedbacks(parts[:1]) is parts[0]


def test_the_run_is_named_after_both_and_an_epoch_is_of_both(workplace: Path) -> None:
    run = workplace / "runs" / "sam+kim"
    assert record(run)["feedback"] == "Sign as Sam; Sign as Kim"
    assert record(run)["options"]["data"] == BOTH
    steps = [line for line in metrics(run) if line["stage"] == "c3po"]
    assert len(steps) == 2 * (4 + 4) / 2  # two epochs of both, two pairs a step


def test_each_feedback_is_tested_by_itself(workplace: Path) -> None:
    run = "runs/sam+kim"
    outcome = call(evaluate, run, cwd=workplace)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert "--test data/sam" in outcome.err
    for name in ("sam", "kim"):
        test = ("--test", f"data/{name}", "--max-new-tokens", "5")
        outcome = call(evaluate, run, *test, cwd=workplace)
        assert outcome.code == 0, outcome.err
        found = json.loads((workplace / run / "evaluation.json").read_text())
        assert found["feedback"] == f"Sign as {name.title()}"


def test_with_a_test_of_their_own_runs_on_other_data_are_compared(workplace: Path) -> None:
    outcome = train_toy(workplace, "--out", "runs/alone")
    assert outcome.code == 0, outcome.err
    test = ("--test", "data/sam", "--max-new-tokens", "5")
    outcome = call(evaluate, "runs/sam+kim", "runs/alone", *test, cwd=workplace)
    assert outcome.code == 0, outcome.err
    assert "sam+kim" in outcome.out and "alone" in outcome.out
    outcome = call(evaluate, "runs/sam+kim", "runs/alone", cwd=workplace)
    assert outcome.code == 2 and "another data" in outcome.err


WRONG = {
    "data/sam,data/nowhere": "data/nowhere: no such file or folder",
    "data/sam,pairs.jsonl": "pairs.jsonl: only folders of feedback can be joined",
    "data/sam,": "data/sam,: a folder is missing beside a comma",
    "data/sam,./data/sam": "data/sam,./data/sam: names a folder twice",
}


@pytest.mark.parametrize("data", WRONG)
def test_what_cannot_be_joined_is_one_line_and_leaves_nothing(workplace: Path, data: str) -> None:
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    write_jsonl(workplace / "pairs.jsonl", [pair])
    before = tree(workplace)
    outcome = train_toy(workplace, "--data", data, "--out", "runs/bad")
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome.err
    assert WRONG[data] in outcome.err
    assert tree(workplace) == before


def test_a_blank_after_the_comma_and_another_spelling_of_a_folder_change_nothing(
    workplace: Path,
) -> None:
    outcome = train_toy(workplace, "--data", "data/sam, data/kim", "--inspect")
    assert outcome.code == 0, outcome.err
    for name, data in (("plain", "data/sam"), ("dotted", "./data/sam")):
        outcome = train_toy(workplace, "--data", data, "--out", f"runs/{name}")
        assert outcome.code == 0, outcome.err
    outcome = call(evaluate, "runs/plain", "runs/dotted", "--max-new-tokens", "5", cwd=workplace)
    assert outcome.code == 0, outcome.err


def test_the_page_says_how_to_test_one_feedback_and_then_by_which_it_was(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "toy")
    for name in ("sam", "kim"):
        renamed(tmp_path / "data" / name, name.title())
    assert train_toy(tmp_path, "--data", BOTH).code == 0
    page = tmp_path / "runs" / "sam+kim" / "report.html"
    told = "python evaluate.py runs/sam+kim --test data/sam"
    text = page.read_text(encoding="utf-8")
    assert text.count(told) == text.count("python evaluate.py") >= 2  # as finding, and below
    test = ("--test", "data/kim", "--max-new-tokens", "5")
    assert call(evaluate, "runs/sam+kim", *test, cwd=tmp_path).code == 0
    assert "Tested by “Sign as Kim”." in page.read_text(encoding="utf-8")


def test_a_page_is_about_its_run_even_if_the_folder_is_called_like_a_rival(
    workplace: Path,
) -> None:
    folder = workplace / "runs" / "in-context"
    assert train_toy(workplace, "--out", "runs/in-context").code == 0
    assert call(evaluate, "runs/in-context", "--max-new-tokens", "5", cwd=workplace).code == 0
    assert "C3PO is not shown to follow the feedback" in (folder / "report.html").read_text()


def test_a_test_prompt_that_the_run_was_trained_on_is_refused(workplace: Path) -> None:
    turned = renamed(workplace / "data" / "turned", "Sam")  # what was held out is learned from
    for scope in SCOPES:
        file = turned / f"{scope}.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        swap = {"train": "test", "test": "train"}
        write_jsonl(file, [{**line, "split": swap[line["split"]]} for line in lines])
    assert train_toy(workplace, "--out", "runs/seen").code == 0
    outcome = call(evaluate, "runs/seen", "--test", "data/turned", cwd=workplace)
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome.err
    assert "data/turned/in_scope.jsonl, line 1: a prompt to test on must be new" in outcome.err
    assert not (workplace / "runs" / "seen" / "evaluation.json").exists()


def test_a_prompt_that_one_learns_from_and_the_other_judges_by_is_refused(tmp_path: Path) -> None:
    parts = [load_feedback_data(renamed(tmp_path / name, name)) for name in ("Sam", "Kim")]
    learned = parts[0].in_scope[0]
    judged = replace(parts[1].in_scope[-1], messages=learned.messages)
    other = replace(parts[1], in_scope=(*parts[1].in_scope[:-1], judged))
    with pytest.raises(InputError, match="leave it in one of the two"):
        join_feedbacks([parts[0], other])
