"""SPIN, and the reference that follows: each round begins against what the policy was."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.toys import Outcome, small_config, small_training

from minialign.losses import dpo_loss, spin_loss
from minialign.methods import spin as spin_module
from minialign.methods.spin import as_spin
from minialign.training.run import Interrupted, Run

ROUND = small_config().resample_every


@pytest.fixture(scope="module")
def spin(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return small_training(tmp_path_factory.mktemp("runs") / "spin", method=spin_module.train)


def test_every_comparison_is_a_demonstration_against_the_newest_samples(spin: Outcome) -> None:
    for step in spin.steps("spin"):
        assert step["pairs/replay"] == step["pairs/inter_model"] == 0 < step["pairs/expert"]


def test_each_round_begins_at_ln_2_with_margins_of_exactly_0(spin: Outcome) -> None:
    """The opponent is the reference, and at that moment it is the policy."""
    steps = spin.steps("spin")
    firsts = steps[::ROUND]
    assert len(firsts) >= 2
    for step in firsts:
        assert step["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert step["rewards/chosen"] == step["rewards/rejected"] == 0
    assert all(step["rewards/margins"] != 0 for i, step in enumerate(steps) if i % ROUND)


def test_a_frozen_reference_does_not_begin_again(tmp_path: Path) -> None:
    steps = small_training(tmp_path / "r").steps("ditto")
    assert steps[ROUND]["rewards/margins"] != 0


def test_the_opponent_stays_what_the_policy_was_when_the_round_began(spin: Outcome) -> None:
    assert spin.adapters["reference"] not in (spin.adapters["sft"], spin.adapters["spin"])


def test_spin_differs_from_ditto_in_the_mix_and_the_reference_alone() -> None:
    before = small_config()
    after = as_spin(before)
    changed = {name for name in vars(before) if getattr(before, name) != getattr(after, name)}
    fractions = {"expert_fraction", "replay_fraction", "inter_model_fraction"}
    assert changed == fractions | {"update_reference"}


def test_spins_loss_is_dpos_with_the_opponent_as_the_reference() -> None:
    logps = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).unbind()
    for a, b in zip(spin_loss(*logps, beta=0.3), dpo_loss(*logps, beta=0.3), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("step", [0, ROUND - 1, ROUND, ROUND + 1])
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(
    step: int, tmp_path: Path, spin: Outcome
) -> None:
    def stop(run: Run) -> None:
        log = run.log

        def log_and_stop(stage: str, at: int, metrics: dict[str, Any]) -> None:
            log(stage, at, metrics)
            run.interrupted = (stage, at) == ("spin", step)

        run.log = log_and_stop  # type: ignore[method-assign]

    folder = tmp_path / "r"
    with pytest.raises(Interrupted):
        small_training(folder, method=spin_module.train, prepare=stop)
    again = small_training(folder, method=spin_module.train, resume=True)
    assert again.same_as(spin)
