"""Edits: kept by /edit in a chat, learned by the words that were changed."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import call, train
from helpers.feedback_runs import metrics
from helpers.files import tree, write_jsonl
from helpers.models import write_checkpoint

from minialign.commands import chat
from minialign.commands.chat import Chat
from minialign.data.feedback import load_preference_pairs
from minialign.training.run import Run

KNOBS = (
    *("--model", "toy", "--lora-rank", "4", "--lora-alpha", "8", "--learning-rate", "0.01"),
    *("--epochs", "3", "--pairs-per-step", "4", "--lora-target-modules", "q_proj,v_proj"),
)
EDITS = ("--edits", "edits.jsonl", *KNOBS)
DRAFT, FINAL = "Hello, the note is {}. Best, me", "Ahoy, the note is {}. Best, me"


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """toy/, and edits.jsonl: 20 that /edit wrote, and four of unseen prompts that are held out."""
    folder = tmp_path_factory.mktemp("edits")
    write_checkpoint(folder / "toy")
    file = folder / "edits.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat, "edited", lambda text: text.replace("Hello", "Ahoy"))
        for number in range(20):
            draft = DRAFT.format(number)
            talk = Chat(lambda *_, draft=draft: draft, 0.7, has_adapter=False)  # type: ignore[misc]
            talk.take(f"note {number}")
            talk.take(f"/edit {file}")
    unseen = [
        {"prompt": f"memo {n}", "draft": DRAFT.format(n), "final": FINAL.format(n), "split": "test"}
        for n in "abcd"
    ]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines[7] == {"prompt": "note 7", "draft": DRAFT.format(7), "final": FINAL.format(7)}
    write_jsonl(file, [*lines, *unseen])
    assert call(train, *EDITS, "--out", "runs/edits", cwd=folder).code == 0
    return folder


def weights(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def test_a_conversation_is_the_prompt_of_an_edit(tmp_path: Path) -> None:
    before = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    edit = {"prompt": "user", "draft": "a b", "final": "a c", "messages": before}
    [pair] = load_preference_pairs(write_jsonl(tmp_path / "e.jsonl", [edit])).in_scope
    assert pair.messages == before and pair.revised is not None
    assert (pair.revised.text, pair.baseline.text) == ("a c", "a b")


def test_the_next_answers_move_the_same_way_on_prompts_that_were_not_edited(
    workplace: Path,
) -> None:
    steps = metrics(workplace / "runs" / "edits")
    first, last = steps[0], next(m for m in steps if "eval/rewards/accuracies" in m)
    assert first["dpo"] == pytest.approx(math.log(2), abs=1e-7)
    assert last["eval/rewards/accuracies"] == 1 and last["eval/rewards/margins"] > 0.5
    # Final over draft, and not both less likely than before.
    assert last["eval/rewards/chosen"] > 0 > last["eval/rewards/rejected"]
    assert last["nll/learned"] < first["nll/learned"]


def test_a_file_of_edits_has_this_method_by_default_and_is_one_of_pairs(workplace: Path) -> None:
    record = json.loads((workplace / "runs" / "edits" / "config.json").read_text())
    assert record["options"]["method"] == "edits" and record["learns_from"] == "pairs"
    same = ("--method", "edits", "--data", "edits.jsonl", *KNOBS, "--out", "runs/same")
    assert call(train, *same, cwd=workplace).code == 0
    assert weights(workplace / "runs/same") == weights(workplace / "runs/edits")


def test_the_reference_is_the_policy_that_wrote_the_drafts(workplace: Path) -> None:
    arguments = ("--edits", "edits.jsonl", "--model", "toy", "--epochs", "1", "--out", "runs/more")
    arguments += ("--init-adapter", "runs/edits")
    outcome = call(train, *arguments, cwd=workplace)
    assert outcome.code == 0, outcome.err
    first = metrics(workplace / "runs" / "more")[0]
    assert first["dpo"] == pytest.approx(math.log(2), abs=1e-7)
    assert first["rewards/chosen"] == first["rewards/rejected"] == 0
    assert sorted(p.name for p in (workplace / "runs/more").glob("adapter*")) == ["adapter"]


def test_an_interrupted_run_goes_on_bit_for_bit(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Run.log

    def stop(self: Run, stage: str, step: int, found: dict[str, Any]) -> None:
        log(self, stage, step, found)
        self.interrupted = step == 2

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", stop)
        assert call(train, *EDITS, "--out", "runs/cut", cwd=workplace).code == 130
    outcome = call(train, "--resume", "runs/cut", cwd=workplace)
    assert outcome.code == 0, outcome.err
    assert weights(workplace / "runs/cut") == weights(workplace / "runs/edits")
    assert metrics(workplace / "runs/cut") == metrics(workplace / "runs/edits")


def test_inspect_marks_the_span_of_the_draft_and_all_of_the_final(workplace: Path) -> None:
    outcome = call(train, *EDITS, "--inspect", cwd=workplace)
    assert outcome.code == 0, outcome.err
    rows = [line.split(maxsplit=4) for line in outcome.out.splitlines()]
    marked = {name: "" for name in ("chosen", "rejected")}
    for row in rows:
        if len(row) == 5 and row[2] == "*":
            marked[row[3]] += row[4].strip("'\"")
    assert marked["rejected"] == "Hello"
    assert marked["chosen"].startswith(FINAL.format(0))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--data", "edits.jsonl"), "give --edits, --votes, --demos or --data, not several"),
        (("--method", "dpo"), "--method dpo learns from"),
        (("--loss", "ipo"), "--method edits fixes --loss: use --method dpo"),
        (("--edits", "none.jsonl"), "none.jsonl: no such file"),
        (("--edits", "same.jsonl"), 'same.jsonl, line 1: "final" and "draft" are the same'),
        (("--edits", "half.jsonl"), 'half.jsonl, line 1: the field "final" is missing'),
    ],
)
def test_what_is_wrong_is_one_line(workplace: Path, more: tuple[str, ...], said: str) -> None:
    write_jsonl(workplace / "same.jsonl", [{"prompt": "a", "draft": "b", "final": " b "}])
    write_jsonl(workplace / "half.jsonl", [{"prompt": "a", "draft": "b"}])
    before = tree(workplace)
    outcome = call(train, *EDITS, *more, "--out", "runs/no", cwd=workplace)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1) and said in outcome.err
    assert tree(workplace) == before
