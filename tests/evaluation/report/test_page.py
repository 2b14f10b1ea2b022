"""The page that a run leaves behind: what is on it, what it may not hold, and how it is read."""

from __future__ import annotations

import dataclasses
import html
import itertools
import json
import math
import random
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from conftest import refusal
from hypothesis import given
from hypothesis import strategies as st

from minialign.evaluation.report import charts
from minialign.evaluation.report.charts import Bar, Series
from minialign.evaluation.report.page import MOST_WORDS, word_diff, write_comparison, write_report
from minialign.methods.knobs import C3PO_LAPTOP

SECTIONS = [
    *("before-after", "win-rates", "contestants", "answers", "curves", "rounds", "pairs"),
    *("costs", "commands"),
]
FEEDBACK_SECTIONS = ["before-after", "scores", "scopes", "curves", "costs", "commands"]
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
VOID = {"meta", "br", "hr", "img", "input", "link", "col", "base", "wbr", "source"}

# ---- run folders made up for the tests ----


def config(**changes: Any) -> dict[str, Any]:
    record = {
        "minialign": "0.1.0",
        "options": {
            **{"method": "ditto", "demos": "mine.jsonl", "test": "", "out": "runs/mine"},
            **{"model": "smollm2-135m-instruct", "recipe": "auto", "seed": 0},
        },
        "recipe": "laptop",
        "knobs": {"max_steps": 4, "sft": {"max_steps": 30}, "beta": 0.05},
        "device": "cpu",
        "dtype": "float32",
    }
    return record | changes


