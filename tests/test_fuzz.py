"""`python tests/fuzz.py` at reduced size, and the inputs that once failed."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from helpers.commands import call, sample, train
from helpers.models import write_checkpoint
from helpers.processes import ROOT, run_python
from helpers.refusals import refusal

from minialign.data.writings import read_writings
from minialign.evaluation.report.run_files import figure
from minialign.policy.peft import read_adapter_config


def test_a_link_that_leads_to_itself_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "edits.jsonl").symlink_to("edits.jsonl")
    outcome = call(train, "--edits", "edits.jsonl", cwd=tmp_path)
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and "edits.jsonl" in outcome.err


def test_empty_lines_by_the_thousand_take_no_time(tmp_path: Path) -> None:
    file = tmp_path / "letters.txt"
    file.write_text("one" + "\n" * 200_000 + "---\ntwo")
    began = time.process_time()
    assert len(read_writings(file, (), {}, 1).texts) == 2
    assert time.process_time() - began < 2


@pytest.mark.parametrize("name", ["flags.json", "toy/chat_template.jinja", "letters.txt"])
def test_what_never_ends_is_no_file(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path / "toy")
    (tmp_path / name).symlink_to("/dev/zero")
    commands = {
        "flags.json": (train, "--config", name),
        "toy/chat_template.jinja": (sample, "--model", "toy", "--prompt", "a"),
        "letters.txt": (train, "--demos", name),
    }
    module, *arguments = commands[name]
    outcome = call(module, *arguments, cwd=tmp_path)
    assert outcome.code == 2 and "not a plain file" in outcome.err


def test_numbers_beyond_every_float_are_refused_or_unknown(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 10**400, "target_modules": ["q_proj"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert "finite number" in refusal(lambda: read_adapter_config(tmp_path))
    assert figure(10**400) is None and figure(-(10**400)) is None and figure(3) == 3.0


def test_an_error_is_one_short_line_whatever_a_file_puts_into_it(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"beta\x1b[2J\n" + "x" * 10_000: 1}))
    outcome = call(train, "--config", "a.json", cwd=tmp_path)
    assert outcome.code == 2 and outcome.err.count("\n") == 1 and len(outcome.err) < 2000
    assert "\x1b" not in outcome.err


@pytest.mark.skipif(not hasattr(os, "fork"), reason="its children are forked")
def test_broken_files_are_read_or_refused_in_one_line() -> None:
    process = run_python([str(ROOT / "tests" / "fuzz.py"), "--count", "20", "--seed", "1"], ROOT)
    assert process.returncode == 0, process.stdout + process.stderr
    assert "20 inputs" in process.stdout
