"""A finished run that learns from more demonstrations, and stays as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import call, train, train_toy
from helpers.files import tree, write_jsonl
from helpers.runs import metrics, results, without_seconds
from helpers.workplaces import DEMOS, write_workplace
from safetensors.torch import load_file

from minialign.methods import ditto
from minialign.model.transformer import CausalLM
from minialign.policy.peft import adapter_state
from minialign.training.run import Run

MORE = [{"prompt": "Write about the café.", "completion": "Hello all, the café is open. Kim"}]
CONTINUE = ("--continue", "runs/one", "--demos", "more.jsonl")
ROUND = 2  # steps


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/one, which is finished, and runs/one-more, which continues it."""
    folder = write_workplace(tmp_path_factory.mktemp("workplace"))
    train_toy(folder, "--out", "runs/one")
    train_toy(folder, "--method", "sft", "--out", "runs/sft")
    # The first one is known already.
    write_jsonl(folder / "more.jsonl", [DEMOS[0], *MORE])
    before = tree(folder / "runs" / "one")
    outcome = call(train, *CONTINUE, cwd=folder)
    assert outcome.code == 0, outcome.err
    assert tree(folder / "runs" / "one") == before
    assert "continues with 1 new demonstration beside 3" in outcome.out
    # The plan is of one round: four answers to each... of two samples.
    assert "1 rounds of 8 answers" in outcome.out and "SFT  at most" not in outcome.out
    return folder


@pytest.fixture
def copy(workplace: Path, tmp_path: Path) -> Path:
    """The same with runs/one-more still to come."""
    folder = shutil.copytree(workplace, tmp_path / "workplace")
    shutil.rmtree(folder / "runs" / "one-more")
    shutil.rmtree(folder / "data")
    return folder


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_a_round_more_is_added_to_what_there_was(workplace: Path) -> None:
    one, more = workplace / "runs" / "one", workplace / "runs" / "one-more"
    old, new = lines(one / "samples.jsonl"), lines(more / "samples.jsonl")
    assert [line | {"reference_logp": 0} for line in new[: len(old)]] == [
        line | {"reference_logp": 0} for line in old
    ]
    added = [(line["round"], line["demonstration"]) for line in new[len(old) :]]
    assert added == [(2, place) for place in range(4) for _ in range(2)]
    known = [(a, b) for a, b in zip(old, new, strict=False) if a["reference_logp"] is not None]
    assert known and all(a["reference_logp"] == b["reference_logp"] for a, b in known)
    steps = [line["step"] for line in metrics(more) if line["stage"] == "ditto"]
    assert steps == [0, 1, 2, 3, 4, 5]
    assert metrics(more)[: len(metrics(one)) - 1] == metrics(one)[:-1]
    assert results(more)["adapter-sft"] == results(one)["adapter-sft"]
    assert results(more)["adapter"] != results(one)["adapter"]
    records = [json.loads((run / "config.json").read_text()) for run in (one, more)]
    assert records[1]["knobs"] == records[0]["knobs"] | {"max_steps": 6}
    assert [d["completion"] for d in lines(workplace / "data" / "one-more.jsonl")][-1:] == [
        MORE[0]["completion"]
    ]


def test_it_begins_with_the_finished_policy_and_its_reference(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, Any]] = []
    step = ditto.preference_step

    def watch(model: CausalLM, pairs: Any, reference: Any, *rest: Any) -> dict[str, float]:
        kept = {name: adapter_state(model, name) for name in ("ditto", "sft")}
        begun.append({n: {k: t.clone() for k, t in s.items()} for n, s in kept.items()})
        assert {pair.demonstration for pair in pairs} == {0, 1, 2, 3}
        return step(model, pairs, reference, *rest)

    monkeypatch.setattr(ditto, "preference_step", watch)
    assert call(train, *CONTINUE, cwd=copy).code == 0
    assert len(begun) == ROUND
    for name, folder in (("ditto", "adapter"), ("sft", "adapter-sft")):
        found = load_file(copy / "runs" / "one" / folder / "adapter_model.safetensors")
        assert all(tensor.equal(begun[0][name][key]) for key, tensor in found.items())