def metrics(*, ditto_steps: int = 4, done: bool = True) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [
        {"stage": "sft", "step": i, "loss": 4.0 - i, "seconds": {"train": 1.5}} for i in range(3)
    ]
    lines.append({"stage": "sft", UNSEEN: 3.25})
    for i in range(ditto_steps):
        replay = 0 if i < 2 else 3
        phases = {"train": 2.0} | ({"sample": 10.0} if i % 2 == 0 else {})
        lines.append(
            {
                **{"stage": "ditto", "step": i, "loss": 0.6931 - 0.1 * i, "seconds": phases},
                **{"rewards/chosen": 0.1 * i, "rewards/rejected": -0.2 * i},
                **{"rewards/margins": 0.3 * i, "rewards/accuracies": 0.75},
                **{"pairs/expert": 8, "pairs/replay": replay, "pairs/inter_model": replay // 3},
            }
            | ({UNSEEN: 3.125} if i % 2 else {})
        )
    if done:
        peaks = {"train": 1_620_000_000, "sample": 910_000_000}
        lines.append(
            {"stage": "done", "seconds": {"train": 12.4, "sample": 20}, "peak_bytes": peaks}
        )
    return lines


UNSEEN = "eval/nats_per_token"
SAMPLES = [
    {
        **{"round": r, "demonstration": d, "text": f"answer {n} of round {r} to {d}"},
        "finish_reason": "stop" if n else "length",
    }
    for r in range(2)
    for d in range(3)
    for n in range(2)
]
PREVIEW = {"prompt": "Invite your sister.", "before": "I am so glad.", "after": "Right then, Bea."}


def win(first: str, second: str, rate: float, low: float, high: float) -> dict[str, Any]:
    return {
        **{"first": first, "second": second, "rate": rate, "low": low, "high": high},
        **{"ties": 0.03, "comparisons": 64, "per_prompt": [0.75, 0.25, None, 0.5]},
    }


def judge(*wins: dict[str, Any], can_judge: bool = True, name: str = "style") -> dict[str, Any]:
    mean = {"base": {"rate": 0.12, "low": 0.04, "high": 0.19}}
    note = f"the note of {name}"
    return {
        "name": name,
        "can_judge": can_judge,
        "note": note,
        "wins": list(wins),
        "mean": mean,
    }


def evaluation(*judges: dict[str, Any], **changes: Any) -> dict[str, Any]:
    contestants = {
        name: {
            "answers": [[f"{name} says {p} {i}" for i in range(2)] for p in range(2)],
            "finish_reasons": [["length", "stop"], ["stop", "stop"]],
            **{"stops": 0.375, "mean_tokens": 82.6, "nats_per_token": nats, "distinct_2": 0.875},
            **{"repetition": 0.03, "copied": 0.11, "drift": None, "margins": {"base": margin}},
        }
        for name, nats, margin in (
            ("base", 4.184, 0.0),
            ("sft", 3.103, 12.43),
            ("ditto", 3.2, 13.14),
        )
    }
    record = {
        **{"command": "python evaluate.py runs/mine", "options": {}},
        **{"prompts": ["First prompt?", "Second prompt?"], "texts": ["My own text.", "Another."]},
        **{"contestants": contestants, "judges": list(judges)},
    }
    return record | changes


BETTER = judge(win("ditto", "sft", 0.7, 0.58, 0.82), win("ditto", "base", 0.9, 0.85, 0.95))


def make_run(folder: Path, **files: Any) -> Path:
    """A whole run folder; a file given as None is left out, one given otherwise is written so."""
    contents: dict[str, Any] = {
        "config.json": config(),
        "metrics.jsonl": metrics(),
        "samples.jsonl": SAMPLES,
        "preview.json": PREVIEW,
        "evaluation.json": evaluation(BETTER),
        "adapter/adapter_config.json": {},
    }
    names = {re.split("[./]", name)[0]: name for name in contents}
    contents |= {names[name]: content for name, content in files.items()}
    for name, content in contents.items():
        if content is None:
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jsonl"):
            text = "".join(json.dumps(line) + "\n" for line in content)
        else:
            text = json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


# ---- a run that learned from feedback ----

FEEDBACK = "Start every recipe with a line that says how many people it serves."
METHODS = ("in-context", "base, again", "c3po")
Scored = tuple[float, float]  # a mean and its standard error


def feedback_config(method: str = "c3po", **changes: Any) -> dict[str, Any]:
    options = {
        **{"method": method, "demos": "", "data": "serves line", "out": "runs/mine"},
        **{"model": "smollm2-135m-instruct", "recipe": "auto", "seed": 0},
    }
    record = {
        **{"minialign": "0.1.0", "options": options, "recipe": "laptop", "device": "cpu"},
        **{"knobs": dataclasses.asdict(C3PO_LAPTOP), "feedback": FEEDBACK, "data_sha256": "0"},
    }
    return record | changes


def feedback_metrics(*, steps: int = 4, done: bool = True) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [
        {
            **{"stage": "c3po", "step": i, "loss": 1.0 - 0.1 * i, "dpo": 0.6931 - 0.125 * i},
            **{"rewards/chosen": 0.5 * i, "rewards/rejected": -0.25 * i},
            **{"rewards/margins": 0.75 * i, "rewards/accuracies": 0.875},
            **{"logps/chosen": -80.0, "logps/rejected": -90.0, "nll/in_scope": 1.5 - 0.1 * i},
            **{"nll/out": 0.75, "nll/near": 0.625 + 0.01 * i, "lr": 3e-4 * (1 - i / steps)},
            **{"grad_norm": 1.0, "tokens": 900, "seconds": {"train": 2.0}},
        }
        for i in range(steps)
    ]
    lines[-1] |= {"eval/dpo": 0.25, "eval/rewards/margins": 2.5, "eval/rewards/accuracies": 0.96}
    if done:
        lines.append({"stage": "done", "seconds": {"train": 8.0}, "peak_bytes": {"train": 5e8}})
    return lines


def method_scores(s_in: Scored, near: Scored, far: Scored, *, count: int = 20) -> dict[str, Any]:
    out = ((near[0] + far[0]) / 2, math.hypot(near[1], far[1]) / 2)
    keys = ("s_in", "s_near", "s_far", "s_out")
    counts = (count, count, count, 2 * count)
    means = {
        key: {"value": value, "error": error, "count": n}
        for key, (value, error), n in zip(keys, (s_in, near, far, out), counts, strict=True)
    }
    overall = {"overall": (s_in[0] + 1 - out[0]) / 2, "overall_error": 0.03125}
    return means | overall | {"unscored": 0, "drift": 0.015625, "nats_per_token": 0.75}


AGAIN_SCORES = method_scores((0.0, 0.07), (0.05, 0.05), (0.05, 0.05))


def feedback_evaluation(own: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    shared = "Mix it and bake it. Enjoy!"
    record = {
        **{"command": "python evaluate.py runs/mine", "options": {}, "feedback": FEEDBACK},
        **{"domain": "recipes", "effect": "say it", "scored": "by the feedback's own check: regex"},
        "methods": {
            "in-context": method_scores((0.5, 0.1), (0.5, 0.1), (0.2, 0.1))
            | {"drift": None, "nats_per_token": None, "unscored": 2},
            "base, again": AGAIN_SCORES,
            "c3po": own or method_scores((0.9, 0.0625), (0.1, 0.0625), (0.05, 0.05)),
        },
        "scopes": {
            scope: [
                {
                    "prompt": f"{scope} prompt {i}",
                    "baseline": f"Here is {scope} {i}. {shared}",
                    "answers": {
                        **{name: [f"{name} to {scope} {i}"] for name in METHODS},
                        "c3po": [f"Serves: {i} people.\n\nHere is {scope} {i}. Mix and bake it."],
                    },
                    "scores": {"in-context": [None], "base, again": [0.0], "c3po": [1.0 - i]},
                }
                for i in range(3)
            ]
            for scope in ("in_scope", "near_scope", "out_of_scope")
        },
    }
    return record | changes


def make_feedback_run(folder: Path, **files: Any) -> Path:
    contents = {
        **{"config": feedback_config(), "metrics": feedback_metrics(), "samples": None},
        **{"preview": PREVIEW, "evaluation": feedback_evaluation()},
    }
    return make_run(folder, **contents | files)


@pytest.fixture
def feedback_page(tmp_path: Path) -> Callable[..., Page]:
    """`feedback_page(evaluation=None)`: the page of a run that learned from feedback."""

    def make(**files: Any) -> Page:
        folder = make_feedback_run(tmp_path / "mine", **files)
        return Page(write_report(folder).read_text(encoding="utf-8"))

    return make


@pytest.fixture
def run_page(tmp_path: Path) -> Callable[..., Page]:
    """`run_page(metrics=..., evaluation=None)`: the page of a run folder made up so."""

    def make(**files: Any) -> Page:
        return Page(write_report(make_run(tmp_path / "mine", **files)).read_text(encoding="utf-8"))

    return make


# ---- reading a page ----


class Page(HTMLParser):
    """A page's text, elements and ids; complains where a tag is not closed."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = source
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute twice: <{tag} {names}>"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    @property
    def headline(self) -> str:
        found = re.search(r"<h1>(.*?)</h1>", self.source, re.DOTALL)
        assert found
        return re.sub(r"\s+", " ", html.unescape(found[1]))

    def sections(self) -> list[str]:
        return [a["id"] or "" for tag, a in self.elements if tag == "section" and "id" in a]

    def labels(self) -> list[str]:
        return [a.get("aria-label") or "" for tag, a in self.elements if tag == "svg"]


def check_self_contained(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on"), f"<{tag} {name}>"
            if name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
                assert value and value.startswith(("#", "data:")), f"<{tag} {name}={value}>"
    style = "".join(re.findall(r"<style>(.*?)</style>", page.source, re.DOTALL))
    style += "".join(a.get("style") or "" for _, a in page.elements)
    assert "@import" not in style
    for address in re.findall(r"url\(\s*['\"]?([^)]*)", style):
        assert address.startswith(("#", "data:"))


def check_well_formed(page: Page) -> None:
    assert page.source.startswith("<!DOCTYPE html>")
    ids = Counter(a["id"] for _, a in page.elements if "id" in a)
    assert all(count == 1 for count in ids.values())
    for tag, attributes in page.elements:
        if tag in ("svg", "img"):
            assert attributes.get("aria-label") or attributes.get("alt")
        for name in ("aria-labelledby", "href"):
            if attributes.get(name):
                assert (attributes[name] or "").removeprefix("#") in ids
        for value in attributes.values():
            assert "nan" not in re.split(r"[^a-z]+", (value or "")) or tag == "meta"


# ---- what is on the page ----


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


def test_before_and_after_and_all_answers_are_there(run_page: Callable[..., Page]) -> None:
    text = run_page().text
    for expected in (*PREVIEW.values(), "First prompt?", "My own text.", "Another."):
        assert expected in text
    for name in ("base", "sft", "ditto"):
        for prompt in range(2):
            for answer in range(2):
                assert f"{name} says {prompt} {answer}" in text
    assert text.count("cut off at the limit") == 3 + 2  # an answer of each contestant; a round each


def test_the_rounds_show_one_demonstration_and_count_all(run_page: Callable[..., Page]) -> None:
    text = run_page().text
    for number in range(2):
        assert f"answer 0 of round {number} to 0" in text
        assert f"answer 1 of round {number} to 0" in text
    assert "to 1" not in re.findall(r"of round \d to \d", text)
    assert "3 of all 6 answers ended by themselves" in text


def test_the_demonstration_is_shown_only_while_its_file_is_the_one_learned_from(
    run_page: Callable[..., Page], tmp_path: Path
) -> None:
    import hashlib

    demos = tmp_path / "mine.jsonl"
    demos.write_text('{"prompt": "About the heater.", "completion": "The heater has retired."}\n')
    record = config(demos_sha256=hashlib.sha256(demos.read_bytes()).hexdigest())
    record["options"]["demos"] = str(demos)
    assert "The heater has retired." in run_page(config=record).text
    demos.write_text('{"prompt": "About the heater.", "completion": "It works again."}\n')
    text = run_page(config=record).text
    assert "The heater has retired." not in text and "It works again." not in text


def test_a_judge_that_cannot_judge_is_named_without_its_figures(
    run_page: Callable[..., Page],
) -> None:
    unable = judge(win("ditto", "sft", 0.999, 0.99, 1.0), can_judge=False, name="likelihood")
    page = run_page(evaluation=evaluation(unable, BETTER))
    assert "the note of likelihood" in page.text and "cannot judge here" in page.text
    assert "99 to 100" not in page.text
    assert "judge: style" in page.headline


# ---- what was learned ----


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
    assert "more like" not in headline and "without an interval" in headline


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


def test_the_command_is_the_one_given_or_one_that_does_the_same(
    run_page: Callable[..., Page],
) -> None:
    assert "the very command" in run_page(config=config(command="the very command")).text
    composed = run_page().text
    assert (
        "python train.py --method ditto --demos mine.jsonl --model smollm2-135m-instruct"
        in composed
    )
    assert "--max-steps 4" in composed and "--sft-max-steps" not in composed  # 30 is the recipe's
    assert "--beta" not in composed and composed.count("--out runs/mine") == 1


# ---- what was learned from feedback ----


def test_a_run_from_feedback_has_its_own_sections(feedback_page: Callable[..., Page]) -> None:
    page = feedback_page()
    assert page.sections() == FEEDBACK_SECTIONS
    check_well_formed(page)
    check_self_contained(page)
    assert [tag for tag, _ in page.elements].count("blockquote") == 1
    assert page.text.index(FEEDBACK) < page.text.index(page.headline)


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


def test_the_answers_stand_by_scope_with_their_scores(feedback_page: Callable[..., Page]) -> None:
    page = feedback_page()
    places = [
        page.text.index(f"{scope} prompt 0") for scope in ("in_scope", "near_scope", "out_of_scope")
    ]
    assert places == sorted(places)
    for i in range(3):
        for part in (f"in_scope prompt {i}", f"Here is near_scope {i}.", f"Serves: {i} people."):
            assert part in page.text
    for said in ("1: follows it more", "0: follows it as much", "−1: follows it less"):
        assert page.source.count(f'class="score">{said}<') == 1
    assert page.text.count("1: changed") == 2 * 2  # 1 and -1, in two scopes
    assert page.text.count("Scores of the others: in-context –; base model, again 0") == 9
    folds = [a for tag, a in page.elements if tag == "details" and a.get("class") == "fold"]
    assert ["open" in fold for fold in folds[:9]] == [
        *(True, True, False),
        *(True, False, False) * 2,
    ]


def test_changed_words_are_marked_on_both_sides(feedback_page: Callable[..., Page]) -> None:
    source = feedback_page().source
    assert "<ins>Serves: 0 people.</ins>\n\nHere is in_scope 0." in source
    assert "Mix <del>it</del> and bake it. <del>Enjoy!</del>" in source


WORDS = st.text(st.sampled_from("ab<& \n"), max_size=30)


@given(WORDS, WORDS)
def test_marking_changes_neither_text(before: str, after: str) -> None:
    marked = word_diff(before, after)
    assert marked[2]
    for text, side, tag in zip((before, after), marked, ("del", "ins"), strict=False):
        Page(str(side))
        assert html.unescape(re.sub(f"</?{tag}>", "", str(side))) == text
        assert not re.search(rf"<{tag}>(\s|</)|\s</{tag}>", str(side))
        kept = html.unescape(re.sub(rf"<{tag}>.*?</{tag}>", " ", str(side), flags=re.DOTALL))
        other = re.sub("</?(del|ins)>", "", str(marked[1 if tag == "del" else 0]))
        assert set(kept.split()) <= set(html.unescape(other).split())


def test_marking_is_fast_whatever_the_texts_are() -> None:
    draw = random.Random(0)
    few, many = [f"w{i}" for i in range(40)], ["same"]
    began = time.process_time()
    for words in (few, many):
        before, after = (" ".join(draw.choices(words, k=MOST_WORDS)) for _ in range(2))
        assert word_diff(before, after)[2]
    assert time.process_time() - began < 2
    long = "<b> " * (MOST_WORDS + 1)
    assert word_diff(long, "short") == (html.escape(long), "short", False)


def test_the_curves_of_a_run_from_feedback_are_those_of_its_loss(
    feedback_page: Callable[..., Page],
) -> None:
    titles = [label.split(":")[1].strip() for label in feedback_page().labels()[3:]]
    drawn = ["loss", "DPO", "kept answers", "revised answers", "rewards", "margins", "accuracies"]
    assert titles[:8] == [*drawn, "learning rate"]
    labels = " ".join(feedback_page().labels())
    assert "C3PO: DPO: DPO from 0.693 at step 1" in labels
    assert "unseen prompts 2.50 at step 4" in labels
    kl = [
        {re.sub("^nll/(out|near)", r"kl/\1", key): value for key, value in line.items()}
        for line in feedback_metrics()
    ]
    labels = " ".join(feedback_page(metrics=kl).labels())
    assert "C3PO: divergence: near its scope from 0.625" in labels and "kept answers" not in labels


@pytest.mark.parametrize(
    ("method", "shown"), [("dpo", "DPO"), ("sft", "SFT"), ("sft-weighted", "SFT with constraints")]
)
def test_the_baselines_of_c3po_go_by_their_own_names(
    feedback_page: Callable[..., Page], method: str, shown: str
) -> None:
    page = feedback_page(config=feedback_config(method), evaluation=None)
    assert f"Trained on a sentence of feedback: 4 {shown} steps." in page.headline
    assert f"{shown}: loss" in " ".join(page.labels()) and "C3PO" not in page.text


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


def test_the_commands_of_a_run_from_feedback(feedback_page: Callable[..., Page]) -> None:
    text = feedback_page(preview=None).text
    assert (
        "python train.py --method c3po --data 'serves line' --model smollm2-135m-instruct "
        "--out runs/mine" in text
    )
    assert "--prompt 'in_scope prompt 0' -n 3" in text and "evaluate.py runs/mine" in text


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


# ---- whatever a file may hold ----

HOSTILE = {
    "html": '</div></details><h1 id="commands">big</h1><img src=x onerror=alert(1)>',
    "script": "<script>document.title = 'owned'</script><!-- <style> -->",
    "attribute": '" onmouseover="alert(1)" x="',
    "template": "{{ 7 * 7 }} {% raw %} {# gone #} {{ run }}",
    "emoji": "👩‍👩‍👧 🇳🇱 e\u0301 \U0001f600",
    "right to left": "\u202eשלום, مرحبا بالعالم\u2066",
    "long word": "x" * 10_000,
    "control": "a\x00b\x01c\x1b[31md\x7fe\x85f\x0cg\x9fh\ufffei",
    "half a character": "\ud800 and \udfff",
    "line ends": "one\r\ntwo\rthree\n\n\nfour",
}


def hostile_run(text: str) -> dict[str, Any]:
    """Run files with `text` in every place that a text may stand in."""
    record = config(command=text, recipe=text)
    record["options"] |= {"model": text, "demos": text, text: text}
    record["knobs"][text] = text
    shown = evaluation(
        judge(win(text, "sft", 0.6, 0.5, 0.7), win("ditto", text, 0.6, 0.5, 0.7), name=text)
    )
    shown["judges"][0] |= {"note": text, "mean": {text: {"rate": 0.5, "low": 0.4, "high": 0.6}}}
    shown["prompts"], shown["texts"] = [text, text], [text, text]
    shown["contestants"][text] = {
        **{"answers": [[text, text], [text]], "finish_reasons": [[text], []]},
        "margins": {text: 1.0},
    }
    lines = [
        {**line, f"pairs/{text}": 1, "seconds": {text: 1.0}} if "step" in line else line
        for line in metrics(done=False)
    ]
    return {
        **{"config": record, "preview": dict.fromkeys(PREVIEW, text), "evaluation": shown},
        **{"metrics": lines},
    }


def hostile_feedback(text: str) -> dict[str, Any]:
    """The same for a run that learned from feedback."""
    record = feedback_config(command=text, recipe=text, feedback=text)
    record["options"] |= {"model": text, "data": text}
    record["knobs"] = {**record["knobs"], text: text}
    shown = feedback_evaluation() | {"feedback": text, "scored": text, "command": text}
    shown["methods"] = {text: AGAIN_SCORES, **shown["methods"]}
    for entry in itertools.chain(*shown["scopes"].values()):
        entry |= {"prompt": text, "baseline": text}
        entry["answers"] = {name: [text] for name in shown["methods"]}
        entry["scores"][text] = [0.0]
    return {**{"config": record, "evaluation": shown}, "preview": dict.fromkeys(PREVIEW, text)}


@pytest.mark.parametrize("name", HOSTILE)
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
    if name not in ("control", "half a character", "line ends"):
        assert "".join(page.texts).count(text) >= 30


@pytest.mark.parametrize("name", HOSTILE)
def test_every_text_is_shown_as_text_and_changes_nothing_else(
    run_page: Callable[..., Page], name: str
) -> None:
    text = HOSTILE[name]
    files = hostile_run(text)
    if name == "half a character":  # JSON Lines with it are refused
        del files["metrics"]
    else:
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


def test_control_characters_are_made_visible(run_page: Callable[..., Page]) -> None:
    text = run_page(preview=dict.fromkeys(PREVIEW, HOSTILE["control"])).text
    assert "a␀b␁c␛[31md�e�f␌g�h�i" in text


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


@pytest.mark.parametrize(
    "file", ["config.json", "metrics.jsonl", "samples.jsonl", "preview.json", "evaluation.json"]
)
@pytest.mark.parametrize("content", ['{"half', "[1, 2]", '"text"', '{"other": 1}'])
def test_a_broken_file_is_one_line_that_names_it_and_leaves_the_page_alone(
    tmp_path: Path, file: str, content: str
) -> None:
    folder = make_run(tmp_path / "mine")
    write_report(folder)
    before = (folder / "report.html").read_bytes()
    (folder / file).write_text(content)
    assert file in refusal(lambda: write_report(folder))
    assert (folder / "report.html").read_bytes() == before


@pytest.mark.parametrize("change", [{"contestants": {"base": 3}}, {"judges": ["style"]}])
def test_an_evaluation_with_broken_parts_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = make_run(tmp_path / "mine", evaluation=evaluation() | change)
    assert "evaluation.json" in refusal(lambda: write_report(folder))


@pytest.mark.parametrize(
    "change",
    [
        *({"methods": None}, {"methods": {"c3po": 3}}, {"methods": {"c3po": {"s_in": 1}}}),
        *({"scopes": []}, {"scopes": {"in_scope": ["text"]}}),
        {"scopes": {"in_scope": [{"prompt": "a", "baseline": "b", "answers": {"c3po": [3]}}]}},
        {"scopes": {"in_scope": [{"prompt": "a", "baseline": "b", "answers": {}, "scores": 1}]}},
    ],
)
def test_scores_with_broken_parts_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = make_feedback_run(tmp_path / "mine", evaluation=feedback_evaluation() | change)
    assert "evaluation.json" in refusal(lambda: write_report(folder))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    assert "not a run folder" in refusal(lambda: write_report(tmp_path))


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


# ---- many runs ----


def make_runs(folder: Path) -> list[Path]:
    runs = []
    for number, rate in enumerate((1e-4, 3e-5, 2e-5)):
        record = config()
        record["knobs"] = record["knobs"] | {"learning_rate": rate}
        shown = evaluation(judge(win("ditto", "sft", 0.5 + number / 10, 0.4, 0.9)))
        files = {"config": record, "evaluation": shown if number else None}
        runs.append(make_run(folder / f"run {number}", **files))
    return runs


def test_a_comparison_has_a_row_a_run_and_a_column_a_knob_that_differs(tmp_path: Path) -> None:
    target = tmp_path / "all.html"
    assert write_comparison(make_runs(tmp_path), target) == target
    page = Page(target.read_text(encoding="utf-8"))
    check_well_formed(page)
    check_self_contained(page)
    heads = [a for tag, a in page.elements if tag == "th" and a.get("scope") == "col"]
    rows = [a for tag, a in page.elements if tag == "th" and a.get("scope") == "row"]
    assert len(heads) == 6 and [a["data-sort"] for a in rows] == ["run 0", "run 1", "run 2"]
    for shown in ("learning_rate", "0.0001", "3e-05", "60\u00a0%", "70\u00a0%", "3.125", "32 s"):
        assert shown in "".join(page.texts)
    assert "beta" not in page.text  # the same everywhere
    assert [label.split(":")[0] for label in page.labels()] == [
        *("SFT loss", "Preference loss", "Margins", "Unseen texts")
    ]
    assert all(f"run {number}" in label for label in page.labels() for number in range(3))


def test_a_comparison_of_runs_from_feedback_has_their_scores(tmp_path: Path) -> None:
    runs = [
        make_feedback_run(tmp_path / "one"),
        make_feedback_run(tmp_path / "two", config=feedback_config("dpo"), evaluation=None),
    ]
    page = Page(write_comparison(runs, tmp_path / "all.html").read_text(encoding="utf-8"))
    check_well_formed(page)
    check_self_contained(page)
    heads = re.findall(r'<th scope="col"[^>]*>([^<]*)', page.source)
    assert heads == ["Run", "Method", "S_in", "S_out", "S_overall", "Time"]
    for shown in ("0.90 ± 0.06", "0.08 ± 0.04", "0.91 ± 0.03", "C3PO", "DPO"):
        assert shown in page.text
    assert "Share won" not in page.text
    assert [label.split(":")[0] for label in page.labels()] == [
        *("Loss from feedback", "Margins", "Kept answers near the scope")
    ]


def near_charts(page: Page) -> list[tuple[str, str, set[str]]]:
    """The constraint's charts: title, unit, and the runs that are drawn."""
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page.source, re.DOTALL)
    texts = [re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", text)).strip() for text in captions]
    found = []
    for text, label in zip(texts, page.labels(), strict=True):
        title, _, drawn = label.partition(": ")
        if title.endswith("near the scope"):
            unit = text.removeprefix(title).strip()
            found.append((title, unit, {name.split()[0] for name in drawn.split("; ")}))
    return found


def test_a_comparison_draws_each_kind_and_unit_of_the_constraint_by_itself(tmp_path: Path) -> None:
    runs = []
    for name, constraint, reduction in (
        *(("a", "nll", "sum"), ("b", "nll", "token_mean"), ("c", "nll", "sequence_mean")),
        *(("d", "kl", "sum"), ("e", "kl", "token_mean")),
    ):
        record = feedback_config()
        record["knobs"] |= {"constraint": constraint, "constraint_reduction": reduction}
        lines = [
            {key.replace("nll/near", f"{constraint}/near"): value for key, value in line.items()}
            for line in feedback_metrics()
        ]
        runs.append(make_feedback_run(tmp_path / name, config=record, metrics=lines))
    page = Page(write_comparison(runs, tmp_path / "all.html").read_text(encoding="utf-8"))
    check_well_formed(page)
    kept, moved, kl = "Kept answers near the scope", "Divergence near the scope", "KL from the base"
    assert near_charts(page) == [
        (kept, "nats an answer", {"a"}),
        (kept, "nats per token", {"b", "c"}),
        (moved, f"{kl} model, nats an answer", {"d"}),
        (moved, f"{kl} model, nats per token", {"e"}),
    ]


def test_a_comparison_of_both_kinds_has_the_columns_of_both(tmp_path: Path) -> None:
    runs = [make_feedback_run(tmp_path / "one"), *make_runs(tmp_path)]
    page = Page(write_comparison(runs, tmp_path / "all.html").read_text(encoding="utf-8"))
    check_well_formed(page)
    heads = re.findall(r'<th scope="col"[^>]*>([^<]*)', page.source)
    assert heads[:7] == [
        *("Run", "Method", "Share won", "Unseen, nats per token", "S_in", "S_out", "S_overall")
    ]
    rows = re.findall(r"<tbody>(.*)</tbody>", page.source, re.DOTALL)[0].split("</tr>")[:-1]
    assert [row.count("<td") for row in rows] == [len(heads) - 1] * 4
    assert [label.split(":")[0] for label in page.labels()] == [
        *("SFT loss", "Preference loss", "Loss from feedback", "Margins"),
        *("Kept answers near the scope", "Unseen texts"),
    ]


def test_runs_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / place / "mine") for place in "ab"]
    page = Page(write_comparison([*folders, folders[0]], tmp_path / "all.html").read_text())
    rows = [a["data-sort"] for tag, a in page.elements if tag == "th" and a.get("scope") == "row"]
    assert rows == [str(folder) for folder in folders]


