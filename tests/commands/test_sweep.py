"""--sweep: a grid of runs, each in a folder of its own, and one table."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
from helpers.commands import Outcome, call, train
from helpers.files import tree, write_jsonl
from helpers.refusals import refusal
from helpers.workplaces import DEMOS, HELD_OUT, TINY, TINY_SFT, write_workplace

from minialign.commands.sweep import can_go_on, folder_name, grid, is_finished, summary
from minialign.training.run import Run


def test_a_grid_is_every_combination_of_the_values() -> None:
    found = grid(("lr=1e-5", "5e-5", "beta=0.1", "0.2"))
    assert found == [
        {"beta": beta, "learning_rate": rate}
        for beta in ("0.1", "0.2")
        for rate in ("1e-5", "5e-5")
    ]
    assert folder_name(found[0]) == "beta=0.1 learning_rate=1e-5"


def test_paired_values_go_together() -> None:
    pairs = ("lr:beta=1e-4:0.05", "3e-4:0.1")
    together = [
        {"beta": "0.05", "learning_rate": "1e-4"},
        {"beta": "0.1", "learning_rate": "3e-4"},
    ]
    assert grid(pairs) == together
    seeds = [{**point, "lora_rank": rank} for point in together for rank in ("2", "4")]
    assert grid(("lora-rank=2", "4", *pairs)) == seeds
    for wrong in (("lr:beta=1:2", "3"), ("lr:beta=1",), ("lr:=1:2",)):
        assert "write KNOB:KNOB=VALUE:VALUE" in refusal(lambda wrong=wrong: grid(wrong))
    assert "is swept already" in refusal(lambda: grid(("beta:lr=1:2", "lr=3")))
    assert "is swept already" in refusal(lambda: grid(("beta:beta=1:2",)))
    assert "1:2.0 is given twice" in refusal(lambda: grid(("beta:lr=1:2", "1:2.0")))


@pytest.mark.parametrize("sweep", [("1e-5",), ("beta=",), ("=3",), ("beta=1", "")])
def test_what_is_no_knob_with_values_is_refused(sweep: tuple[str, ...]) -> None:
    assert "write KNOB=VALUE,VALUE" in refusal(lambda: grid(sweep))


def test_a_knob_is_swept_once() -> None:
    assert "is swept already" in refusal(lambda: grid(("beta=1", "lr=2", "beta=3")))


@pytest.mark.parametrize("sweep", [("beta=0.1,0.1",), ("lr=1e-4", "0.0001")])
def test_a_value_is_given_once(sweep: tuple[str, ...]) -> None:
    parts = tuple(part for text in sweep for part in text.split(","))
    assert "is given twice" in refusal(lambda: grid(parts))


def test_the_table_shows_what_a_run_last_said_of_each_metric(tmp_path: Path) -> None:
    last = {"eval/nll/near": 1.5, "eval/kl/out": 0.125, "eval/kl/near": 0.25}
    for name, line in (("a", {"loss": 0.75}), ("b", last)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps({"loss": 1.0}) + "\n")
        with open(tmp_path / name / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
    lines = [line.split() for line in summary([tmp_path / "a", tmp_path / "b"]).splitlines()]
    assert lines == [
        ["loss", "nll", "near", "kl", "out", "kl", "near"],
        ["a", "0.750", "-", "-", "-"],
        ["b", "1.000", "1.500", "0.125", "0.250"],
    ]


def sweep(workplace: Path, *arguments: str) -> Outcome:
    knobs = TINY_SFT if "sft" in arguments else TINY
    flags = [part for part in knobs if part not in ("--learning-rate", "0.003")]
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


# ---- a sweep into a folder that holds one ----

GRID = ("--out", "runs/two", "--sweep", "beta=0.1,0.2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace with a whole grid in runs/two."""
    folder = write_workplace(tmp_path_factory.mktemp("finished"))
    outcome = sweep(folder, "--learning-rate", "0.003", *GRID)
    assert outcome.code == 0, outcome.err
    return folder


OTHER = {
    "a knob": (("--learning-rate", "0.004"), "learning_rate"),
    "a part's knob": (("--learning-rate", "0.003", "--lora-alpha", "9"), "lora_alpha"),
    "the seed": (("--learning-rate", "0.003", "--seed", "1"), "seed"),
    "the method": (("--learning-rate", "0.003", "--method", "spin"), "method"),
    "the model": (("--learning-rate", "0.003", "--model", "./toy"), "model"),
    "the data": (("--learning-rate", "0.003", "--demos", "others.jsonl"), "demos"),
    "the precision": (("--learning-rate", "0.003", "--dtype", "bfloat16"), "dtype"),
}


@pytest.mark.parametrize("name", OTHER)
def test_a_folder_of_the_grid_that_holds_another_run_is_refused(name: str, finished: Path) -> None:
    arguments, differing = OTHER[name]
    write_jsonl(finished / "others.jsonl", DEMOS)
    shutil.copy(finished / "demos_test.jsonl", finished / "others_test.jsonl")
    before = tree(finished)
    outcome = sweep(finished, *arguments, *GRID)
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome.err
    assert "runs/two/beta=0.1: holds another run, which differs in " + differing in outcome.err
    assert "another --out, or add --overwrite" in outcome.err
    assert tree(finished) == before


def test_a_file_that_was_changed_since_is_other_data(finished: Path) -> None:
    write_jsonl(finished / "demos.jsonl", [*DEMOS[:2], HELD_OUT[0]])
    write_jsonl(finished / "demos_test.jsonl", HELD_OUT[1:])
    try:
        outcome = sweep(finished, "--learning-rate", "0.003", *GRID)
    finally:
        write_jsonl(finished / "demos.jsonl", DEMOS)
        write_jsonl(finished / "demos_test.jsonl", HELD_OUT)
    assert outcome.code == 2 and "differs in the text of --demos:" in outcome.err


