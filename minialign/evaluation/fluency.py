"""Fluency beside style: how well formed the answers are, in the base model's eyes.

A voice that is won at the price of broken sentences shows in the base model's nats per token on
the answers. They are to be read next to those on its own answers and on the person's own texts.
"""

from __future__ import annotations

from collections.abc import Sequence

from minialign.data.records import Example
from minialign.evaluation.contestants import Answers
from minialign.model.transformer import CausalLM
from minialign.policy.measure import nats_per_token
from minialign.policy.reference import reference_policy


def fluency(
    model: CausalLM, prompts: Sequence[tuple[int, ...]], answers: Answers, max_tokens: int
) -> float | None:
    """The base model's nats per token on all answers, each behind its plain prompt's ids.

    What the context does not hold is cut off. None where nothing was written.
    """
    context = model.config.max_position_embeddings
    texts = [
        Example(prompt, answer.ids[: context - len(prompt)])
        for prompt, group in zip(prompts, answers, strict=True)
        for answer in group
        if answer.ids
    ]
    with reference_policy(model, None):
        return nats_per_token(model, texts, max_tokens)
