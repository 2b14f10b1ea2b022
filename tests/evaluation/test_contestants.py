"""Who answers: few-shot prompts, files of answers, and one sampler for all."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.files import write_jsonl
from helpers.toys import byte_tokenizer, small_model, with_adapter

from minialign.data.records import Demonstration, Example
from minialign.errors import InputError
from minialign.evaluation.contestants import (
    Contestant,
    answers_from_file,
    few_shot_messages,
    held_out_sequences,
    prompt_ids,
    write_answers,
)
from minialign.policy.adapters import set_adapter
from minialign.policy.knobs import SamplingConfig
from minialign.policy.sample import sample

TOKENIZER = byte_tokenizer()
ASKED = [{"role": "user", "content": "ask"}]


def demonstration(number: int) -> Demonstration:
    messages = [{"role": "user", "content": f"p{number}"}]
    return Demonstration(messages, f"text {number}", f"line {number}")


SHOWN = tuple(map(demonstration, range(3)))
SAMPLING = SamplingConfig(6)


def length(messages: list[dict[str, str]]) -> int:
    return len(TOKENIZER.encode_prompt(messages))


def test_few_shot_is_the_demonstrations_as_earlier_turns_in_their_order() -> None:
    messages = few_shot_messages(SHOWN, ASKED, TOKENIZER, 10_000)
    assert [m["content"] for m in messages] == [
        "p0",
        "text 0",
        "p1",
        "text 1",
        "p2",
        "text 2",
        "ask",
    ]
    assert [m["role"] for m in messages] == ["user", "assistant"] * 3 + ["user"]


def test_few_shot_takes_as_many_demonstrations_as_fit_exactly() -> None:
    two = few_shot_messages(SHOWN[:2], ASKED, TOKENIZER, 10_000)
    assert few_shot_messages(SHOWN, ASKED, TOKENIZER, length(two)) == two
    one = few_shot_messages(SHOWN, ASKED, TOKENIZER, length(two) - 1)
    assert [m["content"] for m in one] == ["p0", "text 0", "ask"]


def test_where_not_one_demonstration_fits_it_says_so() -> None:
    with pytest.raises(InputError, match="few-shot: not one demonstration fits into a prompt of 9"):
        few_shot_messages(SHOWN, ASKED, TOKENIZER, 9)


def test_a_file_gives_equally_many_answers_to_each_prompt(tmp_path: Path) -> None:
    lines = [("a", "1"), ("b", "2"), ("a", "3"), ("c", "4")]
    file = write_jsonl(tmp_path / "x.jsonl", [{"prompt": p, "completion": c} for p, c in lines])
    assert answers_from_file(file, ["b", "a"]) == (("2",), ("1",))
    with pytest.raises(InputError, match="x.jsonl: has no answer to the held-out prompt 'z'"):
        answers_from_file(file, ["a", "z"])


def test_all_contestants_answer_with_the_same_random_streams() -> None:
    model = with_adapter(small_model(), "learned")
    contestants = [
        Contestant("base"),
        Contestant("few-shot", shown=SHOWN),
        Contestant("learned", "learned"),
        Contestant("file", answers=(("abc", "de"),)),
    ]
    heard: list[tuple[str, int]] = []

    def progress(name: str, texts: int):  # type: ignore[no-untyped-def]
        heard.append((name, texts))
        return lambda *_: None

    found = write_answers(
        model, TOKENIZER, contestants, [ASKED], 2, SAMPLING, seed=3, progress=progress
    )
    assert heard == [("base", 2), ("few-shot", 2), ("learned", 2)]
    for name, adapter, messages in (
        ("base", None, ASKED),
        ("few-shot", None, few_shot_messages(SHOWN, ASKED, TOKENIZER, 10_000)),
        ("learned", "learned", ASKED),
    ):
        set_adapter(model, adapter)
        (direct,) = sample(model, [TOKENIZER.encode_prompt(messages)], 2, SAMPLING, seed=3)
        assert [c.ids for c in found[name][0]] == [c.ids for c in direct]
        assert [c.text for c in found[name][0]] == [TOKENIZER.decode(c.ids) for c in direct]
    assert [c.text for c in found["file"][0]] == ["abc", "de"]
    assert found["base"] != found["learned"]


def test_held_out_texts_stand_behind_what_the_contestant_reads() -> None:
    text = Example(tuple(TOKENIZER.encode_prompt(ASKED)), (5, 6))
    plain = held_out_sequences(Contestant("base"), [text], [ASKED], TOKENIZER, 999)
    assert plain == [text]
    few_shot = Contestant("few-shot", shown=SHOWN)
    (found,) = held_out_sequences(few_shot, [text], [ASKED], TOKENIZER, 999)
    assert found.completion_ids == (5, 6)
    assert (found.prompt_ids,) == tuple(prompt_ids(few_shot, [ASKED], TOKENIZER, 999))
