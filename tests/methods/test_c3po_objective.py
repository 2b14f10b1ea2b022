"""C3PO's objective against its definition, what is not computed, and what a step is made of."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from helpers.c3po import (
    DATA,
    DPO,
    KL,
    SCD,
    SETTINGS,
    encode,
    naive_loss,
    small_config,
    small_training,
)
from helpers.toys import change, gradients, naive_score, small_model, with_adapter

from minialign.data.records import Example
from minialign.methods.batches import Batch
from minialign.methods.c3po import ADAPTER, c3po_step
from minialign.methods.knobs import C3POConfig
from minialign.policy.encode import ScopedExamples
from minialign.policy.reference import reference_policy
from minialign.policy.reference_scores import ReferenceScores
from minialign.training.dealing import deal

# ---- the objective ----


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "sum"])
@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("micro_batch_tokens", [1, 60, 10_000])
def test_loss_and_gradient_are_the_definitions_however_the_step_is_cut(
    name: str, reduction: str, micro_batch_tokens: int
) -> None:
    config = small_config(constraint_reduction=reduction, lambda_out=0.7, lambda_near=0.3)
    config = change(config, SETTINGS[name])  # type: ignore[arg-type,assignment]
    model = with_adapter(small_model(), ADAPTER)
    batch = Batch.of(DATA, config)
    naive = naive_loss(model, batch, config)
    naive.backward()
    expected = gradients(model, ADAPTER)
    assert max(float(g.abs().max()) for g in expected) > 0.1
    reference = ReferenceScores(model, None)
    metrics = c3po_step(model, batch, reference, config, micro_batch_tokens)
    assert metrics["loss"] == pytest.approx(naive.item(), rel=1e-4)
    for own, other in zip(gradients(model, ADAPTER), expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)


def test_what_both_texts_of_a_pair_begin_with_is_read_once_and_changes_no_gradient() -> None:
    texts = (("the cat sat", "the cat ran off"), ("the end", "the end of it"), ("so", "no"))
    pairs = tuple((encode(f"hi {i}", a), encode(f"hi {i}", b)) for i, (a, b) in enumerate(texts))
    config = small_config(**DPO)
    model = with_adapter(small_model(), ADAPTER)
    naive = naive_loss(model, Batch(list(pairs), [], []), config)
    naive.backward()
    expected = gradients(model, ADAPTER)
    batch = Batch.of(ScopedExamples(pairs, (), ()), config)
    whole = {len(s.completion_ids) for pair in pairs for s in pair}
    assert max(len(s.completion_ids) for pair in batch.pairs for s in pair) < max(whole)
    for cut, pair in zip(batch.pairs, pairs, strict=True):
        assert cut[0].prompt_ids == cut[1].prompt_ids
        for own, full in zip(cut, pair, strict=True):
            assert own.completion_ids
            assert own.prompt_ids + own.completion_ids == full.prompt_ids + full.completion_ids
    metrics = c3po_step(model, batch, ReferenceScores(model, None), config, 2048)
    assert metrics["loss"] == pytest.approx(naive.item(), rel=1e-4)
    assert metrics["rewards/margins"] != 0
    for own, other in zip(gradients(model, ADAPTER), expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)


def test_the_rewards_are_of_what_follows_the_common_start_and_the_margin_of_the_whole() -> None:
    whole = (encode("hi", "the cat sat"), encode("hi", "the cat ran off"))
    config = small_config(**DPO)
    model = with_adapter(small_model(), ADAPTER)
    batch = Batch.of(ScopedExamples((whole,), (), ()), config)
    metrics = c3po_step(model, batch, ReferenceScores(model, None), config, 2048)

    def reward(sequence: Example) -> float:
        with reference_policy(model, None):
            reference = naive_score(model, sequence)
        return config.beta * float(naive_score(model, sequence) - reference)

    chosen, rejected = map(reward, whole)
    shown = metrics["rewards/chosen"], metrics["rewards/rejected"]
    assert shown == pytest.approx([reward(s) for s in batch.pairs[0]], rel=1e-3, abs=1e-5)
    assert abs(shown[0] - chosen) > 1e-4  # the start has a reward of its own, the same for both
    assert metrics["rewards/margins"] == pytest.approx(chosen - rejected, rel=1e-3, abs=1e-5)


# ---- what is not computed ----


def test_a_constraint_without_weight_is_never_read(scored: list[Example], tmp_path: Path) -> None:
    for setting in ({}, KL):
        counts = {}
        for name, lambdas in {"both": {}, "out": {"lambda_out": 0.0}, "all": DPO}.items():
            scored.clear()
            config = small_config(**setting | lambdas)
            found = small_training(tmp_path / f"{name}{len(setting)}", config)
            counts[name] = len(scored)
            assert bool(set(scored) & set(DATA.out_of_scope)) == (config.lambda_out > 0)
            assert bool(set(scored) & set(DATA.near_scope)) == (config.lambda_near > 0)
            terms = {key for key in found.steps("c3po")[0] if key.endswith(("/out", "/near"))}
            assert len(terms) == (config.lambda_out > 0) + (config.lambda_near > 0)
        assert counts["both"] > counts["out"] > counts["all"] > 0


def test_the_reference_reads_each_pair_once_and_no_constraint(
    scored: list[Example], tmp_path: Path
) -> None:
    small_training(tmp_path / "r", small_config(epochs=4.0, pairs_per_step=5))
    times = Counter(scored)
    for pair in DATA.in_scope:
        assert [times[s] for s in pair] == [4 + 1, 4 + 1]  # four epochs, one reference
    for answer in (*DATA.near_scope, *DATA.out_of_scope):
        assert times[answer] == 4


def test_sft_reads_no_baseline_and_asks_no_reference(scored: list[Example], tmp_path: Path) -> None:
    found = small_training(tmp_path / "r", small_config(epochs=4.0, pairs_per_step=5, **SCD))
    assert Counter(scored) == {revised: 4 for revised, _ in DATA.in_scope}
    assert not any(key == "dpo" or "rewards" in key for m in found.metrics for key in m)


# ---- what a step is made of ----


def test_each_scope_is_dealt_in_epochs_of_its_own_whatever_its_size() -> None:
    items = list(range(7))
    dealt = [item for step in range(7) for item in deal(items, 3, step, "0/x")]
    for epoch in range(3):
        assert sorted(dealt[7 * epoch : 7 * (epoch + 1)]) == items
    assert dealt[:7] != dealt[7:14]
    assert sorted(deal(items, 50, 4, "0/x")) == items  # a small set is there as a whole
    assert deal([], 3, 0, "0/x") == []
    everything = Batch.of(DATA, small_config())
    seen = [everything.draw(2, step, seed=0) for step in range(60)]
    for scope in ("pairs", "near", "out"):
        times = Counter(item for batch in seen for item in getattr(batch, scope))
        assert set(times.values()) == {120 // len(getattr(everything, scope))}
    for scope in ("pairs", "near", "out"):
        orders = [
            [getattr(everything.draw(2, step, seed), scope) for step in range(9)] for seed in (0, 1)
        ]
        assert orders[0] != orders[1]


def test_an_epoch_is_one_of_the_pairs() -> None:
    assert C3POConfig().steps(864) == 54
    assert small_config(epochs=1.0).steps(5) == 3
    assert small_config(epochs=2.4).steps(5) == 6
    assert small_config(epochs=3.0, pairs_per_step=16).steps(5) == 3