def test_a_comparison_shows_hostile_names_as_text(tmp_path: Path) -> None:
    files = {**hostile_run(HOSTILE["html"]), "samples": None}
    runs = [make_run(tmp_path / "<b>&amp;", **files), *make_runs(tmp_path)]
    page = Page(write_comparison(runs, tmp_path / "all.html").read_text(encoding="utf-8"))
    check_well_formed(page)
    check_self_contained(page)
    assert "<b>&amp;" in page.texts and "img" not in [tag for tag, _ in page.elements]


def test_nothing_to_compare_is_refused(tmp_path: Path) -> None:
    assert "no runs" in refusal(lambda: write_comparison([], tmp_path / "all.html"))
    assert not (tmp_path / "all.html").exists()


# ---- charts ----


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0.13, 0.69, [0, 0.2, 0.4, 0.6, 0.8]),
        (-0.9, 2.1, [-1, 0, 1, 2, 3]),
        (3.103, 3.105, [3.103, 3.1035, 3.104, 3.1045, 3.105]),
        (0, 12_000, [0, 5000, 10_000, 15_000]),
        (2.5, 2.5, [2.2, 2.4, 2.6, 2.8]),
        (0, 0, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_and_hold_the_values(
    low: float, high: float, expected: list[float]
) -> None:
    assert charts.ticks(low, high) == pytest.approx(expected)


FINITE = st.floats(-1e12, 1e12)


@given(FINITE, FINITE, st.booleans())
def test_ticks_are_few_even_and_around_the_values(a: float, b: float, whole: bool) -> None:
    low, high = sorted((a, b))
    places = charts.ticks(low, high, whole=whole)
    steps = {round((y - x) / (places[1] - places[0]), 3) for x, y in itertools.pairwise(places)}
    assert 2 <= len(places) <= 7 and steps == {1.0}
    slack = 1e-6 * (places[1] - places[0]) + 1e-9 * max(abs(low), abs(high))
    assert places[0] <= low + slack and places[-1] >= high - slack
    labels = charts.tick_labels(places)
    if abs(high - low) > 1e-3 and max(map(abs, places)) < 1e6:
        assert len(set(labels)) == len(labels)
    if whole and max(map(abs, places)) < 1e6:
        assert all(place == int(place) for place in places)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        *((0, "0"), (3.1049, "3.10"), (0.01234, "0.0123"), (82.6, "82.6"), (1250, "1,250")),
        *((-0.6, "−0.600"), (1e-6, "1e−06"), (2.5e8, "2.5e+08"), (math.nan, "–"), (9.999, "10.00")),
    ],
)
def test_numbers_have_three_digits(value: float, expected: str) -> None:
    assert charts.number(value) == expected


