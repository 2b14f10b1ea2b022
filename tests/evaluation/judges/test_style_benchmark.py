"""The benchmark of the style judge prints its table and keeps the texts to itself."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from conftest import refusal
from voices import CASUAL, CHINESE, FORMAL, LISTING, TOPICS, write

from minialign.evaluation.judges.style import StyleJudge


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    file = Path(__file__).parents[3] / "benchmarks" / "style_judge.py"
    specification = importlib.util.spec_from_file_location("style_judge_benchmark", file)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # where dataclasses look for their annotations
    specification.loader.exec_module(module)
    return module


def write_data(folder: Path) -> tuple[Path, Path]:
    """Three authors, five prompts, and answers to them."""
    data = folder / "authors"
    data.mkdir()
    answers: dict[str, dict[str, list[str]]] = {}
    for name, voice in (("ann", CASUAL), ("bob", FORMAL), ("cid", CHINESE)):
        prompts = [f"Write an essay to the prompt: {topic}" for topic in TOPICS[:5]]
        texts = write(voice, 5, sentences=4)
        splits = ["train"] * 3 + ["val", "test"]
        rows: list[dict[str, Any]] = [
            {"prompt": p, "completion": t, "split": s}
            for p, t, s in zip(prompts, texts, splits, strict=True)
        ]
        (data / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        answers[name] = {
            p: [text] for p, text in zip(prompts, write(LISTING, 5, sentences=5), strict=True)
        }
    (folder / "answers.json").write_text(json.dumps(answers))
    return data, folder / "answers.json"


def run(benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch, *flags: object) -> None:
    monkeypatch.setattr(sys, "argv", ["style_judge.py", *map(str, flags)])
    benchmark.main()


def test_the_benchmark_prints_its_table_and_keeps_the_texts_to_itself(
    benchmark: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, answers = write_data(tmp_path)
    out = tmp_path / "out.json"
    run(benchmark, monkeypatch, "--data", data, "--answers", answers, "--out", out)
    printed = capsys.readouterr().out
    assert "| all | 1.000 | 1.000 | 1.000 | 1.000 |" in printed and "| bob |" in printed
    written = out.read_text()
    assert set(json.loads(written)["authors"]) == {"ann", "bob", "cid"}
    assert not any(word in written + printed for word in ("garden", "bridge", "committee", "essay"))


def test_the_benchmark_asks_about_unseen_texts_only(benchmark: ModuleType) -> None:
    texts = [
        benchmark.Text("ann", "p", "seen", True),
        benchmark.Text("ann", "p", "unseen", False),
    ]
    judge = StyleJudge.fit(["a"], [["b"]])
    assert [text.text for text, _ in benchmark.ask(judge, texts)] == ["unseen"]


def test_the_benchmark_names_a_prompt_without_an_answer(
    benchmark: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, answers = write_data(tmp_path)
    answers.write_text(json.dumps({"ann": {}}))
    flags = ("--data", data, "--answers", answers, "--out", tmp_path / "out.json")
    assert "ann.jsonl, line 1" in refusal(lambda: run(benchmark, monkeypatch, *flags))
    assert not (tmp_path / "out.json").exists()
