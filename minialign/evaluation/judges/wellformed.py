"""Is it writing at all? Loops and words in random order are nobody's style."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

import numpy as np

from minialign.evaluation.judges.words import runs_of, tokens_of

CAP = 10.0  # log-odds between well-formed and scrambled
SHUFFLES, ORDER_PRIOR = 5, 20  # of a text; well-formed word pairs that every text starts with
MIN_ORDER = 0.02  # a smaller difference between texts and shuffled ones says nothing


@dataclass(frozen=True)
class WellFormed:
    """How sure a text may be the person's, by the order of its words alone.

    Order is the share of its word pairs that other texts have too, less that after shuffling it.
    Loops are the share of its four words in a row that stood in it before.
    """

    pairs: frozenset[tuple[str, ...]]
    order: float  # mean over the person's texts
    loops: float  # in the person's most repetitive text
    seed: int

    @classmethod
    def fit(cls, own: Sequence[str], others: Sequence[str], seed: int) -> WellFormed:
        tokens = [tokens_of(text) for text in (*own, *others)]
        texts_with = Counter(pair for text in tokens for pair in set(runs_of(text, 2)))
        orders = []
        for text in tokens[: len(own)]:
            inside = set(runs_of(text, 2))
            elsewhere = {pair for pair, n in texts_with.items() if n > (pair in inside)}
            orders.append(_order(text, elsewhere, seed))
        loops = max(map(_loops, tokens[: len(own)]))
        return cls(frozenset(texts_with), float(np.mean(orders)), loops, seed)

    def cap(self, text: str) -> float:
        """The highest log-odds for the text: CAP / 2 if it is well-formed, -CAP / 2 if not."""
        tokens = tokens_of(text)
        form = 1 - max(0.0, _loops(tokens) - self.loops) / max(1 - self.loops, 1e-9)
        if self.order > MIN_ORDER:
            pairs = max(0, len(tokens) - 1)
            found = _order(tokens, self.pairs, self.seed) * pairs + self.order * ORDER_PRIOR
            form = min(form, found / (pairs + ORDER_PRIOR) / self.order)
        return CAP * (form - 0.5)


def _order(tokens: list[str], pairs: AbstractSet[tuple[str, ...]], seed: int) -> float:
    rng = random.Random(seed)
    orders = [tokens, *(rng.sample(tokens, len(tokens)) for _ in range(SHUFFLES))]
    shares = [np.mean([pair in pairs for pair in runs_of(o, 2)] or [False]) for o in orders]
    return float(shares[0] - np.mean(shares[1:]))


def _loops(tokens: Sequence[str]) -> float:
    runs = list(runs_of(tokens, 4))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