def test_a_line_breaks_where_a_value_is_not_finite() -> None:
    ys = [1.0, 2.0, math.nan, 3.0, math.inf, 4.0]
    drawn = charts.line_chart("t", [Series("s", list(enumerate(ys)))])
    (path,) = re.findall(r'class="line" d="([^"]*)"', drawn)
    assert path.count("M") == 3 and path.count("L") == 1
    assert drawn.count("<circle") == 4


@pytest.mark.parametrize("points", [[], [(1.0, math.nan)], [(1.0, math.inf), (math.nan, 2.0)]])
def test_a_chart_without_a_point_is_nothing(points: list[tuple[float, float]]) -> None:
    assert charts.line_chart("t", [Series("s", points)]) == ""
    assert (
        charts.bar_chart("t", [Bar("b", y, "?") for _, y in points if not math.isfinite(y)]) == ""
    )
    assert charts.stacked_columns("t", [("n", 0)], [], unit="") == ""


ANY = st.floats() | st.sampled_from([0.0, 5e-324, 1e308, -1e308, 1e-90, 2.5])


@given(st.lists(st.tuples(ANY, ANY), max_size=12), st.booleans())
def test_no_values_break_a_chart(points: list[tuple[float, float]], many: bool) -> None:
    lines = [Series(f"s{i}", points, i) for i in range(6 if many else 2)]
    bars = [Bar("b", x, "?", y, x) for x, y in points]
    columns = [(i, [x, y]) for i, (x, y) in enumerate(points)]
    names = [("a", 0), ("b", 1)]
    drawn = [
        charts.line_chart("t", lines, marks=[1.0], level=(0.5, "half")),
        charts.bar_chart("t", bars, middle=0.5, span=(0, 1)),
        charts.stacked_columns("t", names, columns, unit="pairs"),
    ]
    for chart in filter(None, drawn):
        Page(chart)
        places = re.findall(r' (?:d|x|y|cx|cy|width|height)="([^"]*)"', chart)
        assert not re.search("nan|inf", " ".join(places))


