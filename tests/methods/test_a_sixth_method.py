"""A method is one file and one card: a toy one, in a folder of its own, does all that others do."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import call, evaluate, train
from helpers.workplaces import write_workplace

from minialign.data.records import DEMONSTRATIONS
from minialign.methods import cards
from minialign.methods.cards import Card, Curve, Overlay, Stage
from minialign.methods.knobs import RECIPES
from minialign.training.run import Run

# Likelihood on the demonstrations with a constant learning rate, and nothing else.
SOURCE = '''
"""A toy method: the demonstrations' likelihood, a step each in turn."""

from minialign.losses import sft_loss
from minialign.methods.lessons import Lessons, Part, Work
from minialign.policy.adapters import trainable_parameters
from minialign.policy.score import score
from minialign.training.optimizer import Optimizer, constant_with_warmup
from minialign.training.state import Parts


def train(model, lessons, knobs, run):
    optimizer = Optimizer(
        trainable_parameters(model),
        knobs.learning_rate,
        constant_with_warmup,
        total_steps=knobs.max_steps,
        warmup_ratio=0.0,
        weight_decay=0.0,
        max_grad_norm=1.0,
    )
    parts = Parts(model, optimizer=optimizer)
    first = run.restore("copycat", parts) or 0
    model.eval()
    for step in run.steps("copycat", first, knobs.max_steps, parts):
        example = lessons.train[step % len(lessons.train)]
        with run.phase("train"):
            loss = sft_loss(score(model, [example]), len(example.completion_ids))
            loss.backward()
            metrics = {"loss": loss.item(), "tokens": len(example), **optimizer.step(step)}
        run.log("copycat", step, metrics)


def work(lessons, knobs, tokens):
    example = lessons.train[0]
    read = knobs.max_steps * len(example)
    return Work(
        read,
        0,
        tokens,
        lessons.train,
        stages=[("copycat", f"{knobs.max_steps} steps, one text at a time")],
        tokens=f"{read:,} tokens read",
        shown=[Part("completion", example.completion_ids, 0, 0)],
    )
'''
KNOBS = ("--max-steps", "5", "--learning-rate", "0.003", "--lora-rank", "4")
STAGE = Stage(
    "copycat",
    "COPYCAT",
    lambda knobs, source: (Curve("loss", "nats a text", (("loss", "the one text", 2),)),),
    lambda knobs, source: (Overlay("loss", "Copied", "nats a text"),),
    ("max_steps",),
)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A workplace, and the toy method registered for as long as the test runs."""
    write_workplace(tmp_path)
    (tmp_path / "plugins").mkdir()
    (tmp_path / "plugins" / "copycat.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path / "plugins"))
    monkeypatch.setattr(cards, "CARDS", list(cards.CARDS))
    cards.register(
        Card(
            name="copycat",
            title="COPYCAT",
            help="a toy",
            learns_from=(DEMONSTRATIONS,),
            recipes=RECIPES,
            stages=(STAGE,),
            module="copycat",
            unread=("beta",),
            color=6,
        )
    )
    yield tmp_path
    sys.modules.pop("copycat", None)


def run_it(cwd: Path, out: str, *more: str) -> Any:
    arguments = ("--method", "copycat", "--demos", "demos.jsonl", "--model", "toy", "--out", out)
    return call(train, *arguments, *KNOBS, *more, cwd=cwd)


def adapter(folder: Path) -> bytes:
    return (folder / "adapter" / "adapter_model.safetensors").read_bytes()


def lines_of(folder: Path) -> list[dict[str, Any]]:
    text = (folder / "metrics.jsonl").read_text()
    return [json.loads(line) | {"seconds": 0, "peak_bytes": 0} for line in text.splitlines()]


def test_it_is_in_the_help_the_plan_and_the_report(workplace: Path) -> None:
    assert "copycat (a toy)" in " ".join(call(train, "--help", cwd=workplace).out.split())
    outcome = run_it(workplace, "runs/one")
    assert outcome.code == 0, outcome.err
    assert "recipe  laptop, method copycat" in outcome.out
    assert "copycat  5 steps, one text at a time" in outcome.out
    page = (workplace / "runs" / "one" / "report.html").read_text(encoding="utf-8")
    assert "COPYCAT: loss" in page and "nats a text" in page
    assert not (workplace / "runs" / "one" / "state").exists()


def test_it_goes_on_bit_for_bit(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_it(workplace, "runs/whole").code == 0
    log = Run.log

    def stop(self: Run, stage: str, step: int, found: dict[str, Any]) -> None:
        log(self, stage, step, found)
        self.interrupted = step == 1

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", stop)
        assert run_it(workplace, "runs/cut").code == 130
    assert call(train, "--resume", "runs/cut", cwd=workplace).code == 0
    whole, cut = workplace / "runs" / "whole", workplace / "runs" / "cut"
    assert adapter(whole) == adapter(cut)
    assert lines_of(whole) == lines_of(cut)


def test_its_knobs_are_checked_and_its_tokens_shown(workplace: Path) -> None:
    outcome = run_it(workplace, "runs/no", "--beta", "0.2")
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "--method copycat makes no use of --beta" in outcome.err
    outcome = run_it(workplace, "runs/no", "--inspect")
    assert outcome.code == 0 and "* completion" in outcome.out


def test_it_is_compared_and_evaluated(workplace: Path) -> None:
    outcome = run_it(workplace, "runs/grid", "--sweep", "weight_decay=0,0.1")
    assert outcome.code == 0, outcome.err
    page = (workplace / "runs" / "grid" / "comparison.html").read_text(encoding="utf-8")
    assert "COPYCAT" in page and "Copied" in page
    folder = "runs/grid/weight_decay=0.1"
    flags = ("--against", "base", "-n", "1", "--max-new-tokens", "4", "--general", "0")
    outcome = call(evaluate, folder, *flags, cwd=workplace)
    assert outcome.code == 0, outcome.err
    found = json.loads((workplace / folder / "evaluation.json").read_text())
    assert list(found["contestants"]) == ["base", "copycat"]


def test_a_name_that_is_taken_is_refused() -> None:
    with pytest.raises(ValueError, match="there is a method called sft already"):
        cards.register(cards.card_of("sft", DEMONSTRATIONS))
