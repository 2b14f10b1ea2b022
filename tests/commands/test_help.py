"""--help answers at once and fits a narrow terminal."""

from __future__ import annotations

from types import ModuleType

import pytest
from helpers.commands import call, evaluate, sample, train
from helpers.processes import ROOT, run_python

from minialign.commands import feedback
from minialign.data.knobs import flags_of
from minialign.evaluation import judges
from minialign.methods.knobs import DittoConfig

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


# ---- subjects ----

# A door -> subjects that --help-all has.
DOORS = {
    train: ["what to learn from", "the run", "the adapter", "the warm start (SFT)"],
    sample: ["the answers", "the model", "memory and speed"],
    evaluate: ["who answers, and what", "what is measured and shown", "memory and speed"],
    feedback: ["who writes", "memory and speed", "how much"],
}


def flags_under(text: str) -> dict[str, list[str]]:
    """Heading -> its flags, as help shows them."""
    found: dict[str, list[str]] = {}
    for line in text.split("\n"):
        if line.endswith(":") and not line.startswith((" ", "positional")):
            found[line[:-1]] = []
        elif line.startswith("  -"):
            found[list(found)[-1]].append(line.split("--")[1].split()[0].rstrip(","))
    return found


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_help_shows_the_ten_most_used_flags_by_subject(door: ModuleType) -> None:
    shown = flags_under(call(door, "--help", cwd=ROOT).out)
    usage = call(door, "--help", cwd=ROOT).out.split("\n")[0]
    assert usage.startswith("usage: ") and usage.endswith("[--flag value ...]")
    assert shown.pop("help") == ["help", "help-all", "config"]
    assert len(shown) >= 3 and sum(map(len, shown.values())) == 10


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_help_all_shows_the_most_used_first_and_every_flag_once(door: ModuleType) -> None:
    short = flags_under(call(door, "--help", cwd=ROOT).out)
    shown = flags_under(call(door, "--help-all", cwd=ROOT).out)
    assert list(shown)[0] == "most used"
    assert shown["most used"][:3] == ["help", "help-all", "config"]
    assert set(shown["most used"]) == {flag for flags in short.values() for flag in flags}
    assert set(DOORS[door]) <= shown.keys() and "options" not in shown
    flags = [flag for under in shown.values() for flag in under]
    assert len(flags) == len(set(flags)) > len(shown["most used"])


def test_a_knob_stands_under_the_subject_of_the_one_before_it() -> None:
    subjects = {flag.name: flag.subject for flag in flags_of(DittoConfig)}
    assert subjects["lora_dropout"] == subjects["lora_rank"] == "the adapter"
    assert subjects["top_k"] == "how answers are drawn"
    assert subjects["cache_gb"] == subjects["max_rows"] == "memory and speed"
    assert "" not in subjects.values()


def test_help_lists_the_judges_of_the_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    for registry in ("JUDGES", "HELPS"):
        monkeypatch.setattr(judges, registry, dict(getattr(judges, registry)))
    judges.register("longer", "longer_judge", "the longer text wins")
    text = " ".join(call(evaluate, "--help", cwd=ROOT).out.split())
    assert "model (asks --judge-model" in text
    assert "longer (the longer text wins)" in text
