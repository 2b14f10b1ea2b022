"""evaluate.py on finished toy runs: every printed figure is computed once more, naively."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import Outcome, call, evaluate
from helpers.evaluations import FAST, NATS, evaluation, naive_score, row, run_evaluation, write_runs
from helpers.files import write_jsonl
from helpers.processes import ROOT
from helpers.workplaces import DEMOS, HELD_OUT

import minialign
from minialign.data.general import general_prompts
from minialign.data.records import Example
from minialign.evaluation.judges.corpus import Text
from minialign.evaluation.judges.crossfit import CrossFitted, fit_on_training
from minialign.evaluation.judges.style import StyleJudge, copied_share
from minialign.evaluation.texts import distinct_n, repetition
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import set_adapter
from minialign.policy.knobs import SamplingConfig
from minialign.policy.peft import load_adapter
from minialign.policy.sample import sample as draw

BETA, N, NEW, SEED, GENERAL = 0.05, 3, 15, 5, 4
NAMES = ("base", "few-shot", "sft", "ditto")
POLICIES = {"base": None, "sft": "sft", "ditto": "ditto"}
FLAGS = (
    "--n",
    f"{N}",
    "--max-new-tokens",
    f"{NEW}",
    "--seed",
    f"{SEED}",
    "--general",
    f"{GENERAL}",
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="module")
def evaluated(workplace: Path) -> Outcome:
    return call(evaluate, "runs/demos", *FLAGS, cwd=workplace)


@pytest.fixture(scope="module")
def written(workplace: Path, evaluated: Outcome) -> dict[str, Any]:
    assert evaluated.code == 0, evaluated.err
    return evaluation(workplace)


# ---- the same figures, one text at a time: no packing, no sharing ----


@pytest.fixture(scope="module")
def naive(workplace: Path) -> dict[str, Any]:
    model, tokenizer = minialign.load(str(workplace / "toy"))
    for name, place in (("sft", "adapter-sft"), ("ditto", "adapter")):
        load_adapter(model, workplace / "runs" / "demos" / place, name)
    shown = [turn for d in DEMOS for turn in turns(d["prompt"], d["completion"])]
    asked = [turns(record["prompt"]) for record in HELD_OUT]
    plain = [tuple(tokenizer.encode_prompt(messages)) for messages in asked]
    few_shot = [tuple(tokenizer.encode_prompt([*shown, *messages])) for messages in asked]
    texts = [tuple(tokenizer.encode_completion(record["completion"])) for record in HELD_OUT]
    reads = {name: few_shot if name == "few-shot" else plain for name in NAMES}
    answers, logps = {}, {}
    for name in NAMES:
        set_adapter(model, POLICIES.get(name))
        answers[name] = draw(model, reads[name], N, SamplingConfig(NEW), seed=SEED)
    for name in NAMES:
        set_adapter(model, POLICIES.get(name))
        logps[name] = {
            "text": [naive_score(model, p, t) for p, t in zip(reads[name], texts, strict=True)]
        }
        for rival in ("base", "sft"):
            logps[name][rival] = [
                [naive_score(model, prompt, c.ids) for c in group]
                for prompt, group in zip(plain, answers[rival], strict=True)
            ]
    return {
        "model": model,
        "tokenizer": tokenizer,
        "plain": plain,
        "texts": texts,
        "answers": answers,
        "words": {n: [[tokenizer.decode(c.ids) for c in g] for g in a] for n, a in answers.items()},
        "logps": logps,
    }


def turns(prompt: str, completion: str = "") -> list[dict[str, str]]:
    answer = [{"role": "assistant", "content": completion}] if completion else []
    return [{"role": "user", "content": prompt}, *answer]


def naive_margins(naive: dict[str, Any], name: str, rival: str) -> list[float]:
    policy, base = naive["logps"][name], naive["logps"]["base"]
    return [
        BETA * ((policy["text"][i] - base["text"][i]) - (policy[rival][i][k] - base[rival][i][k]))
        for i in range(len(HELD_OUT))
        for k in range(N)
    ]


def test_nats_per_token_are_those_of_the_plain_forward_pass(
    evaluated: Outcome, written: dict[str, Any], naive: dict[str, Any]
) -> None:
    """Few-shot's with the demonstrations in its prompt."""
    tokens = sum(map(len, naive["texts"]))
    for name, cell in zip(NAMES, row(evaluated.out, NATS), strict=True):
        nats = -sum(naive["logps"][name]["text"]) / tokens
        assert written["contestants"][name]["nats_per_token"] == pytest.approx(nats, rel=1e-5)
        assert cell == f"{written['contestants'][name]['nats_per_token']:.3f}"
    assert f"2 held-out demonstrations, {tokens} tokens" in evaluated.out
    assert len(set(row(evaluated.out, NATS))) == 4


