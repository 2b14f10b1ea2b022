"""Records into token ids: the one encoder that training, scoring and evaluation share.

Prompt and completion stay separate segments, a text that was cut has no end token, and every branch
of a feedback's data goes through the encoder of the demonstrations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from minialign.errors import InputError

if TYPE_CHECKING:
    from minialign.weights.tokenizer import Tokenizer
from typing import TYPE_CHECKING

from minialign.data.records import Demonstration, Example

if TYPE_CHECKING:
    from minialign.weights.tokenizer import Tokenizer
from minialign.data.feedback import SCOPES, FeedbackData, Response, ScopeLine


def encode_demonstration(
    demonstration: Demonstration, tokenizer: Tokenizer, max_length: int
) -> tuple[Example, str | None]:
    """Token ids, and a warning if the text had to be cut to `max_length` tokens.

    A cut completion loses its end, and so its end token: the model must not learn to stop in
    mid-sentence. The prompt is never cut. Raises InputError where it leaves no room, or where the
    chat template refuses the messages.
    """
    try:
        prompt_ids = tokenizer.encode_prompt(demonstration.messages)
    except InputError as error:  # the chat template may refuse
        raise InputError(f"{demonstration.source}: {error}") from None
    completion_ids = tokenizer.encode_completion(demonstration.completion)
    room = max_length - len(prompt_ids)
    if room < 1:
        raise InputError(
            f"{demonstration.source}: the prompt has {len(prompt_ids)} tokens, more than "
            f"the {max_length} that fit (--max-length, and the model's context): shorten it"
        )
    if len(completion_ids) <= room:
        return Example(tuple(prompt_ids), tuple(completion_ids)), None
    warning = (
        f"{demonstration.source}: cut to its first {room} of {len(completion_ids)} tokens "
        "(--max-length), without an end token"
    )
    return Example(tuple(prompt_ids), tuple(completion_ids[:room])), warning


@dataclass(frozen=True)
class ScopedExamples:
    """One split in token ids: what C3PO is trained on."""

    in_scope: tuple[tuple[Example, Example], ...]  # (revised, baseline), of one prompt
    near_scope: tuple[Example, ...]  # the base model's own answers
    out_of_scope: tuple[Example, ...]
    # every prompt, and the same with the feedback in it
    told: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = ()


# ---- token ids ----


def encode_feedback(
    data: FeedbackData, split: str, tokenizer: Tokenizer, max_length: int
) -> tuple[ScopedExamples, list[str]]:
    """One split in token ids, and a warning for each text that had to be cut to `max_length`.

    Every branch goes through the encoder of the demonstrations, so the prompt's ids stand at the
    front of every sequence as the sampler would be given them. Raises InputError where a prompt
    leaves no room.
    """
    warnings: list[str] = []

    def encode(example: ScopeLine, answer: Response | None) -> Example:
        assert answer is not None  # whoever loaded the data has seen to it
        sequence, warning = encode_answer(example, answer, tokenizer, max_length)
        warnings.extend([warning] if warning else [])
        return sequence

    in_scope, near_scope, out_of_scope = (data.examples(scope, split) for scope in SCOPES)
    sequences = ScopedExamples(
        tuple((encode(e, e.revised), encode(e, e.baseline)) for e in in_scope),
        tuple(encode(e, e.baseline) for e in near_scope),
        tuple(encode(e, e.baseline) for e in out_of_scope),
    )
    return sequences, warnings


def encode_answer(
    example: ScopeLine, answer: Response, tokenizer: Tokenizer, max_length: int
) -> tuple[Example, str | None]:
    """Token ids of an answer to a prompt, with an end token only where the answer had ended."""
    demonstration = Demonstration(example.messages, answer.text, example.source)
    sequence, warning = encode_demonstration(demonstration, tokenizer, max_length)
    if answer.finish_reason == "length" and warning is None:
        sequence = Example(sequence.prompt_ids, sequence.completion_ids[:-1])
    return sequence, warning
