"""`--model auto`: the largest that fits, and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.commands import call, train
from helpers.refusals import refusal
from helpers.workplaces import TINY_SFT, write_workplace

from minialign.commands import choose as module
from minialign.commands.choose import choose
from minialign.commands.train import parse

FLAGS = ("--demos", "demos.jsonl", "--model", "auto", "--device", "cpu:4GB")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy and a much larger one, of which there is the config.json alone."""
    write_workplace(tmp_path)
    toy = json.loads((tmp_path / "toy" / "config.json").read_text())
    (tmp_path / "huge").mkdir()
    (tmp_path / "huge" / "config.json").write_text(
        json.dumps(toy | {"hidden_size": 8192, "intermediate_size": 32_768})
    )
    (tmp_path / "wide").mkdir()
    (tmp_path / "wide" / "config.json").write_text(
        json.dumps(toy | {"hidden_size": 512, "intermediate_size": 2048})
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "CHOICES", ("nowhere", "huge", "wide", "toy"))
    return tmp_path


def test_the_largest_that_fits_into_memory_is_taken(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert choose(*parse([*FLAGS])) == "wide"
    absent, large, taken = capsys.readouterr().err.strip().split("\n")
    assert "nowhere" in absent and "no such folder" in absent
    assert "huge needs" in large and "of 4.0" in large and large.endswith("too much")
    assert "wide needs" in taken and taken.endswith("taken")


def test_a_budget_of_time_chooses_a_smaller_one(place: Path) -> None:
    options, given = parse([*FLAGS])
    spent = []
    for name in ("wide", "toy"):
        job, _ = module.job_ahead(parse([*FLAGS[:2], "--model", name, *FLAGS[4:]])[0], {})
        spent.append(module.seconds(module.outline(job), job))
    assert spent[0] > 5 * spent[1]
    assert choose(options, given, spent[0] / 3) == "toy"
    assert "none fits; toy needs" in refusal(lambda: choose(options, given, spent[1] / 1000))


def test_a_run_records_the_model_that_was_chosen(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHOICES", ("toy",))
    flags = ("--demos", "demos.jsonl", "--model", "auto", "--method", "sft")
    outcome = call(train, *flags, *TINY_SFT, "--out", "runs/a", cwd=place)
    assert outcome.code == 0, outcome.err
    record = json.loads((place / "runs" / "a" / "config.json").read_text())
    assert record["options"]["model"] == "toy"
