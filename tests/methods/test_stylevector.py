"""Steering by a vector: its formula by hand, what it adds to a layer, and its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import call, evaluate, train
from helpers.refusals import refusal
from helpers.runs import without_seconds
from helpers.toys import Outcome, change, outcome, small_model
from helpers.workplaces import write_workplace

from minialign.data.knobs import flags_of
from minialign.data.records import Example
from minialign.methods import stylevector
from minialign.methods.lessons import Lessons
from minialign.methods.steering_knobs import StyleVectorConfig
from minialign.methods.stylevector import constant_direction, observed, style_vector
from minialign.policy.adapters import apply_lora, set_adapter
from minialign.policy.knobs import SamplingConfig
from minialign.training.run import Run

TEXTS = [Example((1, 80, 81 + n), (*range(90, 95 + n), 2)) for n in range(4)]
CONFIG = StyleVectorConfig(sampling=SamplingConfig(max_new_tokens=6), samples_per_prompt=2)


def small_steering(folder: Path, **changes: Any) -> Outcome:
    config: Any = change(CONFIG, changes)  # type: ignore[arg-type]
    model = small_model()
    generator = torch.Generator().manual_seed(0)
    apply_lora(model, config.lora, stylevector.ADAPTER, generator)
    stylevector.train(model, Lessons(TEXTS, TEXTS[:1]), config, Run.create(folder, {}))
    return outcome(folder, model)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return small_steering(tmp_path_factory.mktemp("runs") / "baseline")


def test_the_vector_is_the_mean_contrast_of_the_prompts() -> None:
    first = (torch.tensor([[4.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 2.0]]))  # (2, -1)
    second = (torch.tensor([[0.0, 3.0], [0.0, 5.0]]), torch.tensor([[0.0, 1.0]]))  # (0, 3)
    assert style_vector([first, second]).tolist() == [1.0, 1.0]


def test_the_direction_makes_a_constant_of_what_is_read() -> None:
    one = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    # a (1 + 3) / 2 = 1, whatever the ridge
    assert constant_direction(one, 0.7).tolist() == pytest.approx([0.5])
    both = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    assert constant_direction(both, 0.0).tolist() == pytest.approx([1.0, 0.5])
    # Gram (1, 4) and a ridge of .4 * 2.5 = 1: a is (1 / 2, 2 / 5), scaled to a mean of 1
    assert constant_direction(both, 0.4).tolist() == pytest.approx([0.5 / 0.65, 0.4 / 0.65])


@torch.no_grad()
def test_a_middle_layer_adds_the_vector_and_no_other_does(baseline: Outcome) -> None:
    model, text = baseline.model, TEXTS[1]
    set_adapter(model, None)
    before, inputs = observed(model, 0, [text], 512)
    set_adapter(model, stylevector.ADAPTER)
    after, _ = observed(model, 0, [text], 512)
    layer = model.model.layers[0].mlp.down_proj
    a, b = layer.lora_A[stylevector.ADAPTER], layer.lora_B[stylevector.ADAPTER]
    share = (inputs[2:] @ a[0].double()).mean()  # of the tokens that predict the text
    added = after[text] - before[text]
    torch.testing.assert_close(added, share * b[:, 0].double(), rtol=1e-3, atol=1e-5)
    assert share.item() == pytest.approx(1, abs=0.2)
    assert not model.model.layers[1].mlp.down_proj.lora_B[stylevector.ADAPTER].any()


KNOBS: dict[str, dict[str, Any]] = {
    "sampling.max_new_tokens": {"sampling.max_new_tokens": 4},
    "sampling.temperature": {"sampling.temperature": 0.0},
    "sampling.top_p": {"sampling.top_p": 0.3},
    "sampling.top_k": {"sampling.top_k": 2},
    "sampling.rollout_dtype": {"sampling.rollout_dtype": "int8"},
    "samples_per_prompt": {"samples_per_prompt": 1},
    "strength": {"strength": 2.0},
    "depth": {"depth": 1.0},
}


def test_every_knob_stands_in_the_list_above() -> None:
    """But for what is cut before, and two on which memory alone depends."""
    elsewhere = {"max_length", "sampling.max_rows", "sampling.cache_gb"}
    assert set(KNOBS) == {".".join(flag.path) for flag in flags_of(StyleVectorConfig)} - elsewhere


@pytest.mark.parametrize("path", KNOBS)
def test_every_knob_changes_something(path: str, tmp_path: Path, baseline: Outcome) -> None:
    found = small_steering(tmp_path / "r", **KNOBS[path])
    assert found.adapters[stylevector.ADAPTER] != baseline.adapters[stylevector.ADAPTER]


@pytest.mark.parametrize("changes", [{"samples_per_prompt": 0}, {"depth": 1.5}, {"max_length": 3}])
def test_impossible_knobs_are_refused_by_name(changes: dict[str, Any]) -> None:
    assert next(iter(changes)) in refusal(lambda: change(CONFIG, changes))  # type: ignore[arg-type]


def test_a_run_is_planned_resumed_bit_for_bit_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_workplace(tmp_path)
    arguments = ("--method", "stylevector", "--demos", "demos.jsonl", "--model", "toy")
    arguments += ("--max-new-tokens", "8")
    outcome = call(train, *arguments, "--out", "runs/whole", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert "nothing is trained" in outcome.out

    def stop(self: Run, *_: Any) -> Any:
        self.interrupted = True
        return lambda *_: self._stop_if_asked()

    with monkeypatch.context() as patch:
        patch.setattr(Run, "sampling_progress", stop)
        assert call(train, *arguments, "--out", "runs/cut", cwd=tmp_path).code == 130
    assert call(train, "--resume", "runs/cut", cwd=tmp_path).code == 0
    whole, cut = tmp_path / "runs" / "whole", tmp_path / "runs" / "cut"
    file = "adapter/adapter_model.safetensors"
    assert (whole / file).read_bytes() == (cut / file).read_bytes()
    assert without_seconds(whole) == without_seconds(cut)
    flags = ("--against", "base", "-n", "1", "--max-new-tokens", "4", "--general", "0")
    outcome = call(evaluate, "runs/whole", *flags, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
