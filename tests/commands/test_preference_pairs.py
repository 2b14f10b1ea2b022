"""Preference pairs in a file: what is read from it, a run that learns from it, and every way to get
it wrong.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Outcome, call, evaluate, train
from helpers.feedback_runs import metrics
from helpers.files import tree, write_jsonl
from helpers.models import write_checkpoint
from helpers.refusals import refusal
from helpers.toys import EOS, byte_tokenizer

from minialign.data.feedback import Response, load_preference_pairs
from minialign.policy.encode import encode_feedback
from minialign.weights.tokenizer import Tokenizer

PAIRS: list[dict[str, Any]] = [
    {"prompt": f"note {n}", "chosen": f"the note {n} Sam", "rejected": f"the note {n}"}
    for n in range(4)
]
HELD_OUT = [
    {"prompt": f"memo {n}", "chosen": f"a memo {n} Sam", "rejected": f"a memo {n}", "split": "test"}
    for n in range(2)
]
DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
    {"role": "user", "content": "again"},
]
KNOBS = (
    *("--lora-rank", "4", "--lora-alpha", "8", "--learning-rate", "0.01", "--epochs", "2"),
    *("--pairs-per-step", "2"),
)
TOY = ("--model", "toy", *KNOBS)
DPO = ("--method", "dpo", "--data", "pairs.jsonl", *TOY)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """toy/, pairs.jsonl and a run of each method that pairs are enough for."""
    folder = tmp_path_factory.mktemp("pairs")
    write_checkpoint(folder / "toy")
    write_jsonl(folder / "pairs.jsonl", [*PAIRS, *HELD_OUT])
    for method in ("dpo", "sft"):
        trained(folder, *DPO, "--method", method, "--out", f"runs/{method}")
    return folder


def trained(cwd: Path, *arguments: str) -> Outcome:
    outcome = call(train, *arguments, cwd=cwd)
    assert outcome.code == 0, outcome.err
    return outcome


def weights(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


# ---- what is read ----


def test_the_chosen_answer_is_the_revised_one_and_the_rejected_one_the_baseline(
    tmp_path: Path,
) -> None:
    extras = {"chosen_finish_reason": "length", "score": 7, "split": None}
    record = {"prompt": "say hi", "chosen": " Ahoy\n", "rejected": "hello", **extras}
    data = load_preference_pairs(write_jsonl(tmp_path / "p.jsonl", [record, *HELD_OUT]))
    first, *others = data.in_scope
    assert (first.prompt, first.split) == ("say hi", "train")
    assert (first.revised, first.baseline) == (Response("Ahoy", "length"), Response("hello"))
    assert first.source == f"{tmp_path / 'p.jsonl'}, line 1"
    assert others == data.examples("in_scope", "test") and len(others) == 2
    assert data.near_scope == data.out_of_scope == data.checks == ()
    assert data.feedback == ""


def test_a_dialogue_is_a_prompt_too(tmp_path: Path) -> None:
    record = {"messages": DIALOGUE, "chosen": "b", "rejected": "c"}
    data = load_preference_pairs(write_jsonl(tmp_path / "p.jsonl", [record]))
    tokenizer = byte_tokenizer("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    sequences, _ = encode_feedback(data, "train", tokenizer, 200)
    ((chosen, rejected),) = sequences.in_scope
    assert chosen.prompt_ids == rejected.prompt_ids == tuple(tokenizer.encode_prompt(DIALOGUE))
    assert chosen.completion_ids == tuple(tokenizer.encode_completion("b"))
    assert rejected.completion_ids == tuple(tokenizer.encode_completion("c"))


def test_an_answer_that_was_cut_off_has_no_end_token(tmp_path: Path) -> None:
    record = {"prompt": "a", "chosen": "b", "rejected": "c", "rejected_finish_reason": "length"}
    data = load_preference_pairs(write_jsonl(tmp_path / "p.jsonl", [record]))
    ((chosen, rejected),) = encode_feedback(data, "train", byte_tokenizer(), 64)[0].in_scope
    assert chosen.completion_ids[-1] == EOS and EOS not in rejected.completion_ids


def test_a_prompt_may_have_several_pairs_and_two_dialogues_the_same_end(tmp_path: Path) -> None:
    shorter = {"messages": DIALOGUE[-1:], "chosen": "b", "rejected": "c", "split": "test"}
    records = [
        {"messages": DIALOGUE, "chosen": "b", "rejected": "c"},
        {"messages": DIALOGUE, "chosen": "b", "rejected": "d"},
        shorter,
    ]
    data = load_preference_pairs(write_jsonl(tmp_path / "p.jsonl", records))
    assert len(data.examples("in_scope", "train")) == 2


# ---- what is wrong ----


def second(**changes: Any) -> str:
    """A file whose second line is changed; a field that is None is missing."""
    record = {**PAIRS[1], **changes}
    record = {name: value for name, value in record.items() if value is not None}
    return "\n".join(map(json.dumps, [PAIRS[0], record, *PAIRS[2:]]))


BROKEN = {
    **{
        f"no {field}": (second(**{field: None}), f'line 2: the field "{field}" is missing')
        for field in ("prompt", "chosen", "rejected")
    },
    "a prompt that is no text": (
        second(prompt=["hi"]),
        'line 2: the field "prompt" must be a text',
    ),
    "an empty prompt": (second(prompt=" "), "line 2: the prompt is empty"),
    "an empty answer": (second(rejected="\n"), 'line 2: the field "rejected" is empty'),
    "an answer that is no text": (second(chosen=3), 'line 2: the field "chosen" must be a text'),
    "equal answers": (second(chosen="x", rejected=" x\n"), 'line 2: "chosen" and "rejected" are'),
    "an unknown split": (second(split="dev"), "line 2: unknown split 'dev'"),
    "an empty split": (second(split=""), "line 2: unknown split ''"),
    "an unknown end": (second(chosen_finish_reason="eos"), 'line 2: "chosen_finish_reason" must'),
    "a dialogue that is answered": (second(messages=DIALOGUE[:3]), "line 2: the last of the"),
    "a dialogue that is no list": (second(messages="hi"), 'line 2: "messages" must be a list'),
    "an empty dialogue": (second(messages=[]), 'line 2: "messages" holds nothing to answer'),
    "a prompt in both splits": (second(prompt="note 0", split="test"), "line 2: the prompt is in"),
    "not JSON": (json.dumps(PAIRS[0]) + "\n{'prompt'}", "line 2: not valid JSON"),
    "no object": (json.dumps(PAIRS[0]) + "\n[]", "line 2: expected a JSON object"),
    "nothing": ("\n", "the file is empty"),
    "nothing to train on": (json.dumps(HELD_OUT[0]), "no pair to train on"),
}


@pytest.mark.parametrize(("text", "said"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_named_with_its_line(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(text)
    message = refusal(lambda: load_preference_pairs(file))
    assert message.startswith(str(file)) and said in message


BAD = {
    "no such file": (("--method", "dpo", "--data", "nowhere.jsonl"), "nowhere.jsonl: no such file"),
    "a broken line": (("--method", "dpo", "--data", "broken.jsonl"), "broken.jsonl, line 1"),
    "constraints": (
        ("--method", "sft-weighted", "--data", "pairs.jsonl"),
        "--method sft-weighted learns from feedback (--data), not from pairs",
    ),
    "a method of demonstrations": (("--method", "ditto", "--data", "pairs.jsonl"), "--demos"),
    "a knob that the method fixes": (
        (*DPO, "--lambda-out", "1"),
        "--method dpo fixes --lambda-out",
    ),
    "a prompt that leaves no room": (
        (*DPO, "--max-length", "16"),
        "pairs.jsonl, line 1: the prompt",
    ),
    "held-out demonstrations": ((*DPO, "--test", "nowhere.jsonl"), "--test belongs to --demos"),
    "a run that is there": ((*DPO, "--out", "runs/dpo"), "runs/dpo"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_before_a_model_loads(
    name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_for(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("minialign.weights.load.load_for", load_for)
    (workplace / "broken.jsonl").write_text('{"prompt": "a", "chosen": "b"}')
    arguments, said = BAD[name]
    before = tree(workplace)
    outcome = call(train, "--model", "toy", *arguments, cwd=workplace)
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome.err
    assert said in outcome.err
    assert tree(workplace) == before


# ---- a run ----


def test_a_run_leaves_its_record_and_the_held_out_pairs_figures(workplace: Path) -> None:
    run = workplace / "runs" / "dpo"
    record = json.loads((run / "config.json").read_text())
    assert record["options"]["data"] == "pairs.jsonl" and record["feedback"] == ""
    first, *_, last, done = metrics(run)
    assert first["dpo"] == pytest.approx(0.6931472) and first["rewards/margins"] == 0
    assert last["rewards/margins"] > 0
    assert "eval/rewards/accuracies" in last and "eval/rewards/margins" in last
    assert not any(name.startswith(("nll/out", "nll/near", "kl/")) for name in last)
    assert done["stage"] == "done"
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Trained on preference pairs: 4 DPO steps." in page
    assert "of the pairs moved towards the chosen answer" in page
    assert (
        "sentence of feedback" not in page and "revised" not in page and "evaluate.py" not in page
    )


def test_a_held_out_prompt_is_previewed_or_else_one_that_is_trained_on(workplace: Path) -> None:
    assert json.loads((workplace / "runs/dpo/preview.json").read_text())["prompt"] == "memo 0"
    write_jsonl(workplace / "all.jsonl", [{"messages": DIALOGUE, **PAIRS[0]}, *PAIRS[1:]])
    outcome = trained(workplace, *DPO, "--data", "all.jsonl", "--epochs", "1")
    assert "learns from  4 pairs: all.jsonl" in outcome.out
    assert 'judged by  nothing: give some lines the split "test"' in outcome.out
    preview = json.loads((workplace / "runs" / "all" / "preview.json").read_text())
    assert preview["prompt"] == "again"  # the dialogue's last words
    assert "--- prompt ---\nagain\n" in outcome.out
    assert "evaluate.py" not in outcome.out and "sample.py --adapter runs/all" in outcome.out
    assert not any(
        name.startswith("eval/") for line in metrics(workplace / "runs/all") for name in line
    )


def test_pairs_that_are_cut_before_they_part_are_warned_of(workplace: Path) -> None:
    pairs = [{**PAIRS[0], "chosen": "z" * 60 + "x", "rejected": "z" * 60 + "y"}, *PAIRS[1:]]
    write_jsonl(workplace / "cut.jsonl", pairs)
    cut = (*DPO, "--data", "cut.jsonl", "--max-length", "40", "--epochs", "1")
    said = "warning  in 1 of 4 pairs both answers are the same"
    for method in ("dpo", "sft"):
        out = trained(workplace, *cut, "--method", method, "--out", f"cut/{method}").out
        assert "without an end token" in out and (said in out) == (method == "dpo")


def test_pairs_teach_what_a_folder_with_the_same_answers_teaches(workplace: Path) -> None:
    folder = workplace / "folder"
    folder.mkdir()
    description = {"feedback": "Sign as Sam", "domain": "notes", "effect": "ends with Sam"}
    (folder / "feedback.json").write_text(json.dumps(description))
    lines = [
        {
            **{"prompt": pair["prompt"], "split": pair.get("split", "train")},
            **{"revised": pair["chosen"], "baseline": pair["rejected"]},
        }
        for pair in [*PAIRS, *HELD_OUT]
    ]
    write_jsonl(folder / "in_scope.jsonl", lines)
    for scope in ("near_scope", "out_of_scope"):
        line = {"prompt": scope, "baseline": "a", "split": "train"}
        write_jsonl(folder / f"{scope}.jsonl", [line])
    for method in ("dpo", "sft"):
        trained(workplace, *DPO, "--data", "folder", "--method", method, "--out", f"same/{method}")
        same, run = workplace / "same" / method, workplace / "runs" / method
        assert metrics(same) == metrics(run)
        assert weights(same) == weights(run)


def test_sft_learns_the_chosen_answers_alone(workplace: Path) -> None:
    others = [{**pair, "rejected": "something else"} for pair in [*PAIRS, *HELD_OUT]]
    write_jsonl(workplace / "others.jsonl", others)
    for method in ("dpo", "sft"):
        arguments = ("--data", "others.jsonl", "--method", method, "--out", f"others/{method}")
        trained(workplace, *DPO, *arguments)
        same = weights(workplace / "others" / method) == weights(workplace / "runs" / method)
        assert same == (method == "sft")
    first, *_, last, _ = metrics(workplace / "runs" / "sft")
    assert last["nll/in_scope"] < first["nll/in_scope"] and "eval/nll/in_scope" in last


@pytest.mark.parametrize("method", ["dpo", "sft"])
def test_inspect_prints_the_first_pairs_exact_tokens(method: str, workplace: Path) -> None:
    before = tree(workplace)
    arguments = (*DPO, "--method", method, "--inspect", "--out", "runs/dpo")
    outcome = trained(workplace, *arguments)  # beside a finished run, too
    assert tree(workplace) == before
    head, *lines = outcome.out.splitlines()
    assert head.startswith("pairs.jsonl, line 1: ") and "(* = trained on)" in head
    shown: dict[str, list[int]] = {"prompt": [], "chosen": [], "rejected": []}
    places: dict[str, list[int]] = {"prompt": [], "chosen": [], "rejected": []}
    marked: dict[str, list[int]] = {"prompt": [], "chosen": [], "rejected": []}
    for line in lines:
        match = re.fullmatch(r" *(\d+) +(\d+) ([* ]) (prompt|chosen|rejected) +['\"].*['\"]", line)
        assert match, line
        place, token, mark, part = match.groups()
        shown[part].append(int(token))
        places[part].append(int(place))
        marked[part] += [int(token)] if mark == "*" else []
    tokenizer = Tokenizer.from_folder(workplace / "toy")
    assert shown["prompt"] == tokenizer.encode_prompt("note 0")
    assert shown["chosen"] == tokenizer.encode_completion("the note 0 Sam")
    assert shown["rejected"] == tokenizer.encode_completion("the note 0")
    common = len(tokenizer.encode_completion("the note 0")) - 1  # in DPO, it cancels
    assert shown["chosen"][:common] == shown["rejected"][:common] and common > 0
    assert marked == {
        "prompt": [],
        "chosen": shown["chosen"][common:] if method == "dpo" else shown["chosen"],
        "rejected": shown["rejected"][common:] if method == "dpo" else [],
    }
    assert places["chosen"][0] == places["rejected"][0] == len(shown["prompt"])


def test_an_interrupted_run_goes_on_to_the_same_result_unless_its_pairs_changed(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from minialign.training.run import Run

    log = Run.log

    def stop(self: Run, stage: str, step: int, found: dict[str, Any]) -> None:
        log(self, stage, step, found)
        self.interrupted = step == 1

    file = workplace / "pairs.jsonl"
    text = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", stop)
        assert call(train, *DPO, "--out", "runs/stopped", cwd=workplace).code == 130
    file.write_bytes(text + b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    refused = call(train, "--resume", "runs/stopped", cwd=workplace)
    assert refused.code == 2 and "pairs.jsonl: has changed" in refused.err
    file.unlink()
    refused = call(train, "--resume", "runs/stopped", cwd=workplace)
    assert refused.code == 2 and "pairs.jsonl: no such file" in refused.err
    file.write_bytes(text)
    trained(workplace, "--resume", "runs/stopped")
    assert metrics(workplace / "runs" / "stopped") == metrics(workplace / "runs" / "dpo")
    assert weights(workplace / "runs" / "stopped") == weights(workplace / "runs" / "dpo")


# ---- evaluate.py ----


@pytest.mark.parametrize("more", [(), ("--judges", "model", "--judge-model", "toy")])
def test_there_is_no_scope_to_score_which_is_one_line(
    more: tuple[str, ...], workplace: Path
) -> None:
    before = tree(workplace)
    outcome = call(evaluate, "runs/dpo", *more, cwd=workplace)
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome.err
    assert "runs/dpo: learned from preference pairs" in outcome.err
    assert "report.html" in outcome.err and "--compare" in outcome.err
    assert tree(workplace) == before


def test_runs_are_compared_on_one_page(workplace: Path) -> None:
    outcome = call(evaluate, "--compare", "runs/dpo", "runs/sft", cwd=workplace)
    assert outcome.code == 0, outcome.err
    assert (workplace / "runs" / "comparison.html").exists()
