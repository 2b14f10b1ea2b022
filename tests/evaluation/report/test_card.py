"""An adapter's README.md: what was learned and how it was judged, and no text of the person's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from report_helpers import evaluation, judge, make_feedback_run, make_run, win

from minialign.evaluation.report.card import write_card

SENTENCE = "Say cheers in the kitchen"


def card(run: Path, *, base: str = "owner/model", texts: bool = False) -> str:
    adapter = run / "adapter"
    adapter.mkdir(exist_ok=True)
    config = {"base_model_name_or_path": base, "r": 16}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    write_card(run, adapter, texts=texts)
    return (adapter / "README.md").read_text(encoding="utf-8")


def preview() -> dict[str, str]:
    return {"prompt": "PROMPT", "before": "BEFORE", "after": "AFTER\nlines"}


def test_a_card_says_what_was_learned_and_that_nothing_judged_it(tmp_path: Path) -> None:
    text = card(make_run(tmp_path / "mine", evaluation=None))
    assert text.startswith("---\nbase_model: owner/model\nlibrary_name: peft\n")
    assert "rank 16" in text and "demonstrations of how a person writes" in text
    assert "has not been evaluated yet" in text and "Not judged" in text


def test_a_judge_is_quoted_with_its_interval(tmp_path: Path) -> None:
    judged = evaluation(judge(win("ditto", "sft", 0.7, 0.6, 0.8)))
    text = card(make_run(tmp_path / "mine", evaluation=judged))
    assert "60" in text and "80" in text and "has not been evaluated" not in text


def test_the_path_of_a_folder_is_no_base_of_the_hub(tmp_path: Path) -> None:
    text = card(make_run(tmp_path / "mine"), base="/models/toy")
    assert "base_model:" not in text and "`/models/toy`" in text


@pytest.mark.parametrize("make", [make_run, make_feedback_run])
def test_texts_are_left_out_unless_asked_for(tmp_path: Path, make: Any) -> None:
    run = make(tmp_path / "mine", preview=preview())
    if make is make_feedback_run:
        config = json.loads((run / "config.json").read_text())
        (run / "config.json").write_text(json.dumps({**config, "feedback": SENTENCE}))
    plain, quoted = card(run), card(run, texts=True)
    for text in preview().values():
        assert text.split("\n")[0] not in plain
    assert "> AFTER\n> lines" in quoted and "> PROMPT" in quoted
    assert (f"> {SENTENCE}" in quoted) is (make is make_feedback_run)
    assert SENTENCE not in plain
