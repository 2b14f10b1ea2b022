"""Whatever is wrong with what a person gives: one line that names it and says what to do, exit
status 2, and nothing on the disk changed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.commands import call, evaluate, sample, train, train_toy
from helpers.files import tree, write_jsonl
from helpers.models import write_checkpoint
from helpers.processes import run_script
from helpers.workplaces import DEMOS, HELD_OUT, TINY, write_workplace

Prepare = Callable[[Path], object]  # puts something wrong into a workplace


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace with a finished run in runs/demos."""
    folder = write_workplace(tmp_path_factory.mktemp("bad") / "template")
    train_toy(folder)
    return folder


@pytest.fixture
def workplace(template: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(template, tmp_path / "workplace")


def check_refused(workplace: Path, script: str, arguments: list[str], said: list[str]) -> None:
    module = {"train": train, "sample": sample, "evaluate": evaluate}[script]
    before = tree(workplace)
    outcome = call(module, *arguments, cwd=workplace)
    error = outcome.err
    assert error.startswith(f"{script}.py: ")
    assert error.endswith("\n") and error.count("\n") == 1, error
    assert outcome.code == 2
    assert outcome.out == ""
    assert tree(workplace) == before
    for part in said:
        assert part in error


def nothing(_: Path) -> None:
    pass


def demos(text: str | bytes) -> Prepare:
    content = text if isinstance(text, bytes) else text.encode()
    return lambda folder: (folder / "demos.jsonl").write_bytes(content)


def third_line(line: str) -> Prepare:
    return demos("".join(json.dumps(d) + "\n" for d in DEMOS[:2]) + line + "\n")


def model_config(**changes: object) -> Prepare:
    def prepare(folder: Path) -> None:
        file = folder / "toy" / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    return prepare


def cut_weights(folder: Path) -> None:
    file = folder / "toy" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def remove(name: str) -> Prepare:
    return lambda folder: (folder / name).unlink()


def write(name: str, text: str) -> Prepare:
    def prepare(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)

    return prepare


def held_out(records: list[dict[str, str]]) -> Prepare:
    return lambda folder: write_jsonl(folder / "demos_test.jsonl", records)


TOY = ["--demos", "demos.jsonl", "--model", "toy"]
LONG = " ".join(["word"] * 300)

# ---- train.py: the demonstrations ----

DEMONSTRATIONS = {
    "missing file": (remove("demos.jsonl"), ["demos.jsonl: no such file"]),
    "empty file": (demos(""), ["demos.jsonl: the file is empty", "one JSON object a line"]),
    "blank lines only": (demos("\n \n\r\n"), ["demos.jsonl: the file is empty"]),
    "not UTF-8": (
        demos('{"prompt": "caf\xe9"}'.encode("latin-1")),
        ["not UTF-8 at byte 15", "save"],
    ),
    "UTF-16": (demos(json.dumps(DEMOS[0]).encode("utf-16")), ["demos.jsonl: not UTF-8 at byte 0"]),
    "broken JSON": (third_line('{"prompt": "a", '), ["demos.jsonl, line 3: not valid JSON"]),
    "not an object": (third_line('["a", "b"]'), ["line 3: expected a JSON object like"]),
    "a field missing": (third_line('{"prompt": "a"}'), ["line 3", '"completion" is missing']),
    "the prompt missing": (third_line('{"output": "a"}'), ["line 3", '"prompt" is missing']),
    "a field of the wrong type": (
        third_line('{"prompt": "a", "response": 7}'),
        ["line 3", 'the field "response" must be a text'],
    ),
    "an empty completion": (
        third_line('{"prompt": "a", "completion": " \\n"}'),
        ["line 3: the completion is empty", "write it or delete the line"],
    ),
    "an empty prompt": (
        third_line('{"prompt": " ", "completion": "a"}'),
        ["line 3: the prompt is empty"],
    ),
    "messages that are not a list": (third_line('{"messages": "a"}'), ["line 3", '"messages"']),
    "messages without the assistant": (
        third_line('{"messages": [{"role": "user", "content": "a"}]}'),
        ["line 3", "must be the assistant's"],
    ),
    "half a character": (
        third_line('{"prompt": "a", "completion": "b \\ud83d"}'),
        ["line 3: holds half a character"],
    ),
    "a prompt longer than the context": (
        third_line(json.dumps({"prompt": LONG, "completion": "a"})),
        ["demos.jsonl, line 3: the prompt has", "more than the 256 that fit", "shorten it"],
    ),
    "a prompt longer than --max-length": (
        third_line(json.dumps({"prompt": LONG[:200], "completion": "a"})),
        ["demos.jsonl, line 3: the prompt has", "--max-length"],
    ),
    "no line to learn from": (
        demos(json.dumps({**DEMOS[0], "split": "test"})),
        ['demos.jsonl: no line has "split": "train"'],
    ),
    "a held-out text that is also trained on": (
        held_out([HELD_OUT[0], DEMOS[1]]),
        ["demos_test.jsonl, line 2: a held-out text must be new", "demos.jsonl, line 2"],
    ),
    "the same text under two splits": (
        demos("\n".join(json.dumps({**DEMOS[0], "split": s}) for s in ("train", "test"))),
        ["demos.jsonl, line 2", "demos.jsonl, line 1"],
    ),
    "broken JSON in the held-out file": (
        write("demos_test.jsonl", "{"),
        ["demos_test.jsonl, line 1: not valid JSON"],
    ),
}


@pytest.mark.parametrize("case", DEMONSTRATIONS)
def test_train_names_the_file_and_the_line(workplace: Path, case: str) -> None:
    prepare, said = DEMONSTRATIONS[case]
    prepare(workplace)
    remove_test_file = case in ("no line to learn from", "the same text under two splits")
    if remove_test_file:  # it would be found beside --demos
        (workplace / "demos_test.jsonl").unlink()
    length = ["--max-length", "64"] if case.endswith("--max-length") else []
    arguments = [*TOY, "--out", "runs/new", *length]
    check_refused(workplace, "train", arguments, said)


# ---- train.py: the model, the folders and the flags ----

TRAIN: dict[str, tuple[Prepare, list[str], list[str]]] = {
    "no --demos": (nothing, ["--model", "toy"], ["--demos FILE.jsonl is missing", '"prompt"']),
    "--demos is a folder": (nothing, ["--demos", "toy"], ["toy: no text can be used", "not read"]),
    "--test is not there": (
        nothing,
        [*TOY, "--test", "none.jsonl", "--out", "new"],
        ["none.jsonl: no such file"],
    ),
    "an unknown model": (
        nothing,
        ["--demos", "demos.jsonl", "--model", "smolm2", "--out", "new"],
        ["smolm2: no such folder", "smollm2-135m-instruct"],
    ),
    "a model folder without config.json": (
        remove("toy/config.json"),
        [*TOY, "--out", "new"],
        ["toy: config.json is missing"],
    ),
    "a model folder without a tokenizer": (
        remove("toy/tokenizer.json"),
        [*TOY, "--out", "new"],
        ["toy: tokenizer.json is missing"],
    ),
    "an unsupported model_type": (
        model_config(model_type="gpt2"),
        [*TOY, "--out", "new"],
        ["toy: config.json: model_type 'gpt2'", "none of llama, mistral"],
    ),
    "an unsupported activation": (
        model_config(hidden_act="gelu"),
        [*TOY, "--out", "new"],
        ["toy: config.json: hidden_act = 'gelu'", "silu"],
    ),
    "config.json of another size than the weights": (
        model_config(intermediate_size=64),
        [*TOY, "--out", "new"],
        ["model.safetensors", "has shape (32, 48), config.json makes it (32, 64)"],
    ),
    "config.json that is not JSON": (
        write("toy/config.json", "{"),
        [*TOY, "--out", "new"],
        ["toy/config.json: not valid JSON"],
    ),
    "a truncated safetensors file": (
        cut_weights,
        [*TOY, "--out", "new"],
        ["toy/model.safetensors: damaged or incomplete", "download it again"],
    ),
    "an adapter on a layer that is not there": (
        nothing,
        [*TOY, "--out", "new", "--lora-target-modules", "qq"],
        ["target_modules", "'qq'"],
    ),
    "a device that is not there": (
        nothing,
        [*TOY, "--out", "new", "--device", "abacus"],
        ["device 'abacus' is not available", "--device auto"],
    ),
    "a --prompt longer than the context": (
        nothing,
        [*TOY, "--out", "new", "--prompt", LONG],
        ["--prompt has", "context holds 256", "shorten it"],
    ),
    "an output folder that holds another run": (
        nothing,
        [*TOY],
        ["runs/demos: holds another run", "--out", "--overwrite", "--resume runs/demos"],
    ),
    "an output folder with other files": (
        write("mine/novel.txt", "Chapter 1"),
        [*TOY, "--out", "mine"],
        ["mine: holds files that are not a run's", "novel.txt", "--out"],
    ),
    "an output folder with other files, with --overwrite": (
        write("mine/novel.txt", "Chapter 1"),
        [*TOY, "--out", "mine", "--overwrite"],
        ["mine: holds files that are not a run's", "novel.txt", "--out"],
    ),
    "a run folder with a person's file, with --overwrite": (
        write("runs/demos/notes.txt", "keep this"),
        [*TOY, "--overwrite"],
        ["runs/demos: holds files that are not a run's", "notes.txt", "--out"],
    ),
    "the workplace as output folder, with --overwrite": (
        nothing,
        [*TOY, "--out", ".", "--overwrite"],
        ["holds files that are not a run's"],
    ),
    "an output folder that is a file": (
        nothing,
        [*TOY, "--out", "demos.jsonl", "--overwrite"],
        ["demos.jsonl: is a file", "--out"],
    ),
    "an output folder within a file": (
        nothing,
        [*TOY, "--out", "demos.jsonl/run"],
        ["demos.jsonl: is a file", "--out"],
    ),
    "--resume of what is not a run": (nothing, ["--resume", "toy"], ["toy: not a run folder"]),
    "--resume of nothing": (nothing, ["--resume", "none"], ["none: not a run folder"]),
}


@pytest.mark.parametrize("case", TRAIN)
def test_train_refuses(workplace: Path, case: str) -> None:
    prepare, arguments, said = TRAIN[case]
    prepare(workplace)
    check_refused(workplace, "train", arguments, said)


WRONG_VALUES = {
    "--learning-rat 1": ["unrecognized arguments: --learning-rat", "--help"],
    "--learning-rate fast": ["--learning-rate", "'fast'"],
    "--learning-rate 0": ["learning_rate must be positive"],
    "--learning-rate nan": ["invalid float value: 'nan'"],
    "--sft-learning-rate -1": ["sft_learning_rate must be positive"],
    "--sft-batch-size 0": ["sft_batch_size must be at least 1"],
    "--lora-rank 0": ["lora_rank must be at least 1"],
    "--lora-dropout 1": ["lora_dropout must lie in [0, 1)"],
    "--lora-target-modules ,": ["lora_target_modules must name at least one"],
    "--max-steps -1": ["max_steps must not be negative"],
    "--max-steps 1.5": ["--max-steps", "'1.5'"],
    "--warmup-ratio 5": ["warmup_ratio must lie in [0, 1]"],
    "--nll-weight -1": ["nll_weight must not be negative"],
    "--weight-decay -1": ["weight_decay must not be negative"],
    "--temperature -1": ["temperature must not be negative"],
    "--top-p 0": ["top_p must lie in (0, 1]"],
    "--expert-fraction .5": ["the three fractions must add up to 1, not 0.8"],
    "--expert-fraction 1.2": ["expert_fraction must lie in [0, 1]"],
    "--label-smoothing .5": ["label_smoothing must lie in [0, .5)"],
    "--max-length 3": ["max_length must be at least 16"],
    "--method rlhf": ["--method", "rlhf", "ditto", "sft"],
    "--recipe best": ["--recipe", "paper", "laptop"],
    "--seed -1": ["seed must lie in [0, 2^63)"],
    "--micro-batch-tokens 0": ["micro_batch_tokens must be at least 1"],
    "stray": ["stray: --demos names a file already"],
}


@pytest.mark.parametrize("flags", WRONG_VALUES)
def test_train_names_the_flag_that_is_wrong(template: Path, flags: str) -> None:
    arguments = [*TOY, "--out", "runs/new", *flags.split()]
    check_refused(template, "train", arguments, WRONG_VALUES[flags])


def test_a_refusal_in_a_process_of_its_own_is_the_same_line(template: Path) -> None:
    before = tree(template)
    process = run_script("train.py", ["--demos", "none.jsonl"], template)
    assert (process.returncode, process.stdout) == (2, "")
    assert process.stderr == "train.py: none.jsonl: no such file\n"
    assert tree(template) == before


# ---- sample.py ----


def another_model(folder: Path) -> None:
    write_checkpoint(folder / "other", seed=1)


def unfinished(folder: Path) -> None:
    shutil.rmtree(folder / "runs" / "demos" / "adapter")


def cut_adapter(folder: Path) -> None:
    file = folder / "runs" / "demos" / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


RUN = ["--adapter", "runs/demos"]
SAMPLE: dict[str, tuple[Prepare, list[str], list[str]]] = {
    "no way given": (nothing, RUN, ["--prompt", "--prompts", "--chat"]),
    "two ways given": (nothing, [*RUN, "--prompt", "a", "--chat"], ["one of", "--prompts"]),
    "--out without a file of prompts": (
        nothing,
        [*RUN, "--prompt", "a", "--out", "new.jsonl"],
        ["--out", "--prompts FILE.jsonl"],
    ),
    "a missing adapter": (
        nothing,
        ["--adapter", "none", "--prompt", "a"],
        ["none: no adapter here", "adapter_config.json"],
    ),
    "an unfinished run": (
        unfinished,
        [*RUN, "--prompt", "a"],
        ["runs/demos: the run is not finished", "train.py --resume runs/demos"],
    ),
    "an adapter of another model": (
        another_model,
        [*RUN, "--prompt", "a", "--model", "other"],
        ["runs/demos/adapter", "trained on another model"],
    ),
    "a truncated adapter": (
        cut_adapter,
        [*RUN, "--prompt", "a"],
        ["adapter_model.safetensors: cannot be read"],
    ),
    "--out exists": (
        write("answers.jsonl", "mine"),
        [*RUN, "--prompts", "demos.jsonl", "--out", "answers.jsonl"],
        ["answers.jsonl: exists already", "--out", "--overwrite"],
    ),
    "--out is a folder": (
        nothing,
        [*RUN, "--prompts", "demos.jsonl", "--out", "runs", "--overwrite"],
        ["runs: is a folder", "--out"],
    ),
    "--out within a file": (
        nothing,
        [*RUN, "--prompts", "demos.jsonl", "--out", "demos_test.jsonl/answers.jsonl"],
        ["demos_test.jsonl: is a file", "--out"],
    ),
    "missing prompts": (nothing, [*RUN, "--prompts", "none.jsonl"], ["none.jsonl: no such file"]),
    "broken prompts": (
        write("prompts.jsonl", '{"prompt": "a"}\n{"question": "b"}\n'),
        [*RUN, "--prompts", "prompts.jsonl"],
        ["prompts.jsonl, line 2", '"prompt" is missing'],
    ),
    "a prompt longer than the context": (
        nothing,
        [*RUN, "--prompt", LONG],
        ["the prompt has", "256", "shorten it"],
    ),
    "no answers": (nothing, [*RUN, "--prompt", "a", "-n", "0"], ["n must be at least 1"]),
    "top_p above 1": (nothing, [*RUN, "--prompt", "a", "--top-p", "2"], ["top_p must lie in"]),
    "an unknown flag": (nothing, [*RUN, "--promt", "a"], ["--promt", "--help"]),
}


@pytest.mark.parametrize("case", SAMPLE)
def test_sample_refuses(workplace: Path, case: str) -> None:
    prepare, arguments, said = SAMPLE[case]
    prepare(workplace)
    check_refused(workplace, "sample", arguments, said)


# ---- evaluate.py ----

EVALUATE: dict[str, tuple[Prepare, list[str], list[str]]] = {
    "no run": (nothing, [], ["RUN", "--help"]),
    "not a run": (nothing, ["toy"], ["toy: not a run folder"]),
    "not even a folder": (nothing, ["none"], ["none: not a run folder"]),
    "a broken config.json": (
        write("runs/demos/config.json", "{"),
        ["runs/demos"],
        ["runs/demos/config.json: not valid JSON"],
    ),
    "an unfinished run": (
        unfinished,
        ["runs/demos"],
        ["runs/demos: the run is not finished", "train.py --resume runs/demos"],
    ),
    "a test file that is not there": (
        nothing,
        ["runs/demos", "--test", "none.jsonl"],
        ["none.jsonl: no such file"],
    ),
    "texts that were trained on": (
        nothing,
        ["runs/demos", "--test", "demos.jsonl"],
        ["demos.jsonl, line 1: a held-out text must be new"],
    ),
    "a model that is gone": (
        lambda folder: shutil.rmtree(folder / "toy"),
        ["runs/demos"],
        ["toy: no such folder"],
    ),
    "no answers": (nothing, ["runs/demos", "--n", "0"], ["n must be at least 1"]),
    "a wrong number": (nothing, ["runs/demos", "--show", "some"], ["--show", "'some'"]),
}


@pytest.mark.parametrize("case", EVALUATE)
def test_evaluate_refuses(workplace: Path, case: str) -> None:
    prepare, arguments, said = EVALUATE[case]
    prepare(workplace)
    check_refused(workplace, "evaluate", arguments, said)


def test_evaluate_refuses_where_nothing_is_held_out(workplace: Path) -> None:
    (workplace / "demos_test.jsonl").unlink()
    train_toy(workplace, "--out", "runs/alone", "--method", "sft")
    said = ["no demonstrations are held out", "--test FILE.jsonl"]
    check_refused(workplace, "evaluate", ["runs/alone"], said)


def test_a_run_that_was_trained_with_tiny_knobs_is_what_these_tests_start_from(
    template: Path,
) -> None:
    """Or else every refusal above could be for another reason than the one it names."""
    assert len(TINY) % 2 == 0
    arguments = [*TOY, "--inspect"]
    assert call(train, *arguments, cwd=template).code == 0
    prompt = ["--prompt", "a", "--max-new-tokens", "2"]
    assert call(sample, *RUN, *prompt, cwd=template).code == 0
