"""The frozen reference's scores: computed once, and forgotten when their adapter changes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from helpers.sequences import A, B, one, random_sequences
from helpers.toys import small_model, with_adapter

from minialign.data.records import Example
from minialign.model.transformer import CausalLM
from minialign.policy import reference_scores
from minialign.policy import score as scoring
from minialign.policy.adapters import active_adapter, adapter_parameters, copy_adapter, set_adapter
from minialign.policy.packing import micro_batches
from minialign.policy.reference_scores import ReferenceScores
from minialign.policy.score import score


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[list[Example]]:
    """What `score` was asked for, call by call."""
    calls: list[list[Example]] = []
    real: Callable[..., torch.Tensor] = scoring.score

    def spy(model: CausalLM, sequences: list[Example]) -> torch.Tensor:
        calls.append(list(sequences))
        return real(model, sequences)

    monkeypatch.setattr(reference_scores, "score", spy)
    return calls


def test_reference_scores_each_sequence_once_in_its_life(watched: list[list[Example]]) -> None:
    model = with_adapter(small_model(), "sft")
    copy_adapter(model, "sft", "ditto")
    adapter_parameters(model, "ditto")[-1].data.add_(1)  # the policy is another
    reference = ReferenceScores(model, "sft")
    a, b, c = Example(A, (3,)), Example(A, (4,)), Example(B, (5,))
    first = reference([a, b, a])
    second = reference([c, a, b])
    assert watched == [[a, b], [c]]
    assert first.tolist() == [second[1].item(), second[2].item(), second[1].item()]
    assert not first.requires_grad


def test_reference_is_the_named_adapter_whatever_is_active_and_leaves_it_active() -> None:
    """Without its dropout too, though the model is training."""
    model = with_adapter(small_model(), "sft", seed=1, dropout=0.5).eval()
    sequences = random_sequences()
    expected = {"sft": score(model, sequences).tolist()}
    with_adapter(model, "ditto", seed=2)
    set_adapter(model, None)
    expected |= {None: score(model, sequences).tolist()}
    set_adapter(model, "ditto")
    model.train()
    for name in ("sft", None):
        assert ReferenceScores(model, name)(sequences).tolist() == expected[name]
        assert active_adapter(model) == "ditto" and model.training
    assert expected["sft"] != expected[None]


def test_reference_scores_are_forgotten_when_their_adapter_changes(
    watched: list[list[Example]],
) -> None:
    model = with_adapter(small_model(), "sft")
    copy_adapter(model, "sft", "ditto")
    reference = ReferenceScores(model, "sft")
    sequences = [Example(A, (3, 4))]
    before = reference(sequences)
    with torch.no_grad():
        adapter_parameters(model, "ditto")[0].add_(1)
    assert torch.equal(reference(sequences), before) and len(watched) == 1  # another adapter
    with torch.no_grad():
        adapter_parameters(model, "sft")[0].mul_(1)
    assert torch.equal(reference(sequences), before) and len(watched) == 1  # written, not changed
    with torch.no_grad():
        adapter_parameters(model, "sft")[-1].add_(1)
    after = reference(sequences)
    assert len(watched) == 2 and not torch.equal(after, before)
    set_adapter(model, "sft")
    assert torch.equal(after, score(model, sequences))


@pytest.mark.parametrize("name", ["sft", None])
@pytest.mark.parametrize("max_tokens", [1, 20, 30])
def test_a_text_in_two_parts_agrees_with_its_reference_to_the_last_bit(
    max_tokens: int, name: str | None
) -> None:
    model = with_adapter(small_model(), "sft")
    if name is None:
        for lora_B in adapter_parameters(model, "sft")[1::2]:
            lora_B.data.zero_()
    copy_adapter(model, "sft", "ditto")
    chosen, *samples = random_sequences(seed=3, prompts=1, each=9)
    pairs = [(chosen, rejected) for rejected in samples]
    pairs += itertools.combinations(samples, 2)  # as of a ranking: all texts are known by then
    reference = ReferenceScores(model, name)
    parts = list(micro_batches(pairs, lambda pair: pair, max_tokens))
    assert len(parts) > 1
    for part in parts:
        sequences = list(dict.fromkeys(s for pair in part for s in pair))
        assert torch.equal(reference(sequences), score(model, sequences))


@pytest.mark.parametrize("max_tokens", [1, 60, 10_000])
def test_where_the_policy_is_the_reference_scores_agree_to_the_last_bit(max_tokens: int) -> None:
    model = with_adapter(small_model(), "sft", dropout=0.3)
    copy_adapter(model, "sft", "ditto")
    reference = ReferenceScores(model, "sft")
    for part in micro_batches(random_sequences(prompts=6), one, max_tokens):
        expected = reference(part)
        assert torch.equal(score(model, part), expected)
