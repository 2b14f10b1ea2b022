"""A run's folder as a small database: one process at a time, nothing lost, nothing wrong let in."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Outcome, call, train
from helpers.files import tree
from helpers.runs import INPUTS, Finished, metrics, results, without_seconds
from helpers.workplaces import LOADING, TINY, TINY_SFT, write_workplace
from safetensors import safe_open
from safetensors.torch import save_file

from minialign.commands import session
from minialign.errors import InputError
from minialign.training.folder import lock_folder
from minialign.training.run import Run
from minialign.training.state import check_finite
from minialign.weights.tokenizer import Tokenizer

resource = pytest.importorskip("resource")
SFT = ("--method", "sft", *INPUTS, *TINY_SFT, "--out", "runs/sft")
RESUME = ("--resume", "runs/demos")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace with a run that was interrupted in its second stage, and one that is finished."""
    folder = write_workplace(tmp_path_factory.mktemp("runs") / "template")
    log = Run.log

    def log_and_press(run: Run, stage: str, step: int, measured: dict[str, Any]) -> None:
        log(run, stage, step, measured)
        run.interrupted |= (stage, step) == ("ditto", 1)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "log", log_and_press)
        assert call(train, *INPUTS, *TINY, cwd=folder).code == 130
    assert call(train, *SFT, cwd=folder).code == 0
    return folder


