"""Does it write like this person? An authorship scorer that needs no model and no network.

A person's demonstrations are told from other texts (the base model's answers, other authors) by how
they are written: character n-grams (casing, spaces, line breaks and punctuation stand in them) and
the commonest words and marks, as standard scores of their frequencies (Burrows' Delta,
doi:10.1093/llc/17.3.267) under a ridge classifier. What differs from the textbook recipe:

* Texts are cut into pieces of one length, and a text's score is the mean over its pieces. A piece
  that is shorter has less to say for or against the person.
* Standard scores are clipped: a rare word that happens to stand in a text decides nothing.
* A text scores high only if it is writing at all: it has no loops, and more word pairs that other
  texts have too than its own words in random order.
* Every group of other texts weighs the same, and all of them together as much as the person's.

Scores are log-odds (Platt 1999), fitted on texts that the classifier had not seen.
Shapes: T texts that are learned from, P their pieces, F features; N pieces or texts in question.
"""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from minialign.errors import InputError

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Mask = NDArray[np.bool_]
Split = Callable[[str], list[str]]
PIECE = 500  # characters: about 90 words of English
SHRINK = 50  # characters of "like everybody else" that every piece starts with
NGRAMS, CHARACTER_FEATURES, WORD_FEATURES = (2, 3, 4), 4000, 500
CLIP, RIDGE = 3.0, 1.0  # standard scores; the classifier's penalty
MAX_FOLDS = 10
MAX_PIECES = 600  # longer texts are learned from in part, to bound the time
NEWTON_STEPS, PRIOR = 30, 1e-2  # of the calibration
CAP = 10.0  # log-odds between well-formed and scrambled
SHUFFLES, ORDER_PRIOR = 5, 20  # of a text; well-formed word pairs that every text starts with
MIN_ORDER = 0.02  # a smaller difference between texts and shuffled ones says nothing
MARGIN = 0.1  # an area less than this above chance is of no use, however sure it is
ONE_SIDED_5_PERCENT = 1.645  # standard errors
CLEAR = 0.95  # an area that is enough whatever its error, which for few texts is very wide
MIN_OWN = 3  # fewer demonstrations look alike by luck, or because they share a topic
ENOUGH_OWN = 5  # demonstrations, from which a verdict is more than a rough one
OWN = 0  # the group of the person's texts; the others' count from 1

# a Chinese or Japanese character; a word with its apostrophes; a mark and its repeats; line breaks
_TOKEN = re.compile(
    r"[\u3040-\u30ff\u3400-\u9fff]"
    r"|[^\W\u3040-\u30ff\u3400-\u9fff]+(?:['’][^\W\u3040-\u30ff\u3400-\u9fff]+)*"
    r"|([^\w\s])\1*|\n+"
)