def test_a_thousand_steps_keep_their_last_and_stay_small() -> None:
    points = [(float(step), math.sin(step / 40)) for step in range(1, 1001)]
    drawn = charts.line_chart("t", [Series("s", points)])
    assert len(drawn) < 9_000
    assert f"s, step 1000: {charts.number(points[-1][1])}" in drawn


def test_direct_labels_never_overlap() -> None:
    lines = [Series(f"s{i}", [(1.0, 0.0), (2.0, 5.0 + i / 1000)], i) for i in range(4)]
    drawn = charts.line_chart("t", lines)
    heights = sorted(map(float, re.findall(r'class="value[^"]*" x="[^"]*" y="([^"]*)"', drawn)))
    assert len(heights) == 4
    assert all(b - a >= charts.LABEL_GAP - 0.2 for a, b in itertools.pairwise(heights))
    assert 0 < heights[0] and heights[-1] < charts.HEIGHT


def test_bars_and_whiskers_stand_in_proportion() -> None:
    bars = [Bar("a", 0.25, "25 %", 0.0, 0.5), Bar("b", 0.75, "75 %")]
    drawn = charts.bar_chart("t", bars, span=(0, 1))
    widths = [float(w) for w in re.findall(r'class="bar"[^>]* width="([^"]*)"', drawn)]
    assert widths[1] == pytest.approx(3 * widths[0], abs=0.2)
    (whisker,) = re.findall(r'class="whisker" d="M([\d.]+) [\d.]+H([\d.]+)', drawn)
    assert float(whisker[1]) - float(whisker[0]) == pytest.approx(2 * widths[0], abs=0.2)


