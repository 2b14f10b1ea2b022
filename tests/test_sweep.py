"""--sweep: a grid of runs, each in a folder of its own, and one table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cli_helpers import TINY, call, train, tree, write_workplace
from conftest import refusal

from minialign.sweep import folder_name, grid, is_finished


def test_a_grid_is_every_combination_of_the_values() -> None:
    found = grid(("lr=1e-5", "5e-5", "beta=0.1", "0.2"))
    assert found == [
        {"beta": beta, "learning_rate": rate}
        for beta in ("0.1", "0.2")
        for rate in ("1e-5", "5e-5")
    ]
    assert folder_name(found[0]) == "beta=0.1 learning_rate=1e-5"


@pytest.mark.parametrize("sweep", [("1e-5",), ("beta=",), ("=3",), ("beta=1", "")])
def test_what_is_no_knob_with_values_is_refused(sweep: tuple[str, ...]) -> None:
    assert "write KNOB=VALUE,VALUE" in refusal(lambda: grid(sweep))


def test_a_knob_is_swept_once() -> None:
    assert "is swept already" in refusal(lambda: grid(("beta=1", "lr=2", "beta=3")))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_workplace(tmp_path_factory.mktemp("sweep"))


def sweep(workplace: Path, *arguments: str):  # type: ignore[no-untyped-def]
    flags = [part for part in TINY if part not in ("--learning-rate", "0.003")]
    return call(
        train, "--demos", "demos.jsonl", "--model", "toy", *flags, *arguments, cwd=workplace
    )


def test_each_combination_is_a_run_and_what_is_finished_is_not_trained_again(
    workplace: Path,
) -> None:
    arguments = ("--out", "runs/grid", "--sweep", "lr=0.001,0.01", "--sweep", "beta=0.1")
    outcome = sweep(workplace, *arguments)
    assert outcome.code == 0, outcome.err
    root = workplace / "runs" / "grid"
    names = ["beta=0.1 learning_rate=0.001", "beta=0.1 learning_rate=0.01"]
    assert sorted(p.name for p in root.iterdir() if p.is_dir()) == names
    for name, rate in zip(names, (0.001, 0.01), strict=True):
        record = json.loads((root / name / "config.json").read_text())
        assert record["knobs"]["learning_rate"] == rate and record["knobs"]["beta"] == 0.1
        assert is_finished(root / name)
        assert name in outcome.out.split("unseen nats")[1]
    assert "run 2 of 2" in outcome.out
    assert "learning_rate" in (root / "comparison.html").read_text(encoding="utf-8")
    before = {k: v for k, v in tree(root).items() if not k.endswith(".html")}
    again = sweep(workplace, *arguments)
    assert again.code == 0 and "run 1" not in again.out
    assert {k: v for k, v in tree(root).items() if not k.endswith(".html")} == before


BAD = {
    "no folder": (("--sweep", "beta=1"), "--sweep needs --out"),
    "an unknown knob": (("--out", "runs/x", "--sweep", "zz=1"), "zz: there is no such knob"),
    "a wrong value": (("--out", "runs/x", "--sweep", "beta=0.1,-1"), "beta must be positive"),
    "a knob that is given too": (
        ("--out", "runs/x", "--beta", "1", "--sweep", "beta=1"),
        "leave out --beta",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_everything_is_refused_before_the_first_run(name: str, workplace: Path) -> None:
    arguments, said = BAD[name]
    before = tree(workplace)
    outcome = sweep(workplace, *arguments)
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome.err
    assert said in outcome.err
    assert tree(workplace) == before
