"""What a judge learns from: the person's texts and groups of others', in pieces, by prompt.

Texts to one prompt share its topic. They are held out together, whoever wrote them: a judge that
has seen the topic on one side alone would go by the topic.
Shapes: T texts, P their pieces.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minialign.errors import InputError

Array = NDArray[np.float64]
Indices = NDArray[np.intp]
Mask = NDArray[np.bool_]
PIECE = 500  # characters: about 90 words of English
LETTERS_A_WORD = 5.5  # of English, with the space
MAX_FOLDS = 10
MAX_PIECES = 600  # longer texts are learned from in part, to bound the time
MIN_SHARED = 2  # prompts, from which a group is compared on those alone
KEPT = -1  # the fold of what is never held out
OWN = 0  # the group of the person's texts; the others' count from 1


@dataclass(frozen=True)
class Text:
    """A text, and the prompt or topic that it shares with others; None shares with nobody."""

    text: str
    prompt: str | None = None


Given = str | Text


@dataclass(frozen=True)
class Corpus:
    texts: list[str]
    groups: Indices  # (T,): OWN, 1, 2, ...
    prompts: Indices  # (T,): a number for each prompt
    pieces: list[str]
    text_of: Indices  # (P,)
    sides: int  # groups, blank ones too

    @classmethod
    def build(
        cls, own: Sequence[Given], others: Sequence[Sequence[Given]], piece: int = PIECE
    ) -> Corpus:
        """Blank texts are left out. A single text of the person's is held out in pieces."""
        sides = [_filled(group) for group in (own, *others)]
        if not sides[OWN]:
            raise InputError("no demonstration has any text: add one that the person wrote")
        if not any(sides[OWN + 1 :]):
            raise InputError("no other text to compare with: sample answers from the base model")
        if len(sides[OWN]) == 1:
            sides[OWN] = [Text(part) for part in cut(sides[OWN][0].text, piece)]
        given = [text for side in sides for text in side]
        texts = [text.text for text in given]
        each = max(1, MAX_PIECES // len(texts))
        parts = [_some(cut(text, piece), each) for text in texts]
        return cls(
            texts,
            np.repeat(np.arange(len(sides)), [len(side) for side in sides]),
            _numbered(given),
            [part for of_text in parts for part in of_text],
            np.repeat(np.arange(len(texts)), [len(of_text) for of_text in parts]),
            len(sides),
        )

    @property
    def group_of(self) -> Indices:  # (P,)
        return self.groups[self.text_of]

    @property
    def owned(self) -> Mask:  # (P,)
        return self.group_of == OWN

    @property
    def own_prompts(self) -> int:
        return len(np.unique(self.prompts[self.groups == OWN]))

    @property
    def paired(self) -> Mask:
        """By group: whether it answered enough of the person's prompts to be compared on those."""
        own = np.unique(self.prompts[self.groups == OWN])
        asked = [self.prompts[self.groups == group] for group in range(self.sides)]
        return np.array([np.isin(own, prompts).sum() >= MIN_SHARED for prompts in asked])

    def folds(self) -> Indices | None:
        """(T,): which prompts are held out together; None if a side answered but one.

        Every fold has texts of both sides. A paired group's answers to prompts of its own are
        never held out: KEPT.
        """
        own = self.groups == OWN
        asked = np.isin(self.prompts, self.prompts[own]) | ~self.paired[self.groups]
        counts = np.array(
            [
                np.bincount(self.prompts[side & asked], minlength=self.prompts.max() + 1)
                for side in (own, ~own)
            ]
        )
        count = min(MAX_FOLDS, *(counts > 0).sum(1))
        if count < 2:
            return None
        return np.where(asked, _dealt(counts, count)[self.prompts], KEPT)


def _dealt(counts: Indices, folds: int) -> Indices:
    """A fold for each prompt of `counts` (2, prompts) texts a side: first those of both sides."""
    has = counts > 0
    fold_of, sizes = np.zeros(counts.shape[1], np.intp), np.zeros((2, folds), np.intp)
    for prompts, sides in ((has[0] & has[1], [0, 1]), (has[0] & ~has[1], [0]), (~has[0], [1])):
        for prompt in np.flatnonzero(prompts):
            smallest = np.argmin(sizes[sides].sum(0))
            fold_of[prompt] = smallest
            sizes[:, smallest] += counts[:, prompt]
    return fold_of


def cleaned(text: str) -> str:
    return text.replace("\r\n", "\n").strip()


def cut(text: str, piece: int = PIECE) -> list[str]:
    """Pieces of about `piece` characters, of one length."""
    count = max(1, round(len(text) / piece))
    cuts = [len(text) * i // count for i in range(count + 1)]
    return [text[a:b] for a, b in itertools.pairwise(cuts)]


def balanced(groups: Indices, text_of: Indices) -> Array:
    """Weights with mean 1: the own texts half, all other groups alike, a group's texts alike."""
    within = 1 / np.bincount(text_of)[text_of]
    totals = np.bincount(groups, within)[groups]
    others = len(np.unique(groups[groups != OWN]))
    return within / totals * np.where(groups == OWN, 0.5, 0.5 / max(1, others)) * len(groups)


def as_text(given: Given) -> Text:
    return given if isinstance(given, Text) else Text(given)


def _filled(group: Sequence[Given]) -> list[Text]:
    texts = [Text(cleaned(t.text), t.prompt) for t in map(as_text, group)]
    return [text for text in texts if text.text]


def _some(parts: list[str], each: int) -> list[str]:
    return parts[:: 1 + (len(parts) - 1) // each]


def _numbered(given: Sequence[Text]) -> Indices:
    """A number for each prompt; a text without one has a number of its own."""
    keys = [place if text.prompt is None else text.prompt for place, text in enumerate(given)]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return np.array([numbers[key] for key in keys], np.intp)
