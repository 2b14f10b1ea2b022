"""What a step of C3PO's loop learns from: a share of each scope, cut into parts that fit."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator
from collections.abc import Sequence as Sequence
from typing import NamedTuple

from minialign.data.records import Example
from minialign.methods.knobs import C3POConfig
from minialign.policy.encode import ScopedExamples
from minialign.policy.packing import micro_batches
from minialign.training.dealing import deal


class Batch(NamedTuple):
    """A step's share of each scope; what has no weight is not there."""

    # (revised, baseline), or (revised,) alone for SFT
    pairs: list[tuple[Example, ...]]
    out: list[Example]
    near: list[Example]
    # the pairs' revised answers as a whole, where `nll_weight` asks for them
    learned: Sequence[Example] = ()

    @classmethod
    def of(cls, data: ScopedExamples, knobs: C3POConfig) -> Batch:
        """Everything that the objective gives a weight to."""
        return cls(
            [compared(*pair, knobs) for pair in data.in_scope],
            list(data.out_of_scope) if knobs.lambda_out else [],
            list(data.near_scope) if knobs.lambda_near else [],
            [revised for revised, _ in data.in_scope] if knobs.nll_weight else [],
        )

    def draw(self, size: int, step: int, seed: int) -> Batch:
        """The share of a step, a function of (seed, step) alone; each scope has its own epochs."""
        return Batch(
            deal(self.pairs, size, step, f"{seed}/c3po/in_scope"),
            deal(self.out, size, step, f"{seed}/c3po/out_of_scope"),
            deal(self.near, size, step, f"{seed}/c3po/near_scope"),
            deal(self.learned, size, step, f"{seed}/c3po/in_scope"),
        )

    def parts(self, max_tokens: int) -> Iterator[Batch]:
        """Parts of at most `max_tokens` where they can be, the pairs apart from the constraints.

        The reference scores pairs alone, and only in the policy's own layout do the two agree to
        the last bit while they are one.
        """
        for pairs in micro_batches(self.pairs, lambda pair: pair, max_tokens):
            yield Batch(pairs, [], [])
        answers = [("out", answer) for answer in self.out]
        answers += [("near", answer) for answer in self.near]
        answers += [("learned", answer) for answer in self.learned]
        for part in micro_batches(answers, lambda answer: answer[1:], max_tokens):
            scopes: dict[str, list[Example]] = {"out": [], "near": [], "learned": []}
            for scope, answer in part:
                scopes[scope].append(answer)
            yield Batch([], **scopes)

    @property
    def in_scope(self) -> list[Example]:
        """The texts of the pairs, revised ones first."""
        return [text for column in zip(*self.pairs, strict=True) for text in column]

    @property
    def texts(self) -> list[Example]:
        """Everything that is read."""
        return [*itertools.chain(*self.pairs), *self.out, *self.near, *self.learned]


def compared(revised: Example, baseline: Example, knobs: C3POConfig) -> tuple[Example, ...]:
    """What the loss reads of a pair."""
    if knobs.loss == "sft":
        return (revised,)
    if not knobs.has_reference:
        # What both begin with does not cancel in means over tokens.
        return revised, baseline
    pair = without_common_start(revised, baseline)
    return without_common_end(*pair) if knobs.changed_span else pair


def without_common_start(chosen: Example, rejected: Example) -> tuple[Example, Example]:
    """The tokens with which both completions begin become a part of the prompt.

    Their log-probabilities cancel in the margin of DPO and IPO, for the policy and for the
    reference. At least one token is left of each completion.
    """
    common = _common(chosen.completion_ids, rejected.completion_ids)
    prompt = chosen.prompt_ids + chosen.completion_ids[:common]
    return (
        Example(prompt, chosen.completion_ids[common:]),
        Example(prompt, rejected.completion_ids[common:]),
    )


def without_common_end(chosen: Example, rejected: Example) -> tuple[Example, Example]:
    """The tokens with which both completions end are left out, but for one token of each."""
    common = _common(chosen.completion_ids[::-1], rejected.completion_ids[::-1])
    return (
        Example(chosen.prompt_ids, chosen.completion_ids[: len(chosen.completion_ids) - common]),
        Example(
            rejected.prompt_ids, rejected.completion_ids[: len(rejected.completion_ids) - common]
        ),
    )


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many tokens both begin with, at least one of each not counted."""
    limit = min(len(one), len(other)) - 1
    return sum(1 for _ in itertools.takewhile(bool, map(operator.eq, one[:limit], other)))
