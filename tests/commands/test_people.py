"""--demos with several files: a run for each person over one loaded model, and one table."""

from __future__ import annotations

import gc
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Outcome, call, train
from helpers.files import tree, write_jsonl
from helpers.models import write_checkpoint
from helpers.refusals import refusal
from helpers.runs import adapters
from helpers.workplaces import DEMOS, HELD_OUT, TINY, TINY_SFT

from minialign.commands import session
from minialign.commands.people import people
from minialign.commands.train import several_demos
from minialign.data.records import DEMONSTRATIONS
from minialign.methods.cards import method_names
from minialign.training.run import Run
from minialign.weights import load

NAMES = ("ada", "bo", "cy")
METHODS = method_names(DEMONSTRATIONS)
SHORT = ("--max-steps", "2", "--max-new-tokens", "12", "--lora-rank", "4")
KNOBS = {"ditto": TINY, "spin": TINY, "sft": TINY_SFT, "stylevector": ("--max-new-tokens", "12")}
FILES = tuple(f"people/{name}.jsonl" for name in NAMES)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy model and three people who write differently; ada has texts to be judged by."""
    folder = tmp_path_factory.mktemp("people")
    write_checkpoint(folder / "toy")
    (folder / "people").mkdir()
    for number, name in enumerate(NAMES):
        own = [{**demo, "completion": f"{demo['completion']} {name}"} for demo in DEMOS]
        write_jsonl(folder / "people" / f"{name}.jsonl", own[number % 2 :])
    write_jsonl(folder / "people" / "ada_test.jsonl", HELD_OUT)
    return folder


def learn(
    place: Path, out: str, *files: str, method: str = METHODS[0], more: tuple = ()
) -> Outcome:
    knobs = KNOBS.get(method, SHORT)
    flags = ("--method", method, "--model", "toy", *knobs, "--out", out, *more)
    return call(train, "--demos", *files, *flags, cwd=place)


def assert_same(one: Path, other: Path) -> None:
    ours, theirs = adapters(one), adapters(other)
    assert ours.keys() == theirs.keys() and ours
    for name, tensor in ours.items():
        assert torch.allclose(tensor, theirs[name], atol=1e-4, rtol=0), name


# ---- who is meant ----


def test_the_files_behind_demos_are_people() -> None:
    given = ["--demos", "a.jsonl", "b.jsonl", "--out", "runs/x"]
    assert several_demos(given) == (["a.jsonl", "b.jsonl"], ["--demos", "a.jsonl", *given[3:]])
    for alone in (["--demos", "a.jsonl", "--out", "x"], ["a.jsonl"], ["--demos"]):
        assert several_demos(alone) == ([], alone)


def test_a_person_is_called_as_the_file_is_and_held_out_texts_are_nobody() -> None:
    files = ["p/ada.jsonl", "p/ada_test.jsonl", "p/bo_test.jsonl", "p/ada.jsonl"]
    assert people(files) == {"ada": "p/ada.jsonl", "bo_test": "p/bo_test.jsonl"}
    assert "q/ada.jsonl: p/ada.jsonl has the same name" in refusal(
        lambda: people(["p/ada.jsonl", "q/ada.jsonl"])
    )


# ---- one command ----


@pytest.mark.parametrize("method", METHODS)
def test_everybody_gets_the_adapter_of_a_run_of_their_own(
    method: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, read = [], load.load_for
    monkeypatch.setattr(load, "load_for", lambda *given: loaded.append(given) or read(*given))
    files = (*FILES, "people/ada_test.jsonl")
    outcome = learn(place, f"runs/{method}", *files, method=method)
    assert outcome.code == 0, outcome.err
    assert len(loaded) == 1
    heading, *rows = outcome.out.rstrip().splitlines()[-4:]
    assert [row.split()[0] for row in rows] == [*NAMES]
    assert "loss" in heading and "seconds" in heading
    for name, file in zip(NAMES, FILES, strict=True):
        alone = learn(place, f"runs/{method}-{name}", file, method=method)
        assert alone.code == 0, alone.err
        assert_same(place / "runs" / method / name, place / "runs" / f"{method}-{name}")


def test_what_is_finished_is_skipped_and_what_was_cut_short_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert learn(place, "runs/whole", *FILES).code == 0
    log, pressed = Run.log, []

    def log_and_press(run: Run, stage: str, step: int, measured: dict[str, float]) -> None:
        log(run, stage, step, measured)
        if run.folder.name == "bo" and step == 1 and stage == METHODS[0] and not pressed:
            pressed.append(step)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Run, "log", log_and_press)
    outcome = learn(place, "runs/cut", *FILES)
    assert outcome.code == 130 and "go on with: python train.py --demos" in outcome.err
    root = place / "runs" / "cut"
    assert not (root / "cy").exists()
    first = tree(root / "ada")
    outcome = learn(place, "runs/cut", *FILES)
    assert outcome.code == 0 and "run 1 of 2: bo" in outcome.out, outcome.err
    assert tree(root / "ada") == first
    for name in NAMES:
        assert_same(root / name, place / "runs" / "whole" / name)
    assert "=== run" not in learn(place, "runs/cut", *FILES).out


def test_several_processes_share_the_people_out(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    first = learn(place, "runs/dealt", *FILES, method="sft")
    assert first.code == 0, first.err
    assert not first.out.splitlines()[-1].startswith("cy")
    root = place / "runs" / "dealt"
    assert sorted(folder.name for folder in root.iterdir()) == ["ada", "cy"]
    monkeypatch.setenv("RANK", "1")
    last = learn(place, "runs/dealt", *FILES, method="sft")
    assert last.code == 0 and "run 1 of 1: bo" in last.out, last.err
    assert [row.split()[0] for row in last.out.splitlines()[-3:]] == [*NAMES]


def test_memory_does_not_grow_with_people(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, run_job = [], session.run_job

    def run_and_weigh(*given: Any) -> None:
        run_job(*given)
        gc.collect()
        tensors = [thing for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor)]
        held.append(sum(tensor.nbytes for tensor in tensors))

    monkeypatch.setattr(session, "run_job", run_and_weigh)
    assert learn(place, "runs/flat", *FILES).code == 0
    assert len(held) == 3 and held[0] == held[1] == held[2], held


# ---- refusals ----


def test_whoever_cannot_be_trained_is_named_before_the_model_loads(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "load_for", lambda *given: pytest.fail("loaded"))
    (place / "people" / "dee.jsonl").write_text('{"prompt": "hi"\n', encoding="utf-8")
    (place / "people" / "eve.jsonl").write_text("", encoding="utf-8")
    files = (FILES[0], "people/dee.jsonl", FILES[1], "people/eve.jsonl")
    before = tree(place)
    outcome = learn(place, "runs/broken", *files)
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome.err
    assert "people/dee.jsonl" in outcome.err and "people/eve.jsonl" in outcome.err
    assert outcome.err.endswith("nothing is wrong with ada, bo\n")
    assert tree(place) == before


def test_what_is_wrong_with_everybody_is_said_once(place: Path) -> None:
    outcome = learn(place, "runs/none", *FILES, more=("--model", "nowhere"))
    assert outcome.code == 2 and outcome.err.count("nowhere") == 1, outcome.err
    assert "nothing is wrong with" not in outcome.err


@pytest.mark.parametrize(
    "more", [("--test", "people/ada_test.jsonl"), ("--inspect",), ("--sweep", "beta=0.1,0.2")]
)
def test_flags_for_one_person_are_refused(more: tuple[str, ...], place: Path) -> None:
    outcome = learn(place, "runs/alone", *FILES, more=more)
    assert outcome.code == 2 and f"{more[0]} is for one person" in outcome.err
    assert not (place / "runs" / "alone").exists()


def test_several_people_need_a_folder_for_their_runs(place: Path) -> None:
    outcome = learn(place, "", *FILES)
    assert outcome.code == 2 and "give --out" in outcome.err