@pytest.mark.parametrize("when", [("ditto", 4), ("ditto", 5)])
def test_interrupted_it_goes_on_bit_for_bit(
    workplace: Path, copy: Path, press_at: Callable[..., None], when: tuple[str, int]
) -> None:
    press_at(*when)
    assert call(train, *CONTINUE, cwd=copy).code == 130
    outcome = call(train, "--resume", "runs/one-more", cwd=copy)
    assert outcome.code == 0, outcome.err
    assert_same(copy, workplace)


def test_killed_before_it_saved_anything_it_begins_again(
    workplace: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "begin_at", killed)
        assert call(train, *CONTINUE, cwd=copy).code == 130
    assert not (copy / "runs" / "one-more" / "state").exists()
    outcome = call(train, "--resume", "runs/one-more", cwd=copy)
    assert outcome.code == 0, outcome.err
    assert_same(copy, workplace)


def assert_same(copy: Path, workplace: Path) -> None:
    found, wanted = (folder / "runs" / "one-more" for folder in (copy, workplace))
    assert results(found) == results(wanted)
    assert without_seconds(found) == without_seconds(wanted)
    assert tree(copy / "runs" / "one") == tree(workplace / "runs" / "one")


def test_a_continued_run_can_be_continued(copy: Path) -> None:
    assert call(train, *CONTINUE, cwd=copy).code == 0
    write_jsonl(copy / "third.jsonl", [{"prompt": "Say no.", "completion": "No, Sam. Kim"}])
    again = ("--continue", "runs/one-more", "--demos", "third.jsonl", "--out", "runs/third")
    outcome = call(train, *again, cwd=copy)
    assert outcome.code == 0, outcome.err
    assert len(lines(copy / "runs" / "third" / "samples.jsonl")) == 6 + 6 + 8 + 10


def test_it_goes_on_in_the_types_that_auto_came_to(copy: Path) -> None:
    file = copy / "runs" / "one" / "config.json"
    record = json.loads(file.read_text())
    assert record["options"]["base_dtype"] == "auto" and record["base_dtype"] == "model"
    file.write_text(json.dumps(record | {"base_dtype": "int8"}))
    assert call(train, *CONTINUE, cwd=copy).code == 0
    assert json.loads((copy / "runs/one-more/config.json").read_text())["base_dtype"] == "int8"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--continue", "runs/one"), "--continue needs --demos"),
        ((*CONTINUE, "--beta", "0.2"), "--continue keeps the knobs of the run: leave out --beta"),
        ((*CONTINUE, "--seed", "3"), "--continue keeps the knobs of the run: leave out --seed"),
        ((*CONTINUE, "--out", "runs/one", "--overwrite"), "holds the run that is continued"),
        ((*CONTINUE[:3], "demos.jsonl"), "demos.jsonl: holds no demonstration that the run did"),
        (("--continue", "runs/none", *CONTINUE[2:]), "runs/none: not a run folder"),
        (("--continue", "runs/sft", *CONTINUE[2:]), "a run of SFT cannot be continued, those of"),
        ((*CONTINUE[:3], "none.jsonl"), "none.jsonl: no such file"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(
    workplace: Path, arguments: tuple[str, ...], said: str
) -> None:
    before = tree(workplace)
    outcome = call(train, *arguments, cwd=workplace)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1), outcome.err
    assert said in outcome.err
    assert tree(workplace) == before


def test_a_run_whose_demonstrations_changed_or_that_is_not_finished_is_refused(copy: Path) -> None:
    known = (copy / "demos.jsonl").read_bytes()
    write_jsonl(copy / "demos.jsonl", [*DEMOS, *MORE])
    outcome = call(train, *CONTINUE, cwd=copy)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "demos.jsonl: has changed since the run in runs/one began" in outcome.err
    (copy / "demos.jsonl").write_bytes(known)
    (copy / "runs" / "one" / "state").mkdir()
    (copy / "runs" / "one" / "state" / "state.safetensors").touch()
    outcome = call(train, *CONTINUE, cwd=copy)
    assert outcome.code == 2 and "the run is not finished" in outcome.err
    assert not (copy / "data").exists()
