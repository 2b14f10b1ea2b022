"""The verb that reads: the summed log-probability of completions, differentiable and fused.

Sequences are packed end to end without padding. Within a call each distinct prompt is computed once
and seen by all its completions, each distinct sequence is scored once, and only positions that
predict a completion token reach the head.

Shape letters: N packed tokens, S distinct sequences, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as SequenceABC
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from minialign.attention import PackedAttention, Segment
from minialign.data import Sequence
from minialign.fused import linear_kl, linear_logps
from minialign.lora import adapter_hash, adapter_parameters, is_policy, reference_policy
from minialign.model import CausalLM

T = TypeVar("T")


def score(model: CausalLM, sequences: SequenceABC[Sequence]) -> Tensor:
    """log pi(completion | prompt), summed over the completion's tokens.

    A differentiable (len(sequences),) in float32.

    Equal to gathering `log_softmax(model.logits(...))` sequence by sequence. An empty completion
    scores 0.
    """
    packed = Packed.of(sequences)
    if not packed.targets:
        return torch.zeros(len(sequences), device=model.device)
    targets = torch.tensor(packed.targets, device=model.device)
    logps = linear_logps(_predictors(model, packed), model.lm_head.weight, targets)
    return packed.sums(logps)


def divergence(model: CausalLM, sequences: SequenceABC[Sequence], reference: str | None) -> Tensor:
    """KL(reference || policy) of each next token, summed over a completion's tokens.

    Exact: over the whole vocabulary, at the completion's own positions. The reference is an
    adapter, or the base model for None. A differentiable (len(sequences),) in float32.
    """
    packed = Packed.of(sequences)
    if not packed.targets:
        return torch.zeros(len(sequences), device=model.device)
    with reference_policy(model, reference):
        theirs = _predictors(model, packed)
    return packed.sums(linear_kl(_predictors(model, packed), theirs, model.lm_head.weight))


def _predictors(model: CausalLM, packed: Packed) -> Tensor:
    """The hidden states that predict `packed.targets`, (N, D)."""
    device = model.device
    attend = PackedAttention(packed.segments, model.config.sliding_window, device)
    ids, positions = (
        torch.tensor(packed.ids, device=device),
        torch.tensor(packed.positions, device=device),
    )
    return model(ids, positions, attend)[torch.tensor(packed.predictors, device=device)]


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
    def of(cls, sequences: SequenceABC[Sequence]) -> Packed:
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

    def _append_completion(self, sequence: Sequence, prompt: Segment) -> None:
        self.lengths.append(len(sequence.completion_ids))
        self.targets += sequence.completion_ids
        if sequence.completion_ids:
            self.predictors.append(prompt.stop - 1)
        if sequence.completion_ids[:-1]:
            own = self._append(sequence.completion_ids[:-1], prompt)
            self.predictors += range(own.start, own.stop)


def by_prompt(
    items: Iterable[T], sequence_of: Callable[[T], Sequence]
) -> dict[tuple[int, ...], list[T]]:
    """Prompt groups: items in their order, keyed by the ids of their prompt."""
    groups: dict[tuple[int, ...], list[T]] = {}
    for item in items:
        groups.setdefault(sequence_of(item).prompt_ids, []).append(item)
    return groups


def distinct_tokens(sequences: Iterable[Sequence]) -> int:
    """What there is to read: each prompt and each completion once."""
    distinct = set(sequences)
    prompts = {sequence.prompt_ids for sequence in distinct}
    return sum(map(len, prompts)) + sum(len(sequence.completion_ids) for sequence in distinct)


def micro_batches(
    items: SequenceABC[T], sequences_of: Callable[[T], tuple[Sequence, ...]], max_tokens: int
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


def _within(
    group: list[T], sequences_of: Callable[[T], tuple[Sequence, ...]], max_tokens: int
) -> Iterator[tuple[list[T], int]]:
    """Cuts a prompt group into parts of at most `max_tokens`, each with its size."""
    part: list[T] = []
    held: set[Sequence] = set()
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


class ReferenceScores:
    """Scores under a frozen reference policy (adapter `name`, or the base for None).

    Sequences not seen before are scored together, in the same layout as the policy scores them:
    where the policy *is* the reference (DITTO's first step), the two agree to the last bit and the
    loss is ln 2 exactly. (A sequence that stands in two parts of that step is scored with each:
    a layout of its own may round in its own way.) Should the reference change after all, which its
    content's hash tells, everything known is forgotten.
    """

    def __init__(self, model: CausalLM, name: str | None) -> None:
        self.model, self.name = model, name
        self.known: dict[Sequence, float] = {}
        self._versions = self._parameter_versions()
        self._hash = adapter_hash(model, name)

    def __call__(self, sequences: SequenceABC[Sequence]) -> Tensor:
        """(len(sequences),) float32 without gradient, on the model's device."""
        self._forget_if_changed()
        asked = [s for s in dict.fromkeys(sequences) if s not in self.known]
        if len(asked) < len(set(sequences)) and is_policy(self.model, self.name):
            asked = list(dict.fromkeys(sequences))
        if asked:
            with reference_policy(self.model, self.name):
                scores = score(self.model, asked)
            self.known.update(zip(asked, scores.tolist(), strict=True))
        return torch.tensor([self.known[s] for s in sequences], device=self.model.device)

    def restore(self, known: dict[Sequence, float]) -> None:
        """Takes over scores of the reference as it is now."""
        self.known = known
        self._versions = self._parameter_versions()
        self._hash = adapter_hash(self.model, self.name)

    def _parameter_versions(self) -> list[tuple[int, int]]:
        """Changes whenever an adapter tensor is written to, and is cheap enough for every call."""
        tensors = adapter_parameters(self.model, self.name) if self.name else []
        return [(id(tensor), tensor._version) for tensor in tensors]

    def _forget_if_changed(self) -> None:
        versions = self._parameter_versions()
        if versions == self._versions:
            return
        current = adapter_hash(self.model, self.name)
        if current != self._hash:
            self.known.clear()
        self._versions, self._hash = versions, current