# ---- in a browser ----

# Runs inside a page that holds ours in frames of the wanted widths, and writes what it measured of
# each, by its title, where --dump-dom shows it. A text's ground is the nearest background that is
# not transparent.
MEASURE = """
const channels = color => color.match(/[\\d.]+/g).map(Number);
const light = color => {
  const [r, g, b] = channels(color).slice(0, 3).map(
    v => v / 255 <= .03928 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b;
};
const measured = frame => {
  const page = frame.document;
  for (const fold of page.querySelectorAll("details")) fold.open = true;
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const color = frame.getComputedStyle(e).backgroundColor;
      if (channels(color)[3] !== 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const found = { least: 99, texts: 0, ground: ground(page.body) };
  for (const element of page.body.querySelectorAll("*")) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!own || ["SCRIPT", "STYLE", "title"].includes(element.tagName)) continue;
    const style = frame.getComputedStyle(element);
    const inSvg = element.namespaceURI.endsWith("svg");
    const pair = [light(inSvg ? style.fill : style.color), light(ground(element))];
    const contrast = (Math.max(...pair) + .05) / (Math.min(...pair) + .05);
    found.texts += 1;
    if (contrast >= found.least) continue;
    found.least = contrast;
    found.worst = element.outerHTML.slice(0, 200);
  }
  found.width = frame.innerWidth;
  found.scrolls = page.documentElement.scrollWidth;
  found.wide = [...page.querySelectorAll("main *")].filter(
    e => e.getBoundingClientRect().right > frame.innerWidth + 1 && !e.closest(".scroll")
  ).map(e => e.outerHTML.slice(0, 200)).slice(0, 3);
  return found;
};
onload = () => {
  const frames = [...document.querySelectorAll("iframe")];
  document.body.dataset.found = JSON.stringify(
    Object.fromEntries(frames.map(f => [f.title, measured(f.contentWindow)])));
};
"""


