"""The general prompts that come with the package."""

from __future__ import annotations

from helpers.refusals import refusal

from minialign.data.general import general_prompts


def test_general_prompts_are_drawn_without_repetition_by_seed() -> None:
    first = general_prompts(20, seed=0)
    assert len(set(first)) == 20 and all(prompt.strip() for prompt in first)
    assert general_prompts(20, seed=0) == first
    assert general_prompts(20, seed=1) != first
    assert "ask for fewer" in refusal(lambda: general_prompts(10**6, seed=0))


def test_drift_is_never_measured_on_prompts_that_anchored_the_model() -> None:
    everything = set(general_prompts(340, seed=0))
    anchors = set(general_prompts(170, 0, "anchors"))
    drift = set(general_prompts(170, 0, "drift"))
    assert not anchors & drift
    assert anchors | drift == everything
    assert "ask for fewer" in refusal(lambda: general_prompts(171, 0, "drift"))