@pytest.mark.parametrize("rival", ["base", "sft"])
def test_margins_are_those_of_the_definition(
    evaluated: Outcome, written: dict[str, Any], naive: dict[str, Any], rival: str
) -> None:
    shown = row(evaluated.out, f"reward margin over {rival}'s answers")
    shares = row(evaluated.out, "... positive in", ("base", "sft").index(rival))
    for name, cell, share in zip(NAMES, shown, shares, strict=True):
        result = written["contestants"][name]
        if name in ("base", "few-shot"):  # 0 by definition; another prompt, another scale
            assert (cell, share, result["margins"]) == ("-", "-", {})
            continue
        margins = naive_margins(naive, name, rival)
        mean = sum(margins) / len(margins)
        positive = sum(margin > 0 for margin in margins) / len(margins)
        assert result["margins"][rival] == pytest.approx(mean, rel=1e-4, abs=1e-5)
        assert result["positive"][rival] == pytest.approx(positive)
        assert (cell, share) == (f"{mean:+.2f}", f"{positive:.0%}")
    assert written["contestants"]["ditto"]["margins"][rival] != 0


def test_the_share_above_0_stands_below_each_margin(evaluated: Outcome) -> None:
    lines = [line.strip().split("  ")[0] for line in evaluated.out.split("\n")]
    start = lines.index("reward margin over base's answers")
    assert lines[start : start + 4] == [
        "reward margin over base's answers",
        "... positive in",
        "reward margin over sft's answers",
        "... positive in",
    ]


def test_drift_is_the_divergence_of_two_plain_forward_passes(
    evaluated: Outcome, written: dict[str, Any], naive: dict[str, Any]
) -> None:
    model, tokenizer = naive["model"], naive["tokenizer"]
    texts = general_prompts(GENERAL, SEED, "drift")
    prompts = [tuple(tokenizer.encode_prompt(text)) for text in texts]
    prompts = [prompt for prompt in prompts if len(prompt) + 96 <= 256]  # the toy's context
    assert prompts
    set_adapter(model, None)
    ordinary = [
        Example(prompt, group[0].ids)
        for prompt, group in zip(
            prompts, draw(model, prompts, 1, SamplingConfig(96), seed=SEED), strict=True
        )
    ]
    shown = dict(zip(NAMES, row(evaluated.out, "drift from base (nats per token)"), strict=True))
    assert (shown["base"], shown["few-shot"]) == ("0.000", "-")
    for name in ("sft", "ditto"):
        total = sum(naive_divergence(model, name, sequence) for sequence in ordinary)
        drift = total / sum(len(sequence.completion_ids) for sequence in ordinary)
        assert written["contestants"][name]["drift"] == pytest.approx(drift, rel=1e-4)
        assert shown[name] == f"{drift:.3f}" != "0.000"


@torch.no_grad()
def naive_divergence(model: CausalLM, adapter: str, sequence: Example) -> float:
    ids = torch.tensor([sequence.prompt_ids + sequence.completion_ids])
    logps = {}
    for name in (None, adapter):
        set_adapter(model, name)
        logps[name] = model.logits(ids)[0, len(sequence.prompt_ids) - 1 : -1].log_softmax(-1)
    return float((logps[None].exp() * (logps[None] - logps[adapter])).sum())


