"""The files that people bring: every accepted form, and what becomes of a text that is too long.

What is refused, and in which words, is in tests/commands/test_bad_input.py.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from helpers.files import write_jsonl
from helpers.models import write_checkpoint

from minialign.data.records import (
    Demonstration,
    Sequence,
    held_out_split,
    load_demonstrations,
    load_prompts,
    training_split,
)
from minialign.errors import InputError
from minialign.policy.encode import encode_demonstration
from minialign.weights.tokenizer import Tokenizer

USER = [{"role": "user", "content": "Hi?"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(write_checkpoint(tmp_path_factory.mktemp("data") / "toy"))


def load_one(folder: Path, record: dict[str, Any]) -> Demonstration:
    (demonstration,) = load_demonstrations(write_jsonl(folder / "demos.jsonl", [record]))
    return demonstration


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


def test_messages_and_prompt_are_the_same_demonstration(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    plain = load_one(tmp_path, {"prompt": "Hi?", "completion": "Hello."})
    messages = [*USER, {"role": "assistant", "content": "Hello."}]
    conversation = load_one(tmp_path, {"messages": messages})
    encoded = [encode_demonstration(d, tokenizer, 99) for d in (plain, conversation)]
    assert encoded[0] == encoded[1]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n \n"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_blank_lines_and_a_byte_order_mark_do_not_matter(
    tmp_path: Path, ending: str, mark: bytes, last: bool
) -> None:
    lines = [json.dumps({"prompt": f"p{i}", "completion": f"c{i}\nd"}) for i in range(3)]
    text = ending.join(lines) + (ending if last else "")
    (tmp_path / "demos.jsonl").write_bytes(mark + text.encode())
    found = load_demonstrations(tmp_path / "demos.jsonl")
    assert [(d.prompt, d.completion) for d in found] == [(f"p{i}", f"c{i}\nd") for i in range(3)]


def test_a_demonstration_knows_its_line_also_behind_blank_ones(tmp_path: Path) -> None:
    line = json.dumps({"prompt": "p", "completion": "c"})
    (tmp_path / "demos.jsonl").write_text(f"\n{line}\n\n\n{line}\n")
    sources = [d.source for d in load_demonstrations(tmp_path / "demos.jsonl")]
    assert sources == [f"{tmp_path}/demos.jsonl, line {number}" for number in (2, 5)]


def test_separators_within_a_text_do_not_end_its_line(tmp_path: Path) -> None:
    text = "one\u2028two\u0085three\x0cfour"
    assert load_one(tmp_path, {"prompt": "p", "completion": text}).completion == text


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


# ---- token ids ----


def demonstration(completion: str) -> Demonstration:
    return Demonstration(USER, completion, "demos.jsonl, line 1")


def test_prompt_and_completion_are_encoded_as_separate_segments(tokenizer: Tokenizer) -> None:
    sequence, warning = encode_demonstration(demonstration("Dear Sam"), tokenizer, 99)
    assert sequence.prompt_ids == tuple(tokenizer.encode_prompt(USER))
    assert sequence.completion_ids == tuple(tokenizer.encode_completion("Dear Sam"))
    assert sequence.completion_ids[-1] == tokenizer.eos_id
    assert warning is None


def test_a_text_that_just_fits_keeps_its_end_token(tokenizer: Tokenizer) -> None:
    whole, _ = encode_demonstration(demonstration("Dear Sam"), tokenizer, 99)
    fitting, warning = encode_demonstration(demonstration("Dear Sam"), tokenizer, len(whole))
    assert (fitting, warning) == (whole, None)


@pytest.mark.parametrize("missing", [1, 2, 5])
def test_a_text_that_is_too_long_is_cut_and_does_not_teach_to_stop(
    tokenizer: Tokenizer, missing: int
) -> None:
    text = "Dear Sam, bring the numbers."
    whole, _ = encode_demonstration(demonstration(text), tokenizer, 999)
    cut, warning = encode_demonstration(demonstration(text), tokenizer, len(whole) - missing)
    assert cut.prompt_ids == whole.prompt_ids and cut.prompt_ids[0] == tokenizer.bos_id
    assert cut.completion_ids == whole.completion_ids[:-missing]
    assert tokenizer.eos_id not in cut.completion_ids
    kept, of = len(cut.completion_ids), len(whole.completion_ids)
    assert warning is not None and warning.startswith("demos.jsonl, line 1: ")
    assert f"first {kept} of {of} tokens" in warning and "--max-length" in warning


def test_where_the_chat_template_refuses_the_line_is_named(tokenizer: Tokenizer) -> None:
    refusing = copy.copy(tokenizer)
    refusing.template = "{{ raise_exception('no system here') }}"
    with pytest.raises(InputError, match=r"^demos.jsonl, line 1: .* no system here$"):
        encode_demonstration(demonstration("Dear Sam"), refusing, 99)


def test_a_prompt_that_leaves_no_room_is_refused_and_never_cut(tokenizer: Tokenizer) -> None:
    length = len(tokenizer.encode_prompt(USER))
    sequence, _ = encode_demonstration(demonstration("Dear Sam"), tokenizer, length + 1)
    assert len(sequence.prompt_ids) == length and len(sequence.completion_ids) == 1
    with pytest.raises(InputError, match="line 1: the prompt has .* shorten it"):
        encode_demonstration(demonstration("Dear Sam"), tokenizer, length)


def test_a_sequence_needs_a_prompt_and_may_have_no_completion() -> None:
    with pytest.raises(InputError, match="at least one prompt token"):
        Sequence((), (1, 2))
    assert len(Sequence((1,), ())) == 1


def test_sequences_are_equal_by_their_ids_whatever_holds_them() -> None:
    from_lists = Sequence([1, 2], [3])  # type: ignore[arg-type]
    assert from_lists == Sequence((1, 2), (3,)) and len({from_lists, Sequence((1, 2), (3,))}) == 1
    assert from_lists != Sequence((1,), (2, 3))  # the boundary belongs to it
