"""A teacher in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from minialign.errors import InputError
from minialign.policy.knobs import SamplingConfig

if TYPE_CHECKING:
    from minialign.model.transformer import CausalLM
    from minialign.weights.tokenizer import Tokenizer
from minialign.feedback.teacher import Answer, Ask, Failure, OnDone, Reply

# ---- a model in this process ----


class LocalTeacher:
    """A minialign model, without any adapter that it carries.

    An answer depends on its question and seed alone, not on what else is asked: what was
    interrupted goes on to the same answers.
    """

    def __init__(self, model: CausalLM, tokenizer: Tokenizer, name: str) -> None:
        self.model, self.tokenizer, self.name = model, tokenizer, name

    def answer(self, asks: Sequence[Ask], on_done: OnDone | None = None) -> list[Answer]:
        answers: dict[int, Answer] = {}
        for batch in _batches(asks):
            for index, answer in zip(batch, self._write([asks[i] for i in batch]), strict=True):
                answers[index] = answer
                if on_done:
                    on_done(index, answer)
        return [answers[index] for index in range(len(asks))]

    def _write(self, asks: list[Ask]) -> list[Answer]:
        """All of one length, sampling and seed."""
        from minialign.policy.reference import reference_policy
        from minialign.policy.sample import sample, with_text

        prompts = [self._prompt(ask) for ask in asks]
        readable = [prompt for prompt in prompts if not isinstance(prompt, Failure)]
        config = SamplingConfig(asks[0].max_tokens, asks[0].temperature, asks[0].top_p)
        digests = [hashlib.sha256(repr(prompt).encode()).digest() for prompt in readable]
        streams = [int.from_bytes(digest[:4]) for digest in digests]
        with reference_policy(self.model, None):
            written = sample(self.model, readable, 1, config, seed=asks[0].seed, streams=streams)
        texts = (with_text(completion, self.tokenizer) for (completion,) in written)
        replies = (Reply(completion.text, completion.finish_reason) for completion in texts)
        return [prompt if isinstance(prompt, Failure) else next(replies) for prompt in prompts]

    def _prompt(self, ask: Ask) -> list[int] | Failure:
        try:
            ids = self.tokenizer.encode_prompt(ask.chat)
        except InputError as error:  # a chat template may refuse a role
            return Failure(str(error))
        context = self.model.config.max_position_embeddings
        if len(ids) < context:
            return ids
        return Failure(f"the question has {len(ids)} tokens, the model's context holds {context}")


def _batches(asks: Sequence[Ask]) -> Iterator[list[int]]:
    """Places of asks that are written together."""
    groups: dict[tuple[int, float, float, int], list[int]] = {}
    for index, ask in enumerate(asks):
        how = (ask.max_tokens, ask.temperature, ask.top_p, ask.seed)
        groups.setdefault(how, []).append(index)
    rows = SamplingConfig().max_rows
    for group in groups.values():
        yield from (group[start : start + rows] for start in range(0, len(group), rows))