def test_answers_are_described_as_they_are(
    evaluated: Outcome, written: dict[str, Any], naive: dict[str, Any]
) -> None:
    assert list(NAMES) in [line.split() for line in evaluated.out.split("\n")]
    learned = [d["completion"] for d in DEMOS]
    for place, name in enumerate(NAMES):
        flat = [completion for group in naive["answers"][name] for completion in group]
        texts = [text for group in naive["words"][name] for text in group]
        expected = {
            f"answers that end within {NEW} tokens": sum(c.ids[-1] == 2 for c in flat) / len(flat),
            "different word pairs": distinct_n(texts, 2),
            "repetition within an answer": sum(map(repetition, texts)) / len(texts),
            "copied from the demonstrations": sum(copied_share(t, learned) for t in texts)
            / len(texts),
        }
        for title, share in expected.items():
            assert row(evaluated.out, title)[place] == f"{share:.0%}", title
        mean = sum(len(c.ids) for c in flat) / len(flat)
        assert row(evaluated.out, "tokens an answer")[place] == f"{mean:.0f}"
        assert written["contestants"][name]["answers"] == naive["words"][name]
        assert written["contestants"][name]["finish_reasons"] == [
            [c.finish_reason for c in group] for group in naive["answers"][name]
        ]


def test_fluency_is_the_base_models_surprise_at_the_answers(
    evaluated: Outcome, written: dict[str, Any], naive: dict[str, Any]
) -> None:
    set_adapter(naive["model"], None)
    shown = row(evaluated.out, "base's nats per token on the answers")
    for name, cell in zip(NAMES, shown, strict=True):
        pairs = [
            (naive_score(naive["model"], prompt, c.ids), len(c.ids))
            for prompt, group in zip(naive["plain"], naive["answers"][name], strict=True)
            for c in group
        ]
        nats = -sum(score for score, _ in pairs) / sum(size for _, size in pairs)
        assert written["contestants"][name]["fluency"] == pytest.approx(nats, rel=1e-4)
        assert cell == f"{nats:.2f}"
    persons = written["contestants"]["base"]["nats_per_token"]
    assert written["person"]["fluency"] == pytest.approx(persons)
    assert f"base's nats per token on them {persons:.2f}" in " ".join(evaluated.out.split())


def test_the_verdict_of_the_report_stands_first(evaluated: Outcome, workplace: Path) -> None:
    first = " ".join(evaluated.out.split("\n\n")[0].split())
    page = (workplace / "runs" / "demos" / "report.html").read_text(encoding="utf-8")
    headline = re.findall(r"<h1>(.*?)</h1>", page)[0].replace("\u00a0", " ")
    assert first.startswith(html.unescape(headline)) and "SFT" in headline


@pytest.fixture(scope="module")
def naive_judge(naive: dict[str, Any]) -> CrossFitted[StyleJudge]:
    """Learned from the demonstrations, the base's answers to all prompts, and other people.

    Two unseen texts are too few to learn from.
    """
    model, tokenizer = naive["model"], naive["tokenizer"]
    set_adapter(model, None)
    asked = [d["prompt"] for d in (*DEMOS, *HELD_OUT)]
    prompts = [tokenizer.encode_prompt(prompt) for prompt in asked]
    groups = draw(model, prompts, 4, SamplingConfig(NEW), seed=SEED + 1)
    file = ROOT / "minialign" / "evaluation" / "judges" / "other_voices.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines()
    base = [
        Text(tokenizer.decode(c.ids), prompt)
        for prompt, group in zip(asked, groups, strict=True)
        for c in group
    ]
    others = [base, [json.loads(line)["text"] for line in lines]]
    unseen, own = ([Text(d["completion"], d["prompt"]) for d in ds] for ds in (HELD_OUT, DEMOS))
    return fit_on_training(StyleJudge, unseen, own, others, seed=SEED)