def browse(source: str, folder: Path, width: int = 1280, scheme: str = "light") -> dict[str, Any]:
    """Opens a page in a headless browser: what its script left in `data-found`.

    Fails where the page says anything on the console.
    """
    page = folder / "browsed.html"
    page.write_text(source, encoding="utf-8")
    flags = ["headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run"]
    flags += ["disable-sync", "disable-background-networking", "disable-component-update"]
    flags += [f"user-data-dir={folder / 'profile'}", f"window-size={max(width, 600)},1000"]
    flags += [f"blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"]
    flags += ["enable-logging=stderr", "virtual-time-budget=5000", "dump-dom"]
    command = [str(CHROMIUM), *(f"--{flag}" for flag in flags), page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, encoding="utf-8")
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    found = re.search(r'data-found="([^"]*)"', done.stdout)
    assert found, done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


def measure(sources: dict[str, str], folder: Path, scheme: str) -> dict[str, Any]:
    """Pages in frames, since a headless window is never as narrow as a phone; all in one browser,
    which takes long to start. "name, width" -> what was measured.
    """
    frames = [
        f'<iframe style="border:0;color-scheme:{scheme};width:{width}px;height:900px" '
        f'title="{name}, {width}" srcdoc="{html.escape(source)}"></iframe>'
        for name, source in sources.items()
        for width in WIDTHS
    ]
    wrapper = f'<!DOCTYPE html><meta charset="utf-8"><body>{"".join(frames)}'
    return browse(f"{wrapper}<script>{MEASURE}</script>", folder, max(WIDTHS), scheme)