@pytest.fixture
def place(template: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(template, tmp_path / "workplace", symlinks=True)


def refused(place: Path, *arguments: str | Path, said: str) -> None:
    """One line, status 2, and nothing on the disk changed."""
    before = tree(place)
    outcome = call(train, *arguments, cwd=place)
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome
    assert said in outcome.err
    assert tree(place) == before


def ended_like(place: Path, outcome: Outcome, finished: Finished) -> None:
    assert outcome.code == 0, outcome.err
    run = place / "runs" / "demos"
    assert results(run) == results(finished.folder)
    assert without_seconds(run) == without_seconds(finished.folder)
    assert (run / "report.html").exists() and not (run / "state").exists()


# ---- one process at a time ----


@pytest.mark.parametrize("flags", [RESUME, (*INPUTS, *TINY), (*INPUTS, *TINY, "--overwrite")])
def test_a_folder_in_which_another_process_is_at_work_is_left_alone(
    place: Path, flags: tuple[str, ...]
) -> None:
    lock = lock_folder(place / "runs" / "demos")
    refused(place, *flags, said=f"runs/demos: process {os.getpid()} on ")
    lock.release()


def test_who_was_faster_while_the_model_loaded_keeps_the_folder(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    locks = []
    monkeypatch.setattr(
        session, "answer", lambda *_: locks.append(lock_folder(place / "runs" / "demos"))
    )
    before = results_of_state(place)
    outcome = call(train, *INPUTS, *TINY, "--overwrite", cwd=place)
    assert outcome.code == 2 and "is at work here" in outcome.err
    assert results_of_state(place) == before
    locks[0].release()


def results_of_state(place: Path) -> bytes:
    return (place / "runs" / "demos" / "state" / "state.safetensors").read_bytes()


# ---- what --out may be ----


def test_a_persons_own_file_among_the_runs_is_never_deleted(place: Path) -> None:
    own = place / "runs" / "sft" / "adapter" / "notes.txt"
    own.write_text("mine")
    refused(place, *SFT, "--overwrite", said="holds files that are not a run's (adapter/notes.txt)")


def test_a_link_is_not_deleted_through(place: Path) -> None:
    (place / "runs" / "link").symlink_to("sft")
    flags = (*SFT[:-1], "runs/link")
    refused(place, *flags, "--overwrite", said="runs/link: is a link")
    shutil.move(place / "runs" / "sft" / "adapter", place / "elsewhere")
    (place / "runs" / "sft" / "adapter").symlink_to(place / "elsewhere")
    refused(place, *SFT, "--overwrite", said="not a run's (adapter)")


def test_names_that_no_folder_can_have_are_refused_before_anything_is_made(place: Path) -> None:
    (place / "lost").symlink_to("nowhere")
    for name in ("x" * 300, "new/" + "x" * 300, "a\0b", "new/a\0b/c"):
        refused(place, *SFT[:-1], name, said="no folder can have this name")
    for name in ("lost", "lost/run"):
        refused(place, *SFT[:-1], name, said="is a link to nothing")


def test_a_folder_whose_record_was_not_written_whole_may_be_overwritten(place: Path) -> None:
    record = place / "runs" / "sft" / "config.json"
    record.write_text(record.read_text()[:100])
    (place / "runs" / "sft" / "config.json.partial").touch()
    assert call(train, *SFT, "--overwrite", cwd=place).code == 0
    assert json.loads(record.read_text())["options"]["out"] == "runs/sft"


# ---- what a run was made from ----


def change(name: str) -> Callable[[Path], None]:
    def spoil(place: Path) -> None:
        file = place / name
        content = bytearray(file.read_bytes())
        content[-2] ^= 1
        file.write_bytes(content)

    return spoil


def change_json(name: str, **changes: Any) -> Callable[[Path], None]:
    def spoil(place: Path) -> None:
        file = place / name
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return spoil


CHANGED = {
    "the model's weights": (change("toy/model.safetensors"), "the model in toy: has changed"),
    "the model's settings": (
        change_json("toy/config.json", rms_norm_eps=0.1),
        "the model in toy: has changed",
    ),
    "the tokenizer": (
        change_json("toy/tokenizer_config.json", add_bos_token=True),
        "the tokenizer in toy: has changed",
    ),
    "the template": (
        change_json("toy/tokenizer_config.json", chat_template="{{ messages[-1]['content'] }}"),
        "the template in toy: has changed",
    ),
    "the held-out texts": (
        lambda place: (place / "demos_test.jsonl").write_text(
            (place / "demos_test.jsonl").read_text().replace("broken", "mended")
        ),
        "demos_test.jsonl: has changed",
    ),
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_run_does_not_go_on_with_other_files_than_it_began_with(place: Path, what: str) -> None:
    spoil, said = CHANGED[what]
    spoil(place)
    refused(place, *RESUME, said=f"{said} since the run in runs/demos began: start a new run")


def test_a_template_sees_the_date_on_which_the_run_began(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads((place / "runs" / "demos" / "config.json").read_text())
    seen = []

    def stop(job: Any, base: Any = None) -> None:
        seen.append(job.tokenizer)
        raise InputError("seen")

    monkeypatch.setattr(session, "load", stop)
    assert call(train, *RESUME, cwd=place).err == "train.py: seen\n"
    assert seen[0].today.isoformat() == record["today"]
    dated = Tokenizer(seen[0].backend, seen[0].eos, None, "{{ strftime_now('%Y-%m-%dT%H:%M') }}")
    dated.today = seen[0].today
    assert dated.render([]) == record["today"][:16]
    assert Tokenizer.from_folder(place / "toy").today > seen[0].today


# ---- a state or a record that is not as it was written ----


def rewrite(place: Path, change: Callable[[dict[str, torch.Tensor], dict[str, str]], None]) -> None:
    """A state with other content, and the old checksum."""
    file = place / "runs" / "demos" / "state" / "state.safetensors"
    with safe_open(file, framework="pt") as opened:
        said = dict(opened.metadata())
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}
    change(tensors, said)
    save_file(tensors, file, metadata=said)


def facts(old: str, new: str) -> Callable[[dict[str, Any], dict[str, str]], None]:
    return lambda tensors, said: said.update(facts=said["facts"].replace(old, new))


STATES: dict[str, Callable[[dict[str, Any], dict[str, str]], Any]] = {
    "another step": facts('"step": 2', '"step": 1'),
    "no step": facts('"step": 2, ', ""),
    "a version to come": facts('"version": 2', '"version": 3'),
    "facts that are a list": lambda tensors, said: said.update(facts="[]"),
    "facts too deep": lambda tensors, said: said.update(facts="[" * 10**5),
    "no facts": lambda tensors, said: said.pop("facts"),
    "no checksum": lambda tensors, said: said.pop("sha256"),
    "moments missing": lambda tensors, said: tensors.pop("optimizer/0.exp_avg"),
    "another number": lambda tensors, said: tensors["optimizer/0.exp_avg"].add_(1),
    "no metrics": lambda tensors, said: tensors.pop("metrics"),
}


@pytest.mark.parametrize("what", STATES)
def test_a_state_that_was_changed_is_not_gone_on_from(place: Path, what: str) -> None:
    rewrite(place, STATES[what])
    refused(place, *RESUME, said="runs/demos/state: no state to go on from (")


def test_a_state_that_is_no_file_is_not_read(place: Path) -> None:
    file = place / "runs" / "demos" / "state" / "state.safetensors"
    file.unlink()
    os.mkfifo(file)
    outcome = call(train, *RESUME, cwd=place)
    assert outcome.code == 2 and "no state to go on from (not a plain file)" in outcome.err


RECORDS: dict[str, tuple[list[str], Any]] = {
    "options that are a list": (["options"], []),
    "knobs that are a text": (["knobs"], "x"),
    "a rank that is a text": (["knobs", "lora", "rank"], "x"),
    "a rank that is true": (["knobs", "lora", "rank"], True),
    "a rank beyond 64 bits": (["knobs", "lora", "rank"], 10**30),
    "a rank beyond all memory": (["knobs", "lora", "rank"], 10**12),
    "a rate that is not a number": (["knobs", "learning_rate"], float("nan")),
    "adapters that are a number": (["knobs", "lora"], 1),
    "layers that are numbers": (["knobs", "lora", "target_modules"], [1]),
    "steps below zero": (["knobs", "max_steps"], -1),
    "a knob that is not there": (["knobs", "speed"], 1),
    "a method that is a list": (["options", "method"], []),
    "a method that is not there": (["options", "method"], "grpo"),
    "demonstrations without an end": (["options", "demos"], "/dev/zero"),
    "demonstrations with a NUL": (["options", "demos"], "a\0b"),
    "a checkpoint that is a number": (["options", "model"], 7),
    "a device that is not there": (["device"], "gpu"),
    "a dtype that is a number": (["dtype"], 16),
    "a recipe that is a list": (["recipe"], []),
    "no date": (["today"], None),
    "half a character": (["recipe"], "\ud83d"),
}


@pytest.mark.parametrize("what", RECORDS)
def test_a_record_that_was_changed_is_one_line(place: Path, what: str) -> None:
    path, value = RECORDS[what]
    file = place / "runs" / "demos" / "config.json"
    record = json.loads(file.read_text())
    inner = record
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    file.write_text(json.dumps(record))
    refused(place, *RESUME, said="train.py: ")


@pytest.mark.parametrize("text", ["", "[", "[]", "[" * 10**5, "{}", '{"options": {}}', "\xff"])
def test_a_record_that_is_none_is_one_line(place: Path, text: str) -> None:
    (place / "runs" / "demos" / "config.json").write_bytes(text.encode("latin-1"))
    refused(place, *RESUME, said="runs/demos")


@pytest.mark.parametrize("spoil", [lambda f: f.unlink(), lambda f: os.truncate(f, 700)])
def test_metrics_that_were_cut_or_deleted_are_written_again(
    place: Path, finished: Finished, spoil: Callable[[Path], None]
) -> None:
    spoil(place / "runs" / "demos" / "metrics.jsonl")
    ended_like(place, call(train, *RESUME, cwd=place), finished)


# ---- stopping ----


@pytest.fixture
def hung_up() -> Iterator[None]:
    """As `nohup` starts a process."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


def pressing(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """That signal arrives once, in the second step of the second stage."""
    log = Run.log

    def log_and_raise(run: Run, stage: str, step: int, measured: dict[str, Any]) -> None:
        log(run, stage, step, measured)
        if (stage, step) == ("ditto", 1):
            signal.raise_signal(number)

    monkeypatch.setattr(Run, "log", log_and_raise)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_machine_that_shuts_down_or_a_terminal_that_closes_is_a_ctrl_c(
    place: Path, finished: Finished, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pressing(monkeypatch, number)
    outcome = call(train, *INPUTS, *TINY, "--overwrite", cwd=place)
    assert outcome.code == 128 + number
    assert outcome.err.endswith("saved; go on with: python train.py --resume runs/demos\n")
    monkeypatch.undo()
    ended_like(place, call(train, *RESUME, cwd=place), finished)


def test_what_the_shell_says_to_ignore_is_ignored(
    place: Path, finished: Finished, hung_up: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pressing(monkeypatch, signal.SIGHUP)
    ended_like(place, call(train, *INPUTS, *TINY, "--overwrite", cwd=place), finished)


def test_a_machine_that_shuts_down_while_the_model_loads_finds_nothing_begun(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "answer", lambda *_: signal.raise_signal(signal.SIGTERM))
    outcome = call(train, *SFT[:-1], "runs/new", cwd=place)
    assert (outcome.code, outcome.err) == (130, LOADING + "\ntrain.py: stopped\n")
    assert not (place / "runs" / "new").exists()


@pytest.mark.parametrize("function", ["_save_whole", "_show"])
def test_a_run_that_was_stopped_after_its_training_writes_what_is_missing(
    place: Path, finished: Finished, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*_: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(session, function, press)
    outcome = call(train, *INPUTS, *TINY, "--overwrite", cwd=place)
    assert outcome.code == 130
    assert outcome.err == (
        f"{LOADING}\nstopped; what was trained is kept; "
        "go on with: python train.py --resume runs/demos\n"
    )
    monkeypatch.undo()
    monkeypatch.setattr(Run, "steps", None)
    ended_like(place, call(train, *RESUME, cwd=place), finished)


def test_a_run_that_was_stopped_before_its_first_step_begins_again(
    place: Path, finished: Finished
) -> None:
    shutil.rmtree(place / "runs" / "demos" / "state")
    (place / "runs" / "demos" / "evaluation.json").write_text("{}")
    ended_like(place, call(train, *RESUME, cwd=place), finished)
    assert not (place / "runs" / "demos" / "evaluation.json").exists()


def test_the_time_is_the_whole_runs_also_after_a_resume(place: Path) -> None:
    record = place / "runs" / "demos" / "state" / "state.safetensors"
    with safe_open(record, framework="pt") as opened:
        before = json.loads(opened.metadata()["facts"])["elapsed"]
    outcome = call(train, *RESUME, cwd=place)
    assert outcome.code == 0
    total = float(re.search(r"done in (\d+) s", outcome.out)[1])  # type: ignore[index]
    seconds = metrics(place / "runs" / "demos")[-1]["seconds"]
    assert total + 0.5 >= max(before, sum(seconds.values()) - 0.1 * len(seconds))
    assert seconds["save"] >= 0


# ---- full disks ----


@pytest.mark.parametrize("size", [500, 3000, 10_000, 20_000, 30_000, 50_000, 100_000])
def test_a_disk_that_is_full_leaves_the_last_state_and_one_line(
    place: Path, finished: Finished, size: int
) -> None:
    """No file may grow above `size` bytes."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        outcome = call(train, *INPUTS, *TINY, "--overwrite", cwd=place)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    if outcome.code:
        assert outcome.code == 2, outcome
        assert outcome.err.removeprefix(LOADING).count("\n") == 1
        assert re.search("go on with: python train.py --resume|nothing was begun", outcome.err)
        outcome = call(train, *RESUME, cwd=place)
    else:
        assert size > 30_000
    ended_like(place, outcome, finished)


LACKING = {
    "runs/demos: x: Read-only file system": OSError(errno.EROFS, os.strerror(errno.EROFS), "x"),
    "runs/demos: out of memory": RuntimeError("DefaultCPUAllocator: can't allocate memory"),
}


@pytest.mark.parametrize("said", LACKING)
def test_what_the_machine_lacks_is_one_line_and_the_command_that_goes_on(
    place: Path, finished: Finished, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Run.log

    def log_and_fail(run: Run, stage: str, step: int, measured: dict[str, Any]) -> None:
        log(run, stage, step, measured)
        if (stage, step) == ("ditto", 2):
            raise LACKING[said]

    monkeypatch.setattr(Run, "log", log_and_fail)
    outcome = call(train, *INPUTS, *TINY, "--overwrite", cwd=place)
    assert outcome.code == 2
    assert outcome.err == (
        f"{LOADING}train.py: {said}; what came before step 2 of ditto is kept; make room, "
        "then go on with: python train.py --resume runs/demos\n"
    )
    monkeypatch.undo()
    ended_like(place, call(train, *RESUME, cwd=place), finished)
    lines = [m for m in metrics(place / "runs" / "demos") if m["stage"] == "ditto"]
    assert ["sample" in m["seconds"] for m in lines] == [True, False, True, False]


# ---- bounds ----

HUGE = {
    "--samples-per-prompt 1000000000": "lower --samples-per-prompt",
    "--lora-rank 1000000000": "lower --lora-rank",
    "--max-steps 1000000000000": "lower --max-steps",
    "--max-new-tokens 1000000000000": "lower --max-new-tokens",
    "--learning-rate inf": "invalid float value: 'inf'",
    "--beta nan": "invalid float value: 'nan'",
    "--max-steps 100000000000000000000": "invalid int value",
}


@pytest.mark.parametrize("flags", HUGE)
def test_what_cannot_fit_in_memory_or_a_month_is_refused_by_the_knobs_name(
    place: Path, flags: str
) -> None:
    before = tree(place)
    outcome = call(train, *INPUTS, *TINY, *flags.split(), "--out", "runs/new", cwd=place)
    assert outcome.code == 2, outcome
    assert HUGE[flags] in outcome.err.removeprefix(LOADING)
    assert outcome.err.removeprefix(LOADING).count("\n") == 1
    assert tree(place) == before


def test_an_adapter_that_is_not_finite_is_never_saved(place: Path) -> None:
    outcome = call(train, *SFT[:-1], "runs/new", "--sft-learning-rate", "1e30", cwd=place)
    assert outcome.code == 2 and outcome.err.removeprefix(LOADING).count("\n") == 1
    assert not (place / "runs" / "new" / "adapter").exists()
    for value in (float("nan"), float("inf"), 1e30):
        with pytest.raises(InputError, match="beyond all bounds"):
            check_finite({"a": torch.tensor([1.0, value])})
    check_finite({"a": torch.tensor([1e3])})
