"""Who is compared by evaluate.py: runs, folders, files, and several runs on one page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.commands import call, evaluate, sample
from helpers.evaluations import FAST, NATS, naive_score, row, run_evaluation, write_runs
from helpers.workplaces import HELD_OUT

import minialign
from minialign.policy.adapters import set_adapter
from minialign.policy.peft import load_adapter


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("evaluate"))


# ---- contestants ----


def test_an_sft_run_is_compared_with_the_base_and_few_shot(copy: Path) -> None:
    outcome = call(evaluate, "runs/sft", *FAST, cwd=copy)
    assert outcome.code == 0, outcome.err
    assert ["base", "few-shot", "sft"] in [line.split() for line in outcome.out.split("\n")]
    nats = [float(cell) for cell in row(outcome.out, NATS)]
    assert nats[2] < nats[0]  # it learned
    assert "over base's" in outcome.out


def test_spin_and_run_folders_and_files_can_be_rivals(copy: Path) -> None:
    rivals = "base,spin,runs/sft,mine.jsonl"
    found = run_evaluation(
        copy, "runs/demos", *FAST, "--against", rivals, "--judges", "style", "--n", "3"
    )
    contestants = found["contestants"]
    assert list(contestants) == ["base", "spin", "sft", "mine", "ditto"]
    model, tokenizer = minialign.load(str(copy / "toy"))
    tokens = 0
    nats = {"spin": 0.0, "sft": 0.0}
    for name, run in (("spin", "demos-spin"), ("sft", "sft")):
        load_adapter(model, copy / "runs" / run / "adapter", name)
    for record in HELD_OUT:
        prompt = tuple(tokenizer.encode_prompt(record["prompt"]))
        text = tuple(tokenizer.encode_completion(record["completion"]))
        tokens += len(text)
        for name in nats:
            set_adapter(model, name)
            nats[name] -= naive_score(model, prompt, text)
    for name, total in nats.items():
        assert contestants[name]["nats_per_token"] == pytest.approx(total / tokens, rel=1e-5)
    lines = (copy / "mine.jsonl").read_text(encoding="utf-8").splitlines()
    answers = [json.loads(line)["completion"].strip() for line in lines]
    assert contestants["mine"]["answers"] == [answers[:2], answers[2:]]
    for unknown in ("nats_per_token", "drift", "stops"):  # of texts from elsewhere
        assert contestants["mine"][unknown] is None
    sizes = {(w["first"], w["second"]): w["comparisons"] for w in found["judges"][0]["wins"]}
    assert sizes["ditto", "mine"] == 2 * 3 * 2 and sizes["ditto", "spin"] == 2 * 3 * 3


def test_several_runs_are_contestants_by_the_names_of_their_folders(copy: Path) -> None:
    runs = ("runs/demos", "runs/sft", "runs/demos-spin")
    found = run_evaluation(copy, *runs, *FAST, "--against", "base")
    assert list(found["contestants"]) == ["base", "demos", "sft", "demos-spin"]
    assert not (copy / "runs" / "sft" / "evaluation.json").exists()  # all of it in the first


def test_a_run_alone_has_figures_and_no_judge(copy: Path) -> None:
    found = run_evaluation(copy, "runs/demos", *FAST, "--against", "", "--judges", "style")
    assert list(found["contestants"]) == ["ditto"] and found["judges"] == []
    assert found["contestants"]["ditto"]["margins"] == {}


def test_a_sum_of_adapters_is_a_contestant(copy: Path) -> None:
    """It writes what sample.py writes with the two added up."""
    (sft := copy / "runs" / "sft").rename(copy / "runs" / "a+b")
    asked = ("--prompts", "demos_test.jsonl", "--out", "sum.jsonl", "--n", "1", "--seed", "3")
    added = ("--adapter", "runs/demos", "--adapter", "runs/a+b=0.5", "--temperature", "1")
    outcome = call(sample, *added, *asked, "--max-new-tokens", "4", cwd=copy)
    assert outcome.code == 0 and not sft.exists(), outcome.err
    shutil.copytree(copy / "runs" / "a+b", copy / "runs" / "other")
    against = ("--against", "runs/demos+runs/other=0.5,runs/a+b", "--seed", "3")
    found = run_evaluation(copy, "runs/demos", *FAST, *against)["contestants"]
    assert list(found) == ["demos+other=0.5", "a+b", "ditto"]
    texts = [json.loads(line)["completion"] for line in (copy / "sum.jsonl").open("rb")]
    assert [group[0] for group in found["demos+other=0.5"]["answers"]] == texts
    figures = [found[name]["nats_per_token"] for name in found]
    assert len(set(figures)) == 3
    outcome = call(evaluate, "runs/demos", *FAST, "--against", "runs/demos+runs/no", cwd=copy)
    assert outcome.code == 2 and "runs/no: no adapter here" in outcome.err


def test_a_folder_may_have_any_name(copy: Path) -> None:
    """A dot or a method's name is no name of an adapter within a model."""
    for name in ("emails.v2", "keys"):
        shutil.copytree(copy / "runs" / "sft", copy / "runs" / name)
    found = run_evaluation(copy, "runs/emails.v2", "runs/keys", *FAST, "--against", "base")
    assert list(found["contestants"]) == ["base", "emails.v2", "keys"]


def test_within_the_run_folder_a_dot_is_the_run(copy: Path) -> None:
    record = json.loads((copy / "runs" / "demos" / "config.json").read_text(encoding="utf-8"))
    options = record["options"]
    for name in ("demos", "test", "model"):
        options[name] = str(copy / options[name])
    (copy / "runs" / "demos" / "config.json").write_text(json.dumps(record), encoding="utf-8")
    outcome = call(evaluate, ".", *FAST, "--against", "spin", cwd=copy / "runs" / "demos")
    assert outcome.code == 0, outcome.err
    assert ["spin", "ditto"] in [line.split() for line in outcome.out.split("\n")]


# ---- --compare ----


def test_compare_puts_runs_on_one_page(copy: Path) -> None:
    runs = ("runs/demos", "runs/sft", "runs/demos-spin")
    outcome = call(evaluate, "--compare", *runs, cwd=copy)
    assert (outcome.code, outcome.out) == (0, "runs/comparison.html\n")
    page = (copy / "runs" / "comparison.html").read_text(encoding="utf-8")
    for name in ("demos", "sft", "demos-spin"):
        assert name in page
    (copy / "runs" / "grid").mkdir()
    everything = sorted(f"runs/{path.name}" for path in (copy / "runs").iterdir())  # runs/*
    again = call(evaluate, "--compare", *everything, cwd=copy)
    assert (again.code, again.out) == (0, "runs/comparison.html\n"), again.err
    assert "left out, no runs: runs/comparison.html, runs/grid\n" in again.err
    mistyped = call(evaluate, "--compare", "runs/demos", "runs/nowhere", cwd=copy)
    assert mistyped.code == 2 and "runs/nowhere" in mistyped.err
