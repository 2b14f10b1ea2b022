"""train.py from the first flag to the last printed line, with a toy model."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import DEMOS, LOADING, TINY, call, evaluate, train, train_toy, write_workplace
from helpers.files import tree
from helpers.processes import ROOT, run_python, run_script
from safetensors.torch import load_file

import minialign
import minialign.methods.ditto  # noqa: F401  (before one test replaces what it imports)
import minialign.methods.sft
import minialign.training.run
from minialign.data.knobs import config_from_dict, config_from_flags
from minialign.data.records import Sequence
from minialign.methods.knobs import PAPER, DittoConfig
from minialign.methods.sft import _with_prompt
from minialign.policy.packing import Packed
from minialign.policy.peft import load_adapter
from minialign.training.run import Run
from minialign.weights.tokenizer import Tokenizer

PROMPT = 'Say "no" to Sam\'s $HOME bill.'  # what a shell must not touch
INPUTS = ("--demos", "demos.jsonl", "--model", "toy")
SFT_ALONE = {"config.json", "metrics.jsonl", "preview.json", "report.html", "adapter"}


@dataclass(frozen=True)
class Finished:
    """A whole run in a process of its own."""

    process: subprocess.CompletedProcess[str]
    cwd: Path
    folder: Path

    @property
    def lines(self) -> list[str]:
        return self.process.stdout.split("\n")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_workplace(tmp_path_factory.mktemp("train"))


@pytest.fixture(scope="module")
def finished(workplace: Path) -> Finished:
    arguments = [*INPUTS, *TINY, "--out", "runs/the first", "--prompt", PROMPT]
    process = run_script("train.py", arguments, workplace)
    return Finished(process, workplace, workplace / "runs" / "the first")


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_seconds(folder: Path) -> list[dict[str, Any]]:
    """What two runs with the same seed have in common: not their time, nor their memory."""
    machine = ("seconds", "peak_bytes")
    return [{k: v for k, v in line.items() if k not in machine} for line in metrics(folder)]


def results(folder: Path) -> dict[str, Any]:
    """What must not differ by one bit between two runs with the same seed."""
    return {
        "samples": (folder / "samples.jsonl").read_bytes(),
        "adapter": weights(folder / "adapter"),
        "adapter-sft": weights(folder / "adapter-sft"),
    }


def weights(folder: Path) -> bytes:
    file = folder / "adapter_model.safetensors"
    assert len(load_file(file)) == 2 * 4 * 2  # A and B of four layers in two blocks
    return file.read_bytes()


def before_and_after(text: str) -> tuple[str, str]:
    pattern = r"--- before ---\n(.*)\n\n--- after ---\n(.*)\n\nall of it on one page: "
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
        *("preview.json", "report.html"),
        *(
            f"{folder}/{name}"
            for folder in ("adapter", "adapter-sft")
            for name in ("adapter_config.json", "adapter_model.safetensors", "base.json")
        ),
    }


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
    parts = ["done in ", f"--- prompt ---\n{PROMPT}\n", "--- before ---", "--- after ---"]
    parts += ["all of it on one page: runs/the first/report.html\n", "next: "]
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    before, after = before_and_after(text)
    assert before and after and before != after


def test_before_and_after_are_the_base_models_answer_and_the_results(finished: Finished) -> None:
    model, tokenizer = minialign.load(str(finished.cwd / "toy"))
    longest = max(len(tokenizer.encode_completion(record["completion"])) for record in DEMOS)
    options = {"max_new_tokens": longest + longest // 2, "temperature": 0.7, "seed": 0}
    before = minialign.generate(model, tokenizer, [PROMPT], **options)
    load_adapter(model, finished.folder / "adapter")
    after = minialign.generate(model, tokenizer, [PROMPT], **options)
    assert before_and_after(finished.process.stdout) == (before[0][0].text, after[0][0].text)


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
    monkeypatch.setattr(
        minialign.methods.sft, "train_sft", lambda *_, **__: print("training begins")
    )
    outcome = train_toy(workplace, "--method", "sft", "--out", tmp_path / "run")
    lines = outcome.out.split("\n")
    plan_ends = next(i for i, line in enumerate(lines) if line.startswith("      writes  "))
    between = lines[plan_ends + 1 : lines.index("training begins")]
    assert all(line.startswith("     warning  ") for line in between)


def test_output_in_a_pipe_has_no_control_characters(finished: Finished) -> None:
    ours = finished.process.stdout.split("--- before ---")[0]  # the toy model writes anything
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
    for line in outcome_text.rstrip("\n").split("\n")[1:]:
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
    sequence = Sequence(tuple(prompt), tuple(completion))
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


# ---- Ctrl-C and going on ----

RUN_SCRIPT = (
    "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
PRESS_AT_DITTO_2 = f"""
import signal, sys
from minialign.run import Run
log = Run.log
def log_and_press(run, stage, step, metrics):
    log(run, stage, step, metrics)
    if (stage, step) == ("ditto", 2):
        signal.raise_signal(signal.SIGINT)
