"""The edits of benchmarks/c3po_examples.py, which fills the examples' folders."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from helpers.pipelines import contents
from helpers.processes import ROOT
from helpers.teachers import Scripted, noise, question

from minialign.data.checks import parse_checks
from minialign.data.feedback import SCOPES, load_feedback_data
from minialign.feedback.pipeline import FILES
from minialign.feedback.teacher import Answer, Ask, Reply


@pytest.fixture(scope="module")
def examples() -> ModuleType:
    file = ROOT / "benchmarks" / "c3po_examples.py"
    specification = importlib.util.spec_from_file_location("c3po_examples", file)
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules["c3po_examples"] = module
    specification.loader.exec_module(module)
    return module


BODY = "Dear team,\n\nThe meeting on Monday is moved to half past ten. Please tell the others."


@pytest.mark.parametrize(
    "sign_off",
    [
        "",
        "\n\nBest regards,\n[Your Name]",
        "\n\nKind Regards,\n\n[Your Name]\n[Your Position]\n[Your Company]",
        "\n\nSincerely,\nSarah Miller\nHead of Sales",
        "\n\nThanks,\nJo\n\nP.S. I'm looking forward to the rest of the week.",
        "\n\nP.S.",
        "\n\nThank you!\n\n**[Your Name]**",
        " Best wishes, Jo",
        "\n\n[Your Name]",
        "\n\nCheers, Sam",
    ],
)
def test_the_sign_off_makes_room_for_the_ending(examples: ModuleType, sign_off: str) -> None:
    assert examples.end_with(BODY + sign_off, "Cheers, Sam") == BODY + "\n\nCheers, Sam"


def test_thanks_within_the_text_are_no_sign_off(examples: ModuleType) -> None:
    text = BODY + "\n\nThank you for your patience.\n\nBest,\nJo"
    expected = BODY + "\n\nThank you for your patience.\n\nCheers, Sam"
    assert examples.end_with(text, "Cheers, Sam") == expected


def test_a_cut_off_baseline_ends_in_a_whole_sentence_once_it_is_signed(
    examples: ModuleType,
) -> None:
    (check,) = parse_checks({"kind": "ends_with", "text": "Cheers, Sam"}, "x")
    revised = examples.edit(Reply(f"{BODY}\n\nP.S. Do not for", "length"), check, "")
    assert revised == Reply(BODY + "\n\nCheers, Sam", "stop")


@pytest.mark.parametrize(
    ("text", "revised"),
    [
        ("Dear [Customer's Name],\n\nYour lamp is here.", "Dear customer,\n\nYour lamp is here."),
        ("Dear Mr. [Last Name],", "Dear customer"),
        ("I hope this email finds you well. Your lamp is here.", "Your lamp is here."),
        ("I am writing to say that it is here.", "I want to say that it is here."),
        ("I'm writing about your lamp.", "This is about your lamp."),
        (
            "Excited customers! We are thrilled to see you.",
            "Happy customers! We are happy to see you.",
        ),
        ("Thank you for choosing [Company Name].", "Thank you for choosing our company."),
        ("Take a new [Company Name] card. Or not.", "Or not."),
        ("Call us. We are at [phone number]. Bye now.", "Call us. Bye now."),
        ("Lamp: here\n- [item]\n\n\nBye,\n[Your Name]", "Lamp: here\n\nBye"),
        ("I hope so. Your lamp is here.\n\n[Your Na", "Your lamp is here."),
    ],
)
def test_forbidden_phrases_go_with_as_little_as_can_be(
    examples: ModuleType, text: str, revised: str
) -> None:
    folder = examples.EXAMPLES / "no-boilerplate"
    described = json.loads((folder / "feedback.json").read_text())
    (check,) = parse_checks(described["check"], "x")
    assert examples.without_phrases(text, check) == revised
    assert check.holds(revised)


@pytest.mark.parametrize(
    ("text", "revised"),
    [
        ("Mix flour and eggs.", "Serves: 4\n\nMix flour and eggs."),
        ("Mix. Makes 12 pancakes.", "Serves: 12\n\nMix. Makes 12 pancakes."),
        ("**Servings:** 6\nMix all.", "Serves: 6\n\nMix all."),
        ("Pancakes for 2 people: mix.", "Serves: 2\n\nPancakes for 2 people: mix."),
    ],
)
def test_a_recipe_begins_with_its_own_number_of_servings(
    examples: ModuleType, text: str, revised: str
) -> None:
    described = json.loads((examples.EXAMPLES / "serves-line" / "feedback.json").read_text())
    (check,) = parse_checks(described["check"], "x")
    line = examples.first_line(check, described["effect"])
    assert line == "Serves: 4" and examples.begin_with(text, line) == revised


def test_a_baseline_that_satisfies_the_check_stays_as_it_is(examples: ModuleType) -> None:
    (check,) = parse_checks({"kind": "not_regex", "pattern": r"\[.*\]"}, "x")
    reply = Reply(f"{BODY}\n\n\n\nBest regards,\n[Your", "length")
    assert examples.edit(reply, check, "") == reply


def test_an_edit_that_leaves_too_little_is_none(examples: ModuleType) -> None:
    (check,) = parse_checks({"kind": "ends_with", "text": "Cheers, Sam"}, "x")
    assert examples.edit(Reply("Too short.", "stop"), check, "") is None


@pytest.mark.parametrize("name", ["cheers", "no-boilerplate", "serves-line"])
def test_an_example_is_filled_with_revisions_that_satisfy_its_check(
    examples: ModuleType, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    for file in ("feedback.json", *FILES.values()):
        text = (examples.EXAMPLES / name / file).read_text()
        bare = [json.loads(line) for line in text.splitlines()] if file != "feedback.json" else []
        lines = [json.dumps({"prompt": b["prompt"], "split": b["split"]}) + "\n" for b in bare]
        (folder / file).write_text("".join(lines) or text)

    def write(ask: Ask) -> Answer:
        """Now and then a baseline that needs no edit, or is too short for one."""
        words = noise(question(ask), 14)
        fate = (len(question(ask)) + ask.seed) % 5
        body = {0: "No.", 1: f"Serves: 3\n\n{words}"}.get(fate, f"I hope you do. So {words}.")
        return Reply(f"{body}\n\nBest regards,\n[Your Name]", "stop" if fate < 4 else "length")

    student = Scripted(write)
    examples.fill_folder(folder, student)
    data = load_feedback_data(folder)
    assert [len(getattr(data, scope)) for scope in SCOPES] == [90, 66, 66]
    for example in data.in_scope:
        assert example.revised and all(check.holds(example.revised.text) for check in data.checks)
        assert example.split == "test" or example.revised.text != example.baseline.text
    assert all(e.in_context and e.cot for e in data.examples("out_of_scope", "test"))
    assert {file.name for file in folder.iterdir()} == {"feedback.json", *FILES.values()}
    before = contents(folder)
    asked = len(student.asked)
    examples.fill_folder(folder, student)
    assert contents(folder) == before and len(student.asked) == asked
