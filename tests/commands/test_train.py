"""train.py from the first flag to the last printed line, with a toy model."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import call, evaluate, train, train_toy
from helpers.files import tree
from helpers.processes import ROOT, run_python, run_script
from helpers.runs import (
    INPUTS,
    PROMPT,
    RUN_SCRIPT,
    Finished,
    metrics,
    results,
    weights,
    without_seconds,
)
from helpers.workplaces import DEMOS, LOADING, TINY

import minialign
import minialign.methods.ditto  # noqa: F401  (before one test replaces what it imports)
import minialign.methods.sft
from minialign.data.knobs import config_from_dict, config_from_flags
from minialign.data.records import Example
from minialign.methods.knobs import PAPER, DittoConfig
from minialign.methods.sft import _with_prompt
from minialign.policy.packing import Packed
from minialign.policy.peft import load_adapter
from minialign.weights.tokenizer import Tokenizer

SFT_ALONE = {"config.json", "metrics.jsonl", "preview.json", "report.html", "adapter", ".lock"}


def before_and_after(text: str) -> tuple[str, str]:
    cut = r"(?:, cut off after 12 tokens)? ---\n"
    pattern = f"--- before{cut}(.*)\n\n--- after{cut}(.*)\n\nall of it on one page: "
    match = re.search(pattern, text, re.DOTALL)
    assert match, text
    return match[1], match[2]


# ---- a whole run ----


def test_a_run_succeeds_and_only_says_on_stderr_that_it_loads(finished: Finished) -> None:
    assert finished.process.stderr == LOADING
    assert finished.process.returncode == 0


def test_the_run_folder_holds_the_record_and_both_adapters(finished: Finished) -> None:
    assert set(tree(finished.folder)) == {
        *("config.json", "metrics.jsonl", "samples.jsonl", "adapter", "adapter-sft"),
        *("preview.json", "report.html", ".lock", "adapter/README.md"),
        *(
            f"{folder}/{name}"
            for folder in ("adapter", "adapter-sft")
            for name in ("adapter_config.json", "adapter_model.safetensors", "base.json")
        ),
    }


def test_the_adapter_names_its_base_so_that_others_find_it_and_quotes_no_text(
    finished: Finished,
) -> None:
    config = json.loads((finished.folder / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(finished.cwd.absolute() / "toy")
    card = (finished.folder / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "How it was judged" in card and PROMPT not in card
    assert not any(demo["completion"] in card for demo in DEMOS)


def test_metrics_have_a_line_for_every_step_of_both_stages(finished: Finished) -> None:
    lines = metrics(finished.folder)
    steps = [(line["stage"], line["step"]) for line in lines if "step" in line]
    assert steps == [("sft", i) for i in range(6)] + [("ditto", i) for i in range(4)]
    assert lines[0]["loss"] > lines[5]["loss"]  # it learned
    assert lines[7]["loss"] == pytest.approx(0.693147, abs=1e-6)  # ditto starts at its reference
    assert lines[-1]["stage"] == "done"


def test_samples_are_exactly_what_was_drawn_with_their_scores(finished: Finished) -> None:
    tokenizer = Tokenizer.from_folder(finished.cwd / "toy")
    lines = (finished.folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    places = [(s["round"], s["demonstration"]) for s in samples]
    assert places == [(r, d) for r in range(2) for d in range(len(DEMOS)) for _ in range(2)]
    for sample in samples:
        assert sample["text"] == tokenizer.decode(sample["ids"])
        assert len(sample["ids"]) <= 12
        assert sample["finish_reason"] == ("stop" if sample["ids"][-1] == 2 else "length")
        assert sample["logprob"] < 0
    assert any(sample["reference_logp"] is not None for sample in samples)


def test_the_plan_comes_first_and_before_and_after_come_last(finished: Finished) -> None:
    assert [line[:12].strip() for line in finished.lines[:11]] == [
        *("model", "recipe", "trained", "learns from", "judged by", "SFT", "DITTO", ""),
        *("work", "needs", "writes"),
    ]
    text = finished.process.stdout
    parts = ["done in ", f"--- prompt ---\n{PROMPT}\n", "--- before", "--- after"]
    parts += ["all of it on one page: runs/the first/report.html\n", "next: "]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    before, after = before_and_after(text)
    assert before and after and before != after


def test_before_and_after_are_the_base_models_answer_and_the_results(finished: Finished) -> None:
    model, tokenizer = minialign.load(str(finished.cwd / "toy"))
    # As --max-new-tokens says.
    options = {"max_new_tokens": 12, "temperature": 0.7, "seed": 0}
    before = minialign.generate(model, tokenizer, [PROMPT], **options)
    load_adapter(model, finished.folder / "adapter")
    after = minialign.generate(model, tokenizer, [PROMPT], **options)
    assert before_and_after(finished.process.stdout) == (before[0][0].text, after[0][0].text)
    reasons = {"before": before[0][0].finish_reason, "after": after[0][0].finish_reason}
    assert "length" in reasons.values()
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    shown = page.split('id="before-after"')[1].split("</section>")[0]
    cut = [name for name, reason in reasons.items() if reason == "length"]
    assert shown.count("cut off at the limit") == len(cut)
    for name in reasons:
        label = f"--- {name}{', cut off after 12 tokens' if name in cut else ''} ---\n"
        assert label in finished.process.stdout


def test_the_preview_is_what_was_printed_and_stands_on_the_page(finished: Finished) -> None:
    preview = json.loads((finished.folder / "preview.json").read_text(encoding="utf-8"))
    printed = finished.process.stdout
    assert preview["prompt"] == PROMPT
    assert before_and_after(printed) == (preview["before"], preview["after"])
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert PROMPT in html.unescape(page)
    assert "DITTO" in page and "Write to Sam." in page


def test_the_command_in_the_record_makes_the_same_run(
    workplace: Path, finished: Finished, tmp_path: Path
) -> None:
    record = json.loads((finished.folder / "config.json").read_text(encoding="utf-8"))
    python, script, *flags = shlex.split(record["command"])
    assert (python, Path(script).name) == ("python", "train.py")
    flags[flags.index("runs/the first")] = str(tmp_path / "again")
    assert call(train, *flags, cwd=workplace).code == 0
    assert results(tmp_path / "again") == results(finished.folder)


def test_the_last_line_of_metrics_has_the_time_and_the_memory(finished: Finished) -> None:
    last = metrics(finished.folder)[-1]
    assert set(last) == {"stage", "seconds", "peak_bytes"}
    assert set(last["seconds"]) >= {"train", "sample"}
    assert all(10**7 < peak < 10**11 for peak in last["peak_bytes"].values())


def test_the_plan_is_printed_before_training_begins(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minialign.methods.sft, "train", lambda *_, **__: print("training begins"))
    outcome = train_toy(workplace, "--method", "sft", "--out", tmp_path / "run")
    lines = outcome.out.split("\n")
    plan_ends = next(i for i, line in enumerate(lines) if line.startswith("      writes  "))
    between = lines[plan_ends + 1 : lines.index("training begins")]
    assert all(line.startswith("     warning  ") for line in between)


def test_output_in_a_pipe_has_no_control_characters(finished: Finished) -> None:
    ours = finished.process.stdout.split("--- before")[0]  # the toy model writes anything
    assert ours.count("\n") > 10
    assert re.findall(r"[^\n\x20-\x7e]", ours) == []


def test_the_printed_next_commands_run_as_they_are(finished: Finished) -> None:
    lines = [line.removeprefix("next:").strip() for line in finished.lines[-3:-1]]
    first, second = (shlex.split(line) for line in lines)
    assert first[:2] == ["python", "sample.py"] and PROMPT in first
    process = run_script(first[1], [*first[2:], "--max-new-tokens", "5"], finished.cwd)
    assert (process.returncode, process.stderr) == (0, "")
    assert [f"--- {i} of 3 ---" in process.stdout for i in (1, 2, 3)] == [True] * 3
    assert second[:2] == ["python", "evaluate.py"]
    folder = shutil.copytree(finished.folder, finished.folder.parent / "copy for evaluate")
    outcome = call(evaluate, *second[2:-1], folder, "--max-new-tokens", "5", cwd=finished.cwd)
    assert outcome.code == 0 and second[-1] == "runs/the first"


def test_config_json_holds_every_knob_and_what_made_the_run(finished: Finished) -> None:
    record = json.loads((finished.folder / "config.json").read_text(encoding="utf-8"))
    knobs = config_from_dict(DittoConfig, record["knobs"])
    assert (knobs.max_steps, knobs.sft.max_steps, knobs.lora.rank) == (4, 6, 4)
    assert record["options"]["seed"] == 0 and record["options"]["prompt"] == PROMPT
    assert (record["recipe"], record["device"], record["dtype"]) == ("laptop", "cpu", "float32")
    assert record["options"]["test"] == "demos_test.jsonl"  # found beside --demos
    assert set(record["versions"]) == {"python", "torch"}


# ---- other ways to train ----


def test_sft_alone_leaves_one_adapter_and_no_samples(workplace: Path, tmp_path: Path) -> None:
    outcome = train_toy(workplace, "--method", "sft", "--out", tmp_path / "run")
    names = {name.split("/")[0] for name in tree(tmp_path / "run")}
    assert names == SFT_ALONE
    assert {line["stage"] for line in metrics(tmp_path / "run")} == {"sft", "done"}
    assert "DITTO" not in outcome.out


def test_sft_alone_is_the_first_part_of_ditto(
    workplace: Path, finished: Finished, tmp_path: Path
) -> None:
    train_toy(workplace, "--method", "sft", "--out", tmp_path / "run")
    assert weights(tmp_path / "run" / "adapter") == weights(finished.folder / "adapter-sft")


def test_spin_runs_after_sft_and_leaves_what_ditto_leaves(
    workplace: Path, finished: Finished, tmp_path: Path
) -> None:
    outcome = train_toy(workplace, "--method", "spin", "--out", tmp_path / "run")
    names = {name.split("/")[0] for name in tree(tmp_path / "run")}
    assert names == {name.split("/")[0] for name in tree(finished.folder)}
    stages = [line["stage"] for line in metrics(tmp_path / "run") if "step" in line]
    assert stages == ["sft"] * 6 + ["spin"] * 4
    assert weights(tmp_path / "run" / "adapter-sft") == weights(finished.folder / "adapter-sft")
    assert weights(tmp_path / "run" / "adapter") != weights(finished.folder / "adapter")
    assert "method spin" in outcome.out and "SPIN  2 rounds of 6 answers" in outcome.out
    assert "SPIN" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("when", [("sft", 3), ("spin", 2)])
def test_an_interrupted_spin_run_ends_the_same(
    workplace: Path, tmp_path: Path, press_at: Callable[..., None], when: tuple[str, int]
) -> None:
    spin = (*INPUTS, *TINY, "--method", "spin", "--out")
    press_at(*when)
    assert call(train, *spin, tmp_path / "run", cwd=workplace).code == 130
    assert call(train, "--resume", tmp_path / "run", cwd=workplace).code == 0
    assert call(train, *spin, tmp_path / "whole", cwd=workplace).code == 0
    assert results(tmp_path / "run") == results(tmp_path / "whole")
    assert without_seconds(tmp_path / "run") == without_seconds(tmp_path / "whole")
    assert (tmp_path / "run" / "report.html").exists()


def test_recipe_paper_brings_the_papers_values(workplace: Path, tmp_path: Path) -> None:
    less = {"sft_max_steps": 1, "max_steps": 1, "samples_per_prompt": 1, "max_new_tokens": 4}
    flags = [part for k, v in less.items() for part in ("--" + k.replace("_", "-"), str(v))]
    out = ("--out", tmp_path / "run")
    outcome = call(train, *INPUTS, "--recipe", "paper", *flags, *out, cwd=workplace)
    assert outcome.code == 0, outcome.err
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    assert record["recipe"] == "paper"
    assert config_from_dict(DittoConfig, record["knobs"]) == config_from_flags(PAPER, less)


def test_zero_steps_leave_the_model_as_it_was(workplace: Path, tmp_path: Path) -> None:
    none = ("--sft-max-steps", "0", "--max-steps", "0")
    outcome = train_toy(workplace, *none, "--out", tmp_path / "run")
    before, after = before_and_after(outcome.out)
    assert before == after


def test_overwrite_replaces_a_run_as_a_whole(workplace: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "run")
    train_toy(workplace, *out)
    call(evaluate, tmp_path / "run", "--max-new-tokens", "2", cwd=workplace)
    assert {"samples.jsonl", "adapter-sft", "evaluation.json"} <= set(tree(tmp_path / "run"))
    train_toy(workplace, *out, "--method", "sft", "--overwrite")
    names = {name.split("/")[0] for name in tree(tmp_path / "run")}
    assert names == SFT_ALONE


def test_a_text_outside_the_terminals_alphabet_does_not_end_a_run(workplace: Path) -> None:
    source = f"import sys; sys.stdout.reconfigure(encoding='ascii'); {RUN_SCRIPT}"
    arguments = ["-c", source, str(ROOT / "train.py"), *INPUTS, "--inspect"]
    demos = [{**DEMOS[0], "prompt": "Schreib an Zoë."}, *DEMOS]
    (workplace / "first.jsonl").write_text("\n".join(map(json.dumps, demos)), encoding="utf-8")
    arguments[arguments.index("demos.jsonl")] = "first.jsonl"
    process = run_python(arguments, workplace)
    assert (process.returncode, process.stderr) == (0, "")


# ---- --inspect ----


def inspected(outcome_text: str) -> list[tuple[int, int, bool, str, str]]:
    """(place, id, trained on, part, shown text) of each token line."""
    found = []
    _, tokens = outcome_text.rstrip("\n").split("(* = trained on)\n")
    for line in tokens.split("\n"):
        match = re.fullmatch(r" *(\d+) +(\d+) ([* ]) (prompt|completion) +(['\"].*['\"])", line)
        assert match, line
        place, token, mark, part, text = match.groups()
        found.append((int(place), int(token), mark == "*", part, text))
    return found


@pytest.mark.parametrize("with_prompt", [False, True])
def test_inspect_prints_the_exact_tokens_and_what_the_loss_covers(
    workplace: Path, with_prompt: bool
) -> None:
    flags = ["--sft-train-on-prompt"] if with_prompt else []
    before = tree(workplace)
    outcome = call(train, *INPUTS, "--inspect", *flags, cwd=workplace)
    assert (outcome.code, outcome.err) == (0, "")
    assert tree(workplace) == before
    tokenizer = Tokenizer.from_folder(workplace / "toy")
    prompt = tokenizer.encode_prompt(DEMOS[0]["prompt"])
    completion = tokenizer.encode_completion(DEMOS[0]["completion"])
    tokens = inspected(outcome.out)
    assert [token for _, token, *_ in tokens] == prompt + completion
    assert [place for place, *_ in tokens] == list(range(len(prompt + completion)))
    parts = ["prompt"] * len(prompt) + ["completion"] * len(completion)
    assert [part for *_, part, _ in tokens] == parts
    assert [text for *_, text in tokens] == [repr(tokenizer.token(t)) for _, t, *_ in tokens]
    sequence = Example(tuple(prompt), tuple(completion))
    learned = Packed.of([_with_prompt(sequence) if with_prompt else sequence])
    assert [token for _, token, trained, *_ in tokens if trained] == learned.targets


def test_inspect_works_beside_a_finished_run(finished: Finished) -> None:
    outcome = call(train, *INPUTS, "--inspect", "--out", finished.folder, cwd=finished.cwd)
    assert outcome.code == 0, outcome.err


# ---- the same seed ----


def test_the_same_seed_gives_the_same_run_in_another_process(
    workplace: Path, finished: Finished, tmp_path: Path
) -> None:
    train_toy(workplace, "--out", tmp_path / "again")
    assert results(tmp_path / "again") == results(finished.folder)
    assert without_seconds(tmp_path / "again") == without_seconds(finished.folder)


def test_another_seed_gives_another_run(
    workplace: Path, finished: Finished, tmp_path: Path
) -> None:
    train_toy(workplace, "--out", tmp_path / "other", "--seed", "1")
    other, first = results(tmp_path / "other"), results(finished.folder)
    assert [name for name in first if other[name] == first[name]] == []


def test_micro_batches_change_the_memory_and_not_the_losses(
    workplace: Path, tmp_path: Path
) -> None:
    losses = []
    for size in (1, 10_000):  # every demonstration by itself, all of them together
        flags = ("--micro-batch-tokens", str(size), "--lora-dropout", "0", "--method", "sft")
        train_toy(workplace, "--out", tmp_path / str(size), *flags)
        losses.append([line["loss"] for line in metrics(tmp_path / str(size)) if "loss" in line])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and len(losses[0]) == 6


# ---- what is refused ----


def test_an_adapter_to_go_on_from_is_refused_beside_demonstrations(
    workplace: Path, tmp_path: Path
) -> None:
    arguments = (*INPUTS, *TINY, "--init-adapter", "nowhere", "--out", tmp_path / "run")
    outcome = call(train, *arguments, cwd=workplace)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert "--init-adapter is of no use to --method ditto" in outcome.err
    assert not (tmp_path / "run").exists()
