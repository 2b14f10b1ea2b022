"""Several processes train what one does, and end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.feedback_runs import write_data
from helpers.processes import ROOT, environment
from helpers.ranks import Ended, joined, together, trained
from helpers.runs import adapters, without_seconds
from helpers.workplaces import TINY, write_workplace

from minialign.training import ranks
from minialign.training.run import Run

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="its processes are forked")

# Micro-batches of a prompt or two, so that there is something to divide, and not evenly; dropout.
SMALL = ("--model", "toy", "--micro-batch-tokens", "48", "--lora-dropout", "0.1", "--out")
METHODS = {
    "ditto": (
        *("--method", "ditto", "--demos", "demos.jsonl", *TINY, "--anchors", "0.1"),
        # Adam turns the last bit of a gradient into a share of the learning rate.
        *("--sft-learning-rate", "0.003", *SMALL),
    ),
    "c3po": (
        *("--method", "c3po", "--data", "sam", "--lora-rank", "4", "--learning-rate", "0.003"),
        *("--epochs", "3", "--pairs-per-step", "3", *SMALL),
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both methods learn from, and each method's run by one process."""
    folder = write_workplace(tmp_path_factory.mktemp("ranks"))
    write_data(folder / "sam")
    for method, flags in METHODS.items():
        (alone,) = trained(1, [*flags, f"runs/{method}"], folder)
        assert alone.code == 0, alone.said
    return folder


def check_same(run: Path, alone: Path) -> None:
    found, wanted = adapters(run), adapters(alone)
    assert found.keys() == wanted.keys()
    assert any(tensor.abs().max() > 1e-3 for tensor in wanted.values())
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5)
    if (alone / "samples.jsonl").exists():
        assert texts(run) == texts(alone)
    for line, other in zip(without_seconds(run), without_seconds(alone), strict=True):
        assert line.keys() == other.keys() and line["stage"] == other["stage"]
        found_numbers, numbers = (
            {k: v for k, v in one.items() if isinstance(v, float)} for one in (line, other)
        )
        assert found_numbers == pytest.approx(numbers, rel=1e-3, abs=1e-4)
    assert (run / "report.html").exists() and not (run / "state").exists()


def texts(run: Path) -> list[dict[str, Any]]:
    """Samples, and whether each was compared; its scores may differ in their last digits."""
    lines = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    for line in lines:
        line["logprob"] = round(line["logprob"], 2)
        line["reference_logp"] = line["reference_logp"] is not None
    return lines


def check_all(ends: list[Ended], code: int) -> None:
    assert [end.code for end in ends] == [code] * len(ends), [end.said for end in ends]
    assert all(end.said == "" for end in ends[1:])


# Other numbers go on with a run, below, and must come to the same.
@pytest.mark.parametrize(("method", "count"), [("ditto", 3), ("c3po", 2)])
def test_several_processes_train_the_adapter_of_one(method: str, count: int, place: Path) -> None:
    ends = trained(count, [*METHODS[method], f"runs/{method} {count}"], place)
    check_all(ends, 0)
    assert ends[0].said.count("--- after") == 1
    check_same(place / "runs" / f"{method} {count}", place / "runs" / method)
    record = json.loads((place / "runs" / f"{method} {count}" / "config.json").read_text())
    assert record["command"].startswith(f"torchrun --nproc-per-node {count} train.py ")


def signalled(number: int, rank: int, step: int) -> Callable[[int], None]:
    """One process gets a signal once it has taken a step of the last stage."""

    def prepare(own: int) -> None:
        if own != rank:
            return
        steps = Run.steps

        def counted(run: Run, stage: str, *others: Any) -> Any:
            for at in steps(run, stage, *others):
                yield at
                if stage in METHODS and at == step:
                    signal.raise_signal(number)

        Run.steps = counted  # type: ignore[method-assign]

    return prepare


