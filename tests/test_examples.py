"""The examples that ship: complete, of the promised sizes, and true to their own checks."""

from __future__ import annotations

import pytest
from helpers.processes import ROOT

from minialign.data.checks import score_response
from minialign.data.feedback import SCOPES, FeedbackData, load_feedback_data
from minialign.data.general import general_prompts

FOLDERS = sorted(path for path in (ROOT / "examples" / "c3po").iterdir() if path.is_dir())
LEAST = {"train": (60, 40, 40), "test": (20, 20, 20)}  # in scope, near, out of scope


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def data(request: pytest.FixtureRequest) -> FeedbackData:
    return load_feedback_data(request.param)


def test_three_feedbacks_have_checks_of_three_kinds() -> None:
    kinds = {check.kind for folder in FOLDERS for check in load_feedback_data(folder).checks}
    assert len(FOLDERS) == len(kinds) == 3


@pytest.mark.parametrize("split", LEAST)
def test_every_scope_has_the_promised_number_of_prompts(data: FeedbackData, split: str) -> None:
    counts = [len(data.examples(scope, split)) for scope in SCOPES]
    assert all(found >= least for found, least in zip(counts, LEAST[split], strict=True)), counts


def test_every_prompt_has_the_answers_that_it_needs(data: FeedbackData) -> None:
    for scope in SCOPES:
        for example in data.examples(scope, "test"):
            assert example.baseline.text and example.in_context and example.cot, example.source
    for example in data.in_scope:
        assert example.revised is not None, example.source


def test_every_revision_follows_the_feedback_and_differs_where_it_is_learned(
    data: FeedbackData,
) -> None:
    for example in data.in_scope:
        assert example.revised is not None
        for check in data.checks:
            assert check.holds(example.revised.text), example.source
        if example.split == "train":
            assert example.revised.text != example.baseline.text, example.source
            assert score_response(data.checks, example.revised.text, example.baseline.text) >= 0


@pytest.mark.parametrize("scope", ["near_scope", "out_of_scope"])
def test_most_answers_to_keep_end_by_themselves(data: FeedbackData, scope: str) -> None:
    kept = data.examples(scope, "train")
    assert sum(example.baseline.finish_reason == "stop" for example in kept) > len(kept) / 2


def test_no_prompt_occurs_twice() -> None:
    prompts = [
        example.prompt
        for folder in FOLDERS
        for scope in SCOPES
        for split in LEAST
        for example in load_feedback_data(folder).examples(scope, split)
    ]
    assert len(set(prompts)) == len(prompts)
    assert not set(prompts) & set(general_prompts(340, seed=0))


def test_every_baseline_that_learns_an_ending_ends_by_itself() -> None:
    data = load_feedback_data(ROOT / "examples" / "c3po" / "cheers")
    reasons = {example.baseline.finish_reason for example in data.in_scope}
    assert len(data.in_scope) == 90 and reasons == {"stop"}


def test_the_second_check_is_stricter_than_the_edits(data: FeedbackData) -> None:
    """Baselines fail it more often than revisions, and not every revision satisfies it."""
    held = {
        kind: sum(
            all(check.holds(getattr(example, kind).text) for check in data.second_checks)
            for example in data.in_scope
        )
        for kind in ("baseline", "revised")
    }
    assert data.second_checks and held["baseline"] < held["revised"] < len(data.in_scope)
