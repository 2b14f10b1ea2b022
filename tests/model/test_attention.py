"""Who sees whom: packed sequences against one plain forward pass per sequence."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.sequences import text
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minialign.data.records import Example
from minialign.model.segments import causal_mask
from minialign.model.transformer import CausalLM
from minialign.policy.score import score


def test_the_mask_is_causal_and_its_window_counts_the_token_itself() -> None:
    positions = torch.arange(4)
    expected = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]).bool()
    assert torch.equal(causal_mask(positions, positions, 2), expected)
    assert torch.equal(causal_mask(positions, positions, None), torch.ones(4, 4).tril().bool())


# ---- packed scoring against sequences one by one ----


def separate_scores(model: CausalLM, sequences: list[Example]) -> Tensor:
    """The definition: log_softmax of the plain logits, gathered sequence by sequence."""
    sums = []
    for sequence in sequences:
        ids = torch.tensor([sequence.prompt_ids + sequence.completion_ids])
        logps = model.logits(ids)[0].log_softmax(-1)[len(sequence.prompt_ids) - 1 : -1]
        picked = logps.gather(1, torch.tensor(sequence.completion_ids)[:, None])
        sums.append(picked.sum())
    return torch.stack(sums)


def gradients(
    model: CausalLM, scores: Tensor, weights: Tensor, without_head: bool
) -> dict[str, Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert ("lm_head.weight" in named) is not without_head
    found = torch.autograd.grad((scores * weights).sum(), list(named.values()))
    return dict(zip(named, found, strict=True))


@pytest.mark.parametrize("frozen_head", [True, False], ids=["frozen head", "trainable head"])
def test_completions_packed_behind_one_prompt_score_and_learn_as_if_alone(
    model: CausalLM, frozen_head: bool
) -> None:
    shared, other = tuple(text(0, 11)), tuple(text(1, 3))
    sequences = [
        Example(shared, tuple(text(2, 1))),
        Example(other, tuple(text(3, 20))),
        Example(shared, tuple(text(4, 7))),
        Example(shared, tuple(text(5, 15))),
        Example(other[:1], tuple(text(6, 2))),
    ]
    weights = torch.tensor([1.0, -0.5, 0.25, 2.0, -1.0])
    model.requires_grad_(True)
    model.lm_head.requires_grad_(not frozen_head)
    packed, separate = score(model, sequences), separate_scores(model, sequences)
    # sums of up to 20 log-probabilities of about -6, rounded in float32
    torch.testing.assert_close(packed, separate, rtol=1e-5, atol=1e-3)
    expected = gradients(model, separate, weights, frozen_head)
    for name, gradient in gradients(model, packed, weights, frozen_head).items():
        largest = expected[name].abs().max()
        assert (gradient - expected[name]).abs().max() < 1e-4 * largest, name


tokens = st.integers(3, 300)
prompts = st.lists(tokens, min_size=1, max_size=12).map(tuple)
completions = st.lists(tokens, min_size=1, max_size=12).map(tuple)
prompt_groups = st.lists(
    st.tuples(prompts, st.lists(completions, min_size=1, max_size=3)), min_size=1, max_size=4
)


@settings(max_examples=40)
@given(groups=prompt_groups, window=st.sampled_from([None, 1, 5]), order=st.randoms())
def test_any_mixture_of_prompts_and_completions_scores_as_sequence_by_sequence(
    groups: list, window: int | None, order: object, request: pytest.FixtureRequest
) -> None:
    config = request.getfixturevalue("toy_config")
    model = request.getfixturevalue("make_toy_model")(replace(config, sliding_window=window))
    sequences = [Example(prompt, own) for prompt, group in groups for own in group]
    order.shuffle(sequences)  # type: ignore[attr-defined]
    with torch.no_grad():
        expected = separate_scores(model, sequences)
        torch.testing.assert_close(score(model, sequences), expected, rtol=1e-5, atol=1e-3)
