"""sample.py: live answers, files of answers, and the chat, with a toy model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import call, sample, train_toy
from helpers.files import tree, write_jsonl
from helpers.workplaces import DEMOS, HELD_OUT, write_workplace

import minialign
from minialign.data.records import load_demonstrations
from minialign.policy.peft import load_adapter

ADAPTER = ("--adapter", "runs/demos")
SHORT = ("--max-new-tokens", "20")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_workplace(tmp_path_factory.mktemp("sample"))
    train_toy(folder)
    return folder


def expected(workplace: Path, prompts: list[Any], **options: Any) -> list[list[str]]:
    """The texts that the library writes; temperature as sample.py's default."""
    model, tokenizer = minialign.load(str(workplace / "toy"))
    if options.pop("adapter", True):
        load_adapter(model, workplace / "runs" / "demos" / "adapter")
    options = {"temperature": 0.7, "max_new_tokens": 20, "seed": 0, **options}
    groups = minialign.generate(model, tokenizer, prompts, **options)
    return [[completion.text for completion in group] for group in groups]


# ---- --prompt ----


def test_three_answers_appear_in_order_and_whole(workplace: Path) -> None:
    outcome = call(sample, *ADAPTER, "--prompt", "Write to Sam.", "-n", "3", *SHORT, cwd=workplace)
    (texts,) = expected(workplace, ["Write to Sam."], n=3)
    assert len(set(texts)) == 3
    assert outcome.out == "".join(
        f"--- {i} of 3 ---\n{text}\n\n" for i, text in enumerate(texts, start=1)
    )
    assert (outcome.code, outcome.err) == (0, "")


def test_a_single_answer_is_the_text_and_nothing_else(workplace: Path) -> None:
    outcome = call(sample, *ADAPTER, "--prompt", "Hello", *SHORT, cwd=workplace)
    assert outcome.out == expected(workplace, ["Hello"])[0][0] + "\n\n"


def test_every_sampling_flag_reaches_the_sampler(workplace: Path) -> None:
    flags = ("--temperature", "1.5", "--top-p", "0.8", "--top-k", "9", "--seed", "3")
    outcome = call(sample, *ADAPTER, "--prompt", "Hello", *SHORT, *flags, cwd=workplace)
    options = {"temperature": 1.5, "top_p": 0.8, "top_k": 9, "seed": 3}
    assert outcome.out == expected(workplace, ["Hello"], **options)[0][0] + "\n\n"
    for name in options:
        fewer = {k: v for k, v in options.items() if k != name}
        assert outcome.out != expected(workplace, ["Hello"], **fewer)[0][0] + "\n\n", name


def test_n_and_its_short_form_are_the_same(workplace: Path) -> None:
    short, long = (
        call(sample, *ADAPTER, "--prompt", "Hello", flag, "2", *SHORT, cwd=workplace)
        for flag in ("-n", "--n")
    )
    assert short == long and "--- 2 of 2 ---" in short.out


def test_without_an_adapter_the_base_model_answers(workplace: Path) -> None:
    outcome = call(sample, "--model", "toy", "--prompt", "Hello", *SHORT, cwd=workplace)
    base = expected(workplace, ["Hello"], adapter=False)[0][0]
    assert outcome.out == base + "\n\n" != expected(workplace, ["Hello"])[0][0] + "\n\n"


def test_an_adapter_folder_is_as_good_as_its_run(workplace: Path) -> None:
    whole, folder = (
        call(sample, "--adapter", path, "--prompt", "Hello", *SHORT, cwd=workplace)
        for path in ("runs/demos", "runs/demos/adapter")
    )
    assert whole == folder and whole.code == 0
    sft = call(
        sample, "--adapter", "runs/demos/adapter-sft", "--prompt", "Hello", *SHORT, cwd=workplace
    )
    assert sft.code == 0 and sft.out != whole.out


def test_the_same_seed_gives_the_same_answers(workplace: Path) -> None:
    first, again, other = (
        call(sample, *ADAPTER, "--prompt", "Hello", "--seed", seed, *SHORT, cwd=workplace).out
        for seed in ("7", "7", "8")
    )
    assert first == again != other


# ---- --prompts ----


def test_prompts_without_out_are_answered_one_after_the_other(workplace: Path) -> None:
    outcome = call(sample, *ADAPTER, "--prompts", "demos_test.jsonl", *SHORT, cwd=workplace)
    prompts = [record["prompt"] for record in HELD_OUT]
    answers = [text for (text,) in expected(workplace, prompts)]  # those of --out, likewise
    shown = [f"=== {p} ===\n\n{text}\n\n" for p, text in zip(prompts, answers, strict=True)]
    assert outcome.out == "".join(shown)


