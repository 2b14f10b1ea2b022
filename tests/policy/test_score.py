"""`score` and `divergence` against their definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.sequences import A, B, random_sequences
from helpers.toys import gradients, naive_score, small_model, with_adapter
from torch import Tensor

from minialign.data.records import Example
from minialign.model.transformer import CausalLM
from minialign.policy import score as scoring
from minialign.policy.adapters import (
    active_adapter,
    adapter_parameters,
    copy_adapter,
    set_adapter,
    trainable_parameters,
)
from minialign.policy.score import divergence, score

CASES = {
    "one": [Example(A, (3, 4))],
    "shared prompt": [Example(A, (3, 4)), Example(A, (3, 5, 8)), Example(A, (8,))],
    "duplicates": [Example(A, (3, 4)), Example(A, (8,)), Example(A, (3, 4))],
    "empty completion": [Example(A, ()), Example(A, (3, 4)), Example(B, ())],
    "mixed order": [Example(A, (3,)), Example(B, (4, 4)), Example(A, (5, 6)), Example(B, (7,))],
    "one completion is another prompt's end": [Example((5,), (6, 7)), Example((5, 6), (7,))],
    "many": random_sequences(),
}


@pytest.mark.parametrize("window", [None, 2, 4, 10])
@pytest.mark.parametrize("name", CASES)
def test_score_and_its_gradients_equal_the_plain_forward_pass(name: str, window: int) -> None:
    """With different weights on the sequences, so that an exchanged pair would show."""
    model = with_adapter(small_model(sliding_window=window))
    sequences = CASES[name]
    weights = torch.arange(1.0, len(sequences) + 1)
    expected = torch.stack([naive_score(model, sequence) for sequence in sequences])
    (expected * weights).sum().backward()
    truth = gradients(model)
    found = score(model, sequences)
    assert found.dtype == torch.float32 and found.shape == (len(sequences),)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)
    (found * weights).sum().backward()
    largest = max(float(right.abs().max()) for right in truth)
    for own, right in zip(gradients(model), truth, strict=True):
        torch.testing.assert_close(own, right, rtol=1e-3, atol=1e-5 * largest)


def test_empty_completions_score_zero() -> None:
    model = small_model()
    assert score(model, [Example(A, ()), Example(B, ())]).tolist() == [0.0, 0.0]
    assert score(model, []).shape == (0,)


def test_each_prompt_and_each_sequence_is_computed_once() -> None:
    model = small_model()
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    score(model, 3 * [Example(A, (3, 4)), Example(B, (7,)), Example(A, (8, 9, 10))])
    # prompts A and B; of (3, 4), (7,) and (8, 9, 10) all but the last tokens
    assert seen == [3 + 1 + 1 + 0 + 2]


def test_only_positions_that_predict_a_completion_token_reach_the_head(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows: list[int] = []
    kernel = scoring.linear_logps

    def spy(hidden: torch.Tensor, *args: Any) -> torch.Tensor:
        rows.append(len(hidden))
        return kernel(hidden, *args)

    monkeypatch.setattr(scoring, "linear_logps", spy)
    score(small_model(), [Example(A, (3, 4)), Example(A, (8, 9, 10)), Example(A, (3, 4))])
    assert rows == [5]


# ---- divergence ----


def plain_divergence(model: CausalLM, sequence: Example) -> torch.Tensor:
    """From two whole tables of logits."""
    ids = torch.tensor([sequence.prompt_ids + sequence.completion_ids])
    places = slice(len(sequence.prompt_ids) - 1, ids.shape[1] - 1)
    policy = model.logits(ids)[0, places].log_softmax(-1)
    adapter = active_adapter(model)
    set_adapter(model, None)
    with torch.no_grad():
        reference = model.logits(ids)[0, places].log_softmax(-1)
    set_adapter(model, adapter)
    return (reference.exp() * (reference - policy)).sum()


@pytest.mark.parametrize("name", CASES)
def test_divergence_and_its_gradients_equal_two_plain_forward_passes(name: str) -> None:
    model = with_adapter(small_model())
    sequences = CASES[name]
    weights = torch.arange(1.0, len(sequences) + 1)
    expected = torch.stack([plain_divergence(model, sequence) for sequence in sequences])
    (expected * weights).sum().backward()
    truth = gradients(model)
    found = divergence(model, sequences, None)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    (found * weights).sum().backward()
    for gradient, true in zip(gradients(model), truth, strict=True):
        torch.testing.assert_close(gradient, true, rtol=1e-3, atol=2e-4)


def test_divergence_from_itself_is_nothing_and_from_another_adapter_something() -> None:
    model = with_adapter(small_model())
    sequences = random_sequences()
    copy_adapter(model, active_adapter(model) or "", "other")
    assert divergence(model, sequences, active_adapter(model)).abs().max() < 1e-5
    set_adapter(model, "other")
    with torch.no_grad():
        adapter_parameters(model, "other")[0].mul_(2)
        assert divergence(model, sequences, None).min() > 0


def test_the_gradient_has_the_same_bits_again_where_many_answers_share_a_prompt() -> None:
    """What they all add to the prompt's last state must not depend on how threads are scheduled."""
    model = with_adapter(small_model())
    answers = [Example((3, 4, 5), (7 + number % 40, 9 + number // 40)) for number in range(800)]

    def bits() -> list[torch.Tensor]:
        score(model, answers).sum().backward()
        found = [
            p.grad.clone()
            for p in adapter_parameters(model, active_adapter(model) or "")
            if p.grad is not None
        ]
        model.zero_grad(set_to_none=True)
        return found

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        first = bits()
        assert first
        for _ in range(5):
            assert all(map(torch.equal, first, bits()))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("max_tokens", [1, 20, 40])
def test_a_budget_changes_what_is_held_and_not_the_scores_nor_their_gradients(
    max_tokens: int,
) -> None:
    model = with_adapter(small_model())
    texts = [Example((5, 6, p), tuple(range(9, 9 + n))) for p in (7, 8, 9) for n in (12, 3)]
    asked = [*texts, texts[0]]
    factors = torch.arange(1.0, 1 + len(asked))
    results = []
    for budget in (None, max_tokens):
        held: list[int] = []

        def keep(tensor: Tensor, held: list[int] = held) -> Tensor:
            held.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            scores = score(model, asked, budget)
        (scores * factors).sum().backward()
        slopes = [p.grad.clone() for p in trainable_parameters(model) if p.grad is not None]
        results.append((scores.detach(), slopes, sum(held)))
        for parameter in trainable_parameters(model):
            parameter.grad = None
    (scores, slopes, most), (found, own, held_now) = results
    torch.testing.assert_close(found, scores, rtol=1e-5, atol=1e-4)
    assert len(own) == len(slopes) > 0
    for slope, truth in zip(own, slopes, strict=True):
        assert (slope - truth).norm() < 1e-4 * truth.norm() + 1e-7
    assert held_now < most / 10
