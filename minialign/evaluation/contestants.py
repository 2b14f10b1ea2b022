"""Who answers the held-out prompts: the base model, few-shot prompting, adapters, a file of texts.

All of them answer the same prompts with the same random streams, through one sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceABC
from dataclasses import dataclass
from pathlib import Path

from minialign.config import SamplingConfig
from minialign.data import Demonstration, Messages, Sequence, load_demonstrations
from minialign.errors import InputError
from minialign.lora import reference_policy
from minialign.model import CausalLM
from minialign.sampler import Completion, sample, with_text
from minialign.tokenizer import Tokenizer

Answers = list[list[Completion]]  # prompt -> answers, with their texts
Progress = Callable[[str, int], Callable[[int, int, int], None]]


@dataclass(frozen=True)
class Contestant:
    """A policy and what it is shown, or texts that were written elsewhere."""

    name: str
    adapter: str | None = None  # None: the base model
    shown: tuple[Demonstration, ...] = ()  # few-shot: the demonstrations in its prompt
    answers: tuple[tuple[str, ...], ...] = ()  # a file's: prompt -> texts

    @property
    def is_policy(self) -> bool:
        """Whether it stands on one scale with the base model: the same prompt, other weights."""
        return not self.shown and not self.answers


def few_shot_messages(
    shown: SequenceABC[Demonstration], messages: Messages, tokenizer: Tokenizer, limit: int
) -> Messages:
    """The demonstrations as earlier turns of the conversation: as many, in order, as fit.

    `limit` is the most tokens that the prompt may have. Raises InputError where not even one fits.
    """
    for count in range(len(shown), 0, -1):
        turns = [turn for d in shown[:count] for turn in _turns(d)]
        together = [*turns, *messages]
        if len(tokenizer.encode_prompt(together)) <= limit:
            return together
    raise InputError(
        f"few-shot: not one demonstration fits into a prompt of {limit} tokens: leave it out of "
        "--against"
    )


def _turns(demonstration: Demonstration) -> Messages:
    return [*demonstration.messages, {"role": "assistant", "content": demonstration.completion}]


def answers_from_file(path: Path, prompts: SequenceABC[str]) -> tuple[tuple[str, ...], ...]:
    """Texts by prompt, from a file such as `sample.py --out` writes; equally many for each.

    Raises InputError where a prompt has none.
    """
    found: dict[str, list[str]] = {}
    for answer in load_demonstrations(path):
        found.setdefault(answer.prompt, []).append(answer.completion)
    for prompt in prompts:
        if prompt not in found:
            raise InputError(f"{path}: has no answer to the held-out prompt {prompt[:60]!r}")
    fewest = min(len(found[prompt]) for prompt in prompts)
    return tuple(tuple(found[prompt][:fewest]) for prompt in prompts)


def prompt_ids(
    contestant: Contestant, prompts: SequenceABC[Messages], tokenizer: Tokenizer, limit: int
) -> list[tuple[int, ...]]:
    """What the contestant reads before it answers."""
    if contestant.shown:
        prompts = [few_shot_messages(contestant.shown, p, tokenizer, limit) for p in prompts]
    return [tuple(tokenizer.encode_prompt(messages)) for messages in prompts]


def write_answers(
    model: CausalLM,
    tokenizer: Tokenizer,
    contestants: SequenceABC[Contestant],
    prompts: SequenceABC[Messages],
    n: int,
    sampling: SamplingConfig,
    *,
    seed: int,
    progress: Progress,
) -> dict[str, Answers]:
    """Every contestant's n answers to every prompt (a file's as many as it has)."""
    limit = model.config.max_position_embeddings - sampling.max_new_tokens
    written: dict[str, Answers] = {}
    for contestant in contestants:
        if contestant.answers:
            written[contestant.name] = [
                [_foreign(text, tokenizer) for text in group] for group in contestant.answers
            ]
            continue
        ids = prompt_ids(contestant, prompts, tokenizer, limit)
        on_token = progress(contestant.name, len(ids) * n)
        with reference_policy(model, contestant.adapter):
            groups = sample(model, ids, n, sampling, seed=seed, on_token=on_token)
        written[contestant.name] = [[with_text(c, tokenizer) for c in group] for group in groups]
    return written


def _foreign(text: str, tokenizer: Tokenizer) -> Completion:
    """A text from elsewhere: its ids are only counted."""
    return Completion(text, tuple(tokenizer.encode_completion(text)), float("nan"), "stop")


def held_out_sequences(
    contestant: Contestant,
    held_out: SequenceABC[Sequence],
    prompts: SequenceABC[Messages],
    tokenizer: Tokenizer,
    limit: int,
) -> list[Sequence]:
    """The person's own texts behind what the contestant reads."""
    if not contestant.shown:
        return list(held_out)
    ids = prompt_ids(contestant, prompts, tokenizer, limit)
    return [Sequence(p, s.completion_ids) for p, s in zip(ids, held_out, strict=True)]
