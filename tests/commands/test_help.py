"""--help answers at once and fits a narrow terminal."""

from __future__ import annotations

import pytest
from helpers.commands import call, train
from helpers.processes import ROOT, run_python

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