def test_other_preference_pairs_are_refused_and_overwrite_learns_from_them(workplace: Path) -> None:
    flags = ("--method", "dpo", "--data", "pairs.jsonl", "--model", "toy", "--lora-rank", "4")
    arguments = (*flags, "--out", "runs/pairs", "--sweep", "beta=0.1")
    pairs = [{"prompt": "hi", "chosen": f"yes {n}", "rejected": "no"} for n in range(2)]
    write_jsonl(workplace / "pairs.jsonl", pairs)
    assert call(train, *arguments, cwd=workplace).code == 0
    write_jsonl(workplace / "pairs.jsonl", pairs[:1])
    folder = workplace / "runs" / "pairs" / "beta=0.1"
    first = (folder / "config.json").read_bytes()
    outcome = call(train, *arguments, cwd=workplace)
    assert outcome.code == 2 and "differs in the text of --data:" in outcome.err
    assert (folder / "config.json").read_bytes() == first
    assert call(train, *arguments, "--overwrite", cwd=workplace).code == 0
    assert (folder / "config.json").read_bytes() != first


def test_a_knob_that_sft_never_reads_is_not_swept(finished: Path) -> None:
    arguments = ("--method", "sft", "--out", "runs/idle", "--sweep", "learning_rate=1e-4,3e-4")
    outcome = sweep(finished, *arguments)
    assert outcome.code == 2 and "--method sft makes no use of --learning-rate" in outcome.err
    assert not (finished / "runs" / "idle").exists()


def test_an_interrupted_sweep_that_overwrites_leaves_no_old_run(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--learning-rate", "0.003", "--out", "runs/over", "--sweep", "beta=0.1,0.2")
    assert sweep(finished, *arguments).code == 0
    log = Run.log

    def log_and_press(run: Run, stage: str, step: int, measured: dict[str, float]) -> None:
        log(run, stage, step, measured)
        if (stage, step) == ("ditto", 1):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Run, "log", log_and_press)
    assert sweep(finished, *arguments, "--overwrite").code == 130
    folders = [finished / "runs" / "over" / f"beta={beta}" for beta in ("0.1", "0.2")]
    assert [can_go_on(folder) for folder in folders] == [True, False]
    assert not folders[1].exists()


def test_how_a_run_is_called_for_does_not_make_it_another_one(finished: Path) -> None:
    flags = ("--learning-rate", "0.003", "--device", "cpu", "--recipe", "laptop")
    outcome = sweep(finished, *flags, "--dtype", "float32", *GRID)
    assert outcome.code == 0 and "=== run" not in outcome.out, outcome.err


@pytest.mark.parametrize("times", [1, 2], ids=["saved", "stopped at once"])
def test_the_same_command_goes_on_with_a_sweep_that_was_interrupted(
    times: int, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Run.log
    steps = []

    def log_and_press(run: Run, stage: str, step: int, measured: dict[str, float]) -> None:
        log(run, stage, step, measured)
        steps.append((run.folder.name, stage, step))
        if steps[-1] == ("beta=0.2", "ditto", 1):
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Run, "log", log_and_press)
    out = f"runs/cut {times}"
    arguments = ("--learning-rate", "0.003", "--out", out, "--sweep", "beta=0.1,0.2,0.3")
    stopped = sweep(finished, *arguments)
    assert stopped.code == 130
    if times == 1:  # it saved, and the same command goes on
        (advice,) = [line for line in stopped.err.splitlines() if "go on with" in line]
        assert "--sweep" in advice and "--resume" not in advice
    monkeypatch.setattr(Run, "log", log)
    root = finished / out
    first = tree(root / "beta=0.1")
    assert not is_finished(root / "beta=0.2") and not (root / "beta=0.3").exists()
    again = sweep(finished, *arguments)
    assert again.code == 0, again.err
    assert "run 1 of 2: beta=0.2" in again.out and "run 2 of 2: beta=0.3" in again.out
    assert {**first, **tree(root / "beta=0.1")} == first
    for name in ("adapter/adapter_model.safetensors", "samples.jsonl"):
        whole = finished / "runs" / "two" / "beta=0.2" / name
        assert (root / "beta=0.2" / name).read_bytes() == whole.read_bytes()


def test_another_sweep_does_not_go_on_with_an_interrupted_run(finished: Path) -> None:
    folder = finished / "runs" / "half" / "beta=0.2"
    shutil.copytree(finished / "runs" / "two" / "beta=0.2", folder)
    shutil.rmtree(folder / "adapter")
    arguments = ("--out", "runs/half", "--sweep", "beta=0.2", "--learning-rate", "0.004")
    before = tree(finished)
    outcome = sweep(finished, *arguments)
    assert outcome.code == 2 and "differs in learning_rate" in outcome.err
    assert tree(finished) == before


BAD = {
    "no folder": (("--sweep", "beta=1"), "--sweep needs --out"),
    "an unknown knob": (("--out", "runs/x", "--sweep", "zz=1"), "zz: there is no such knob"),
    "a wrong value": (("--out", "runs/x", "--sweep", "beta=0.1,-1"), "beta must be positive"),
    "a value twice": (("--out", "runs/x", "--sweep", "beta=0.1,0.1"), "0.1 is given twice"),
    "an inspection": (("--out", "runs/x", "--inspect", "--sweep", "beta=1"), "leave out --sweep"),
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
