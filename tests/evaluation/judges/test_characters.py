"""The character models against probabilities by hand."""

from __future__ import annotations

import numpy as np
import pytest

from minialign.evaluation.judges import characters
from minialign.evaluation.judges.characters import CharacterJudge


def model(pieces: list[str], weights: list[float]) -> tuple[characters._Model, dict[str, int]]:
    alphabet = characters._alphabet(pieces)
    tables = [characters._Table.build(codes) for codes in characters._codes(pieces, alphabet)]
    return characters._Model.fit(tables, np.array(weights)), alphabet


def test_chances_are_witten_and_bells() -> None:
    """After "ab" and then "ac": the second of "ab", by one character before it and by none."""
    known, alphabet = model(["abac"], [1.0] * 4)
    chances = np.exp(-known.surprise(characters._codes(["ab"], alphabet)))
    # three characters and one for the rest, four seen, three different
    alone_a, alone_b = (2 + 3 / 4) / 7, (1 + 3 / 4) / 7
    # a piece starts with "a" once: after the start, after two starts, and so on
    first = alone_a
    for _ in range(characters.ORDER):
        first = (1 + first) / 2
    second = (1 + 2 * alone_b) / 4  # after "a": "b" and "c", once each
    for _ in range(characters.ORDER - 1):
        second = (1 + second) / 2  # after the start and "a": "b"
    assert chances == pytest.approx([first, second])


def test_what_counts_nothing_was_not_seen() -> None:
    both, alphabet = model(["aaaa", "bbbb"], [1.0] * 4 + [0.0] * 4)
    a, b = both.surprise(characters._codes(["a", "b"], alphabet))
    assert a < 0.1 and b > 3


def test_a_character_that_nobody_wrote_has_a_finite_say() -> None:
    judge = CharacterJudge.fit(["hey sam!!", "hey kim!!"], [["Dear Sir,", "Dear Madam,"]])
    assert np.isfinite(judge.scores(["我们", "\U0001f600" * 500, "hey"])).all()


def test_one_character_says_at_most_so_much() -> None:
    """The person's model is sure of "z" after "qqqqq", the others' of anything else."""
    own, others = ["qqqqqz" * 200] * 3, ["qqqqqx" * 200] * 3
    judge = CharacterJudge.fit(own, [others])
    assert judge._raw(["qqqqqz"])[0] <= characters.CLIP


def test_every_group_of_others_has_the_same_number_of_characters() -> None:
    corpus = characters.Corpus.build(["x" * 50], [["y" * 400] * 6, ["z" * 300]])
    weights = characters._weights(corpus)
    lengths = np.array([len(piece) for piece in corpus.pieces])
    totals = np.bincount(corpus.group_of, weights * lengths)
    assert totals == pytest.approx([50, 1350, 1350])
