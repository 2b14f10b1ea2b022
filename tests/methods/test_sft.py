"""SFT at toy size: it learns, and it stops where it is told to."""

from __future__ import annotations

from pathlib import Path

from helpers.toys import change, small_config, small_training

from minialign.methods import sft


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
