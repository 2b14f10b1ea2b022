"""What C3PO's loop learns by besides DPO: other losses, a part of a pair, softened divergences and
dropout.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.c3po import (
    DATA,
    DPO,
    KNOBS_IN_A_SETTING,
    ONE_STEP,
    encode,
    small_config,
    small_training,
)
from helpers.refusals import refusal
from helpers.toys import change, gradients, naive_score, small_model, with_adapter
from torch import Tensor

from minialign.data.records import FEEDBACK, PAIRS, Example
from minialign.losses import dpo_loss, ipo_loss, orpo_loss, simpo_loss
from minialign.methods.batches import Batch, without_common_end, without_common_start
from minialign.methods.c3po import ADAPTER, c3po_step
from minialign.methods.cards import card_of
from minialign.methods.knobs import C3POConfig
from minialign.model.transformer import CausalLM
from minialign.policy.encode import ScopedExamples
from minialign.policy.reference import reference_policy
from minialign.policy.reference_scores import ReferenceScores

PAIRED = ScopedExamples(
    tuple(
        (encode(f"hi {i}", a), encode(f"hi {i}", b))
        for i, (a, b) in enumerate(
            [("a cat sat", "a dog sat"), ("so it is", "no, it is"), ("a", "b")]
        )
    ),
    (),
    (),
)


def scores(model: CausalLM, sequences: list[Example]) -> Tensor:
    return torch.stack([naive_score(model, s) for s in sequences])


def naive_preference(model: CausalLM, config: C3POConfig) -> Tensor:
    """By the definition, on whole texts, one at a time."""
    chosen, rejected = (list(column) for column in zip(*PAIRED.in_scope, strict=True))
    policy = scores(model, chosen), scores(model, rejected)
    with reference_policy(model, None):
        reference = scores(model, chosen), scores(model, rejected)
    tokens = [torch.tensor([len(s.completion_ids) for s in t]) for t in (chosen, rejected)]
    if config.loss == "ipo":
        losses = ipo_loss(*policy, *reference, beta=config.beta).losses
    elif config.loss == "simpo":
        losses = simpo_loss(
            *policy, *tokens, beta=config.simpo_beta, gamma=config.simpo_gamma
        ).losses
    else:
        losses = orpo_loss(*policy, *tokens, weight=config.orpo_weight).losses
    return losses.mean() - config.nll_weight * policy[0].sum() / tokens[0].sum()


@pytest.mark.parametrize("micro_batch_tokens", [1, 10_000])
@pytest.mark.parametrize(
    "more", [{"loss": "ipo", "nll_weight": 0.7}, {"loss": "simpo"}, {"loss": "orpo"}]
)
def test_the_loss_is_the_definition_however_the_step_is_cut(
    more: dict[str, Any], micro_batch_tokens: int
) -> None:
    config = small_config(**DPO | more)
    model = with_adapter(small_model(), ADAPTER)
    naive = naive_preference(model, config)
    naive.backward()
    expected = gradients(model, ADAPTER)
    batch = Batch.of(PAIRED, config)
    metrics = c3po_step(model, batch, ReferenceScores(model, None), config, micro_batch_tokens)
    assert metrics["loss"] == pytest.approx(naive.item(), rel=1e-4)
    assert ("nll/learned" in metrics) == ("nll_weight" in more)
    rest = metrics["loss"] - config.nll_weight * metrics.get("nll/learned", 0)
    assert metrics[config.loss] == pytest.approx(rest, rel=1e-4)
    for own, other in zip(gradients(model, ADAPTER), expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-3, atol=1e-4)


def test_a_softened_divergence_and_a_share_of_the_likelihood() -> None:
    config = small_config(
        lambda_out=1.0, lambda_near=0.0, constraint="kl", constraint_reduction="sum"
    )
    config = change(config, {"kl_temperature": 3.0, "kl_share": 0.25})  # type: ignore[arg-type,assignment]
    model = with_adapter(small_model(), ADAPTER)
    expected = torch.zeros(())
    for answer in DATA.out_of_scope:
        ids = torch.tensor([answer.prompt_ids + answer.completion_ids])
        places = slice(len(answer.prompt_ids) - 1, -1)
        with reference_policy(model, None):
            base = (model.logits(ids)[0, places] / 3).log_softmax(-1)
        policy = (model.logits(ids)[0, places] / 3).log_softmax(-1)
        kl = 9 * (base.exp() * (base - policy)).sum()
        expected = expected + 0.25 * kl - 0.75 * naive_score(model, answer)
    metrics = c3po_step(model, Batch.of(DATA, config), ReferenceScores(model, None), config, 2048)
    assert metrics["kl/out"] == pytest.approx(expected.item() / len(DATA.out_of_scope), rel=1e-4)


# ---- what is compared ----


def cut(one: str, other: str) -> tuple[Example, ...]:
    pair = without_common_start(encode("hi", one), encode("hi", other))
    return without_common_end(*pair)


def test_the_changed_span_is_all_that_differs() -> None:
    def ids(text: str) -> tuple[int, ...]:
        return encode("hi", text).completion_ids[:-1]

    final, draft = cut("Dear Ann, see you", "Hello, see you")
    assert final.completion_ids == ids("Dear Ann") and draft.completion_ids == ids("Hello")
    assert final.prompt_ids == draft.prompt_ids == encode("hi", "x").prompt_ids
    # What was left out, or put in, is compared with the token that stands in its place.
    final, draft = cut("so it is", "so, um, it is")
    assert final.completion_ids == ids(" ") and draft.completion_ids == ids(", um, ")
    assert final.prompt_ids == encode("hi", "x").prompt_ids + ids("so")


def test_only_the_span_counts_in_the_loss() -> None:
    config = small_config(**DPO, changed_span=True)
    model = with_adapter(small_model(), ADAPTER)
    pairs = [cut("Dear Ann, see you", "Hello, see you")]
    data = ScopedExamples(
        ((encode("hi", "Dear Ann, see you"), encode("hi", "Hello, see you")),), (), ()
    )
    metrics = c3po_step(model, Batch.of(data, config), ReferenceScores(model, None), config, 2048)
    policy = scores(model, list(pairs[0]))
    with reference_policy(model, None):
        base = scores(model, list(pairs[0]))
    expected = dpo_loss(policy[:1], policy[1:], base[:1], base[1:], beta=config.beta).losses
    assert metrics["loss"] == pytest.approx(expected.item(), rel=1e-4)


# ---- the knobs ----


@pytest.mark.parametrize("path", KNOBS_IN_A_SETTING)
def test_every_knob_changes_something(path: str, tmp_path: Path) -> None:
    setting, value = KNOBS_IN_A_SETTING[path]
    plain, other = (
        small_training(tmp_path / name, small_config(**setting | more)).adapters[ADAPTER]
        for name, more in (("plain", {}), ("other", {path: value}))
    )
    assert plain != other


def test_every_loss_is_another(tmp_path: Path) -> None:
    names = ("dpo", "ipo", "simpo", "orpo", "sft")
    found = [
        small_training(tmp_path / name, small_config(**ONE_STEP, loss=name)).adapters[ADAPTER]
        for name in names
    ]
    assert all(one != other for one, other in itertools.combinations(found, 2))


@pytest.mark.parametrize("loss", ["simpo", "orpo"])
def test_what_needs_no_reference_asks_none(
    loss: str, tmp_path: Path, scored: list[Example]
) -> None:
    config = small_config(epochs=1.0, pairs_per_step=5, **DPO | {"loss": loss})
    (step,) = small_training(tmp_path / "r", config).steps("c3po")
    assert len(scored) == 2 * len(DATA.in_scope)
    assert loss in step and "dpo" not in step


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"loss": "simpo", "beta": "0.2"}, "--loss simpo makes no use of --beta"),
        ({"loss": "orpo", "simpo_gamma": "1"}, "--loss orpo makes no use of --simpo-gamma"),
        ({"orpo_weight": "1"}, "--loss dpo makes no use of --orpo-weight"),
        ({"loss": "orpo", "nll_weight": "1"}, "--loss orpo makes no use of --nll-weight"),
        ({"loss": "simpo", "changed_span": "1"}, "--loss simpo makes no use of --changed-span"),
        ({"kl_share": "0.5"}, "--method dpo makes no use of --kl-share"),
        ({"loss": "kto"}, "loss: 'kto' is not one of dpo, ipo, simpo, orpo, sft"),
        ({"loss": "simpo", "simpo_beta": "0"}, "simpo_beta must be positive"),
        ({"nll_weight": "-1"}, "nll_weight must not be negative"),
    ],
)
def test_a_knob_that_the_loss_never_reads_is_refused(given: dict[str, Any], said: str) -> None:
    card = card_of("dpo", PAIRS)
    assert said in refusal(lambda: card.with_flags(card.recipe("laptop"), given))


def test_a_divergence_has_knobs_that_a_likelihood_has_not() -> None:
    card = card_of("c3po", FEEDBACK)
    paper, laptop = card.recipe("paper"), card.recipe("laptop")
    assert card.with_flags(laptop, {"kl_share": "0.5"}).kl_share == 0.5  # type: ignore[attr-defined]
    said = refusal(lambda: card.with_flags(paper, {"kl_share": "0.5"}))
    assert "--constraint nll makes no use of --kl-share" in said
    assert "kl_share must lie in (0, 1]" in refusal(
        lambda: card.with_flags(laptop, {"kl_share": "0"})
    )


# ---- dropout ----


def test_dropout_is_the_policys_alone(tmp_path: Path) -> None:
    config = small_config(**DPO | {"lora.dropout": 0.5})
    found = small_training(tmp_path / "r", config, held_out=DATA)
    steps = found.steps("c3po")
    assert steps[0]["dpo"] == pytest.approx(math.log(2), abs=1e-7)
    assert not found.model.training
    # What is told of held-out data is computed without.
    batch = Batch.of(DATA, config)
    again = c3po_step(found.model, batch, ReferenceScores(found.model, None), config, 2048)
    assert steps[-1]["eval/loss"] == pytest.approx(again["loss"], rel=1e-5)
    assert small_training(tmp_path / "again", config, held_out=DATA).same_as(found)
