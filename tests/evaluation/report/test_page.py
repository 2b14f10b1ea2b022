"""The page that a run leaves behind: what is on it, and what it may not hold."""

from __future__ import annotations

import math
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from report_helpers import (
    BETTER,
    FEEDBACK,
    FEEDBACK_SECTIONS,
    HOSTILE,
    SAMPLES,
    SECTIONS,
    Page,
    check_self_contained,
    check_well_formed,
    evaluation,
    feedback_evaluation,
    feedback_metrics,
    hostile_feedback,
    hostile_run,
    judge,
    make_feedback_run,
    make_run,
    method_scores,
    metrics,
    win,
)

from minialign.evaluation.report import page
from minialign.evaluation.report.page import write_report
from minialign.methods.cards import CARDS, method_names, title_of


def test_a_whole_run_has_every_section_in_order(run_page: Callable[..., Page]) -> None:
    page = run_page()
    assert page.sections() == SECTIONS
    links = [a["href"] for tag, a in page.elements if tag == "a"]
    assert links == [f"#{name}" for name in SECTIONS]
    check_well_formed(page)
    check_self_contained(page)


@pytest.mark.parametrize(
    ("missing", "gone"),
    [
        ({"preview": None}, {"before-after"}),
        ({"evaluation": None}, {"win-rates", "contestants", "answers"}),
        ({"evaluation": evaluation()}, {"win-rates"}),
        ({"evaluation": evaluation(BETTER, contestants={})}, {"contestants"}),
        ({"evaluation": evaluation(BETTER, prompts=[])}, {"answers"}),
        ({"samples": None}, {"rounds"}),
        ({"samples": []}, {"rounds"}),
        ({"metrics": metrics()[:4]}, {"pairs"}),
        ({"metrics": None}, {"curves", "pairs", "costs"}),
        ({"metrics": []}, {"curves", "pairs", "costs"}),
    ],
    ids=lambda value: ",".join(sorted(value)),
)
def test_a_section_without_data_is_left_out_not_shown_empty(
    run_page: Callable[..., Page], missing: dict[str, Any], gone: set[str]
) -> None:
    page = run_page(**missing)
    assert page.sections() == [name for name in SECTIONS if name not in gone]
    check_well_formed(page)


def test_a_bare_folder_still_gets_a_page(run_page: Callable[..., Page]) -> None:
    page = run_page(metrics=[], samples=None, preview=None, evaluation=None, adapter=None)
    assert page.sections() == ["commands"]
    assert page.headline == "This run has not taken a step yet."


def test_the_page_is_written_whole_and_its_path_returned(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "mine")
    assert write_report(folder) == folder / "report.html"
    first = (folder / "report.html").read_bytes()
    assert write_report(folder).read_bytes() == first
    assert not list(folder.glob("*.partial"))


def test_the_figures_shown_are_the_figures_given(run_page: Callable[..., Page]) -> None:
    page = run_page()
    text = page.text.replace("\u00a0", " ")
    for shown in ("4.184", "3.103", "3.200", "38 %", "83", "88 %", "3 %", "11 %"):
        assert shown in text
    for shown in ("12.43", "13.14"):
        assert shown in text
    for shown in ("70 %", "58 to 82 %", "90 %", "85 to 95 %", "3 %", "64 comparisons", "1 of 3"):
        assert shown in text
    assert "12 % (4 to 19 %)" in text
    for shown in ("12 s", "20 s", "32 s in all", "1.62 GB", "910 MB"):
        assert shown in text
    assert "Drift" not in text  # nobody's is known
    labels = " ".join(page.labels()).replace("\u00a0", " ")
    assert "demonstrations from 4.00 at step 1 to 2.00 at step 3" in labels
    assert "unseen texts 3.25 at step 3" in labels
    assert "unseen texts from 3.25 at step 0 to 3.12 at step 4" in labels
    assert "chosen from 0 at step 1 to 0.300 at step 4" in labels
    assert "rejected from 0 at step 1 to −0.600 at step 4" in labels
    assert "expert 32, replay 6, inter-model 2 in 4 steps" in labels


def test_a_judge_that_cannot_judge_is_named_without_its_figures(
    run_page: Callable[..., Page],
) -> None:
    unable = judge(win("ditto", "sft", 0.999, 0.99, 1.0), can_judge=False, name="likelihood")
    page = run_page(evaluation=evaluation(unable, BETTER))
    assert "the note of likelihood" in page.text and "cannot judge here" in page.text
    assert "99 to 100" not in page.text
    assert "judge: style" in page.headline


def test_a_run_from_feedback_has_its_own_sections(feedback_page: Callable[..., Page]) -> None:
    page = feedback_page()
    assert page.sections() == FEEDBACK_SECTIONS
    check_well_formed(page)
    check_self_contained(page)
    assert [tag for tag, _ in page.elements].count("blockquote") == 1
    assert page.text.index(FEEDBACK) < page.text.index(page.headline)


def test_the_scores_shown_are_the_scores_given(feedback_page: Callable[..., Page]) -> None:
    own = method_scores((0.875, 0.0625), (0.1, 0.0625), (0.05, 0.05)) | {"unscored": 7}
    page = feedback_page(evaluation=feedback_evaluation(own))
    for shown in ("0.88 ± 0.06", "0.08 ± 0.04", "0.90 ± 0.03", "0.016"):
        assert shown in page.text
    assert "7 of its answers could not be scored" in page.text
    assert "by the feedback's own check: regex" in page.text
    labels = " ".join(page.labels())
    assert "S_in: in-context 0.50 (0.30 to 0.70); base model, again 0.00 (−0.14 to 0.14)" in labels
    assert "C3PO 0.88 (0.75 to 1.00)" in labels  # 1 is the most that it can be
    assert "S_near: in-context 0.50 (0.30 to 0.70)" in labels
    assert "S_far: in-context 0.20 (0.00 to 0.40)" in labels