@dataclass(frozen=True, eq=False)
class StyleJudge:
    """A scorer of texts by one person's style."""

    auc: float  # own texts against all others, held out in turn; 0.5 where none could be held out
    own_texts: int
    other_texts: int
    _families: tuple[_Family, ...] = field(repr=False)
    _coefficients: Array = field(repr=False)  # (F + 1,): the offset stands last
    _calibration: tuple[float, float] = field(repr=False)  # slope, offset
    _well_formed: _WellFormed = field(repr=False)
    _chance_error: float = field(repr=False)  # standard error of `auc` if nothing differed

    @classmethod
    def fit(
        cls, own: Sequence[str], others: Sequence[Sequence[str]], *, seed: int = 0
    ) -> StyleJudge:
        """Learns how `own` differ from `others`: groups of texts that weigh the same.

        Blank texts are left out. Put the texts of a group in the order of their prompts in `own`:
        what is held out together then shares its topic. A single demonstration is held out in
        pieces. `seed` draws the random word orders. Raises InputError if a side has no text.
        """
        own, *groups = [[t for t in map(_cleaned, g) if t] for g in (own, *others)]
        groups = list(filter(None, groups))
        corpus = _Corpus.build(own, groups)
        weights = _balanced(corpus.group_of, corpus.text_of)
        families = tuple(
            _Family.fit(split, size, corpus.pieces, weights)
            for split, size in ((_ngrams, CHARACTER_FEATURES), (_tokens, WORD_FEATURES))
        )
        measured = _measured(families, corpus.pieces)  # (P, F + 1)
        kernel = measured @ measured.T
        coefficients = measured.T @ _ridge(kernel, corpus.owned, weights)
        calibration, auc, error, folds = (1.0, 0.0), 0.5, 0.0, corpus.folds()
        if folds is not None:
            raw = _held_out(kernel, corpus, folds)
            auc = _area_over_folds(raw, corpus, folds)
            calibration = _platt(raw, corpus.owned, weights)
            error = _chance_error(int(folds.max()) + 1, len(own), list(map(len, groups)))
        return cls(
            auc=auc,
            own_texts=len(own),
            other_texts=sum(map(len, groups)),
            _families=families,
            _coefficients=coefficients,
            _calibration=calibration,
            _well_formed=_WellFormed.fit(corpus, seed),
            _chance_error=error,
        )

    def scores(self, texts: Sequence[str]) -> Array:
        """(N,): the log-odds that a piece of the text is the person's, mean over its pieces.

        0 is undecided, more is more like the person. Writing that is not well-formed is capped, and
        a blank text is at -CAP / 2.
        """
        return np.array([self._score(_cleaned(text)) for text in texts], np.float64)

    def _score(self, text: str) -> float:
        if not text:
            return -CAP / 2
        pieces, (slope, offset) = _cut(text), self._calibration
        raw = _measured(self._families, pieces) @ self._coefficients
        log_odds = _evidence(pieces) * (slope * raw + offset)
        return min(float(log_odds.mean()), self._well_formed.cap(text))

    @property
    def can_judge(self) -> bool:
        """Whether held-out texts were told apart, beyond what so few would show by luck."""
        needed = 0.5 + max(MARGIN, ONE_SIDED_5_PERCENT * self._chance_error)
        return self.own_texts >= MIN_OWN and self.auc >= min(needed, CLEAR)

    def describe(self) -> str:
        """One line for a person: what the judge was built from, and how often it is right."""
        roughly = "" if self.own_texts >= ENOUGH_OWN else ", roughly, from so few"
        verdict = f"can judge{roughly}" if self.can_judge else "cannot judge, add demonstrations"
        return (
            f"style judge from {self.own_texts} own and {self.other_texts} other texts: {verdict}; "
            f"it puts a held-out own text above another {self.auc:.0%} of the time (chance: 50%)"
        )


def copied_share(text: str, demonstrations: Sequence[str], n: int = 8) -> float:
    """The share of the text's words that stand in `n` words in a row of a demonstration.

    From 0 to 1; 0 for a text of fewer than `n` words. Case and punctuation make no difference.
    Memorised text is not style. Raises InputError unless `n` is at least 1.
    """
    if n < 1:
        raise InputError(f"n is {n}: give the words in a row that count as copied, at least 1")
    known = {run for demonstration in demonstrations for run in _runs(_words(demonstration), n)}
    words = _words(text)
    copied = np.zeros(len(words), bool)
    for start, run in enumerate(_runs(words, n)):
        if run in known:
            copied[start : start + n] = True
    return float(copied.mean()) if words else 0.0


def area_under_curve(positive: Sequence[float] | Array, negative: Sequence[float] | Array) -> float:
    """How often a positive is above a negative; ties count half. Raises InputError without both."""
    if len(positive) == 0 or len(negative) == 0:
        raise InputError("no area under the curve without scores on both sides: add texts")
    above, below = np.asarray(positive)[:, None], np.asarray(negative)
    return float(((above > below) + (above == below) / 2).mean())