@pytest.mark.parametrize("method", METHODS)
def test_a_run_goes_on_with_another_number_of_processes(method: str, place: Path) -> None:
    out = f"runs/{method} again"
    stops = [signalled(signal.SIGINT, 1, 0), signalled(signal.SIGINT, 0, 1)]
    ends = trained(2, [*METHODS[method], out], place, stops[0])
    check_all(ends, 130)
    assert f"go on with: torchrun --nproc-per-node 2 train.py --resume '{out}'" in ends[0].said
    check_all(trained(1, ["--resume", out], place, stops[1]), 130)
    check_all(trained(3, ["--resume", out], place), 0)
    check_same(place / out, place / "runs" / method)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_all_with_one_line(killed: int, place: Path) -> None:
    out = f"runs/killed {killed}"
    dies = signalled(signal.SIGKILL, killed, 1)
    ends = trained(2, [*METHODS["ditto"], out], place, dies)
    other = ends[1 - killed]
    assert (ends[killed].code, other.code) == (-signal.SIGKILL, 2)
    assert other.seconds < ends[killed].seconds + 10
    # The others are silent in any case; torchrun itself says who died.
    line = other.said.splitlines()[-1] if killed else ""
    said = f"train.py: {out}: another process of this run has ended; what came before step"
    assert line.startswith(said) if killed else other.said == ""
    assert "Traceback" not in other.said
    assert (place / out / "state" / "state.safetensors").exists()


def test_what_is_refused_is_said_once(place: Path) -> None:
    ends = trained(2, ["--demos", "none.jsonl", "--model", "toy", "--out", "runs/none"], place)
    check_all(ends, 2)
    assert ends[0].said.count("\n") == 1 and "none.jsonl" in ends[0].said


# ---- the words that they exchange ----


def test_work_is_dealt_and_put_together_in_order(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        share = list(ranks.own("abcdefgh"))
        assert share == [*"abcdefgh"[rank::3]]
        assert ranks.whole([letter * 2 for letter in share]) == [
            2 * letter for letter in "abcdefgh"
        ]
        assert ranks.whole(list(ranks.own("a"))) == ["a"]
        assert ranks.whole(None if rank == 2 else share) is None
        assert [ranks.anybody(rank == 1), ranks.anybody(False)] == [True, False]

    check_all(together(3, joined(work), tmp_path), 0)


def test_gradients_are_added_up_where_there_are_any(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        first, second = torch.zeros(2, 3), torch.zeros(4)
        ranks.add_up([first, second])
        assert first.grad is None and second.grad is None
        if rank == 1:
            first.grad, second.grad = torch.ones(2, 3), torch.arange(4.0)
        if rank == 2:
            first.grad, second.grad = torch.ones(2, 3), torch.ones(4)
        ranks.add_up([first, second])
        assert torch.equal(first.grad, torch.full((2, 3), 2.0))
        assert torch.equal(second.grad, torch.arange(4.0) + 1)

    check_all(together(3, joined(work), tmp_path), 0)


def test_a_part_has_random_numbers_of_its_own(tmp_path: Path) -> None:
    def drawn(part: int) -> tuple[torch.Tensor]:
        return (torch.rand(part),)

    wanted = [numbers.tolist() for (numbers,) in ranks.divided(drawn, [1, 3, 2, 4], seed=5)]
    assert len({tuple(numbers) for numbers in wanted}) == 4

    def work(rank: int) -> None:
        found = ranks.divided(drawn, [1, 3, 2, 4], seed=5)
        assert [numbers.tolist() for (numbers,) in found] == wanted

    check_all(together(3, joined(work), tmp_path), 0)


def test_processes_take_turns(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        for _ in range(3):
            with ranks.in_turn():
                with open("turns.txt", "a") as file:
                    file.write(str(rank))

    check_all(together(3, joined(work), tmp_path), 0)
    assert (tmp_path / "turns.txt").read_text() == "012" * 3


# ---- torchrun itself ----


def test_ctrl_c_at_torchrun_ends_all_in_order(place: Path) -> None:
    out = place / "runs" / "torchrun"
    sft = ("--method", "sft", "--sft-max-steps", "5000", "--sft-stop-loss", "0")
    many = (*sft, "--demos", "demos.jsonl", *SMALL, "runs/torchrun")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    with open(place / "torchrun.txt", "w+") as log:
        process = subprocess.Popen(
            [sys.executable, *torchrun, str(ROOT / "train.py"), *many],
            cwd=place,
            env=environment(),
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        while process.poll() is None and not (out / "metrics.jsonl").exists():
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        process.wait(30)
        log.seek(0)
        said = log.read()
    assert said.count("finishing this step, then saving") == 1, said
    assert said.count("saved; go on with: torchrun --nproc-per-node 2 train.py --resume") == 1, said
    assert (out / "state" / "state.safetensors").exists()
