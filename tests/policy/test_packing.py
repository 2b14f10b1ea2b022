"""Packed sequences, and the micro-batches that they are read in."""

from __future__ import annotations

import torch
from helpers.sequences import A, B, one, random_sequences
from helpers.toys import gradients, small_model, with_adapter
from hypothesis import given, settings
from hypothesis import strategies as st

from minialign.data.records import Example
from minialign.model.transformer import CausalLM
from minialign.policy.packing import Packed, by_prompt, distinct_tokens, micro_batches
from minialign.policy.score import score


def test_packed_is_the_worked_example_of_its_docstring() -> None:
    packed = Packed.of([Example((11, 12), (3, 4)), Example((11, 12), (5,))])
    assert packed.ids == [11, 12, 3]
    assert packed.positions == [0, 1, 2]
    assert packed.predictors == [1, 2, 1]
    assert packed.targets == [3, 4, 5]
    assert packed.lengths == [2, 1]


# ---- micro-batches ----


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
    chosen = Example(A, (1, 2))
    pairs = [(chosen, Example(A, (3, i, 4))) for i in range(5)]
    whole = 3 + 2 + 5 * 3
    assert len(list(micro_batches(pairs, lambda pair: pair, whole // 2))) == 1
    cut = list(micro_batches(pairs, lambda pair: pair, (3 + 2 + 3 + 3 + 1) // 2))
    assert [len(part) for part in cut] == [2, 2, 1]
    assert sum(cut, []) == pairs
    other = [(Example(A, (8, 9)), rejected) for _, rejected in pairs]
    mixed = [pair for both in zip(pairs, other, strict=True) for pair in both]
    cut = list(micro_batches(mixed, lambda pair: pair, (3 + 2 + 3 + 3 + 1) // 2))
    assert sum(cut, []) == pairs + other  # what shares a demonstration is kept together
    assert [len(part) for part in micro_batches(pairs, lambda pair: pair, 1)] == [1] * 5


def test_micro_batches_fill_the_budget_and_count_shared_text_once() -> None:
    pairs = [(Example(A, (1, 2)), Example(A, (3,))), (Example(A, (1, 2)), Example(A, (4,)))]
    other = [(Example(B, (1, 2)), Example(B, (3,)))]
    exact = 3 + 2 + 1 + 1 + (1 + 2 + 1)
    assert len(list(micro_batches(pairs + other, lambda pair: pair, exact))) == 1
    assert len(list(micro_batches(pairs + other, lambda pair: pair, exact - 1))) == 2


def step_gradients(model: CausalLM, sequences: list[Example], max_tokens: int) -> list:
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
