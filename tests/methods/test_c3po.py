"""C3PO from end to end at toy size: its first step, its knobs, and going on after a stop."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.c3po import (
    DATA,
    DPO,
    HELD_OUT,
    KL,
    KNOBS_IN_A_SETTING,
    SCD,
    SETTINGS,
    fresh_policy,
    make_data,
    naive_loss,
    small_config,
    small_training,
)
from helpers.refusals import refusal
from helpers.toys import Outcome, naive_score, small_model
from torch import Tensor

from minialign.data.knobs import flags_of
from minialign.data.records import Example
from minialign.losses import C3POLoss
from minialign.methods import c3po
from minialign.methods.batches import Batch
from minialign.methods.c3po import ADAPTER
from minialign.methods.knobs import C3POConfig
from minialign.methods.lessons import Lessons
from minialign.training.run import Interrupted, Run


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return small_training(tmp_path_factory.mktemp("runs") / "baseline", held_out=HELD_OUT)


# ---- the first step ----


@pytest.mark.parametrize("setting", [{}, DPO, KL], ids=str)
@pytest.mark.parametrize("micro_batch_tokens", [1, 70, 2048])
def test_the_first_preference_is_ln_2_and_every_margin_exactly_0(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    micro_batch_tokens: int,
    setting: dict[str, Any],
) -> None:
    """Policy and reference are one, and both are computed in one layout."""
    rewards: list[float] = []

    def spy(*args: Tensor, **knobs: Any) -> C3POLoss:
        found = real(*args, **knobs)
        rewards.extend([*found.chosen_rewards.tolist(), *found.rejected_rewards.tolist()])
        return found

    real = c3po.c3po_loss
    monkeypatch.setattr(c3po, "c3po_loss", spy)
    config = small_config(epochs=1.0, pairs_per_step=5, **setting)
    outcome = small_training(tmp_path / "r", config, micro_batch_tokens=micro_batch_tokens)
    (first,) = outcome.steps("c3po")
    assert first["dpo"] == pytest.approx(math.log(2), abs=1e-7)
    assert first["rewards/margins"] == first["rewards/chosen"] == first["rewards/rejected"] == 0
    assert len(rewards) == 10 and set(rewards) == {0.0}
    if setting == KL:
        assert first["kl/out"] == first["kl/near"] == 0


# ---- the terms ----


def test_the_terms_that_are_told_of_add_up_to_the_loss(baseline: Outcome) -> None:
    for line in baseline.steps("c3po"):
        assert json.loads(json.dumps(line)) == line
        weighted = line["dpo"] + 0.2 * line["nll/out"] + 0.1 * line["nll/near"]
        assert line["loss"] == pytest.approx(weighted, abs=1e-5)
        margin = line["rewards/chosen"] - line["rewards/rejected"]
        assert line["rewards/margins"] == pytest.approx(margin, abs=1e-6)
        assert line["tokens"] > 0 and line["grad_norm"] > 0 and line["nll/in_scope"] > 0
    assert [line["step"] for line in baseline.steps("c3po")] == list(range(6))
    peak = 3e-3
    rates = [line["lr"] for line in baseline.steps("c3po")]  # warm-up over 3 of 6, then a cosine
    assert rates == pytest.approx([peak / 3, 2 * peak / 3, peak, peak, 0.75 * peak, 0.25 * peak])


# ---- it learns ----


def test_c3po_learns_the_revisions_and_keeps_the_other_answers(tmp_path: Path) -> None:
    config = small_config(epochs=24.0, learning_rate=0.01, **{"lora.rank": 8})
    steps = small_training(tmp_path / "a", config).steps("c3po")
    assert steps[0]["dpo"] > 0.69 and steps[-1]["dpo"] < 0.1
    assert steps[-1]["rewards/accuracies"] == 1
    assert steps[-1]["rewards/chosen"] > steps[-1]["rewards/rejected"]
    kept = [(s["nll/out"], s["nll/near"]) for s in (steps[0], steps[-1])]
    assert kept[1][0] < kept[0][0] / 2 and kept[1][1] < kept[0][1] / 2
    assert steps[-1]["loss"] < steps[0]["loss"] / 3


def test_the_constraints_keep_answers_that_dpo_alone_would_lose(tmp_path: Path) -> None:
    config = {"epochs": 24.0, "learning_rate": 0.01}
    model = small_model()
    before = sum(naive_score(model, s).item() for s in DATA.out_of_scope)
    after = {}
    for name, setting in {"dpo": DPO, "c3po": {}, "kl": KL | {"lambda_out": 5.0}}.items():
        found = small_training(tmp_path / name, small_config(**config | setting))
        after[name] = sum(naive_score(found.model, s).item() for s in DATA.out_of_scope)
    assert after["dpo"] < after["c3po"] and after["c3po"] > before
    assert abs(after["kl"] - before) < abs(after["dpo"] - before)


def test_sft_learns_the_revisions_by_heart(tmp_path: Path) -> None:
    config = small_config(epochs=40.0, learning_rate=0.02, **SCD | {"lora.rank": 8})
    steps = small_training(tmp_path / "r", config).steps("c3po")
    assert steps[0]["loss"] > 4 and steps[-1]["loss"] < 1
    assert steps[-1]["loss"] == pytest.approx(steps[-1]["nll/in_scope"])


def test_a_model_in_training_is_put_into_evaluation(tmp_path: Path) -> None:
    config = small_config(epochs=0.1)
    model = fresh_policy(config).train()
    nothing = make_data(pairs=0, near=0, out=0)
    c3po.train(model, Lessons(DATA, nothing), config, Run.create(tmp_path / "r", {}))
    assert not model.training


def test_only_the_adapter_changes(baseline: Outcome) -> None:
    fresh = fresh_policy(small_config())
    for name, tensor in baseline.model.state_dict().items():
        assert torch.equal(tensor, fresh.state_dict()[name]) == ("lora" not in name), name


def test_held_out_terms_are_logged_with_the_last_step_and_change_nothing(
    tmp_path: Path, baseline: Outcome
) -> None:
    steps = baseline.steps("c3po")
    assert [m["step"] for m in steps if "eval/dpo" in m] == [5]
    config, model = small_config(), baseline.model
    batch = Batch.of(HELD_OUT, config)
    assert steps[-1]["eval/loss"] == pytest.approx(
        naive_loss(model, batch, config).item(), rel=1e-4
    )
    assert {"eval/nll/out", "eval/nll/near", "eval/rewards/margins"} <= steps[-1].keys()
    without = small_training(tmp_path / "without")
    assert without.adapters == baseline.adapters
    assert not any(key.startswith("eval/") for m in without.metrics for key in m)


def test_held_out_data_may_lack_a_scope(tmp_path: Path) -> None:
    for number, held_out in enumerate([make_data("x", 2, 0, 0), make_data("x", 0, 2, 2)]):
        steps = small_training(tmp_path / str(number), held_out=held_out).steps("c3po")
        assert ("eval/dpo" in steps[-1]) == (number == 0)
        assert "eval/nll/out" not in steps[-1]


# ---- the knobs ----


KNOBS: dict[str, dict[str, Any]] = {
    "lora.rank": {"lora.rank": 5},
    "lora.alpha": {"lora.alpha": 16.0},
    "lora.target_modules": {"lora.target_modules": ("q_proj", "up_proj")},
    "loss": {"loss": "sft"},
    "epochs": {"epochs": 1.5},
    "pairs_per_step": {"pairs_per_step": 3},
    "beta": {"beta": 0.5},
    "lambda_out": {"lambda_out": 0.3},
    "lambda_near": {"lambda_near": 0.3},
    "constraint": {"constraint": "kl"},
    "constraint_reduction": {"constraint_reduction": "sum"},
    "learning_rate": {"learning_rate": 1e-3},
    "warmup_ratio": {"warmup_ratio": 0.0},
    "max_grad_norm": {"max_grad_norm": 0.01},
    "weight_decay": {"weight_decay": 0.5},
}


def test_every_knob_stands_in_the_list_above() -> None:
    """But for `max_length`, which the encoding takes, and those of test_preferences.py."""
    elsewhere = {"max_length", *KNOBS_IN_A_SETTING}
    assert set(KNOBS) == {".".join(flag.path) for flag in flags_of(C3POConfig)} - elsewhere


@pytest.mark.parametrize("path", KNOBS)
def test_every_knob_changes_something(path: str, tmp_path: Path, baseline: Outcome) -> None:
    found = small_training(tmp_path / "r", small_config(**KNOBS[path]))
    assert found.adapters[ADAPTER] != baseline.adapters[ADAPTER]


def test_the_three_reductions_are_three(tmp_path: Path) -> None:
    found = [
        small_training(tmp_path / name, small_config(constraint_reduction=name)).adapters[ADAPTER]
        for name in ("token_mean", "sequence_mean", "sum")
    ]
    assert found[0] != found[1] != found[2] != found[0]


REFUSED: list[dict[str, Any]] = [
    {"epochs": 0.0},
    {"pairs_per_step": 0},
    {"beta": 0.0},
    {"lambda_out": -0.1},
    {"lambda_near": -0.1},
    {"learning_rate": 0.0},
    {"warmup_ratio": 1.1},
    {"max_grad_norm": 0.0},
    {"weight_decay": -1.0},
    {"max_length": 15},
]


@pytest.mark.parametrize("changes", REFUSED, ids=str)
def test_impossible_knobs_are_refused_by_name(changes: dict[str, Any]) -> None:
    (name,) = changes
    assert name in refusal(lambda: small_config(**changes))


def test_config_is_never_mutated(tmp_path: Path) -> None:
    config = small_config()
    before = dataclasses.asdict(config)
    small_training(tmp_path / "r", config)
    assert dataclasses.asdict(config) == before


# ---- the same again, and going on ----


def test_the_same_seed_gives_the_same_run_and_another_seed_another(
    tmp_path: Path, baseline: Outcome
) -> None:
    assert small_training(tmp_path / "again", held_out=HELD_OUT).same_as(baseline)
    other = small_training(tmp_path / "other", held_out=HELD_OUT, seed=1)
    assert other.adapters != baseline.adapters


def stop_after(step: int) -> Callable[[Run], None]:
    """As a person would: Ctrl-C while a step is at work."""

    def prepare(run: Run) -> None:
        log = run.log

        def log_and_stop(stage: str, at_step: int, metrics: dict[str, Any]) -> None:
            log(stage, at_step, metrics)
            run.interrupted |= at_step == step

        run.log = log_and_stop  # type: ignore[method-assign]

    return prepare


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("stops", [[0], [3], [1, 4]], ids=str)
@pytest.mark.parametrize("micro_batch_tokens", [60, 2048])
def test_a_resumed_run_is_the_uninterrupted_run_bit_for_bit(
    stops: list[int], name: str, micro_batch_tokens: int, tmp_path: Path
) -> None:
    """In the second epoch too, where reference scores of the first are still in use."""
    options: dict[str, Any] = {"held_out": HELD_OUT, "micro_batch_tokens": micro_batch_tokens}
    config = small_config(**SETTINGS[name])
    whole = small_training(tmp_path / "whole", config, **options)
    for count, step in enumerate(stops):
        with pytest.raises(Interrupted):
            small_training(
                tmp_path / "r", config, **options, prepare=stop_after(step), resume=count > 0
            )
    assert small_training(tmp_path / "r", config, **options, resume=True).same_as(whole)


def test_reference_scores_are_not_computed_again_after_a_stop(
    scored: list[Example], tmp_path: Path
) -> None:
    config = small_config(epochs=4.0, pairs_per_step=5, **DPO)
    with pytest.raises(Interrupted):
        small_training(tmp_path / "r", config, prepare=stop_after(1))
    scored.clear()
    small_training(tmp_path / "r", config, resume=True)
    assert Counter(scored) == {s: 2 for pair in DATA.in_scope for s in pair}
