"""From records to token ids, and what becomes of a text that is too long."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from helpers.files import load_one
from helpers.models import write_checkpoint

from minialign.data.records import Demonstration
from minialign.errors import InputError
from minialign.policy.encode import encode_demonstration
from minialign.weights.tokenizer import Tokenizer

USER = [{"role": "user", "content": "Hi?"}]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_folder(write_checkpoint(tmp_path_factory.mktemp("data") / "toy"))


def test_messages_and_prompt_are_the_same_demonstration(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    plain = load_one(tmp_path, {"prompt": "Hi?", "completion": "Hello."})
    messages = [*USER, {"role": "assistant", "content": "Hello."}]
    conversation = load_one(tmp_path, {"messages": messages})
    encoded = [encode_demonstration(d, tokenizer, 99) for d in (plain, conversation)]
    assert encoded[0] == encoded[1]


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
