"""`--config FILE`: every flag by its name, in JSON or TOML, and a run's own record."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.commands import call, sample, train, train_toy
from helpers.runs import results
from helpers.workplaces import TINY

from minialign.commands.evaluate import parse as parse_evaluate
from minialign.commands.feedback import main as feedback
from minialign.commands.sample import parse as parse_sample
from minialign.commands.train import parse
from minialign.data.knobs import config_from_flags
from minialign.errors import InputError
from minialign.methods.knobs import LAPTOP

TOML = """
demos = "mine.jsonl"
max-steps = 7
overwrite = true
learning_rate = 1
sweep = ["beta=0.05", "0.1"]
[lora]
rank = 3
target_modules = ["q_proj", "v_proj"]
[sft]
stop-loss = 2.5
"""


@pytest.fixture
def toml(tmp_path: Path) -> str:
    (tmp_path / "my.toml").write_text(TOML, encoding="utf-8")
    return str(tmp_path / "my.toml")


def write_json(folder: Path, **values: object) -> str:
    (folder / "my.json").write_text(json.dumps(values), encoding="utf-8")
    return str(folder / "my.json")


def test_every_flag_may_stand_in_the_file(toml: str) -> None:
    options, knobs = parse(["--config", toml])
    assert (options.demos, options.overwrite) == ("mine.jsonl", True)
    assert options.sweep == ("beta=0.05", "0.1")
    config = config_from_flags(LAPTOP, knobs)
    assert (config.max_steps, config.sft.stop_loss, config.learning_rate) == (7, 2.5, 1.0)
    assert (config.lora.rank, config.lora.target_modules) == (3, ("q_proj", "v_proj"))


def test_the_command_line_wins(toml: str) -> None:
    given = ["--config", toml, "--max-steps", "9", "--no-overwrite", "--sweep", "beta=0.3"]
    _, swept = parse([*given, "--sweep", "lr=1,2"])
    assert "learning_rate" not in swept
    _, both = parse([*given, "--sweep", "max_steps=1,2"])
    assert both["max_steps"] == 9
    options, knobs = parse([*given, "--lora-target-modules", "o_proj", "other.jsonl"])
    assert (options.demos, options.overwrite, options.sweep) == (
        "other.jsonl",
        False,
        ("beta=0.3",),
    )
    assert (knobs["max_steps"], knobs["lora_target_modules"]) == (9, ["o_proj"])
    assert knobs["sft_stop_loss"] == 2.5


def test_the_files_method_brings_its_knobs(tmp_path: Path) -> None:
    file = write_json(tmp_path, method="c3po", data="cheers", lambda_near=0.5)
    options, knobs = parse(["--config", file])
    assert (options.method, knobs) == ("c3po", {"lambda_near": 0.5})


def test_other_doors_take_it_too(tmp_path: Path) -> None:
    file = write_json(tmp_path, n=3, temperature=0, prompt="Say.")
    options = parse_sample(["--config", file, "--temperature", "0.2"])
    assert (options.n, options.temperature, options.prompt) == (3, 0.2, "Say.")
    file = write_json(tmp_path, against=["base"], judges="style,model", judge_model="toy")
    _, given = parse_evaluate(["runs/a", "--config", file])
    assert (given["against"], given["judges"]) == (("base",), ("style", "model"))
    file = write_json(
        tmp_path, feedback="Be brief.", teacher="a", teacher_url="b", teacher_model="c"
    )
    with pytest.raises(InputError, match="give --teacher or --teacher-url"):
        feedback(["--config", file])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"max_step": 3}, "max_step: there is no such flag: did you mean max_steps?"),
        ({"max_steps": "ten"}, "max_steps: 'ten' is not a whole number"),
        ({"max_steps": 1.5}, "max_steps: 1.5 is not a whole number"),
        ({"max_steps": True}, "max_steps: True is not a whole number"),
        ({"beta": None}, "beta: None is not a number"),
        ({"overwrite": "yes"}, "overwrite: 'yes' is not true or false"),
        ({"demos": 3}, "demos: 3 is not a text"),
        ({"recipe": "rlhf"}, "recipe: 'rlhf' is not one of auto, paper, laptop"),
        ({"lora": {"ranks": 1}}, "lora_ranks: there is no such flag: did you mean lora_rank?"),
    ],
)
def test_what_is_wrong_in_it_is_named(tmp_path: Path, values: dict[str, object], said: str) -> None:
    file = write_json(tmp_path, **values)
    outcome = call(train, "--config", file, cwd=tmp_path)
    assert (outcome.code, outcome.err) == (2, f"train.py: --config {file}: {said}\n")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", "beta = ", "is not TOML"),
        ("a.txt", "beta = 1", "is not JSON (a file in TOML must be called .toml)"),
        ("a.json", "[1]", "holds no names and values"),
        ("gone.json", None, "no such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text, encoding="utf-8")
    for door in (train, sample):
        outcome = call(door, "--config", name, cwd=tmp_path)
        assert outcome.code == 2 and outcome.err.count("\n") == 1
        assert f"--config {name}: {said}" in outcome.err


def test_a_runs_own_record_makes_the_same_run(workplace: Path) -> None:
    train_toy(workplace, "--method", "spin", "--out", "runs/one", "--seed", "5")
    record = "runs/one/config.json"
    again = call(train, "--config", record, cwd=workplace)
    assert again.code == 2 and "runs/one: holds another run" in again.err
    outcome = call(train, "--config", record, "--out", "runs/two", cwd=workplace)
    assert outcome.code == 0, outcome.err
    assert results(workplace / "runs" / "one") == results(workplace / "runs" / "two")
    # Another method takes what it reads of it.
    outcome = call(train, "--config", record, "--method", "sft", "--out", "runs/3", cwd=workplace)
    assert outcome.code == 0, outcome.err
    kept = json.loads((workplace / "runs" / "3" / "config.json").read_text("utf-8"))
    assert (kept["options"]["seed"], kept["options"]["method"]) == (5, "sft")
    assert kept["knobs"]["sft"]["max_steps"] == int(TINY[TINY.index("--sft-max-steps") + 1])
