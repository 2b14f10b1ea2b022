"""SFT at toy size: it learns, and it stops where it is told to."""

from __future__ import annotations

from pathlib import Path

from helpers.toys import change, small_config, small_training

from minialign.methods import sft
from minialign.methods.knobs import SFTConfig


def test_sft_learns_the_demonstrations_by_heart_when_allowed_to(tmp_path: Path) -> None:
    config = small_config(
        **{"sft.max_steps": 80, "sft.learning_rate": 0.02, "sft.batch_size": 4, "lora.rank": 16}
    )
    steps = small_training(tmp_path / "r", config, method=sft.train).steps("sft")
    assert steps[0]["loss"] > 4 and steps[-1]["loss"] < 0.5


def test_sft_stops_after_the_first_step_below_the_threshold(tmp_path: Path) -> None:
    slow = {"sft.max_steps": 12, "sft.learning_rate": 0.02}
    config = small_config(**slow | {"sft.stop_loss": 0.0})
    losses = [
        m["loss"] for m in small_training(tmp_path / "a", config, method=sft.train).steps("sft")
    ]
    assert len(losses) == 12
    threshold = sorted(losses)[4]
    stopped = small_training(
        tmp_path / "b", change(config, {"sft.stop_loss": threshold}), method=sft.train
    )
    first = next(i for i, loss in enumerate(losses) if loss < threshold)
    assert [m["loss"] for m in stopped.steps("sft")] == losses[: first + 1]


def test_a_voice_that_begins_below_the_threshold_is_trained_all_the_same(tmp_path: Path) -> None:
    slow = small_config(**{"sft.max_steps": 12, "sft.learning_rate": 0.02, "sft.stop_loss": 0.0})
    losses = [
        m["loss"] for m in small_training(tmp_path / "a", slow, method=sft.train).steps("sft")
    ]
    ratio = sorted(losses)[4] / losses[0]
    stopping = {"sft.stop_ratio": ratio, "sft.stop_loss": 100.0}
    stopped = small_training(tmp_path / "b", change(slow, stopping), method=sft.train)
    first = next(i for i, loss in enumerate(losses) if loss < ratio * losses[0])
    assert [m["loss"] for m in stopped.steps("sft")] == losses[: first + 1]


def test_both_limits_must_be_passed() -> None:
    early = sft.EarlyStop(SFTConfig(stop_loss=2.4, stop_ratio=0.8))
    assert not early(4.0) and not early(2.5) and early(2.3)
    early = sft.EarlyStop(SFTConfig(stop_loss=2.4, stop_ratio=0.8))
    assert not early(2.3) and not early(1.9) and early(1.8)


def test_a_stop_remembers_the_first_loss_over_an_interruption() -> None:
    knobs = SFTConfig(stop_loss=9.0, stop_ratio=0.5)
    early = sft.EarlyStop(knobs)
    assert not early(4.0) and not early(3.0)
    resumed = sft.EarlyStop(knobs)
    resumed.load_state(early.state())
    assert not resumed(2.1) and resumed(1.9)
    assert resumed.summary() == "4 steps, loss 4.00 -> 1.90 nats per token"


def test_a_warm_start_with_nothing_to_learn_says_so() -> None:
    early = sft.EarlyStop(SFTConfig(stop_loss=1.0))
    assert early(0.38)
    assert "below 1 from the start" in early.summary()