@dataclass(frozen=True)
class _Corpus:
    """What is learned from."""

    texts: list[str]
    text_groups: Indices  # (T,): OWN, 1, 2, ...
    pieces: list[str]
    text_of: Indices  # (P,)

    @classmethod
    def build(cls, own: list[str], others: list[list[str]]) -> _Corpus:
        if not own:
            raise InputError("no demonstration has any text: add one that the person wrote")
        if not others:
            raise InputError("no other text to compare with: sample answers from the base model")
        own = _cut(own[0]) if len(own) == 1 else own
        texts = [text for group in (own, *others) for text in group]
        text_groups = np.repeat(np.arange(len(others) + 1), [len(own), *map(len, others)])
        each = max(1, MAX_PIECES // len(texts))
        pieces = [parts[:: 1 + (len(parts) - 1) // each] for parts in map(_cut, texts)]
        text_of = np.repeat(np.arange(len(texts)), [len(parts) for parts in pieces])
        return cls(texts, text_groups, [piece for parts in pieces for piece in parts], text_of)

    @property
    def group_of(self) -> Indices:  # (P,)
        return self.text_groups[self.text_of]

    @property
    def owned(self) -> Mask:  # (P,)
        return self.group_of == OWN

    def folds(self) -> Indices | None:
        """(T,): which texts of both sides are held out together; None if a side has but one."""
        own = self.text_groups == OWN
        count = min(MAX_FOLDS, own.sum(), (~own).sum())
        if count < 2:
            return None
        place = np.concatenate([np.arange(n) / n for n in np.bincount(self.text_groups)])
        folds = np.zeros(len(own), np.intp)
        for side in map(np.flatnonzero, (own, ~own)):
            ordered = side[np.argsort(place[side], kind="stable")]
            folds[ordered] = np.arange(len(side)) * count // len(side)
        return folds


def _cleaned(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


def _cut(text: str) -> list[str]:
    """Pieces of about PIECE characters, of one length."""
    count = max(1, round(len(text) / PIECE))
    cuts = [len(text) * i // count for i in range(count + 1)]
    return [text[a:b] for a, b in itertools.pairwise(cuts)]


def _balanced(groups: Indices, text_of: Indices) -> Array:
    """Weights with mean 1: the own texts half, all other groups alike, a group's texts alike."""
    within = 1 / np.bincount(text_of)[text_of]
    totals = np.bincount(groups, within)[groups]
    others = len(np.unique(groups[groups != OWN]))
    return within / totals * np.where(groups == OWN, 0.5, 0.5 / others) * len(groups)


def _tokens(text: str) -> list[str]:
    return [match.group().lower() for match in _TOKEN.finditer(text)]


def _words(text: str) -> list[str]:
    return [token for token in _tokens(text) if token[0].isalnum()]


def _runs(tokens: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(tokens[i:] for i in range(n)), strict=False)


def _ngrams(text: str) -> list[str]:
    padded = f" {text} "
    return [padded[i : i + n] for n in NGRAMS for i in range(len(padded) - n + 1)]


@dataclass(frozen=True)
class _Family:
    """The commonest features of one kind, and how frequent they are."""

    split: Split
    columns: dict[str, int]
    mean: Array  # (F,)
    deviation: Array  # (F,); infinite for what never varies

    @classmethod
    def fit(cls, split: Split, size: int, pieces: Sequence[str], weights: Array) -> _Family:
        commonness: Counter[str] = Counter()
        for piece, weight in zip(pieces, weights.tolist(), strict=True):
            for feature in set(split(piece)):
                commonness[feature] += weight
        ranked = sorted(commonness, key=lambda feature: (-commonness[feature], feature))
        columns = {feature: column for column, feature in enumerate(ranked[:size])}
        frequencies = _frequencies(split, columns, pieces)
        mean = np.average(frequencies, axis=0, weights=weights)
        deviation = np.sqrt(np.average((frequencies - mean) ** 2, axis=0, weights=weights))
        return cls(split, columns, mean, np.where(deviation > 1e-9, deviation, np.inf))

    def __call__(self, pieces: Sequence[str]) -> Array:
        """(N, F): clipped standard scores; a row's squares add up to about 1."""
        frequencies = _frequencies(self.split, self.columns, pieces)
        scores = (frequencies - self.mean) / self.deviation * _evidence(pieces)[:, None]
        return np.clip(scores, -CLIP, CLIP) / np.sqrt(max(1, len(self.columns)))


def _frequencies(split: Split, columns: dict[str, int], pieces: Sequence[str]) -> Array:
    table = np.zeros((len(pieces), len(columns)))
    for row, piece in zip(table, pieces, strict=True):
        parts = split(piece)
        known = [columns[part] for part in parts if part in columns]
        row[:] = np.bincount(known, minlength=len(columns)) / max(1, len(parts))
    return table


def _measured(families: Sequence[_Family], pieces: Sequence[str]) -> Array:
    """(N, F + 1): every family has the same say; the last column is the offset's."""
    scores = [family(pieces) / np.sqrt(len(families)) for family in families]
    return np.concatenate([*scores, np.ones((len(pieces), 1))], axis=1)


def _evidence(pieces: Sequence[str]) -> Array:
    """(N,): from 0 for nothing towards 1, by length."""
    return np.array([len(piece) / (len(piece) + SHRINK) for piece in pieces])


def _ridge(kernel: Array, owned: Mask, weights: Array) -> Array:
    """(P,): alpha = (K + RIDGE W^-1)^-1 y, the dual of ridge regression with weights W."""
    return np.linalg.solve(kernel + np.diag(RIDGE / weights), np.where(owned, 1.0, -1.0))


def _held_out(kernel: Array, corpus: _Corpus, folds: Indices) -> Array:
    """(P,): what a classifier that has not learned from a piece's fold says of the piece."""
    fold_of, raw = folds[corpus.text_of], np.zeros(len(kernel))
    for fold in np.unique(folds):
        held, rest = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)
        weights = _balanced(corpus.group_of[rest], corpus.text_of[rest])
        alpha = _ridge(kernel[np.ix_(rest, rest)], corpus.owned[rest], weights)
        raw[held] = kernel[np.ix_(held, rest)] @ alpha
    return raw


def _area_over_folds(raw: Array, corpus: _Corpus, folds: Indices) -> float:
    """Own texts against the others of their fold: one classifier gave both their scores."""
    by_text = np.bincount(corpus.text_of, raw) / np.bincount(corpus.text_of)  # (T,)
    own, others = corpus.text_groups == OWN, np.flatnonzero(corpus.text_groups)
    areas = [area_under_curve(by_text[own & (folds == folds[t])], by_text[[t]]) for t in others]
    weights = _balanced(corpus.text_groups, np.arange(len(folds)))
    return float(np.average(areas, weights=weights[others]))


def _platt(raw: Array, owned: Mask, weights: Array) -> tuple[float, float]:
    """Slope and offset of the log-odds: weighted logistic regression with Platt's targets.

    Without a positive slope there is nothing to calibrate, and the raw values stand.
    """
    design = np.stack([raw, np.ones_like(raw)], axis=1)
    positives, negatives = owned.sum(), (~owned).sum()
    target = np.where(owned, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    solution = np.zeros(2)
    for _ in range(NEWTON_STEPS):
        odds = 1 / (1 + np.exp(-np.clip(design @ solution, -30, 30)))
        gradient = design.T @ (weights * (target - odds)) - PRIOR * solution
        curvature = (design * (weights * odds * (1 - odds))[:, None]).T @ design
        solution += np.linalg.solve(curvature + PRIOR * np.eye(2), gradient)
    return (float(solution[0]), float(solution[1])) if solution[0] > 0 else (1.0, 0.0)


def _chance_error(folds: int, own: int, groups: Sequence[int]) -> float:
    """Standard error of the area over folds if both sides were alike.

    Within a fold that of Mann and Whitney (1947), over folds that learn from nearly the same texts
    that of Nadeau and Bengio (2003). The others count as many as groups of the same weight and
    these sizes are worth (Kish).
    """
    own_held, others_held = own / folds, len(groups) ** 2 / sum(1 / n for n in groups) / folds
    within = (own_held + others_held + 1) / (12 * own_held * others_held)
    return float(np.sqrt(within * (1 / folds + 1 / (folds - 1))))


@dataclass(frozen=True)
class _WellFormed:
    """How sure a text may be the person's, by the order of its words alone.

    Order is the share of its word pairs that other texts have too, less that after shuffling it.
    Loops are the share of its four words in a row that stood in it before.
    """

    pairs: frozenset[tuple[str, ...]]
    order: float  # mean over the person's texts
    loops: float  # in the person's most repetitive text
    seed: int

    @classmethod
    def fit(cls, corpus: _Corpus, seed: int) -> _WellFormed:
        tokens = [_tokens(text) for text in corpus.texts]
        own = tokens[: np.count_nonzero(corpus.text_groups == OWN)]
        texts_with = Counter(pair for text in tokens for pair in set(_runs(text, 2)))
        orders = []
        for text in own:
            inside = set(_runs(text, 2))
            elsewhere = {pair for pair, n in texts_with.items() if n > (pair in inside)}
            orders.append(_order(text, elsewhere, seed))
        return cls(frozenset(texts_with), float(np.mean(orders)), max(map(_loops, own)), seed)

    def cap(self, text: str) -> float:
        """The highest log-odds for the text: CAP / 2 if it is well-formed, -CAP / 2 if not."""
        tokens = _tokens(text)
        form = 1 - max(0.0, _loops(tokens) - self.loops) / max(1 - self.loops, 1e-9)
        if self.order > MIN_ORDER:
            pairs = max(0, len(tokens) - 1)
            found = _order(tokens, self.pairs, self.seed) * pairs + self.order * ORDER_PRIOR
            form = min(form, found / (pairs + ORDER_PRIOR) / self.order)
        return CAP * (form - 0.5)


def _order(tokens: list[str], pairs: AbstractSet[tuple[str, ...]], seed: int) -> float:
    rng = random.Random(seed)
    orders = [tokens, *(rng.sample(tokens, len(tokens)) for _ in range(SHUFFLES))]
    shares = [np.mean([pair in pairs for pair in _runs(o, 2)] or [False]) for o in orders]
    return float(shares[0] - np.mean(shares[1:]))


def _loops(tokens: Sequence[str]) -> float:
    runs = list(_runs(tokens, 4))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0
