"""The study of DITTO counts whom a judge cannot judge, and keeps texts out of its results."""

from __future__ import annotations

import importlib
import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers.models import write_checkpoint
from helpers.processes import ROOT
from helpers.refusals import refusal
from helpers.voices import CASUAL, FORMAL, LISTING, TOPICS, write

Module = Callable[[str], ModuleType]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Module]:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    yield importlib.import_module


def line(author: str, arm: str, seed: int = 0) -> dict[str, Any]:
    fixed = {"author": author, "texts": "h", "seed": seed, "words": 100, "samples": 2}
    figures = {"fluency": 3.0, "stops": 1.0, "mean_tokens": 9.0, "distinct_2": 0.5}
    more = {"nats": {"val": 2.0, "test": 2.5}, "repetition": 0.0, "copied": 0.0, "drift": 0.1}
    return {"arm": arm, **fixed, "model": "m", "label": "", "config": {}, **figures, **more}


def judged(key: str, able: bool, ditto: float, judge: str = "style") -> dict[str, Any]:
    """DITTO's answers score `ditto`, everybody else's 0."""
    scores = {
        arm: {split: [[ditto if arm == "DITTO" else 0.0] * 2] * 3 for split in ("val", "test")}
        for arm in ("zero-shot", "SFT", "DITTO")
    }
    person = {split: [[2.0]] * 3 for split in ("val", "test")}
    areas = {"auc": 0.9 if able else 0.5, "areas": [0.9], "can_judge": able, "own_texts": 5}
    rest = {"key": key, "person": person, "others": [-1.0, -1.0], "scores": scores}
    return {"judge": judge, "fitted_on": "unseen texts", **areas, **rest}


def test_an_author_whose_judge_cannot_judge_is_counted_and_left_out(module: Module) -> None:
    results, tables = module("ditto_results"), module("ditto_tables")
    lines = [line(f"a/{n}", arm) for n in range(4) for arm in ("zero-shot", "SFT", "DITTO")]
    keys = list(dict.fromkeys(map(results.key_of, lines)))
    verdicts = [judged(key, able=n > 0, ditto=1.0 if n else -1.0) for n, key in enumerate(keys)]
    rate = tables.win_rate(tables.joined(lines, verdicts), "DITTO", "SFT")
    assert (rate.rate, rate.authors, rate.all) == (1.0, 3, 4)
    assert 0.2 < rate.low < 1.0 and rate.high == 1.0
    assert "100.0 % (" in str(rate) and "3 of 4" in str(rate)
    assert "not judged" in tables.author_table(tables.joined(lines, verdicts), "test")


def test_too_few_authors_have_no_interval(module: Module) -> None:
    results, tables = module("ditto_results"), module("ditto_tables")
    lines = [line(f"a/{n}", "DITTO") for n in range(2)]
    verdicts = [judged(results.key_of(one), True, 1.0) for one in lines]
    assert "too few authors" in str(tables.win_rate(tables.joined(lines, verdicts), "DITTO", "SFT"))


def test_a_verdict_needs_two_judges_that_agree(module: Module) -> None:
    results, tables = module("ditto_results"), module("ditto_tables")
    lines = [line("a/0", "DITTO")]
    key = results.key_of(lines[0])

    def verdict(*ditto: float, first: str = "judge 0") -> str:
        names = [first, "judge 1"][: len(ditto)]
        verdicts = [judged(key, True, one, name) for one, name in zip(ditto, names, strict=True)]
        table = tables.author_table(tables.joined(lines, verdicts), "test")
        return str(table.splitlines()[-1].split("|")[-2].strip())

    assert verdict(1.0, 1.0) == "DITTO"
    assert verdict(-1.0, -1.0) == "SFT"
    assert verdict(1.0, -1.0) == verdict(1.0) == verdict(0.0, 0.0) == "no verdict"
    assert verdict(1.0, 1.0, first="panel") == "no verdict"


def test_an_exaggeration_stands_above_one(module: Module) -> None:
    results, tables = module("ditto_results"), module("ditto_tables")
    lines = [line("a/0", "DITTO")]
    found = tables.joined(lines, [judged(results.key_of(lines[0]), True, 5.0)])
    rows = tables.place_table(found, ["DITTO", "SFT", tables.PERSON], "test").splitlines()[2:]
    assert [row.split("|")[2].strip() for row in rows] == ["2.00", "0.33", "1.00"]


def test_the_page_has_every_part(module: Module) -> None:
    results, tables = module("ditto_results"), module("ditto_tables")
    lines = [line("a/0", arm) for arm in ("zero-shot", "SFT", "DITTO", "2 rounds")]
    text = tables.all_tables(lines, [judged(results.key_of(lines[0]), True, 1.0)])
    assert "## a, 100 words, m" in text and "| 2 rounds |" in text
    assert text.count("**") >= 16


# ---- texts ----


