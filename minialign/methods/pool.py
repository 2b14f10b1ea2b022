"""DITTO's ranking, demonstration > newest samples > older samples, as a pool from which comparisons
are drawn.

Everything is keyed by the demonstration's place in the file. Two demonstrations may share a prompt;
each keeps its own samples, and both get their turn as the chosen text.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from collections.abc import Sequence as Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from minialign.data.records import Example
from minialign.policy.packing import ragged, rows_of
from minialign.policy.reference_scores import ReferenceScores
from minialign.policy.sample import Completion
from minialign.weights.tokenizer import Tokenizer

Kind = Literal["expert", "replay", "inter_model"]


@dataclass(frozen=True)
class Comparison:
    """Both texts answer the prompt of one demonstration; `chosen` ranks higher."""

    kind: Kind
    demonstration: int
    chosen: Example
    rejected: Example


@dataclass(frozen=True)
class Sample:
    """A completion that the policy wrote in some round, for one demonstration's prompt."""

    round: int
    demonstration: int
    completion: Completion
    sequence: Example


class ComparisonPool:
    """Demonstrations and all rounds of samples so far; the ranking lives in `_candidates`."""

    def __init__(self, demonstrations: Sequence[Example]) -> None:
        self.demonstrations = list(demonstrations)
        self._best = set(demonstrations)
        self.rounds: list[list[list[Sample]]] = []  # round -> demonstration -> samples

    def add_round(self, completions: Sequence[Sequence[Completion]]) -> None:
        """One group of completions per demonstration, in the demonstrations' order."""
        number = len(self.rounds)
        self.rounds.append(
            [
                [
                    Sample(
                        number,
                        index,
                        completion,
                        Example(demonstration.prompt_ids, completion.ids),
                    )
                    for completion in group
                ]
                for index, (demonstration, group) in enumerate(
                    zip(self.demonstrations, completions, strict=True)
                )
            ]
        )

    @property
    def samples(self) -> list[Sample]:
        return [sample for groups in self.rounds for group in groups for sample in group]

    @property
    def newest(self) -> list[Completion]:
        """The answers of the last round."""
        return [sample.completion for group in self.rounds[-1] for sample in group]

    def draw(self, count: int, mix: dict[str, float], rng: random.Random) -> list[Comparison]:
        """Up to `count` distinct comparisons, in the proportions of `mix`.

        A kind that cannot exist yet is left out and not made up for: in round 0 there is nothing to
        replay, and a step of 24 has its 17 expert comparisons only (as in the official code).
        """
        kinds: tuple[Kind, ...] = ("expert", "replay", "inter_model")
        counts = shares(count, [mix[kind] for kind in kinds])
        return [
            pair
            for kind, number in zip(kinds, counts, strict=True)
            for pair in self._deal(kind, number, rng)
        ]

    def _deal(self, kind: Kind, count: int, rng: random.Random) -> list[Comparison]:
        """Demonstrations take turns in random order, dealing from their shuffled candidates."""
        order = rng.sample(range(len(self.demonstrations)), len(self.demonstrations))
        decks: dict[int, list[Comparison]] = {}
        dealt: list[Comparison] = []
        while order:
            for index in list(order):
                if len(dealt) == count:
                    return dealt
                if index not in decks:  # only now: most are never asked
                    candidates = self._candidates(kind, index)
                    decks[index] = rng.sample(candidates, len(candidates))
                if decks[index]:
                    dealt.append(decks[index].pop())
                else:
                    order.remove(index)
        return dealt

    def _candidates(self, kind: Kind, index: int) -> list[Comparison]:
        """Every comparison of a kind that one demonstration offers.

        A text is never compared with itself, and no demonstration is ever the worse text: a model
        that knows one by heart may write it, in answer to another that shares its prompt as well.
        """
        demonstration = self.demonstrations[index]
        rounds = [[sample.sequence for sample in groups[index]] for groups in self.rounds]
        if kind == "expert":
            pairs = [(demonstration, rejected) for rejected in rounds[-1]]
        elif kind == "replay":
            pairs = [(demonstration, rejected) for older in rounds[:-1] for rejected in older]
        else:
            pairs = [
                pair
                for older, newer in itertools.combinations(rounds, 2)
                for pair in itertools.product(newer, older)
            ]
        distinct = dict.fromkeys((a, b) for a, b in pairs if a != b and b not in self._best)
        return [Comparison(kind, index, chosen, rejected) for chosen, rejected in distinct]

    def state(self) -> dict[str, Tensor]:
        """Every sample of every round, in order."""
        completions = [sample.completion for sample in self.samples]
        ids, lengths = ragged([completion.ids for completion in completions])
        counts, groups = ragged([[len(group) for group in groups] for groups in self.rounds])
        return {
            **{"ids": ids, "lengths": lengths, "counts": counts, "groups": groups},
            "logprobs": torch.tensor([c.logprob for c in completions], dtype=torch.float64),
            "ended": torch.tensor([c.finish_reason == "stop" for c in completions]).bool(),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        logprobs, ended = state["logprobs"].tolist(), state["ended"].tolist()
        ids = rows_of(state["ids"], state["lengths"])
        samples = iter(
            Completion("", own, logprob, "stop" if stopped else "length")
            for own, logprob, stopped in zip(ids, logprobs, ended, strict=True)
        )
        for counts in rows_of(state["counts"], state["groups"]):
            self.add_round([[next(samples) for _ in range(count)] for count in counts])

    def load_records(self, lines: Iterable[dict[str, Any]]) -> dict[Example, float]:
        """Takes over the rounds of `records`; returns what the reference says of their samples.

        Demonstrations that the lines do not know, the last ones, have no samples in these rounds.
        """
        rounds: list[list[list[Completion]]] = []
        known: dict[Example, float] = {}
        for line in lines:
            ids, place = tuple(line["ids"]), line["demonstration"]
            while len(rounds) <= line["round"]:
                rounds.append([[] for _ in self.demonstrations])
            completion = Completion(line["text"], ids, line["logprob"], line["finish_reason"])
            rounds[line["round"]][place].append(completion)
            if line["reference_logp"] is not None:
                known[Example(self.demonstrations[place].prompt_ids, ids)] = line["reference_logp"]
        for groups in rounds:
            self.add_round(groups)
        return known

    def records(
        self, reference: ReferenceScores, tokenizer: Tokenizer | None
    ) -> list[dict[str, Any]]:
        """A line a sample for samples.jsonl.

        `reference_logp` is None while a sample has not stood in a comparison.
        """
        return [
            {
                "round": sample.round,
                "demonstration": sample.demonstration,
                "text": tokenizer.decode(sample.completion.ids) if tokenizer else "",
                "ids": list(sample.completion.ids),
                "finish_reason": sample.completion.finish_reason,
                "logprob": sample.completion.logprob,
                "reference_logp": reference.known.get(sample.sequence),
            }
            for sample in self.samples
        ]


def shares(count: int, fractions: Sequence[float]) -> list[int]:
    """Whole numbers in the proportions of `fractions` that add up to `count`.

    The largest remainders are rounded up.

    24 at (.7, .2, .1) is (17, 5, 2); the fractions must add up to 1.
    """
    exact = [count * fraction for fraction in fractions]
    whole = [int(value + 1e-9) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: exact[i] - whole[i], reverse=True)
    for i in by_remainder[: count - sum(whole)]:
        whole[i] += 1
    return whole
