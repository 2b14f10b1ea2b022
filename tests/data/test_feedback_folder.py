"""A C3PO data folder: what is read from it, how it becomes token ids, and every way to get it
wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.refusals import refusal
from helpers.toys import EOS, byte_tokenizer, spaced_tokenizer

from minialign.data.checks import Check
from minialign.data.feedback import SCOPES, Response, load_feedback_data
from minialign.policy import encode
from minialign.policy.encode import encode_feedback

DESCRIPTION = {"feedback": "Greet as a pirate.", "domain": "greetings", "effect": "says Ahoy"}
CHECK = {"kind": "starts_with", "text": "Ahoy"}
Records = list[dict[str, Any]]


def lines(scope: str) -> Records:
    """Two lines to train on and one to test on."""
    records: Records = []
    for number, split in enumerate(["train", "test", "train"]):
        record = {"prompt": f"{scope} {number}", "baseline": f"hello {number}", "split": split}
        revised = {"revised": f"Ahoy {number}"} if scope == "in_scope" else {}
        records.append(record | revised)
    return records


def write(folder: Path, description: Any = None, **scopes: Records) -> Path:
    folder.mkdir(exist_ok=True)
    text = json.dumps(DESCRIPTION if description is None else description)
    (folder / "feedback.json").write_text(text, encoding="utf-8")
    for scope in SCOPES:
        records = scopes.get(scope, lines(scope))
        text = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{scope}.jsonl").write_text(text, encoding="utf-8")
    return folder


# ---- what is read ----


def test_a_folder_is_read_as_it_stands(tmp_path: Path) -> None:
    extras = {
        "in_context": "Ahoy there",
        "cot": "Ahoy then",
        "baseline_finish_reason": "length",
        "revised_finish_reason": "stop",
        "note": "columns that nobody asked for are left alone",
    }
    full = {"prompt": "say hi", "baseline": " hello\n", "revised": "Ahoy! ", "split": "train"}
    data = load_feedback_data(
        write(tmp_path, {**DESCRIPTION, "check": CHECK}, in_scope=[full | extras])
    )
    assert (data.feedback, data.domain, data.effect) == tuple(DESCRIPTION.values())
    assert data.checks == (
        Check("starts_with", ("Ahoy",), source=f"{tmp_path / 'feedback.json'}: check"),
    )
    (example,) = data.in_scope
    assert (example.prompt, example.split) == ("say hi", "train")
    assert (example.baseline, example.revised) == (Response("hello", "length"), Response("Ahoy!"))
    assert (example.in_context, example.cot) == ("Ahoy there", "Ahoy then")
    assert example.source == f"{tmp_path / 'in_scope.jsonl'}, line 1"


def test_what_is_optional_may_be_missing_or_null(tmp_path: Path) -> None:
    nulls = {"in_context": None, "cot": None, "baseline_finish_reason": None}
    with_nulls = [record | nulls for record in lines("near_scope")]
    data = load_feedback_data(
        write(tmp_path, {**DESCRIPTION, "check": None}, near_scope=with_nulls)
    )
    assert data.checks == ()
    for example in (*data.in_scope, *data.near_scope, *data.out_of_scope):
        assert (example.in_context, example.cot) == (None, None)
        assert example.baseline.finish_reason == "stop"
        assert (example.revised is not None) == example.prompt.startswith("in_scope")


def test_splits_are_told_apart_in_the_files_order(tmp_path: Path) -> None:
    data = load_feedback_data(write(tmp_path))
    for scope in SCOPES:
        assert [e.prompt for e in data.examples(scope, "train")] == [f"{scope} 0", f"{scope} 2"]
        assert [e.prompt for e in data.examples(scope, "test")] == [f"{scope} 1"]


# ---- token ids ----


def test_every_branch_has_the_prompt_as_it_is_sampled_from_and_the_answer_with_its_end(
    tmp_path: Path,
) -> None:
    data, tokenizer = load_feedback_data(write(tmp_path)), byte_tokenizer()
    sequences, warnings = encode_feedback(data, "train", tokenizer, 64)
    assert warnings == []
    for place, (revised, baseline) in zip((0, 2), sequences.in_scope, strict=True):
        prompt = tuple(tokenizer.encode_prompt(f"in_scope {place}"))
        assert revised.prompt_ids == baseline.prompt_ids == prompt
        assert revised.completion_ids == tuple(tokenizer.encode_completion(f"Ahoy {place}"))
        assert baseline.completion_ids == tuple(tokenizer.encode_completion(f"hello {place}"))
    for scope in ("near_scope", "out_of_scope"):
        for place, sequence in zip((0, 2), getattr(sequences, scope), strict=True):
            assert sequence.prompt_ids == tuple(tokenizer.encode_prompt(f"{scope} {place}"))
            assert sequence.completion_ids == tuple(tokenizer.encode_completion(f"hello {place}"))
    test, _ = encode_feedback(data, "test", tokenizer, 64)
    assert [len(getattr(test, scope)) for scope in SCOPES] == [1, 1, 1]
    assert not set(test.near_scope) & set(sequences.near_scope)


@pytest.mark.parametrize("template", ["{{ bos_token }}[INST] {{ messages[0]['content'] }} [/INST]"])
@pytest.mark.parametrize("make", [byte_tokenizer, spaced_tokenizer])
def test_no_answer_changes_its_prompts_last_token(
    template: str, make: Callable[[str], Any], tmp_path: Path
) -> None:
    """In the official code "[/INST]" + "[Dear" is one text: a "][" stands across the boundary, and
    only some branches have a space there.
    """
    tokenizer = make(template)
    record = {"prompt": "Dear", "baseline": "[Dear", "revised": " Dear", "split": "train"}
    near = {"prompt": "Dear!", "baseline": "Dear", "split": "train"}
    data = load_feedback_data(write(tmp_path, in_scope=[record], near_scope=[near]))
    sequences, _ = encode_feedback(data, "train", tokenizer, 64)
    ((revised, baseline),) = sequences.in_scope
    assert revised.prompt_ids == baseline.prompt_ids == tuple(tokenizer.encode_prompt("Dear"))
    assert revised.completion_ids == sequences.near_scope[0].completion_ids  # both say "Dear"
    assert tokenizer.decode(baseline.completion_ids).strip() == "[Dear"


def test_an_answer_that_was_cut_off_has_no_end_token_in_any_branch(tmp_path: Path) -> None:
    cut = {"baseline_finish_reason": "length", "revised_finish_reason": "length"}
    folder = write(tmp_path, **{scope: [r | cut for r in lines(scope)] for scope in SCOPES})
    sequences, warnings = encode_feedback(load_feedback_data(folder), "train", byte_tokenizer(), 64)
    whole, _ = encode_feedback(load_feedback_data(write(tmp_path)), "train", byte_tokenizer(), 64)
    assert warnings == []

    def flat(found: encode.ScopedExamples) -> list[tuple[int, ...]]:
        pairs = [s for pair in found.in_scope for s in pair]
        return [s.completion_ids for s in (*pairs, *found.near_scope, *found.out_of_scope)]

    assert len(flat(whole)) == 8
    for own, other in zip(flat(sequences), flat(whole), strict=True):
        assert EOS not in own and other == (*own, EOS)


def test_an_answer_beyond_max_length_is_cut_with_a_warning_and_without_an_end_token(
    tmp_path: Path,
) -> None:
    records = [r | {"baseline": "x" * 200} for r in lines("near_scope")]
    data = load_feedback_data(write(tmp_path, near_scope=records))
    sequences, warnings = encode_feedback(data, "train", byte_tokenizer(), 64)
    assert [len(s) for s in sequences.near_scope] == [64, 64]
    assert all(EOS not in s.completion_ids for s in sequences.near_scope)
    assert len(warnings) == 2 and "near_scope.jsonl, line 1" in warnings[0]
    assert "in_scope.jsonl, line 1" in refusal(
        lambda: encode_feedback(data, "train", byte_tokenizer(), 16)
    )


# ---- what is wrong ----


def without(records: Records, field: str) -> Records:
    return [records[0], {k: v for k, v in records[1].items() if k != field}, *records[2:]]


def changed(scope: str, **changes: Any) -> Records:
    first, second, *others = lines(scope)
    return [first, second | changes, *others]


BROKEN_LINES: dict[str, tuple[str, Records, str]] = {
    **{
        f"no {field}": ("in_scope", without(lines("in_scope"), field), f'"{field}" is missing')
        for field in ("prompt", "baseline", "revised", "split")
    },
    "no baseline out of scope": (
        "out_of_scope",
        without(lines("out_of_scope"), "baseline"),
        '"baseline" is missing',
    ),
    "an empty prompt": ("near_scope", changed("near_scope", prompt=" \n"), '"prompt" is empty'),
    "an empty revision": ("in_scope", changed("in_scope", revised=""), '"revised" is empty'),
    "a number": ("in_scope", changed("in_scope", baseline=3), '"baseline" must be a text'),
    "a list": ("in_scope", changed("in_scope", in_context=["x"]), '"in_context" must be a text'),
    "an unknown split": ("near_scope", changed("near_scope", split="dev"), "unknown split 'dev'"),
    "an unknown end": (
        "in_scope",
        changed("in_scope", revised_finish_reason="eos"),
        '"revised_finish_reason"',
    ),
    "a prompt in both splits": (
        "out_of_scope",
        changed("out_of_scope", prompt="out_of_scope 0"),
        "out_of_scope.jsonl, line 1",
    ),
    "a prompt in both splits of two scopes": (
        "near_scope",
        changed("near_scope", prompt=" in_scope 2\n"),
        "in_scope.jsonl, line 3",
    ),
}


@pytest.mark.parametrize(("scope", "records", "named"), BROKEN_LINES.values(), ids=BROKEN_LINES)
def test_a_broken_line_is_named(scope: str, records: Records, named: str, tmp_path: Path) -> None:
    message = refusal(lambda: load_feedback_data(write(tmp_path, **{scope: records})))
    assert f"{tmp_path / scope}.jsonl, line 2" in message and named in message


@pytest.mark.parametrize("scope", SCOPES)
def test_a_scope_without_a_training_prompt_is_refused(scope: str, tmp_path: Path) -> None:
    records = [record | {"split": "test"} for record in lines(scope)]
    message = refusal(lambda: load_feedback_data(write(tmp_path, **{scope: records})))
    assert message.startswith(f"{tmp_path / scope}.jsonl: no prompt to train on")


@pytest.mark.parametrize("name", ["feedback.json", *(f"{scope}.jsonl" for scope in SCOPES)])
def test_a_missing_or_empty_file_is_named(name: str, tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / name).write_text("")
    assert str(folder / name) in refusal(lambda: load_feedback_data(folder))
    (folder / name).unlink()
    assert refusal(lambda: load_feedback_data(folder)) == f"{folder / name}: no such file"


@pytest.mark.parametrize(
    ("description", "named"),
    [
        ([], "JSON object"),
        ({**DESCRIPTION, "domain": ""}, '"domain" is empty'),
        ({k: v for k, v in DESCRIPTION.items() if k != "effect"}, '"effect" is missing'),
        ({**DESCRIPTION, "feedback": 7}, '"feedback" must be a text'),
        ({**DESCRIPTION, "check": {"kind": "rhymes"}}, "'rhymes'"),
        ({**DESCRIPTION, "check": []}, "list is empty"),
        ({**DESCRIPTION, "check": {"kind": "regex", "pattern": "("}}, "regular expression"),
    ],
    ids=str,
)
def test_a_broken_description_is_named(description: Any, named: str, tmp_path: Path) -> None:
    message = refusal(lambda: load_feedback_data(write(tmp_path, description)))
    assert message.startswith(str(tmp_path / "feedback.json")) and named in message


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "nowhere"
    assert refusal(lambda: load_feedback_data(folder)) == f"{folder}: no such folder"
    folder.write_text("")
    assert refusal(lambda: load_feedback_data(folder)) == f"{folder}: is no folder"
