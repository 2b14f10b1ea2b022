"""What the judges of style have in common: everything but the evidence that they go by.

A person's texts are told from other texts (the base model's answers, other authors) in pieces of
the length that is to be judged, since whole texts say more than their first hundred words.

* A text's score is the mean over its pieces. A shorter piece says less for or against the person.
* Scores are log-odds, fitted on prompts that the classifier had not seen.
* A text scores high only if it is writing at all: it has no loops, and more word pairs that other
  texts have too than its own words in random order.
* Every group of other texts weighs the same, and all of them together as much as the person's.

Shapes: P pieces that are learned from, N pieces or texts in question.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import numpy as np

from minialign.evaluation.judges.corpus import (
    KEPT,
    LETTERS_A_WORD,
    OWN,
    PIECE,
    Array,
    Corpus,
    Given,
    Indices,
    balanced,
    cleaned,
    cut,
)
from minialign.evaluation.judges.intervals import clopper_pearson
from minialign.evaluation.judges.trust import areas_over_folds, calibrated, chance_error
from minialign.evaluation.judges.wellformed import CAP, WellFormed

Scorer = Callable[[Sequence[str]], Array]  # pieces -> (N,); more is more like the person's
HeldOut = Callable[[Indices], Array]  # folds (T,) -> (P,): every piece, by who has not seen it
FittedOn = Literal["unseen texts", "training texts"]
SHRINK = 50  # characters of "like everybody else" that every piece starts with
MARGIN = 0.1  # an area less than this above chance is of no use, however sure it is
ONE_SIDED_5_PERCENT = 1.645  # standard errors
CLEAR = 0.95  # an area that is enough whatever its error, which for few texts is very wide
MIN_OWN = 3  # fewer prompts look alike by luck
ENOUGH_OWN = 5  # demonstrations, from which a verdict is more than a rough one


@dataclass(frozen=True, eq=False)
class PieceJudge(ABC):
    """A scorer of texts by one person's style."""

    name: ClassVar[str]

    auc: float  # mean of `areas`: a held-out piece of the person's against another's
    areas: tuple[float, ...]  # against each group of others; .5 where nothing could be held out
    own_texts: int
    other_texts: int
    own_prompts: int
    piece: int  # characters that `auc` is true of
    fitted_on: FittedOn
    _raw: Scorer = field(repr=False)
    _calibration: tuple[float, float] = field(repr=False)  # slope, offset
    _well_formed: WellFormed = field(repr=False)
    _chance_error: float = field(repr=False)  # standard error of `auc` if nothing differed

    @classmethod
    @abstractmethod
    def _learned(cls, corpus: Corpus) -> tuple[Scorer, HeldOut]:
        """What a kind of evidence has to offer."""

    @classmethod
    def fit(
        cls,
        own: Sequence[Given],
        others: Sequence[Sequence[Given]],
        *,
        seed: int = 0,
        piece: int = PIECE,
        fitted_on: FittedOn = "training texts",
    ) -> Self:
        """Learns how `own` differ from `others`: groups of texts that weigh the same.

        Give whole texts, with their prompts (`Text`): what answers one prompt is held out together.
        A plain string is a prompt of its own, a single text is held out in pieces, and blank texts
        are left out. `piece` is the length that will be judged, `fitted_on` what `own` are to the
        model in question, `seed` draws the random word orders of a check. Raises InputError if a
        side has no text.
        """
        corpus = Corpus.build(own, others, piece)
        raw, held_out = cls._learned(corpus)
        calibration, error = (1.0, 0.0), 0.0
        areas: tuple[float, ...] = (0.5,) * len(others)
        folds = corpus.folds()
        if folds is not None:
            said = held_out(folds)
            areas = areas_over_folds(said, corpus, folds)
            held = folds[corpus.text_of] != KEPT
            weights = balanced(corpus.group_of, corpus.text_of)
            calibration = calibrated(said[held], corpus.owned[held], weights[held])
            error = _luck(corpus, folds)
        texts, mine = corpus.texts, int((corpus.groups == OWN).sum())
        single = sum(bool(cleaned(t if isinstance(t, str) else t.text)) for t in own) == 1
        return cls(
            auc=float(np.nanmean(areas)),
            areas=areas,
            own_texts=1 if single else mine,
            other_texts=len(texts) - mine,
            own_prompts=1 if single else corpus.own_prompts,
            piece=piece,
            fitted_on=fitted_on,
            _raw=raw,
            _calibration=calibration,
            _well_formed=WellFormed.fit(texts[:mine], texts[mine:], seed),
            _chance_error=error,
        )

    def scores(self, texts: Sequence[str]) -> Array:
        """(N,): the log-odds that a piece of the text is the person's, mean over its pieces.

        0 is undecided, more is more like the person. Writing that is not well-formed is capped, and
        a blank text is at -CAP / 2.
        """
        return np.array([self._score(cleaned(text)) for text in texts], np.float64)

    def _score(self, text: str) -> float:
        if not text:
            return -CAP / 2
        pieces, (slope, offset) = cut(text, self.piece), self._calibration
        log_odds = evidence(pieces) * (slope * self._raw(pieces) + offset)
        return min(float(log_odds.mean()), self._well_formed.cap(text))

    @property
    def can_judge(self) -> bool:
        """Whether held-out pieces were told apart, beyond what so few would show by luck."""
        needed = 0.5 + max(MARGIN, ONE_SIDED_5_PERCENT * self._chance_error)
        return self.own_prompts >= MIN_OWN and self.auc >= min(needed, CLEAR)

    def describe(self) -> str:
        """One line for a person: what the judge was built from, and how often it is right."""
        roughly = "" if self.own_texts >= ENOUGH_OWN else ", roughly, from so few"
        verdict = f"can judge{roughly}" if self.can_judge else "cannot judge, add demonstrations"
        low, high = clopper_pearson(self.auc, self.own_prompts)
        return (
            f"{self.name} judge from {self.own_texts} own ({self.fitted_on}) and "
            f"{self.other_texts} other texts: {verdict}; about {self.piece / LETTERS_A_WORD:.0f} "
            f"held-out words of the person's score above another's {self.auc:.0%} of the time "
            f"({self.own_prompts} prompts: {low:.0%} to {high:.0%}; chance: 50%)"
        )


def evidence(pieces: Sequence[str]) -> Array:
    """(N,): from 0 for nothing towards 1, by length."""
    return np.array([len(piece) / (len(piece) + SHRINK) for piece in pieces])


def _luck(corpus: Corpus, folds: Indices) -> float:
    """The texts of one prompt count as one text of the person's."""
    sizes = np.bincount(corpus.groups[folds != KEPT])[OWN + 1 :]
    return chance_error(int(folds.max()) + 1, corpus.own_prompts, sizes[sizes > 0].tolist())
