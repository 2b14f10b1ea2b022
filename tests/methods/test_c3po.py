"""C3PO from end to end at toy size: the objective, what is not computed, its knobs, and going on
after a stop.
"""

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
from helpers.refusals import refusal
from helpers.toys import (
    Outcome,
    byte_tokenizer,
    change,
    gradients,
    naive_score,
    outcome,
    small_model,
    with_adapter,
)
from torch import Tensor

from minialign.data.knobs import flags_of
from minialign.data.records import Sequence
from minialign.losses import C3POLoss
from minialign.methods import c3po
from minialign.methods.c3po import ADAPTER, Batch, c3po_step, train_c3po
from minialign.methods.knobs import C3POConfig
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import apply_lora
from minialign.policy.encode import FeedbackSequences
from minialign.policy.knobs import LoRAConfig
from minialign.policy.packing import Packed
from minialign.policy.reference import reference_policy
from minialign.policy.reference_scores import ReferenceScores
from minialign.training.dealing import deal
from minialign.training.run import Interrupted, Run

SCD = {"in_scope_loss": "sft", "lambda_out": 0.0, "lambda_near": 0.0}
SCD_NEGATIVES = {"in_scope_loss": "sft"}
DPO = {"lambda_out": 0.0, "lambda_near": 0.0}
KL = {"constraint": "kl"}
SETTINGS = {"c3po": {}, "dpo": DPO, "scd": SCD, "scd + negatives": SCD_NEGATIVES, "kl": KL}


# ---- toys ----


def encode(prompt: str, answer: str) -> Sequence:
    tokenizer = byte_tokenizer()
    return Sequence(tokenizer.encode_prompt(prompt), tokenizer.encode_completion(answer))


def make_data(name: str = "", pairs: int = 5, near: int = 3, out: int = 4) -> FeedbackSequences:
    """Scopes of unequal size; answers of unequal length."""
    return FeedbackSequences(
        tuple(
            (encode(f"hi {name}{i}", i * "o" + "ahoy"), encode(f"hi {name}{i}", "hello" + i * "!"))
            for i in range(pairs)
        ),
        tuple(encode(f"by {name}{i}", "bye" + i * i * ".") for i in range(near)),
        tuple(encode(f"sum {name}{i}", i * "ab" + "4") for i in range(out)),
    )


DATA, HELD_OUT = make_data(), make_data("new ", 2, 2, 3)


def small_config(**changes: Any) -> C3POConfig:
    """A run of six steps in which every knob matters, over more than two epochs of pairs."""
    config = C3POConfig(
        lora=LoRAConfig(rank=4, alpha=8.0, dropout=0.0, target_modules=("q_proj", "v_proj")),
        epochs=2.4,
        pairs_per_step=2,
        learning_rate=3e-3,
        warmup_ratio=0.5,
        max_length=64,
    )
    return change(config, changes)  # type: ignore[arg-type,return-value]


def fresh_policy(config: C3POConfig, seed: int = 0) -> CausalLM:
    model = small_model()
    apply_lora(model, config.lora, ADAPTER, torch.Generator().manual_seed(seed))
    return model


def small_training(
    folder: Path,
    config: C3POConfig | None = None,
    data: FeedbackSequences = DATA,
    *,
    seed: int = 0,
    micro_batch_tokens: int = 2048,
    held_out: FeedbackSequences | None = None,
    resume: bool = False,
    prepare: Callable[[Run], None] = lambda run: None,
) -> Outcome:
    """`prepare` may tamper with the run first."""
    config = config or small_config()
    # a resumed run must not depend on how its adapter was started
    model = fresh_policy(config, seed if not resume else seed + 1000)
    options = {"seed": seed, "micro_batch_tokens": micro_batch_tokens}
    run = Run.resume(folder, **options) if resume else Run.create(folder, {}, **options)
    prepare(run)
    train_c3po(model, data, config, run, held_out)
    return outcome(folder, model)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return small_training(tmp_path_factory.mktemp("runs") / "baseline", held_out=HELD_OUT)


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[Sequence]:
    """Every sequence that the model reads from now on, in any pass."""
    read: list[Sequence] = []
    real = Packed.of

    def spy(sequences: list[Sequence]) -> Packed:
        read.extend(dict.fromkeys(sequences))
        return real(sequences)

    monkeypatch.setattr(Packed, "of", spy)
    return read


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


# ---- the objective ----