def write_authors(folder: Path) -> None:
    folder.mkdir()
    for number, voice in enumerate((CASUAL, FORMAL, LISTING)):
        texts = write(voice, 10, sentences=4)
        splits = ["train"] * 5 + ["val"] * 3 + ["test"] * 2
        with (folder / f"author{number:02}.jsonl").open("w", encoding="utf-8") as file:
            for topic, text, split in zip(TOPICS, texts, splits, strict=False):
                record = {"prompt": f"Write about: {topic}", "completion": text, "split": split}
                file.write(json.dumps(record) + "\n")


def test_answers_are_judged_in_both_ways_and_no_text_is_kept(
    module: Module, tmp_path: Path
) -> None:
    authors, judging = module("ditto_authors"), module("ditto_judging")
    results = module("ditto_results")
    write_authors(tmp_path / "folk")
    ann, *others = authors.read_authors(tmp_path / "folk", 20)
    assert all(len(d.completion.split()) <= 20 for d in ann.texts)
    fixed = line(ann.name, "zero-shot")
    asked = ann.cut("val", "test")
    for arm, texts in (("zero-shot", write(FORMAL, 5)), ("SFT", write(CASUAL, 5))):
        answers = {d.prompt: [text] for d, text in zip(asked, texts, strict=True)}
        results.answers_file(tmp_path, fixed, arm).write_text(json.dumps(answers))
    out = tmp_path / "judged.jsonl"
    for _ in range(2):  # a second time replaces the first
        judging.judge_author(ann, others, fixed, tmp_path, out)
    found = results.read_lines(out)
    assert len(found) == 2 * len(judging.KINDS)
    assert {one["fitted_on"] for one in found} == {"unseen texts", "training texts"}
    panel = found[0]
    assert len(panel["scores"]["SFT"]["val"]) == 3 and len(panel["scores"]["SFT"]["test"]) == 2
    assert panel["own_texts"] == 5 and "text" not in panel
    assert asked[0].completion[:12] not in out.read_text()


def test_an_authors_hash_changes_with_a_text_or_its_length(module: Module, tmp_path: Path) -> None:
    authors = module("ditto_authors")
    write_authors(tmp_path / "folk")
    first, second = authors.read_authors(tmp_path / "folk", 20)[:2]
    assert first.hash != second.hash
    assert first.hash != authors.read_authors(tmp_path / "folk", 10)[0].hash


def test_the_official_files_are_converted(module: Module, tmp_path: Path) -> None:
    authors = module("ditto_authors")
    for split in ("train", "val", "test"):
        content = {7: [{"prompt": "Write: tea", "output": split}], 12: []}
        (tmp_path / f"cmcc_{split}.pkl").write_bytes(pickle.dumps(content))
    assert authors.convert(tmp_path, tmp_path / "out") == 2
    [author, _] = sorted((tmp_path / "out").glob("author*.jsonl"))[::-1]
    said = [json.loads(one) for one in author.read_text().splitlines()]
    assert [one["split"] for one in said] == ["train", "val", "test"]
    assert said[0] == {"prompt": "Write: tea", "completion": "train", "split": "train"}


class Hostile:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return eval, ("1 / 0",)


def test_a_pickle_that_asks_for_a_class_is_not_run(module: Module, tmp_path: Path) -> None:
    authors = module("ditto_authors")
    (tmp_path / "x_train.pkl").write_bytes(pickle.dumps({"a": Hostile()}))
    assert "only plain lists" in refusal(lambda: authors.read_pickle(tmp_path / "x_train.pkl"))


def test_the_study_runs_and_goes_on_where_it_stopped(
    module: Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, results = module("reproduce_ditto"), module("ditto_results")
    write_authors(tmp_path / "folk")
    knobs = ("max_steps=2", "resample_every=1", "samples_per_prompt=2", "max_new_tokens=4")
    more = ("sft_max_steps=1", "max_length=200", "lora_rank=2")
    given = [
        *("study", "--data", str(tmp_path / "folk"), "--authors", "0", "--words", "5"),
        *("--model", str(write_checkpoint(tmp_path / "model")), "--samples", "1"),
        *("--results", str(tmp_path / "found.jsonl"), "--work", str(tmp_path / "work")),
        *("--answers", str(tmp_path / "answers"), "--arms", "zero-shot,few-shot,SFT,DITTO"),
        *(part for knob in (*knobs, *more) for part in ("--set", knob)),
    ]
    monkeypatch.setattr("sys.argv", given)
    study.main()
    lines = results.read_lines(tmp_path / "found.jsonl")
    assert [x["arm"] for x in lines] == ["zero-shot", "few-shot", "SFT", "1 round", "DITTO"]
    assert lines[-1]["nats"]["test"] != lines[2]["nats"]["test"]
    assert lines[-1]["drift"] > 0 and lines[0]["drift"] == 0
    judged = results.read_lines(tmp_path / "found_judged.jsonl")
    assert {"zero-shot", "few-shot", "SFT", "1-round", "DITTO"} == set(judged[0]["scores"])
    study.main()
    assert results.read_lines(tmp_path / "found.jsonl") == lines
