"""Anchors: what a voice costs elsewhere, held down by the base model's own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.toys import ANCHOR_PROMPTS, fresh_policy, gradients, small_config, small_training

from minialign.methods import sft
from minialign.methods.anchors import PER_STEP, Anchors
from minialign.policy.adapters import adapter_parameters
from minialign.policy.score import divergence
from minialign.training.dealing import deal
from minialign.training.run import Interrupted, Run

STRONG = {"sft.max_steps": 12, "sft.learning_rate": 0.02, "sft.stop_loss": 0.0, "lora.dropout": 0.0}


def written(weight: float, folder: Path) -> tuple[Any, Anchors, Run]:
    model = fresh_policy(small_config())
    run = Run.create(folder, {})
    return model, Anchors.to(model, ANCHOR_PROMPTS, weight, run), run


def test_anchors_are_the_base_models_answers_and_the_same_in_every_run(tmp_path: Path) -> None:
    model, anchors, _ = written(1.0, tmp_path / "a")
    with torch.no_grad():
        for parameter in adapter_parameters(model, "sft"):
            parameter.add_(1)  # a policy that has moved writes the same anchors
    again = Anchors.to(model, ANCHOR_PROMPTS, 1.0, Run.create(tmp_path / "b", {}))
    assert [s.prompt_ids for s in anchors.sequences] == ANCHOR_PROMPTS
    assert again.sequences == anchors.sequences


def test_without_a_weight_nothing_is_written_and_nothing_added(tmp_path: Path) -> None:
    model, anchors, run = written(0.0, tmp_path / "a")
    assert anchors.sequences == []
    assert anchors.backward(model, "sft", 0, run) == {}
    assert all(p.grad is None for p in adapter_parameters(model, "sft"))


def test_a_policy_that_has_not_moved_is_not_held(tmp_path: Path) -> None:
    model, anchors, run = written(1.0, tmp_path / "a")
    assert anchors.backward(model, "sft", 0, run)["kl/anchors"] == pytest.approx(0, abs=1e-6)
    assert max(float(g.abs().max()) for g in gradients(model, "sft")) < 1e-5


@pytest.mark.parametrize("micro_batch_tokens", [1, 2048])
def test_the_gradient_is_the_divergences_times_the_weight(
    tmp_path: Path, micro_batch_tokens: int
) -> None:
    model, anchors, run = written(0.5, tmp_path / "a")
    run.micro_batch_tokens = micro_batch_tokens
    with torch.no_grad():
        for parameter in adapter_parameters(model, "sft"):
            parameter.add_(0.05)
    found = anchors.backward(model, "sft", 3, run)["kl/anchors"]
    gradient = gradients(model, "sft")
    batch = deal(anchors.sequences, PER_STEP, 3, f"{run.derive_seed('anchors/sft', 0)}/sft")
    assert len(set(batch)) == PER_STEP
    tokens = sum(len(s.completion_ids) for s in batch)
    mean = divergence(model, batch, None).sum() / tokens
    (0.5 * mean).backward()
    assert found == pytest.approx(float(mean), rel=1e-5) and found > 0
    for a, b in zip(gradient, gradients(model, "sft"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_anchors_hold_the_drift_down_and_the_voice_is_learned_all_the_same(tmp_path: Path) -> None:
    drifts, losses = [], []
    for weight in (0.0, 1.0):
        config = small_config(**STRONG, anchors=weight)
        outcome = small_training(tmp_path / f"{weight}", config, method=sft.train)
        probe = Anchors.to(outcome.model, ANCHOR_PROMPTS, 1.0, Run(tmp_path))
        with torch.no_grad():
            drifts.append(float(divergence(outcome.model, probe.sequences, None).sum()))
        losses.append(outcome.steps("sft")[-1]["loss"])
        assert ("kl/anchors" in outcome.steps("sft")[0]) == bool(weight)
    assert drifts[1] < 0.75 * drifts[0]
    assert losses[1] < losses[0] + 0.2


def test_an_anchored_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    config = small_config(anchors=0.5)
    whole = small_training(tmp_path / "a", config)

    def stop(run: Run) -> None:
        log = run.log

        def log_and_stop(stage: str, step: int, metrics: dict[str, Any]) -> None:
            log(stage, step, metrics)
            run.interrupted = (stage, step) == ("ditto", 1)

        run.log = log_and_stop  # type: ignore[method-assign]

    with pytest.raises(Interrupted):
        small_training(tmp_path / "b", config, prepare=stop)
    assert small_training(tmp_path / "b", config, resume=True).same_as(whole)
