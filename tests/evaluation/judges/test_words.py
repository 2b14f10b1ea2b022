"""Words of any script, and shares of copied ones, counted by hand."""

from __future__ import annotations

import pytest
from helpers.refusals import refusal

from minialign.evaluation.judges.words import copied_share, tokens_of


def test_tokens_are_words_marks_line_breaks_and_single_chinese_characters() -> None:
    found = tokens_of("It’s John's, no?!! ...\n\n我们 42_x")
    expected = ["it’s", "john's", ",", "no", "?", "!!", "...", "\n\n", "我", "们", "42_x"]
    assert found == expected


WORDS = [f"word{i}" for i in range(30)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" ".join(WORDS), 1.0),
        (" ".join(WORDS[:8]), 1.0),
        (" ".join(WORDS[:7]), 0.0),  # one word too few
        (" ".join([*WORDS[:8], *"abcdefgh"]), 0.5),
        (" ".join([*WORDS[:7], "x", *WORDS[8:15]]), 0.0),  # two runs of seven
        (" ".join([*WORDS[:8], *WORDS[20:28]]), 1.0),  # two runs from two places
        (" ".join([*WORDS[:9], "x"]), 0.9),  # overlapping runs count their words once
        (" ".join(reversed(WORDS)), 0.0),
        (", ".join(WORDS[:8]).upper() + "!", 1.0),  # marks and case make no difference
        ("", 0.0),
        ("...", 0.0),
    ],
)
def test_copied_share_counts_words_in_shared_runs(text: str, expected: float) -> None:
    assert copied_share(text, ["unrelated", " ".join(WORDS)]) == pytest.approx(expected)


def test_a_run_may_not_reach_from_one_demonstration_into_the_next() -> None:
    assert copied_share(" ".join(WORDS[:8]), [" ".join(WORDS[:4]), " ".join(WORDS[4:8])]) == 0


def test_copied_share_takes_other_run_lengths() -> None:
    assert copied_share("a b x c d", ["a b c d"], n=2) == pytest.approx(0.8)
    assert copied_share("a b x c d", ["a b c d"], n=3) == 0
    assert copied_share("a x", ["a"], n=1) == 0.5
    assert "at least 1" in refusal(lambda: copied_share("a", ["a"], n=0))


def test_without_demonstrations_nothing_is_copied() -> None:
    assert copied_share(" ".join(WORDS), []) == 0
