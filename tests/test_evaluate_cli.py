"""evaluate.py on finished toy runs: every printed figure is computed once more, naively."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_helpers import HELD_OUT, Outcome, call, evaluate, train_toy, write_jsonl, write_workplace

import minialign
from minialign.config import SamplingConfig
from minialign.data import Sequence
from minialign.lora import load_adapter, set_adapter
from minialign.model import CausalLM
from minialign.sampler import sample

BETA, N, NEW = 0.05, 3, 15
NAMES = ("base", "sft", "ditto")
FLAGS = ("--n", str(N), "--max-new-tokens", str(NEW), "--seed", "5")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_workplace(tmp_path_factory.mktemp("evaluate"))
    train_toy(folder)
    train_toy(folder, "--method", "sft", "--out", "runs/sft")
    return folder


@pytest.fixture(scope="module")
def evaluated(workplace: Path) -> Outcome:
    return call(evaluate, "runs/demos", *FLAGS, cwd=workplace)


@pytest.fixture(scope="module")
def written(workplace: Path, evaluated: Outcome) -> dict[str, Any]:
    assert evaluated.code == 0, evaluated.err
    text = (workplace / "runs" / "demos" / "evaluation.json").read_text(encoding="utf-8")
    return json.loads(text)


@pytest.fixture(scope="module")
def naive(workplace: Path) -> dict[str, Any]:
    """The same figures from `model.logits`, one text at a time: no packing, no sharing."""
    model, tokenizer = minialign.load(str(workplace / "toy"))
    for name, place in (("sft", "adapter-sft"), ("ditto", "adapter")):
        load_adapter(model, workplace / "runs" / "demos" / place, name)
    texts = [
        Sequence(
            tuple(tokenizer.encode_prompt(record["prompt"])),
            tuple(tokenizer.encode_completion(record["completion"])),
        )
        for record in HELD_OUT
    ]
    prompts = [text.prompt_ids for text in texts]
    answers, logps = {}, {}
    for name in NAMES:
        set_adapter(model, None if name == "base" else name)
        answers[name] = sample(model, prompts, N, SamplingConfig(NEW), seed=5)
    for name in NAMES:
        set_adapter(model, None if name == "base" else name)
        logps[name] = {
            "text": [naive_score(model, text) for text in texts],
            **{
                rival: [
                    [naive_score(model, Sequence(prompt, c.ids)) for c in group]
                    for prompt, group in zip(prompts, answers[rival], strict=True)
                ]
                for rival in ("base", "sft")
            },
        }
    return {"texts": texts, "answers": answers, "logps": logps, "tokenizer": tokenizer}


@torch.no_grad()
def naive_score(model: CausalLM, sequence: Sequence) -> float:
    ids = torch.tensor(sequence.prompt_ids + sequence.completion_ids)
    logps = model.logits(ids[None])[0].log_softmax(-1)
    start = len(sequence.prompt_ids)
    return sum(float(logps[i - 1, ids[i]]) for i in range(start, len(ids)))


def naive_margins(naive: dict[str, Any], name: str, rival: str) -> list[float]:
    policy, base = naive["logps"][name], naive["logps"]["base"]
    return [
        BETA * ((policy["text"][i] - base["text"][i]) - (policy[rival][i][k] - base[rival][i][k]))
        for i in range(len(HELD_OUT))
        for k in range(N)
    ]


def row(out: str, title: str, occurrence: int = 0) -> list[str]:
    lines = [line for line in out.split("\n") if line.strip().startswith(title)]
    return lines[occurrence].strip().removeprefix(title).split()


def test_nats_per_token_are_those_of_the_plain_forward_pass(
    evaluated: Outcome, written: dict[str, Any], naive: dict[str, Any]
) -> None:
    tokens = sum(len(text.completion_ids) for text in naive["texts"])
    shown = row(evaluated.out, "nats per token (lower is better)")
    for name, cell in zip(NAMES, shown, strict=True):
        nats = -sum(naive["logps"][name]["text"]) / tokens
        assert written["contestants"][name]["nats_per_token"] == pytest.approx(nats, rel=1e-5)
        assert cell == f"{written['contestants'][name]['nats_per_token']:.3f}"
    assert f"2 held-out demonstrations, {tokens} tokens" in evaluated.out


@pytest.mark.parametrize("rival", ["base", "sft"])
def test_margins_and_wins_are_those_of_the_definition(
    evaluated: Outcome, written: dict[str, Any], naive: dict[str, Any], rival: str
) -> None:
    shown = row(evaluated.out, f"reward margin over {rival}'s answers")
    shares = row(evaluated.out, "... positive in", ("base", "sft").index(rival))
    for name, cell, share in zip(NAMES, shown, shares, strict=True):
        margins = naive_margins(naive, name, rival)
        mean = sum(margins) / len(margins)
        wins = sum(margin > 0 for margin in margins) / len(margins)
        result = written["contestants"][name]
        assert result["margins"][rival] == pytest.approx(mean, rel=1e-4, abs=1e-5)
        if name != "base":  # the base's own are zero but for rounding
            assert result["wins"][rival] == pytest.approx(wins)
        figures = (f"{result['margins'][rival]:+.2f}", f"{result['wins'][rival]:.0%}")
        assert (cell, share) == (("-", "-") if name == "base" else figures)  # zero by definition
    assert written["contestants"]["ditto"]["margins"][rival] != 0


def test_the_share_of_wins_stands_below_each_margin(evaluated: Outcome) -> None:
    lines = [line.strip().split("  ")[0] for line in evaluated.out.split("\n")]
    start = lines.index("reward margin over base's answers")
    assert lines[start : start + 4] == [
        "reward margin over base's answers",
        "... positive in",
        "reward margin over sft's answers",
        "... positive in",
    ]


def test_answers_are_described_as_they_are(
    evaluated: Outcome, written: dict[str, Any], naive: dict[str, Any]
) -> None:
    assert row(evaluated.out, "base")[:2] == ["sft", "ditto"]
    for place, name in enumerate(NAMES):
        groups = naive["answers"][name]
        flat = [completion for group in groups for completion in group]
        stops = sum(c.finish_reason == "stop" for c in flat) / len(flat)
        mean = sum(len(c.ids) for c in flat) / len(flat)
        assert row(evaluated.out, "answers that end by themselves")[place] == f"{stops:.0%}"
        assert row(evaluated.out, "tokens an answer")[place] == f"{mean:.0f}"
        texts = [[naive["tokenizer"].decode(c.ids) for c in group] for group in groups]
        assert written["contestants"][name]["answers"] == texts


def test_the_file_says_what_was_asked(
    evaluated: Outcome, written: dict[str, Any], workplace: Path
) -> None:
    assert evaluated.out.endswith("all answers and figures: runs/demos/evaluation.json\n")
    assert evaluated.err == ""
    assert written["prompts"] == [record["prompt"] for record in HELD_OUT]
    assert written["texts"] == [record["completion"] for record in HELD_OUT]
    assert (written["options"]["n"], written["options"]["seed"]) == (N, 5)
    assert tuple(written["contestants"]) == NAMES


def test_the_persons_text_stands_beside_each_contestants(evaluated: Outcome) -> None:
    for record in HELD_OUT:
        start = evaluated.out.index(f"prompt: {record['prompt']}\n")
        title = evaluated.out[start:].split("\n")[2]
        assert title.split("  ") and title.split() == ["the", "person", *NAMES]
        column = [line[:23].strip() for line in evaluated.out[start:].split("\n")[4:]]
        assert " ".join(column).startswith(record["completion"])


@pytest.mark.parametrize("show", [0, 1])
def test_show_is_the_number_of_prompts_side_by_side(workplace: Path, show: int) -> None:
    outcome = call(evaluate, "runs/demos", "--show", str(show), *FLAGS, cwd=workplace)
    assert outcome.out.count("the person ") == show


def test_another_seed_writes_other_answers_and_keeps_the_nats(
    workplace: Path, written: dict[str, Any], evaluated: Outcome, tmp_path: Path
) -> None:
    copy = shutil.copytree(workplace / "runs" / "demos", tmp_path / "copy")
    outcome = call(evaluate, copy, *FLAGS[:-1], "6", cwd=workplace)
    other = json.loads((copy / "evaluation.json").read_text(encoding="utf-8"))
    for name in NAMES:
        assert other["contestants"][name]["answers"] != written["contestants"][name]["answers"]
    title = "nats per token (lower is better)"
    assert row(outcome.out, title) == row(evaluated.out, title)


def test_test_measures_on_another_file(workplace: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(workplace / "runs" / "demos", tmp_path / "copy")
    other = write_jsonl(tmp_path / "other.jsonl", [{"prompt": "Greet.", "completion": "Hi there."}])
    outcome = call(evaluate, copy, "--test", other, *FLAGS, cwd=workplace)
    assert "\n1 held-out demonstrations" in "\n" + outcome.out
    assert "prompt: Greet.\n" in outcome.out


def test_an_sft_run_is_compared_with_the_base_alone(workplace: Path) -> None:
    outcome = call(evaluate, "runs/sft", *FLAGS, cwd=workplace)
    assert outcome.code == 0, outcome.err
    assert row(outcome.out, "base") == ["sft"]
    nats = [float(cell) for cell in row(outcome.out, "nats per token (lower is better)")]
    assert len(nats) == 2 and nats[1] < nats[0]  # it learned
    assert "over base's" in outcome.out and "over sft's" not in outcome.out


def test_evaluating_writes_one_file_and_leaves_the_run(workplace: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(workplace / "runs" / "sft", tmp_path / "copy")
    (copy / "evaluation.json").unlink(missing_ok=True)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    call(evaluate, copy, *FLAGS, cwd=workplace)
    after = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert after.keys() - before.keys() == {copy / "evaluation.json"}
    assert all(after[path] == content for path, content in before.items())
