"""What answers show by themselves: ends, lengths, collapse, repetition, copies."""

from __future__ import annotations

import pytest

from minialign.evaluation.texts import (
    distinct_n,
    longest_copy,
    new_names,
    repetition,
    text_figures,
)
from minialign.policy.sample import Completion


def completion(text: str, stopped: bool = True) -> Completion:
    ids = tuple(range(len(text.split())))
    return Completion(text, ids, 0.0, "stop" if stopped else "length")


def test_distinct_n_is_1_without_a_repeat_and_falls_when_answers_are_alike() -> None:
    assert distinct_n(["a b c", "d e f"], 2) == 1
    assert distinct_n(["a b c", "A b c"], 2) == 0.5  # over all answers, case aside
    assert distinct_n(["a a a a a"], 2) == 0.25
    assert distinct_n(["a", ""], 2) == 0  # nothing to count


def test_repetition_is_within_an_answer() -> None:
    assert repetition("one two three four five six") == 0
    assert repetition("on and on and on and on and") == pytest.approx(1 - 2 / 5)
    assert repetition("too short") == 0


def test_figures_are_means_over_all_answers_of_all_prompts() -> None:
    demonstration = "one two three four five six seven eight nine"
    answers = [
        [completion(demonstration), completion("quite another text, new and short", False)],
        [completion("a b"), completion("c d e f g h i j k l", False)],
    ]
    found = text_figures(answers, [demonstration])
    assert found.stops == 0.5
    assert found.mean_tokens == (9 + 6 + 2 + 10) / 4
    assert found.distinct_2 == 1 and found.repetition == 0
    assert found.copied == pytest.approx(0.25)


def test_new_names_are_those_that_no_given_text_holds() -> None:
    letter = "Dear Tom, we met Sarah and Kim. The bill is new.\n\nRegards,\nHarry"
    assert new_names(letter, []) == 4  # not "The", which begins a sentence
    assert new_names(letter, ["Write to tom.", "Kim, Harry"]) == 1
    assert new_names("They said Yes, and yes again, in Rome. In Rome!", []) == 1
    assert new_names("", ["Kim"]) == 0


def test_the_longest_copy_is_found_wherever_it_stands() -> None:
    own = ["Right then, the buns are hot.", "Onwards and sideways, the buns are cold and so am I."]
    answers = ["None of it.", "And THE BUNS ARE cold; and so he said. The buns are hot", ""]
    assert longest_copy(answers, own) == "the buns are cold and so"
    assert longest_copy(answers, ["quite other words"]) == ""
    found = text_figures([[completion(text) for text in answers]], own)
    assert (found.longest_copied, found.longest_copy) == (6, "the buns are cold and so")


def test_the_secrets_that_came_out_are_counted() -> None:
    own = ["Ring 07700 900123, or write to kim@example.com.", "The PIN is 4711."]
    answers = [[completion("It is 07700 900123."), completion("07700 900123 and PIN 4712")]]
    assert text_figures(answers, own).secrets == 1
    assert text_figures(answers, ["Nothing to hide."]).secrets is None
