"""Examples laid end to end, without padding, and steps cut into what fits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor

from minialign.data.records import Example
from minialign.model.segments import Segment

T = TypeVar("T")


@dataclass
class Packed:
    """Sequences laid end to end, group by group.

    Worked example: prompt (a b) with completions (x y) and (z) gives ids `a b x y z` at positions
    `0 1 2 3 2`. The prompt's last token predicts both first tokens, so predictors are `1 2 1` for
    targets `x y z`, with lengths `2 1`. A completion's last token predicts nothing that is scored.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    predictors: list[int] = field(
        default_factory=list
    )  # where the hidden state stands that predicts targets[i]
    targets: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)  # (S,) targets a distinct sequence
    index: list[int] = field(default_factory=list)  # which distinct sequence each asked-for one is

    @classmethod
    def of(cls, sequences: Sequence[Example]) -> Packed:
        packed, known = cls(), {}
        for prompt_ids, group in by_prompt(dict.fromkeys(sequences), lambda s: s).items():
            prompt = packed._append(prompt_ids, None)
            for sequence in group:
                known[sequence] = len(packed.lengths)
                packed._append_completion(sequence, prompt)
        packed.index = [known[sequence] for sequence in sequences]
        return packed

    def sums(self, values: Tensor) -> Tensor:
        """Sums of what stands at the targets, (N,), for every sequence that was asked for."""
        sums = torch.stack([part.sum() for part in values.split(self.lengths)])
        return sums[torch.tensor(self.index, device=values.device)]

    def _append(self, ids: tuple[int, ...], prefix: Segment | None) -> Segment:
        bounds = (prefix.start, prefix.stop) if prefix else None
        segment = Segment(len(self.ids), len(self.ids) + len(ids), bounds)
        self.ids += ids
        self.positions += segment.positions
        self.segments.append(segment)
        return segment

    def _append_completion(self, sequence: Example, prompt: Segment) -> None:
        self.lengths.append(len(sequence.completion_ids))
        self.targets += sequence.completion_ids
        if sequence.completion_ids:
            self.predictors.append(prompt.stop - 1)
        if sequence.completion_ids[:-1]:
            own = self._append(sequence.completion_ids[:-1], prompt)
            self.predictors += range(own.start, own.stop)


def by_prompt(
    items: Iterable[T], sequence_of: Callable[[T], Example]
) -> dict[tuple[int, ...], list[T]]:
    """Prompt groups: items in their order, keyed by the ids of their prompt."""
    groups: dict[tuple[int, ...], list[T]] = {}
    for item in items:
        groups.setdefault(sequence_of(item).prompt_ids, []).append(item)
    return groups


def distinct_tokens(sequences: Iterable[Example]) -> int:
    """What there is to read: each prompt and each completion once."""
    distinct = set(sequences)
    prompts = {sequence.prompt_ids for sequence in distinct}
    return sum(map(len, prompts)) + sum(len(sequence.completion_ids) for sequence in distinct)


def micro_batches(
    items: Sequence[T], sequences_of: Callable[[T], tuple[Example, ...]], max_tokens: int
) -> Iterator[list[T]]:
    """Cuts a step into whole prompt groups of at most `max_tokens` distinct tokens.

    A larger group stands alone. One above twice `max_tokens` is cut to that: what its parts share
    is computed with each of them, so a little more memory is the better bargain. A single item is
    never cut.

    All sequences of an item share one prompt. The losses of the parts add up to the loss of the
    step, so the gradient does not depend on `max_tokens`; memory does.
    """
    batch: list[T] = []
    tokens = 0
    for group in by_prompt(items, lambda item: sequences_of(item)[0]).values():
        for part, cost in _within(group, sequences_of, 2 * max_tokens):
            if batch and tokens + cost > max_tokens:
                yield batch
                batch, tokens = [], 0
            batch, tokens = batch + part, tokens + cost
    if batch:
        yield batch


def largest_part(
    items: Sequence[T], sequences_of: Callable[[T], tuple[Example, ...]], max_tokens: int
) -> int:
    """Distinct tokens of the largest part that `micro_batches` makes of a step."""
    parts = micro_batches(items, sequences_of, max_tokens)
    return max(distinct_tokens(chain.from_iterable(map(sequences_of, part))) for part in parts)


def _within(
    group: list[T], sequences_of: Callable[[T], tuple[Example, ...]], max_tokens: int
) -> Iterator[tuple[list[T], int]]:
    """Cuts a prompt group into parts of at most `max_tokens`, each with its size."""
    part: list[T] = []
    held: set[Example] = set()
    tokens = 0
    first = {s: place for place, s in enumerate(dict.fromkeys(sequences_of(x)[0] for x in group))}
    for item in sorted(group, key=lambda item: first[sequences_of(item)[0]]):  # what shares a text
        sequences = set(sequences_of(item))
        more = sum(len(sequence.completion_ids) for sequence in sequences - held)
        if part and tokens + more > max_tokens:
            yield part, tokens
            part, held, tokens = [], set(), 0
        if not part:
            more = sum(len(sequence.completion_ids) for sequence in sequences)
            tokens = len(next(iter(sequences)).prompt_ids)
        part, held, tokens = [*part, item], held | sequences, tokens + more
    yield part, tokens


def ragged(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows of numbers as tensors that can be saved: all numbers, and each row's length (R,)."""
    numbers = [number for row in rows for number in row]
    return torch.tensor(numbers, dtype=torch.int64), torch.tensor(
        list(map(len, rows)), dtype=torch.int64
    )


def rows_of(numbers: Tensor, lengths: Tensor) -> list[tuple[int, ...]]:
    """The inverse of `ragged`."""
    return [tuple(row.tolist()) for row in numbers.split(lengths.tolist())] if len(lengths) else []
