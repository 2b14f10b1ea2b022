"""The sentence at the top of the page: what the figures say, and no more."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_helpers import (
    FEEDBACK,
    Page,
    Scored,
    check_well_formed,
    evaluation,
    feedback_evaluation,
    feedback_metrics,
    judge,
    method_scores,
    metrics,
    win,
)


@pytest.mark.parametrize(
    ("duel", "expected"),
    [
        (win("ditto", "sft", 0.7, 0.58, 0.82), "DITTO writes more like the person than SFT"),
        (win("ditto", "sft", 0.55, 0.44, 0.66), "DITTO is not shown to be better than SFT"),
        (win("ditto", "sft", 0.6, 0.5, 0.7), "DITTO is not shown to be better than SFT"),
        (win("ditto", "sft", 0.3, 0.2, 0.4), "DITTO writes less like the person than SFT"),
        (win("sft", "ditto", 0.3, 0.18, 0.42), "DITTO writes more like the person than SFT"),
        (win("sft", "ditto", 0.7, 0.6, 0.8), "DITTO writes less like the person than SFT"),
        (win("ditto", "base", 0.9, 0.8, 1.0), "DITTO writes more like the person than the base"),
    ],
)
def test_the_headline_says_what_the_interval_allows(
    run_page: Callable[..., Page], duel: dict[str, Any], expected: str
) -> None:
    page = run_page(evaluation=evaluation(judge(duel)))
    headline = page.headline.replace("\u00a0", " ")
    assert headline.startswith(expected)
    turned = duel["first"] != "ditto"
    shown = round(100 * (1 - duel["rate"] if turned else duel["rate"]))
    assert f"won {shown} % of 64 comparisons on 2 unseen prompts" in headline
    bounds = sorted(100 * (1 - duel[key] if turned else duel[key]) for key in ("low", "high"))
    assert f"{bounds[0]:.0f} to {bounds[1]:.0f} %" in headline


def test_a_rate_without_an_interval_is_no_verdict(run_page: Callable[..., Page]) -> None:
    bare = {"first": "ditto", "second": "sft", "rate": 0.9}
    headline = run_page(evaluation=evaluation(judge(bare))).headline
    assert "more like" not in headline and "too few prompts for an interval" in headline


def test_fluency_stands_beside_style(run_page: Callable[..., Page]) -> None:
    found = evaluation(judge(win("ditto", "sft", 0.7, 0.58, 0.82)))
    for name, nats in (("base", 1.2), ("ditto", 3.715)):
        found["contestants"].setdefault(name, {})["fluency"] = nats
    found["person"] = {"fluency": 3.2}
    text = run_page(evaluation=found).text
    assert (
        "base model’s nats per token: 3.71 on its answers, 1.20 on its own answers and 3.20 on the "
        "person’s texts" in " ".join(text.split())
    )


@pytest.mark.parametrize(
    ("nats", "verdict"), [(2.9, "better than"), (3.104, "no better than"), (3.3, "worse than")]
)
def test_without_win_rates_the_headline_goes_by_the_unseen_texts(
    run_page: Callable[..., Page], nats: float, verdict: str
) -> None:
    record = evaluation()
    del record["judges"]  # as evaluation.json was before there were judges
    record["contestants"]["ditto"]["nats_per_token"] = nats
    headline = run_page(evaluation=record).headline
    assert f"unseen texts {verdict} SFT: {nats:.3f} against 3.103 nats per token" in headline
    assert "the base model 4.184" in headline


def test_a_run_that_was_not_evaluated_says_how_to(
    run_page: Callable[..., Page], tmp_path: Path
) -> None:
    page = run_page(evaluation=None)
    assert page.headline.startswith("Trained on 3 demonstrations: 3 SFT steps, then 4 DITTO steps.")
    assert f"python evaluate.py {tmp_path / 'mine'}" in page.text
    assert "3.250 after SFT, 3.125 after DITTO" in page.text


def test_an_unfinished_run_says_how_far_it_came(
    run_page: Callable[..., Page], tmp_path: Path
) -> None:
    parts = {"evaluation": None, "preview": None, "adapter": None}
    lines = metrics(ditto_steps=2, done=False)
    state = tmp_path / "mine" / "state" / "state.safetensors"
    page = run_page(metrics=lines, **parts)
    assert page.headline == "This run is not finished: it came to DITTO step 2 of 4."
    assert "--resume" not in page.text and "sample.py" not in page.text
    assert "8.5 s" in page.text  # 3 x 1.5 and 2 x 2 seconds of training
    state.parent.mkdir()
    state.touch()
    assert f"python train.py --resume {tmp_path / 'mine'}" in run_page(metrics=lines, **parts).text


GOOD, NONE, SOME = (0.9, 0.07), (0.05, 0.05), (0.6, 0.1)


@pytest.mark.parametrize(
    ("s_in", "near", "far", "expected"),
    [
        (GOOD, NONE, NONE, "follows the feedback where it belongs, and leaves other answers alone"),
        (GOOD, SOME, NONE, "where it belongs, but changes answers near its scope"),
        (GOOD, NONE, SOME, "where it belongs, but changes answers far from its scope"),
        (GOOD, SOME, SOME, "where it belongs, but changes other answers"),
        (GOOD, (0.15, 0.075), (0.15, 0.075), "where it belongs, and whether other answers are"),
        (GOOD, (0.17, 0.04), (0.17, 0.04), "where it belongs, but changes other answers"),
        ((0.3, 0.1), NONE, NONE, "follows the feedback more than the base model where it belongs"),
        (
            (0.1, 0.1),
            NONE,
            NONE,
            "is not shown to follow the feedback where it belongs, but leaves",
        ),
        (
            (0.1, 0.1),
            SOME,
            NONE,
            "is not shown to follow the feedback where it belongs, and changes",
        ),
        ((-0.5, 0.1), NONE, NONE, "follows the feedback less than the base model where it belongs"),
    ],
)
def test_the_headline_says_where_the_feedback_is_followed(
    feedback_page: Callable[..., Page], s_in: Scored, near: Scored, far: Scored, expected: str
) -> None:
    own = method_scores(s_in, near, far)
    headline = feedback_page(evaluation=feedback_evaluation(own)).headline
    assert headline.startswith("C3PO ") and expected in headline
    value = f"{s_in[0]:.2f}".replace("-", "−")
    assert f"S_in {value} ± {s_in[1]:.2f} of at most 1, S_" in headline
    if "near its scope" in headline:
        assert "S_near 0.60 ± 0.10 against 0.05 ± 0.05 when the base model ans" in headline
    elif "far from" in headline:
        assert "S_far 0.60 ± 0.10 against 0.05 ± 0.05 when the base model ans" in headline
    else:
        assert f"S_out {own['s_out']['value']:.2f} ± " in headline
        assert "against 0.05 ± 0.04 when the base model answers again" in headline


def test_a_noisy_base_model_excuses_the_same_noise_in_the_trained_one(
    feedback_page: Callable[..., Page],
) -> None:
    noise = (0.3, 0.04)
    record = feedback_evaluation(method_scores(GOOD, noise, noise))
    assert "changes other answers" in feedback_page(evaluation=record).headline
    record["methods"]["base, again"] = method_scores((0.0, 0.07), noise, noise)
    assert "leaves other answers alone" in feedback_page(evaluation=record).headline


@pytest.mark.parametrize(
    ("count", "expected"),
    [(40, "follows the feedback where it belongs, and leaves"), (2, "is not shown to follow")],
)
def test_a_few_answers_that_agree_are_not_taken_for_certainty(
    feedback_page: Callable[..., Page], count: int, expected: str
) -> None:
    record = feedback_evaluation(method_scores((1.0, 0.0), (0.0, 0.0), (0.0, 0.0), count=count))
    record["methods"]["base, again"] = method_scores(*[(0.0, 0.0)] * 3, count=count)
    headline = feedback_page(evaluation=record).headline
    assert expected in headline
    assert ("cannot be told from so few" in headline) == (count == 2)


@pytest.mark.parametrize(
    ("rival", "expected"),
    [
        (((0.5, 0.1), (0.5, 0.1), (0.2, 0.1)), "better than the feedback given in the prompt"),
        (((0.85, 0.1), (0.1, 0.1), (0.0, 0.1)), "not shown to be better or worse than the"),
        (((1.0, 0.01), (0.0, 0.01), (0.0, 0.01)), "worse than the feedback given in the prompt"),
    ],
)
def test_the_rival_in_the_prompt_is_named_with_what_can_be_said_of_it(
    feedback_page: Callable[..., Page], rival: tuple[Scored, Scored, Scored], expected: str
) -> None:
    record = feedback_evaluation(method_scores((0.8, 0.0625), (0.1, 0.05), (0.1, 0.05)))
    record["methods"]["in-context"] = method_scores(*rival)
    text = feedback_page(evaluation=record).text
    assert f"Over all, with S_overall 0.85 ± 0.03, it is {expected}" in text
    assert f"(in-context: {record['methods']['in-context']['overall']:.2f} ± 0.03)." in text
    del record["methods"]["in-context"]
    assert "Over all" not in feedback_page(evaluation=record).text


def test_a_run_from_feedback_that_was_not_evaluated_says_how_to(
    feedback_page: Callable[..., Page], tmp_path: Path
) -> None:
    page = feedback_page(evaluation=None)
    assert page.sections() == ["before-after", "curves", "costs", "commands"]
    assert "has not been evaluated yet" in page.headline
    assert "96 % of the pairs moved towards" in page.text.replace("\u00a0", " ")
    for command in ("evaluate.py", "sample.py --adapter"):
        assert f"python {command} {tmp_path / 'mine'}" in page.text
    unscorable = feedback_evaluation(method_scores(*[(math.nan, math.nan)] * 3))
    assert "too few answers could be scored" in feedback_page(evaluation=unscorable).headline


def test_an_unfinished_run_from_feedback_gets_a_page(feedback_page: Callable[..., Page]) -> None:
    lines = feedback_metrics(steps=3, done=False)
    page = feedback_page(metrics=lines, evaluation=None, preview=None, adapter=None)
    assert page.headline == "This run is not finished: it came to C3PO step 3."
    assert FEEDBACK in page.text and "evaluate.py" not in page.text
    check_well_formed(page)


def test_several_runs_evaluated_together_are_called_by_their_folders(
    feedback_page: Callable[..., Page],
) -> None:
    record = feedback_evaluation()
    for place in (record["methods"], *(e["answers"] for e in record["scopes"]["in_scope"])):
        place["mine"] = place.pop("c3po")
        place["other"] = place["mine"]
    page = feedback_page(evaluation=record)
    assert page.headline.startswith("mine follows the feedback")
    assert "Serves: 0 people." in page.text


def test_what_others_start_from_is_the_rival_that_counts(run_page: Callable[..., Page]) -> None:
    wins = [win("ditto", rival, 0.8, 0.7, 0.9) for rival in ("few-shot", "base", "sft")]
    page = run_page(evaluation=evaluation(judge(*wins)))
    assert page.headline.startswith("DITTO writes more like the person than SFT")
    assert "It won 80 % (70 to 90 %) against the base model and 80 %" in page.text
    assert page.text.index("against the base model and") < page.text.index("against few-shot")
