"""`score` against its definition, micro-batches, and the frozen reference's scores."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.toys import gradients, naive_score, small_model, with_adapter
from hypothesis import given, settings
from hypothesis import strategies as st

from minialign.data.records import Sequence
from minialign.model.transformer import CausalLM
from minialign.policy import reference_scores
from minialign.policy import score as scoring
from minialign.policy.adapters import active_adapter, adapter_parameters, copy_adapter, set_adapter
from minialign.policy.packing import Packed, by_prompt, distinct_tokens, micro_batches
from minialign.policy.reference_scores import ReferenceScores
from minialign.policy.score import divergence, score


def random_sequences(seed: int = 0, prompts: int = 3, each: int = 3) -> list[Sequence]:
    """Prompts and completions of unequal lengths, in mixed order."""
    rng = random.Random(seed)
    found = []
    for _ in range(prompts):
        prompt = tuple(rng.randrange(3, 272) for _ in range(rng.randint(1, 9)))
        for _ in range(each):
            completion = tuple(rng.randrange(3, 272) for _ in range(rng.randint(1, 12)))
            found.append(Sequence(prompt, completion))
    rng.shuffle(found)
    return found


A, B = (5, 6, 7), (9,)
CASES = {
    "one": [Sequence(A, (3, 4))],
    "shared prompt": [Sequence(A, (3, 4)), Sequence(A, (3, 5, 8)), Sequence(A, (8,))],
    "duplicates": [Sequence(A, (3, 4)), Sequence(A, (8,)), Sequence(A, (3, 4))],
    "empty completion": [Sequence(A, ()), Sequence(A, (3, 4)), Sequence(B, ())],
    "mixed order": [Sequence(A, (3,)), Sequence(B, (4, 4)), Sequence(A, (5, 6)), Sequence(B, (7,))],
    "one completion is another prompt's end": [Sequence((5,), (6, 7)), Sequence((5, 6), (7,))],
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
    assert score(model, [Sequence(A, ()), Sequence(B, ())]).tolist() == [0.0, 0.0]
    assert score(model, []).shape == (0,)


def test_each_prompt_and_each_sequence_is_computed_once() -> None:
    model = small_model()
    seen: list[int] = []
    model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    score(model, 3 * [Sequence(A, (3, 4)), Sequence(B, (7,)), Sequence(A, (8, 9, 10))])
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
    score(small_model(), [Sequence(A, (3, 4)), Sequence(A, (8, 9, 10)), Sequence(A, (3, 4))])
    assert rows == [5]


def test_packed_is_the_worked_example_of_its_docstring() -> None:
    packed = Packed.of([Sequence((11, 12), (3, 4)), Sequence((11, 12), (5,))])
    assert packed.ids == [11, 12, 3]
    assert packed.positions == [0, 1, 2]
    assert packed.predictors == [1, 2, 1]
    assert packed.targets == [3, 4, 5]
    assert packed.lengths == [2, 1]


# ---- micro-batches ----


def one(sequence: Sequence) -> tuple[Sequence]:
    return (sequence,)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 4), st.integers(1, 120))
def test_micro_batches_stay_within_the_budget_and_cut_no_prompt_group_that_does(
    seed: int, prompts: int, each: int, max_tokens: int
) -> None:
    sequences = random_sequences(seed, prompts, each)
    parts = list(micro_batches(sequences, one, max_tokens))
    assert sorted(map(repr, sequences)) == sorted(repr(s) for part in parts for s in part)
    for part in parts:
        alone = len({s.prompt_ids for s in part}) == 1
        assert distinct_tokens(part) <= (1 + alone) * max_tokens or len(part) == 1
    for prompt, group in by_prompt(sequences, lambda sequence: sequence).items():
        standing = sum(any(s.prompt_ids == prompt for s in part) for part in parts)
        assert standing == 1 or distinct_tokens(group) > 2 * max_tokens


def test_a_prompt_group_above_twice_the_budget_is_cut_and_its_parts_share_the_demonstration() -> (
    None
):
    chosen = Sequence(A, (1, 2))
    pairs = [(chosen, Sequence(A, (3, i, 4))) for i in range(5)]
    whole = 3 + 2 + 5 * 3
    assert len(list(micro_batches(pairs, lambda pair: pair, whole // 2))) == 1
    cut = list(micro_batches(pairs, lambda pair: pair, (3 + 2 + 3 + 3 + 1) // 2))
    assert [len(part) for part in cut] == [2, 2, 1]
    assert sum(cut, []) == pairs
    other = [(Sequence(A, (8, 9)), rejected) for _, rejected in pairs]
    mixed = [pair for both in zip(pairs, other, strict=True) for pair in both]
    cut = list(micro_batches(mixed, lambda pair: pair, (3 + 2 + 3 + 3 + 1) // 2))
    assert sum(cut, []) == pairs + other  # what shares a demonstration is kept together
    assert [len(part) for part in micro_batches(pairs, lambda pair: pair, 1)] == [1] * 5


def test_micro_batches_fill_the_budget_and_count_shared_text_once() -> None:
    pairs = [(Sequence(A, (1, 2)), Sequence(A, (3,))), (Sequence(A, (1, 2)), Sequence(A, (4,)))]
    other = [(Sequence(B, (1, 2)), Sequence(B, (3,)))]
    exact = 3 + 2 + 1 + 1 + (1 + 2 + 1)
    assert len(list(micro_batches(pairs + other, lambda pair: pair, exact))) == 1
    assert len(list(micro_batches(pairs + other, lambda pair: pair, exact - 1))) == 2


def step_gradients(model: CausalLM, sequences: list[Sequence], max_tokens: int) -> list:
    total = sum(len(s.completion_ids) for s in sequences)
    for part in micro_batches(sequences, one, max_tokens):
        (-score(model, part).sum() / total).backward()
    return gradients(model)


def test_the_gradient_does_not_depend_on_max_tokens() -> None:
    model = with_adapter(small_model())
    sequences = random_sequences(prompts=5)
    whole = step_gradients(model, sequences, 10_000)
    for max_tokens in (1, 30, 60, 100):
        for own, right in zip(step_gradients(model, sequences, max_tokens), whole, strict=True):
            torch.testing.assert_close(own, right, rtol=1e-4, atol=1e-5 * float(right.abs().max()))


# ---- the reference ----


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> list[list[Sequence]]:
    """What `score` was asked for, call by call."""
    calls: list[list[Sequence]] = []
    real: Callable[..., torch.Tensor] = scoring.score

    def spy(model: CausalLM, sequences: list[Sequence]) -> torch.Tensor:
        calls.append(list(sequences))
        return real(model, sequences)

    monkeypatch.setattr(reference_scores, "score", spy)
    return calls


def test_reference_scores_each_sequence_once_in_its_life(watched: list[list[Sequence]]) -> None:
    model = with_adapter(small_model(), "sft")
    copy_adapter(model, "sft", "ditto")
    adapter_parameters(model, "ditto")[-1].data.add_(1)  # the policy is another
    reference = ReferenceScores(model, "sft")
    a, b, c = Sequence(A, (3,)), Sequence(A, (4,)), Sequence(B, (5,))
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
    watched: list[list[Sequence]],
) -> None:
    model = with_adapter(small_model(), "sft")
    copy_adapter(model, "sft", "ditto")
    reference = ReferenceScores(model, "sft")
    sequences = [Sequence(A, (3, 4))]
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


def plain_divergence(model: CausalLM, sequence: Sequence) -> torch.Tensor:
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
        torch.testing.assert_close(gradient, true, rtol=1e-3, atol=1e-4)


def test_divergence_from_itself_is_nothing_and_from_another_adapter_something() -> None:
    model = with_adapter(small_model())
    sequences = random_sequences()
    copy_adapter(model, active_adapter(model) or "", "other")
    assert divergence(model, sequences, active_adapter(model)).abs().max() < 1e-5
    set_adapter(model, "other")
    with torch.no_grad():
        adapter_parameters(model, "other")[0].mul_(2)
        assert divergence(model, sequences, None).min() > 0