WIDTHS = (390, 1280)


def pages_of(kind: str, folder: Path) -> dict[str, str]:
    """An ordinary page of a kind and one whose texts are hostile, as source."""
    long = HOSTILE["long word"]
    if kind == "report":
        files = [
            write_report(make_run(folder / "plain")),
            write_report(make_run(folder / "hostile", **hostile_run(long))),
        ]
    elif kind == "feedback":
        files = [
            write_report(make_feedback_run(folder / "plain")),
            write_report(make_feedback_run(folder / "hostile", **hostile_feedback(long))),
        ]
    else:
        voices = make_runs(folder)
        mixed = [*voices, make_feedback_run(folder / "c3po", **hostile_feedback(long))]
        files = [
            write_comparison(voices, folder / "plain.html"),
            write_comparison(mixed, folder / "mixed.html"),
        ]
    return {f"{file.parent.name}/{file.name}": file.read_text("utf-8") for file in files}


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: the page is not looked at in a browser")
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["report", "feedback", "comparison"])
def test_a_browser_shows_it_without_sideways_scrolling_and_legibly(
    tmp_path: Path, kind: str, scheme: str
) -> None:
    pages = measure(pages_of(kind, tmp_path), tmp_path, scheme)
    assert len(pages) == 2 * len(WIDTHS)
    for name, found in pages.items():
        assert found["width"] == int(name.split(", ")[1]) and found["scrolls"] <= found["width"]
        assert found["wide"] == [], name
        assert found["texts"] > 50 and found["least"] >= 4.5, (name, found["worst"])
        bright = sum(map(int, re.findall(r"\d+", found["ground"])[:3])) / 3
        assert bright > 200 if scheme == "light" else bright < 60


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: sorting is not tried in a browser")
def test_a_click_on_a_column_sorts_the_runs(tmp_path: Path) -> None:
    source = write_comparison(make_runs(tmp_path), tmp_path / "all.html").read_text("utf-8")
    click = """
    <script>
    const rows = () => [...document.querySelectorAll("tbody th")].map(h => h.dataset.sort).join();
    const sort = n => { document.querySelectorAll("thead button")[n].click(); return rows(); };
    document.body.dataset.found = JSON.stringify({
      given: rows(), won: sort(2), down: sort(2), rate: sort(5),
      said: document.querySelectorAll("thead th")[5].getAttribute("aria-sort"),
    });
    </script></body>"""
    found = browse(source.replace("</body>", click), tmp_path)
    assert found["given"] == "run 0,run 1,run 2"
    assert found["won"] == "run 1,run 2,run 0"  # a run without the figure always comes last
    assert found["down"] == "run 2,run 1,run 0"
    assert found["rate"] == "run 2,run 1,run 0" and found["said"] == "ascending"