def test_win_rates_are_counts_of_the_judges_scores(
    evaluated: Outcome,
    written: dict[str, Any],
    naive: dict[str, Any],
    naive_judge: CrossFitted[StyleJudge],
) -> None:
    (judgement,) = (judge for judge in written["judges"] if judge["name"] == "style")
    assert judgement["note"] == naive_judge.describe()
    assert judgement["can_judge"] == naive_judge.can_judge
    assert naive_judge.describe() in " ".join(evaluated.out.split())
    scores = {
        name: [
            naive_judge.scores(group, record["prompt"])
            for group, record in zip(groups, HELD_OUT, strict=True)
        ]
        for name, groups in naive["words"].items()
    }
    pairs = [(later, name) for i, name in enumerate(NAMES) for later in NAMES[i + 1 :]]
    assert [(win["first"], win["second"]) for win in judgement["wins"]] == pairs
    rates = {}
    for win in judgement["wins"]:
        outcomes = [
            [(a > b) + (a == b) / 2 for a in first for b in second]
            for first, second in zip(scores[win["first"]], scores[win["second"]], strict=True)
        ]
        per_prompt = [sum(o) / len(o) for o in outcomes]
        assert win["per_prompt"] == pytest.approx(per_prompt)
        assert win["rate"] == pytest.approx(sum(per_prompt) / len(HELD_OUT))
        assert win["comparisons"] == len(HELD_OUT) * N * N
        # Two prompts are too few.
        assert win["low"] is win["high"] is None
        rates[win["first"], win["second"]] = win["rate"]
        rates[win["second"], win["first"]] = 1 - win["rate"]
    assert tuple(judgement["mean"]) == NAMES
    for name, mean in judgement["mean"].items():
        own = [rate for pair, rate in rates.items() if pair[0] == name]
        assert mean["rate"] == pytest.approx(sum(own) / 3)
    # Three demonstrations with two prompts are too few as well.
    assert not naive_judge.can_judge
    assert "no win rates: this judge could not judge" in evaluated.out


# ---- what is printed and written ----


def test_the_file_says_what_was_asked(evaluated: Outcome, written: dict[str, Any]) -> None:
    assert evaluated.out.endswith(
        "\nall answers and figures: runs/demos/evaluation.json\n"
        "on one page: runs/demos/report.html\n"
    )
    assert evaluated.err == ""  # no progress in a pipe
    assert written["command"].startswith("python evaluate.py runs/demos --n 3 ")
    assert written["prompts"] == [record["prompt"] for record in HELD_OUT]
    assert written["texts"] == [record["completion"] for record in HELD_OUT]
    assert (written["options"]["n"], written["options"]["seed"]) == (N, SEED)
    assert tuple(written["contestants"]) == NAMES


def test_the_persons_text_stands_beside_each_contestants(evaluated: Outcome) -> None:
    for record in HELD_OUT:
        start = evaluated.out.index(f"prompt: {record['prompt']}\n")
        lines = evaluated.out[start:].split("\n")
        assert re.split("  +", lines[2]) == ["the person", *NAMES]
        width = len(lines[3].split()[0])
        column = [line[:width].strip() for line in lines[4:]]
        assert " ".join(column).startswith(record["completion"])


def test_the_page_shows_all_contestants_and_their_answers(
    workplace: Path, written: dict[str, Any]
) -> None:
    page = (workplace / "runs" / "demos" / "report.html").read_text(encoding="utf-8")
    for name in ("base model", "few-shot", "SFT", "DITTO"):
        assert name in page
    assert HELD_OUT[0]["completion"] in page and HELD_OUT[0]["prompt"] in page
    assert f"{written['contestants']['ditto']['nats_per_token']:.3f}" in page


def test_evaluating_writes_three_files_and_leaves_the_run(copy: Path) -> None:
    folder = copy / "runs" / "sft"
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    run_evaluation(copy, "runs/sft", *FAST)
    after = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    assert after.keys() - before.keys() == {folder / "evaluation.json"}
    changed = {path for path, content in before.items() if after[path] != content}
    # The adapter's card says how it was judged.
    assert changed == {folder / "report.html", folder / "adapter" / "README.md"}


@pytest.mark.parametrize("show", [0, 1])
def test_show_is_the_number_of_prompts_side_by_side(copy: Path, show: int) -> None:
    outcome = call(evaluate, "runs/demos", *FAST, "--show", str(show), cwd=copy)
    assert outcome.out.count("\nprompt: ") == show


# ---- knobs ----


def test_the_same_seed_writes_the_same_file(copy: Path, written: dict[str, Any]) -> None:
    again = run_evaluation(copy, "runs/demos", *FLAGS)
    assert again == written