Run.log = log_and_press
{RUN_SCRIPT}
"""


@pytest.fixture
def press_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """`press_at("sft", 2)`: Ctrl-C is pressed once that step was logged."""

    def press_at(*when: object, times: int = 1) -> None:
        log = Run.log

        pressed = []

        def log_and_press(run: Run, stage: str, step: int, measured: dict[str, Any]) -> None:
            log(run, stage, step, measured)
            if (stage, step) == when and not pressed:
                pressed.append(when)
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(Run, "log", log_and_press)

    before = signal.getsignal(signal.SIGINT)
    yield press_at
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_in_a_process_says_how_to_go_on_and_going_on_ends_the_same(
    workplace: Path, finished: Finished
) -> None:
    out = ["--out", "runs/cut short", "--prompt", PROMPT]
    script = str(ROOT / "train.py")
    stopped = run_python(["-c", PRESS_AT_DITTO_2, script, *INPUTS, *TINY, *out], workplace)
    assert stopped.returncode == 130
    assert "--- after ---" not in stopped.stdout
    lines = stopped.stderr.removeprefix(LOADING).strip().split("\n")
    assert lines[0] == "finishing this step, then saving (Ctrl-C again: stop at once)"
    assert lines[1:] == [
        "saved; go on with: python train.py --resume 'runs/cut short'"
    ]  # and no traceback
    command = shlex.split(lines[1].split("go on with: ")[1])
    resumed = run_script(command[1], command[2:], workplace)
    assert (resumed.returncode, resumed.stderr) == (0, LOADING)
    folder = workplace / "runs" / "cut short"
    assert results(folder) == results(finished.folder)
    assert without_seconds(folder) == without_seconds(finished.folder)
    assert not (folder / "state").exists()
    assert (folder / "report.html").exists()
    previews = [(f / "preview.json").read_bytes() for f in (folder, finished.folder)]
    assert previews[0] == previews[1]
    tail = finished.process.stdout.split("--- prompt ---")[1].split("all of it")[0]
    assert tail in resumed.stdout  # the same before and after


@pytest.mark.parametrize("when", [("sft", 0), ("sft", 2), ("sft", 5), ("ditto", 0), ("ditto", 1)])
def test_a_run_interrupted_at_any_step_ends_the_same(
    workplace: Path,
    finished: Finished,
    tmp_path: Path,
    press_at: Callable[..., None],
    when: tuple[str, int],
) -> None:
    press_at(*when)
    stopped = call(train, *INPUTS, *TINY, "--out", tmp_path / "run", cwd=workplace)
    assert stopped.code == 130
    assert set(tree(tmp_path / "run" / "state")) == {"state.safetensors"}
    assert not (tmp_path / "run" / "report.html").exists()
    resumed = call(train, "--resume", tmp_path / "run", cwd=workplace)
    assert resumed.code == 0, resumed.err
    assert (tmp_path / "run" / "report.html").exists()
    assert results(tmp_path / "run") == results(finished.folder)
    assert without_seconds(tmp_path / "run") == without_seconds(finished.folder)


def test_a_run_interrupted_while_it_writes_answers_ends_the_same(
    workplace: Path, finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Run.sampling_progress
    written = []

    def press_at_fifth_token(run: Run, number: int, count: int) -> Callable[[int, int, int], None]:
        on_token = progress(run, number, count)

        def on_token_and_press(*what: int) -> None:
            if number == 1:
                written.append(what)
            if len(written) == 5:
                signal.raise_signal(signal.SIGINT)
            on_token(*what)

        return on_token_and_press

    monkeypatch.setattr(Run, "sampling_progress", press_at_fifth_token)
    stopped = call(train, *INPUTS, *TINY, "--out", tmp_path / "run", cwd=workplace)
    monkeypatch.undo()
    assert stopped.code == 130
    assert len(written) == 5  # it does not wait for the round to end
    resumed = call(train, "--resume", tmp_path / "run", cwd=workplace)
    assert resumed.code == 0, resumed.err
    assert results(tmp_path / "run") == results(finished.folder)


def test_a_run_can_be_interrupted_twice(
    workplace: Path, finished: Finished, tmp_path: Path, press_at: Callable[..., None]
) -> None:
    press_at("sft", 3)
    assert call(train, *INPUTS, *TINY, "--out", tmp_path / "run", cwd=workplace).code == 130
    press_at("ditto", 1)
    assert call(train, "--resume", tmp_path / "run", cwd=workplace).code == 130
    assert call(train, "--resume", tmp_path / "run", cwd=workplace).code == 0
    assert results(tmp_path / "run") == results(finished.folder)


def test_a_second_ctrl_c_stops_at_once(
    workplace: Path, tmp_path: Path, press_at: Callable[..., None]
) -> None:
    press_at("ditto", 1, times=2)
    stopped = call(train, *INPUTS, *TINY, "--out", tmp_path / "run", cwd=workplace)
    assert stopped.code == 130
    assert stopped.err.endswith("\ntrain.py: stopped\n")
    assert metrics(tmp_path / "run")[-1]["step"] == 1
    assert not (tmp_path / "run" / "state").exists()
    again = call(train, "--resume", tmp_path / "run", cwd=workplace)
    assert again.code == 2 and "before it saved" in again.err and "--overwrite" in again.err


def test_a_run_that_was_killed_goes_on_from_its_last_save(
    workplace: Path,
    finished: Finished,
    tmp_path: Path,
    press_at: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(minialign.training.run, "SAVE_EVERY_SECONDS", -1.0)  # before every step
    press_at("ditto", 1, times=2)
    assert call(train, *INPUTS, *TINY, "--out", tmp_path / "run", cwd=workplace).code == 130
    assert metrics(tmp_path / "run")[-1]["step"] == 1  # written after the save, to be redone
    resumed = call(train, "--resume", tmp_path / "run", cwd=workplace)
    assert resumed.code == 0, resumed.err
    assert results(tmp_path / "run") == results(finished.folder)
    assert without_seconds(tmp_path / "run") == without_seconds(finished.folder)


def test_ctrl_c_before_training_leaves_nothing_behind(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press(*_: object) -> None:  # while the model answers for the first time
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "answer", press)
    stopped = call(train, *INPUTS, *TINY, "--out", tmp_path / "run", cwd=workplace)
    assert (stopped.code, stopped.err) == (130, LOADING + "\ntrain.py: stopped\n")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def interrupted(tmp_path: Path, press_at: Callable[..., None]) -> Path:
    """A workplace of its own with an interrupted run in runs/demos."""
    write_workplace(tmp_path)
    press_at("ditto", 1)
    assert call(train, *INPUTS, *TINY, cwd=tmp_path).code == 130
    return tmp_path


@pytest.mark.parametrize(
    "flags",
    [
        ("--max-steps", "9"),
        ("--lora-rank", "2"),
        ("--seed", "5"),
        ("--demos", "demos.jsonl"),
        ("--data", "data/sam"),
        ("--feedback", "Sign as Sam"),
        ("--out", "elsewhere"),
        ("--overwrite",),
    ],
)
def test_resume_refuses_other_knobs(interrupted: Path, flags: tuple[str, ...]) -> None:
    before = tree(interrupted)
    outcome = call(train, "--resume", "runs/demos", *flags, cwd=interrupted)
    assert outcome.code == 2
    assert outcome.err == (f"train.py: --resume keeps the knobs of the run: leave out {flags[0]}\n")
    assert tree(interrupted) == before


def test_an_adapter_to_go_on_from_is_refused_beside_demonstrations(
    workplace: Path, tmp_path: Path
) -> None:
    arguments = (*INPUTS, *TINY, "--init-adapter", "nowhere", "--out", tmp_path / "run")
    outcome = call(train, *arguments, cwd=workplace)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert "--init-adapter belongs to --data" in outcome.err
    assert not (tmp_path / "run").exists()


def test_resume_refuses_demonstrations_that_changed(interrupted: Path) -> None:
    demos = interrupted / "demos.jsonl"
    text = demos.read_text(encoding="utf-8")
    demos.write_text(text.replace("nine", "ten"), encoding="utf-8")
    before = tree(interrupted)
    outcome = call(train, "--resume", "runs/demos", cwd=interrupted)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert "demos.jsonl: has changed" in outcome.err and "start a new run" in outcome.err
    assert tree(interrupted) == before
    demos.write_text(text, encoding="utf-8")
    assert call(train, "--resume", "runs/demos", cwd=interrupted).code == 0


def test_resume_of_a_finished_run_says_so_at_once(finished: Finished) -> None:
    before = tree(finished.cwd)
    outcome = call(train, "--resume", finished.folder, cwd=finished.cwd)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1 and "the run is finished" in outcome.err
    assert tree(finished.cwd) == before


def test_resume_refuses_a_damaged_state(interrupted: Path) -> None:
    state = interrupted / "runs" / "demos" / "state" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    before = tree(interrupted)
    outcome = call(train, "--resume", "runs/demos", cwd=interrupted)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert str(state.parent.relative_to(interrupted)) in outcome.err
    assert tree(interrupted) == before


# ---- --help ----

HELP = """
import runpy, sys, time
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as left:
    assert not left.code
heavy = {"torch", "numpy", "tokenizers", "safetensors", "jinja2", "tqdm", "huggingface_hub"}
print("seconds", time.process_time(), *sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize("script", ["train.py", "sample.py", "evaluate.py"])
def test_help_answers_at_once_and_imports_nothing_heavy(script: str) -> None:
    process = run_python(["-c", HELP, str(ROOT / script), "--help"], ROOT)
    assert process.returncode == 0, process.stderr
    *text, last = process.stdout.strip().split("\n")
    name, seconds, *heavy = last.split()
    assert (name, heavy) == ("seconds", [])
    assert float(seconds) < 0.5
    assert text[0].startswith(f"usage: {script}")


def test_help_fits_a_narrow_terminal_and_shows_no_empty_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    text = call(train, "--help", cwd=ROOT).out
    assert "usage: train.py" in text and "[]" not in text
    assert max(map(len, text.split("\n"))) <= 80