def test_answers_in_a_file_are_demonstrations_again(workplace: Path, tmp_path: Path) -> None:
    answers = tmp_path / "new" / "answers.jsonl"
    flags = ("--prompts", "demos.jsonl", "--out", answers, "-n", "2", *SHORT)
    outcome = call(sample, *ADAPTER, *flags, cwd=workplace)
    assert (outcome.code, outcome.out) == (0, f"{answers}: 6 answers to 3 prompts\n")
    lines = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert [(line["prompt"], line["sample"]) for line in lines] == [
        (record["prompt"], number) for record in DEMOS for number in range(2)
    ]
    texts = expected(workplace, [record["prompt"] for record in DEMOS], n=2)
    assert [line["completion"] for line in lines] == [text for group in texts for text in group]
    assert all(line["finish_reason"] in ("stop", "length") for line in lines)
    assert all(line["logprob"] < 0 for line in lines)
    loaded = load_demonstrations(answers)
    assert [d.completion for d in loaded] == [line["completion"].strip() for line in lines]
    assert set(tree(tmp_path)) == {"new", "new/answers.jsonl"}  # no half file beside it


def test_conversations_are_answered_in_a_file_too(workplace: Path, tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
    ]
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"messages": messages}])
    flags = ("--prompts", prompts, "--out", tmp_path / "answers.jsonl", *SHORT)
    assert call(sample, *ADAPTER, *flags, cwd=workplace).code == 0
    (line,) = (tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines()
    text = expected(workplace, [messages])[0][0]
    assert json.loads(line)["messages"] == [*messages, {"role": "assistant", "content": text}]
    (loaded,) = load_demonstrations(tmp_path / "answers.jsonl")
    assert (loaded.messages, loaded.completion) == (messages, text.strip())


def test_overwrite_replaces_the_answers(workplace: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text("old")
    flags = ("--prompts", "demos.jsonl", "--out", answers, "--overwrite", *SHORT)
    assert call(sample, *ADAPTER, *flags, cwd=workplace).code == 0
    assert len(answers.read_text(encoding="utf-8").splitlines()) == len(DEMOS)


def test_what_was_answered_before_a_stop_is_kept(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": f"a {n}"} for n in range(70)])
    answers, whole = tmp_path / "answers.jsonl", tmp_path / "whole.jsonl"
    flags = ("--model", "toy", "--prompts", prompts, "--max-new-tokens", "2")
    assert call(sample, *flags, "--out", whole, cwd=workplace).code == 0
    written = sample._line

    def stop_at_the_last(*given: Any) -> str:
        if given[0][-1]["content"] == "a 69":
            raise KeyboardInterrupt
        return written(*given)

    monkeypatch.setattr(sample, "_line", stop_at_the_last)
    outcome = call(sample, *flags, "--out", answers, cwd=workplace)
    kept = (tmp_path / "answers.jsonl.partial").read_text().splitlines()
    assert outcome.code == 130 and f"{len(kept)} answers so far" in outcome.err
    assert len(kept) >= 64 and set(kept) < set(whole.read_text().splitlines())
    assert not answers.exists()


def test_a_failure_leaves_the_old_answers_and_no_new_ones(workplace: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text("old")
    long = write_jsonl(tmp_path / "long.jsonl", [DEMOS[0], {"prompt": "word " * 300}])
    before = tree(tmp_path)
    flags = ("--prompts", long, "--out", answers, "--overwrite", *SHORT)
    outcome = call(sample, *ADAPTER, *flags, cwd=workplace)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert tree(tmp_path) == before


# ---- the live printer ----


class Bytes:
    """A tokenizer whose ids are bytes; 0 ends a text."""

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i).decode("utf-8", errors="replace")


def test_the_printer_never_shows_half_a_character(capsys: pytest.CaptureFixture[str]) -> None:
    text = "Zoë: 日本 🙂, fin"
    printer = sample.Printer(Bytes(), 1, (0,), ["?"])
    shown = ""
    for byte in text.encode():
        printer(0, 0, byte)
        shown += capsys.readouterr().out
        assert text.startswith(shown)
    assert shown == text
    printer(0, 0, 0)
    printer.finish()
    assert capsys.readouterr().out == "\n\n"


def test_the_printer_shows_what_a_broken_character_leaves_when_the_answer_ends(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for ending in ([0], []):  # by a stop token, or cut off
        printer = sample.Printer(Bytes(), 2, (0,), ["?"])
        first, second = [*b"caf\xc3", *ending], [*b"so", *ending]
        for ids in zip(first, [*second, *[None] * 9], strict=False):
            for number, token in enumerate(ids):
                if token is not None:
                    printer(0, number, token)
        printer.finish()
        expected = "--- 1 of 2 ---\ncaf\ufffd\n\n--- 2 of 2 ---\nso\n\n"
        assert capsys.readouterr().out == expected, ending


def test_the_printer_shows_the_first_unfinished_answer_live(
    capsys: pytest.CaptureFixture[str],
) -> None:
    printer = sample.Printer(Bytes(), 3, (0,), ["?"])
    steps = [  # (sample, byte) as the sampler calls, and what must have been printed by then
        (2, "c", ""),
        (1, "b", ""),
        (0, "a", "--- 1 of 3 ---\na"),
        (1, "\0", ""),  # the second ends first, and waits
        (2, "c", ""),
        (0, "A", "A"),
        (0, "\0", "\n\n--- 2 of 3 ---\nb\n\n--- 3 of 3 ---\ncc"),
        (2, "C", "C"),
    ]
    for number, letter, printed in steps:
        printer(0, number, ord(letter))
        assert capsys.readouterr().out == printed, (number, letter)
    printer.finish()
    assert capsys.readouterr().out == "\n\n"


def test_the_printer_takes_any_number_of_answers(capsys: pytest.CaptureFixture[str]) -> None:
    printer = sample.Printer(Bytes(), 2000, (0,), ["?"])
    for token in (ord("x"), 0):
        for number in reversed(range(2000)):
            printer(0, number, token)
    printer.finish()
    assert capsys.readouterr().out.count("x\n") == 2000


def test_several_adapters_are_added_up_with_their_weights(workplace: Path, tmp_path: Path) -> None:
    """A folder with weight 1 is itself, twice the half of it too, and weight 0 is nothing."""
    run = str(workplace / "runs" / "demos")

    def answers(*folders: str) -> str:
        adapters = [part for folder in folders for part in ("--adapter", folder)]
        return call(
            sample, *adapters, "--prompt", "hi", *SHORT, "--model", workplace / "toy", cwd=tmp_path
        ).out

    alone, base = answers(run), answers()
    assert alone != base
    assert answers(f"{run}=1") == answers(f"{run}=0.5", f"{run}=0.5") == alone
    assert answers(f"{run}=0") == base
    assert answers(run, run) != alone


def test_adapters_of_different_models_are_not_added_up(workplace: Path, tmp_path: Path) -> None:
    run = workplace / "runs" / "demos" / "adapter"
    other = tmp_path / "other"
    shutil.copytree(run, other)
    config = json.loads((other / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "another"
    (other / "adapter_config.json").write_text(json.dumps(config))
    outcome = call(sample, "--adapter", run, "--adapter", other, "--prompt", "hi", cwd=workplace)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert "only adapters of one model can be added up" in outcome.err


def test_a_folder_whose_name_has_an_equals_sign_is_taken_as_it_is(
    workplace: Path, tmp_path: Path
) -> None:
    """As a sweep's are; a weight may follow all the same."""
    adapter = workplace / "runs" / "demos" / "adapter"
    shutil.copytree(adapter, tmp_path / "beta=0.1")

    def answer(folder: str) -> str:
        arguments = ("--adapter", folder, "--prompt", "hi", *SHORT, "--model", workplace / "toy")
        outcome = call(sample, *arguments, cwd=tmp_path)
        assert outcome.code == 0, outcome.err
        return outcome.out

    assert answer("beta=0.1") == answer("beta=0.1=1") == answer(f"{adapter}")
    assert answer("beta=0.1=0") == answer(f"{adapter}=0") != answer("beta=0.1")


def test_the_best_of_several_is_shown_with_why(workplace: Path) -> None:
    asked = ("--adapter", "runs/demos", "--prompt", "Write to Sam.", "--max-new-tokens", "9")
    outcome = call(sample, *asked, "--best-of", "3", cwd=workplace)
    assert outcome.code == 0, outcome.err
    why = re.search(r"answer (\d) of 3: .* nats per token under the base model", outcome.err)
    assert why and "panel judge from 3 own" in outcome.err
    every = call(sample, *asked, "-n", "3", cwd=workplace).out
    written = re.split(r"--- \d of 3 ---\n", every)[1:]
    assert outcome.out.strip() == written[int(why[1]) - 1].strip()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--prompt", "a"), "give one --adapter RUN"),
        (("--prompt", "a", "--adapter", "toy"), "not a run folder"),
        (("--prompt", "a", "--adapter", "runs/demos", "-n", "2"), "without -n, --chat and --out"),
        (("--chat", "--adapter", "runs/demos"), "without -n, --chat and --out"),
    ],
)
def test_best_of_needs_a_run_and_stands_alone(
    workplace: Path, flags: tuple[str, ...], said: str
) -> None:
    outcome = call(sample, *flags, "--best-of", "3", cwd=workplace)
    assert outcome.code == 2 and said in outcome.err and outcome.err.count("\n") == 1
    assert "at least 2" in call(sample, *flags, "--best-of", "1", cwd=workplace).err
