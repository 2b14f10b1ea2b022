"""The signs of a collapse, on series that were made up."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

import pytest

from minialign.training.collapse import (
    COST_RISE,
    COSTS,
    ENDED_FALL,
    LOT,
    REPEATED_RISE,
    RULES,
    STEPS,
    UNSEEN,
    UNSEEN_RISE,
    Watch,
    answer_figures,
    cost_rises,
    endings_lost,
    repeated,
    repetition_rises,
    unseen_rises,
)


@dataclass(frozen=True)
class Answer:
    ids: tuple[int, ...]
    finish_reason: str


# ---- the rules, at their thresholds ----

LEVEL = [2.0] * STEPS
RISEN = [2.0 + COST_RISE + 0.01] * STEPS


@pytest.mark.parametrize(
    ("nats", "warns"),
    [
        ([], False),
        (LEVEL + RISEN, True),
        (RISEN + LEVEL, False),
        ([1.0] * 20 + LEVEL + RISEN, True),
        # Too few steps, too small a rise, and one step of the last that is as before.
        (LEVEL[1:] + RISEN, False),
        (LEVEL + [2.0 + COST_RISE - 0.01] * STEPS, False),
        (LEVEL + RISEN[1:] + [2.0], False),
        ([2.0 + 0.05 * step for step in range(2 * STEPS)], True),
        ([2.0 + 0.03 * step for step in range(2 * STEPS)], False),
        ([float("nan")] * 2 * STEPS, False),
    ],
)
def test_texts_that_cost_more_and_more(nats: list[float], warns: bool) -> None:
    assert bool(cost_rises(nats)) == warns


@pytest.mark.parametrize(
    ("nats", "warns"),
    [
        ([], False),
        ([3.0, 2.9], False),
        ([3.0, 3.0 + UNSEEN_RISE + 0.001], False),
        ([3.0, 3.1, 3.1], True),
        ([3.2, 3.0, 3.1, 3.04], False),
        ([3.2, 3.0, 3.1, 3.06], True),
        # As `make demo`'s did.
        ([3.21, 3.02, 2.99, 3.05, 3.09], True),
        ([3.2, 3.1, 3.0, 3.0], False),
    ],
)
def test_a_held_out_loss_that_rises(nats: list[float], warns: bool) -> None:
    assert bool(unseen_rises(nats)) == warns


@pytest.mark.parametrize(
    ("shares", "warns"),
    [
        ([], False),
        ([0.9], False),
        ([0.9, 0.46], False),
        ([0.9, 0.44], True),
        # Half of few is no sign.
        ([ENDED_FALL - 0.01, 0.0], False),
        ([0.4, 0.1], True),
        ([0.1, 0.9, 0.4], False),
    ],
)
def test_answers_that_no_longer_end(shares: list[float], warns: bool) -> None:
    assert bool(endings_lost(shares)) == warns


@pytest.mark.parametrize(
    ("shares", "warns"),
    [
        ([], False),
        ([0.9], False),
        ([0.1, 0.1 + REPEATED_RISE - 0.01], False),
        ([0.1, 0.0, 0.1 + REPEATED_RISE + 0.01], True),
    ],
)
def test_answers_that_repeat_themselves(shares: list[float], warns: bool) -> None:
    assert bool(repetition_rises(shares)) == warns


def test_a_training_that_goes_well_is_not_warned_of() -> None:
    """Of 300 trainings of 60 steps: with little noise hardly one, with much few."""
    rng = random.Random(0)
    for noise, slope, most in ((0.1, 0.003, 1), (0.4, 0.01, 15)):
        warned = 0
        for _ in range(300):
            nats = [2.5 - slope * step + rng.gauss(0, noise) for step in range(60)]
            warned += any(cost_rises(nats[: end + 1]) for end in range(60))
        assert warned <= most


# ---- answers ----


def test_what_a_line_says_of_answers() -> None:
    answers = [Answer((1, 2, 3, 4, 5), "stop"), Answer((7,) * 8, "length")]
    assert answer_figures(answers) == {"answers": 2, "ended": 0.5, "repeated": pytest.approx(0.4)}


def test_repetition_is_of_four_tokens_in_a_row() -> None:
    assert repeated((1, 2, 3)) == 0
    assert repeated((1, 2, 3, 1, 2, 3)) == 0
    assert repeated((1, 2, 3, 4, 1, 2, 3, 4)) == pytest.approx(0.2)
    assert repeated((5,) * 13) == pytest.approx(0.9)


# ---- a run's lines ----


def warnings_of(lines: list[dict[str, Any]]) -> list[tuple[int, str]]:
    """The place of each line that warns, and its warnings' first words."""
    watch = Watch()
    return [
        (place, text.split(":")[0]) for place, line in enumerate(lines) for text in watch.see(line)
    ]


def steps(stage: str, name: str, values: list[float], **more: Any) -> list[dict[str, Any]]:
    return [
        {"stage": stage, "step": step, name: value, **more} for step, value in enumerate(values)
    ]


@pytest.mark.parametrize("name", COSTS)
def test_a_warning_comes_once_in_each_stage(name: str) -> None:
    values = [1.0 + 0.1 * step for step in range(30)]
    lines = steps("one", name, values) + steps("two", name, values)
    said = "the texts to learn cost more and more"
    assert warnings_of(lines) == [(2 * STEPS - 1, said), (30 + 2 * STEPS - 1, said)]
    # What a resumed run reads are the same lines, through JSON.
    again = [json.loads(json.dumps(line)) for line in lines]
    assert warnings_of(again) == warnings_of(lines)


def test_the_texts_to_learn_count_and_not_a_loss_beside_them() -> None:
    rising = [1.0 + 0.1 * step for step in range(30)]
    assert warnings_of(steps("one", "loss", rising, **{COSTS[0]: 2.0})) == []


def test_the_held_out_loss_may_stand_in_lines_of_a_step_or_of_a_stage() -> None:
    lines = [*steps("one", UNSEEN, [3.0, 3.2]), {"stage": "one", UNSEEN: 3.3}]
    assert warnings_of(lines) == [(2, "the held-out loss rises")]
    assert warnings_of([{"stage": "one", UNSEEN: None}] * 3) == []


def test_answers_are_counted_in_lots() -> None:
    few = {"answers": LOT // 4, "repeated": 0.1}
    good, bad = ({**few, "ended": share} for share in (1.0, 0.0))
    lines = [{"stage": "one", "step": step, **good} for step in range(4)]
    lines += [{"stage": "one", "step": 4 + step, **bad} for step in range(4)]
    assert warnings_of(lines) == [(7, "answers no longer end by themselves")]
    assert warnings_of(lines[:7]) == []
    same = {"stage": "one", "answers": LOT, "ended": 1.0}
    lines = [{**same, "repeated": 0.1}, {**same, "repeated": 0.5}]
    assert warnings_of(lines) == [(1, "answers repeat themselves")]


def test_every_rule_has_a_test_above_it() -> None:
    assert [*RULES.values()] == [cost_rises, unseen_rises, endings_lost, repetition_rises]