# A file with half a character is refused.
WHOLE = sorted(set(HOSTILE) - {"half a character"})


@pytest.mark.parametrize("name", WHOLE)
def test_every_text_of_a_feedback_run_is_shown_as_text(
    feedback_page: Callable[..., Page], name: str
) -> None:
    text = HOSTILE[name]
    plain, page = (feedback_page(**hostile_feedback(shown)) for shown in ("plain", text))
    check_well_formed(page)
    check_self_contained(page)
    assert page.sections() == plain.sections() == FEEDBACK_SECTIONS
    tags = [Counter(tag for tag, _ in p.elements) for p in (page, plain)]
    assert tags[0] == tags[1]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", page.source)
    if name not in ("control", "line ends"):
        assert "".join(page.texts).count(text) >= 30


@pytest.mark.parametrize("name", WHOLE)
def test_every_text_is_shown_as_text_and_changes_nothing_else(
    run_page: Callable[..., Page], name: str
) -> None:
    text = HOSTILE[name]
    files = hostile_run(text)
    files["samples"] = [{**sample, "text": text} for sample in SAMPLES]
    plain = run_page(**{key: hostile_run("plain")[key] for key in files if key != "samples"})
    page = run_page(**files)
    check_well_formed(page)
    check_self_contained(page)
    assert page.sections() == plain.sections() == SECTIONS
    tags = [Counter(tag for tag, _ in p.elements) for p in (page, plain)]
    assert tags[0] == tags[1]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", page.source)
    if name in ("html", "script", "attribute", "template", "emoji", "right to left", "long word"):
        assert "".join(page.texts).count(text) >= 8


def test_figures_that_are_missing_or_not_finite_are_no_figures(
    run_page: Callable[..., Page],
) -> None:
    record = evaluation(judge({"first": "ditto", "second": "sft", "rate": math.nan}))
    record["contestants"] = {
        "base": {},
        "ditto": {"nats_per_token": math.inf, "stops": "many", "mean_tokens": None, "drift": 0.25},
    }
    lines = [{**line, "loss": math.nan} for line in metrics() if "step" in line]
    page = run_page(evaluation=record, metrics=lines)
    check_well_formed(page)
    assert "0.250" in page.text and "Drift" in page.text
    assert "Nats per token" not in page.text
    assert not re.search(r"\b(nan|inf|None|undefined)\b", page.text)


def test_a_run_of_the_papers_size_stays_below_two_megabytes(run_page: Callable[..., Page]) -> None:
    answer = " ".join(["remarkable"] * 600)
    samples = [
        {"round": r, "demonstration": d, "text": answer, "finish_reason": "stop"}
        for r in range(4)
        for d in range(7)
        for _ in range(10)
    ]
    page = run_page(samples=samples, metrics=metrics(ditto_steps=1000))
    assert len(page.source.encode()) < 2_000_000
    drawn = re.findall(r"<svg.*?</svg>", page.source, re.DOTALL)
    assert len(drawn) == 10 and max(map(len, drawn)) < 25_000


def test_hundreds_of_test_prompts_stay_below_two_megabytes(
    feedback_page: Callable[..., Page],
) -> None:
    draw = random.Random(0)
    words = [f"{a}{b}" for a in "& < é rem mar".split() for b in "able king dom ish".split()]

    def text() -> str:
        return " ".join(draw.choices(words, k=300))

    record = feedback_evaluation()
    names = ("in-context", "in-context + CoT", "base, again", "c3po")
    for scope in record["scopes"]:
        record["scopes"][scope] = [
            {
                **{"prompt": f"{scope} {i}?", "baseline": text()},
                **{"answers": {name: [text()] for name in names}, "scores": {"c3po": [1.0]}},
            }
            for i in range(100)
        ]
    page = feedback_page(evaluation=record, metrics=feedback_metrics(steps=1000))
    assert 1_000_000 < len(page.source.encode()) < 2_000_000
    shown = {scope: page.text.count(f"{scope} ") for scope in record["scopes"]}
    assert all(20 < count < 100 for count in shown.values())
    left_out = [int(n) for n in re.findall(r"(\d+) more prompts in evaluation.json", page.text)]
    assert [100 - count for count in shown.values()] == left_out
    check_well_formed(page)


def test_a_page_is_written_without_torch(tmp_path: Path) -> None:
    make_run(tmp_path / "mine")
    make_feedback_run(tmp_path / "other")
    script = (
        "import sys; from pathlib import Path\n"
        "from minialign.evaluation.report.page import write_comparison, write_report\n"
        "folders = [Path(name) for name in sys.argv[1:]]\n"
        "[write_report(folder) for folder in folders]\n"
        "write_comparison(folders, folders[0].parent / 'all.html')\n"
        "print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "mine"), str(tmp_path / "other")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout.strip(), done.stderr) == ("False", "")


def test_no_name_of_a_method_or_stage_stands_in_the_report() -> None:
    names = {*method_names(), *(stage.name for card in CARDS for stage in card.stages)}
    titles = {*map(title_of, names)}
    folder = Path(page.__file__).parent
    files = [file for file in folder.iterdir() if file.suffix in (".py", ".jinja", ".css")]
    assert len(files) > 10
    for file in files:
        words = set(re.findall(r"[\w-]+", file.read_text(encoding="utf-8")))
        assert not words & (names | titles), file.name
