"""The records that people bring: every accepted form.

What is refused, and in which words, is in tests/commands/test_bad_input.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers.files import load_one, write_jsonl

from minialign.data.records import (
    Demonstration,
    Example,
    held_out_split,
    load_demonstrations,
    load_prompts,
    training_split,
)
from minialign.errors import InputError

USER = [{"role": "user", "content": "Hi?"}]


# ---- demonstrations ----


@pytest.mark.parametrize("key", ["completion", "output", "response"])
def test_the_completion_goes_by_three_names(tmp_path: Path, key: str) -> None:
    demonstration = load_one(tmp_path, {"prompt": "Hi?", key: "Hello."})
    assert (demonstration.messages, demonstration.completion) == (USER, "Hello.")
    assert demonstration.prompt == "Hi?"


def test_a_conversation_ends_in_its_completion(tmp_path: Path) -> None:
    context = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hi?"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "And now?"},
    ]
    answer = {"role": "assistant", "content": "Goodbye."}
    demonstration = load_one(tmp_path, {"messages": [*context, answer]})
    assert (demonstration.messages, demonstration.completion) == (context, "Goodbye.")
    assert demonstration.prompt == "And now?"


def test_only_the_outer_white_space_of_a_completion_goes(tmp_path: Path) -> None:
    demonstration = load_one(tmp_path, {"prompt": " p ", "completion": "\n  a \n\n b \n"})
    assert demonstration.completion == "a \n\n b"
    assert demonstration.prompt == " p "


def test_other_fields_are_ignored(tmp_path: Path) -> None:
    record = {"prompt": "p", "completion": "c", "id": 7, "sample": 0, "logprob": -1.5}
    assert load_one(tmp_path, record).completion == "c"


# ---- splits ----


def with_splits(folder: Path, *splits: str | None) -> list[Demonstration]:
    records = [
        {"prompt": "p", "completion": str(i), **({"split": split} if split else {})}
        for i, split in enumerate(splits)
    ]
    return load_demonstrations(write_jsonl(folder / "demos.jsonl", records))


def test_train_lines_and_lines_without_a_split_are_learned_from(tmp_path: Path) -> None:
    everything = with_splits(tmp_path, "train", None, "test", "validation")
    assert [d.completion for d in training_split(everything)] == ["0", "1"]


def test_test_lines_are_judged_by_and_others_only_where_there_are_none(tmp_path: Path) -> None:
    assert [
        d.completion for d in held_out_split(with_splits(tmp_path, "train", "validation", "test"))
    ] == ["2"]
    assert [
        d.completion for d in held_out_split(with_splits(tmp_path, "train", "validation", "dev"))
    ] == ["1", "2"]
    assert held_out_split(with_splits(tmp_path, "train", None)) == []


# ---- prompts ----


def test_prompts_may_be_texts_conversations_or_demonstrations(tmp_path: Path) -> None:
    conversation = [{"role": "system", "content": "Be kind."}, *USER]
    records = [
        {"prompt": "Hi?"},
        {"prompt": "Hi?", "completion": "Hello."},
        {"messages": conversation},
        {"messages": [*conversation, {"role": "assistant", "content": "Hello."}]},
    ]
    found = load_prompts(write_jsonl(tmp_path / "prompts.jsonl", records))
    assert found == [USER, USER, conversation, conversation]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"messages": []}, "holds nothing to answer"),
        ({"messages": [{"role": "assistant", "content": "Hello."}]}, "holds nothing to answer"),
        ({"messages": [{"role": "user"}]}, '"messages" must be a list of'),
        ({"prompt": 3}, 'the field "prompt" must be a text'),
        ({"prompt": ""}, "the prompt is empty"),
        ({"completion": "c"}, 'the field "prompt" is missing'),
    ],
)
def test_a_line_that_is_no_prompt_is_named(
    tmp_path: Path, record: dict[str, Any], said: str
) -> None:
    file = write_jsonl(tmp_path / "prompts.jsonl", [{"prompt": "fine"}, record])
    with pytest.raises(InputError) as error:
        load_prompts(file)
    assert str(error.value).startswith(f"{file}, line 2: ") and said in str(error.value)


# ---- sequences ----


def test_a_sequence_needs_a_prompt_and_may_have_no_completion() -> None:
    with pytest.raises(InputError, match="at least one prompt token"):
        Example((), (1, 2))
    assert len(Example((1,), ())) == 1


def test_sequences_are_equal_by_their_ids_whatever_holds_them() -> None:
    from_lists = Example([1, 2], [3])  # type: ignore[arg-type]
    assert from_lists == Example((1, 2), (3,)) and len({from_lists, Example((1, 2), (3,))}) == 1
    assert from_lists != Example((1,), (2, 3))  # the boundary belongs to it


# ---- other tools' forms ----


def test_alpaca_and_sharegpt_are_read_as_demonstrations(tmp_path: Path) -> None:
    alpaca = {"instruction": "Greet", "input": "Kim", "output": "Hello."}
    assert load_one(tmp_path, alpaca).prompt == "Greet\n\nKim"
    assert load_one(tmp_path, {**alpaca, "input": ""}).prompt == "Greet"
    turns = [
        {"from": "system", "value": "Be kind."},
        {"from": "human", "value": "Hi?"},
        {"from": "gpt", "value": "Hello."},
    ]
    found = load_one(tmp_path, {"conversations": turns})
    assert found.messages == [{"role": "system", "content": "Be kind."}, *USER]
    assert found.completion == "Hello."
    file = write_jsonl(tmp_path / "prompts.jsonl", [alpaca, {"conversations": turns}])
    assert load_prompts(file)[1] == found.messages