def naive_divergence(model: CausalLM, sequence: Sequence) -> Tensor:
    """KL(base || policy) at the positions that predict the completion, whole and unfused."""
    ids = torch.tensor([sequence.prompt_ids + sequence.completion_ids])
    places = slice(len(sequence.prompt_ids) - 1, -1)
    with reference_policy(model, None):
        base = model.logits(ids)[0, places].log_softmax(-1)
    policy = model.logits(ids)[0, places].log_softmax(-1)
    return (base.exp() * (base - policy)).sum()


def naive_loss(model: CausalLM, batch: Batch, config: C3POConfig) -> Tensor:
    """The definition, a sequence at a time."""
    terms: list[Tensor] = []
    for pair in batch.pairs:
        if config.in_scope_loss == "sft":
            tokens = sum(len(p[0].completion_ids) for p in batch.pairs)
            terms.append(-naive_score(model, pair[0]) / tokens)
            continue
        with reference_policy(model, None):
            reference = [naive_score(model, s) for s in pair]
        rewards = [naive_score(model, s) - r for s, r in zip(pair, reference, strict=True)]
        margin = config.beta * (rewards[0] - rewards[1])
        terms.append(-torch.nn.functional.logsigmoid(margin) / len(batch.pairs))
    for weight, answers in ((config.lambda_out, batch.out), (config.lambda_near, batch.near)):
        for answer in answers:
            kl = config.constraint == "kl"
            cost = naive_divergence(model, answer) if kl else -naive_score(model, answer)
            divisor = {
                "token_mean": sum(len(a.completion_ids) for a in answers),
                "sequence_mean": len(answers) * len(answer.completion_ids),
                "sum": len(answers),
            }[config.constraint_reduction]
            terms.append(weight * cost / divisor)
    return torch.stack(terms).sum()


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
    batch = Batch.of(FeedbackSequences(pairs, (), ()), config)
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
    batch = Batch.of(FeedbackSequences((whole,), (), ()), config)
    metrics = c3po_step(model, batch, ReferenceScores(model, None), config, 2048)

    def reward(sequence: Sequence) -> float:
        with reference_policy(model, None):
            reference = naive_score(model, sequence)
        return config.beta * float(naive_score(model, sequence) - reference)

    chosen, rejected = map(reward, whole)
    shown = metrics["rewards/chosen"], metrics["rewards/rejected"]
    assert shown == pytest.approx([reward(s) for s in batch.pairs[0]], rel=1e-3, abs=1e-5)
    assert abs(shown[0] - chosen) > 1e-4  # the start has a reward of its own, the same for both
    assert metrics["rewards/margins"] == pytest.approx(chosen - rejected, rel=1e-3, abs=1e-5)


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


# ---- what is not computed ----


def test_a_constraint_without_weight_is_never_read(scored: list[Sequence], tmp_path: Path) -> None:
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
    scored: list[Sequence], tmp_path: Path
) -> None:
    small_training(tmp_path / "r", small_config(epochs=4.0, pairs_per_step=5))
    times = Counter(scored)
    for pair in DATA.in_scope:
        assert [times[s] for s in pair] == [4 + 1, 4 + 1]  # four epochs, one reference
    for answer in (*DATA.near_scope, *DATA.out_of_scope):
        assert times[answer] == 4


def test_sft_reads_no_baseline_and_asks_no_reference(
    scored: list[Sequence], tmp_path: Path
) -> None:
    found = small_training(tmp_path / "r", small_config(epochs=4.0, pairs_per_step=5, **SCD))
    assert Counter(scored) == {revised: 4 for revised, _ in DATA.in_scope}
    assert not any(key == "dpo" or "rewards" in key for m in found.metrics for key in m)


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
    train_c3po(model, DATA, config, Run.create(tmp_path / "r", {}))
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


# ---- the knobs ----

KNOBS: dict[str, dict[str, Any]] = {
    "lora.rank": {"lora.rank": 5},
    "lora.alpha": {"lora.alpha": 16.0},
    "lora.target_modules": {"lora.target_modules": ("q_proj", "up_proj")},
    "in_scope_loss": {"in_scope_loss": "sft"},
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
    """But for `max_length`, which the encoding takes, and dropout, which must be 0."""
    elsewhere = {"max_length", "lora.dropout"}
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


def test_dropout_is_refused() -> None:
    assert "lora_dropout must be 0" in refusal(lambda: small_config(**{"lora.dropout": 0.05}))


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
    scored: list[Sequence], tmp_path: Path
) -> None:
    config = small_config(epochs=4.0, pairs_per_step=5, **DPO)
    with pytest.raises(Interrupted):
        small_training(tmp_path / "r", config, prepare=stop_after(1))
    scored.clear()
    small_training(tmp_path / "r", config, resume=True)
    assert Counter(scored) == {s: 2 for pair in DATA.in_scope for s in pair}