def test_another_seed_writes_other_answers_and_keeps_the_nats(
    copy: Path, written: dict[str, Any]
) -> None:
    other = run_evaluation(copy, "runs/demos", *FLAGS, "--seed", "6")
    for name in NAMES:
        old, new = written["contestants"][name], other["contestants"][name]
        assert new["answers"] != old["answers"]
        assert new["nats_per_token"] == old["nats_per_token"]
    assert other["contestants"]["ditto"]["drift"] != written["contestants"]["ditto"]["drift"]


def test_n_and_the_length_limit_and_the_temperature_reach_the_answers(copy: Path) -> None:
    flags = ("--n", "2", "--max-new-tokens", "7", "--temperature", "0")
    found = run_evaluation(copy, "runs/demos", *FAST, *flags)["contestants"]
    for contestant in found.values():
        assert [len(group) for group in contestant["answers"]] == [2, 2]
        assert contestant["mean_tokens"] <= 7
        assert all(first == second for first, second in contestant["answers"])  # the likeliest


def test_an_answer_may_be_a_quarter_longer_than_the_longest_text(
    copy: Path, naive: dict[str, Any]
) -> None:
    found = run_evaluation(copy, "runs/demos", *FAST, "--max-new-tokens", "0")["contestants"]
    longest = max(map(len, naive["texts"]))
    cut = [c for c in found.values() if "length" in sum(c["finish_reasons"], [])]
    assert cut and max(c["mean_tokens"] for c in cut) == longest + longest // 4


def test_without_general_prompts_no_drift_is_shown(copy: Path) -> None:
    outcome = call(evaluate, "runs/demos", *FAST, cwd=copy)
    assert "drift" not in outcome.out and "win rates" not in outcome.out
    assert evaluation(copy)["contestants"]["ditto"]["drift"] is None


def test_micro_batches_change_the_memory_and_not_the_figures(
    copy: Path, written: dict[str, Any]
) -> None:
    found = run_evaluation(copy, "runs/demos", *FLAGS, "--micro-batch-tokens", "1")
    for name in POLICIES:
        for figure in ("nats_per_token", "drift"):
            expected = written["contestants"][name][figure]
            assert found["contestants"][name][figure] == pytest.approx(expected, rel=1e-5)


def test_another_type_of_the_base_moves_the_figures_a_little(
    copy: Path, written: dict[str, Any]
) -> None:
    found = run_evaluation(copy, "runs/demos", *FAST, "--dtype", "bfloat16")["contestants"]
    expected = written["contestants"]["base"]["nats_per_token"]
    assert found["base"]["nats_per_token"] == pytest.approx(expected, rel=0.05)
    assert found["base"]["nats_per_token"] != expected


def test_test_measures_on_another_file(copy: Path) -> None:
    write_jsonl(copy / "other.jsonl", [{"prompt": "Greet.", "completion": "Hi there."}])
    outcome = call(evaluate, "runs/demos", "--test", "other.jsonl", *FAST[:-2], cwd=copy)
    assert "\n1 held-out demonstrations" in outcome.out
    assert "prompt: Greet.\n" in outcome.out


def other_texts(folder: Path) -> None:
    write_jsonl(folder / "others.jsonl", [{"text": f"yo {i}! c u @ {i}"} for i in range(5)])


def other_demonstrations(folder: Path) -> None:
    lines = [{"prompt": "Greet.", "completion": f"yo {i}! c u @ {i}"} for i in range(5)]
    write_jsonl(folder / "others.jsonl", lines)


@pytest.mark.parametrize("prepare", [other_texts, other_demonstrations])
def test_the_style_judge_can_learn_from_other_peoples_texts(
    copy: Path, prepare: Callable[[Path], None]
) -> None:
    prepare(copy)
    judged = (*FAST, "--judges", "style", "--others", "others.jsonl")
    (judgement,) = run_evaluation(copy, "runs/demos", *judged)["judges"]
    # 5, and 4 answers to 5 prompts
    assert "from 3 own (training texts) and 25 other texts" in judgement["note"]
