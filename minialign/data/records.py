"""The records: what a person's file says (Demonstration), and what the model works on (Sequence,
token ids).

Demonstrations are JSON Lines: `{"prompt", "completion"}` (also `output` or `response`), or
`{"messages": [...]}` whose last message is the assistant's. Alpaca's `{"instruction", "input",
"output"}` and ShareGPT's `{"conversations": [{"from", "value"}]}` are read as these.
A line may carry `"split"`: `train` lines are learned from, the others are held out. Whatever is
wrong with a file is one line that names the file, the line and what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minialign.data.files import read_jsonl
from minialign.errors import InputError

Messages = list[dict[str, str]]
# What a run can learn from.
DEMONSTRATIONS, FEEDBACK, PAIRS, EDITS = "demonstrations", "feedback", "pairs", "corrections"
COMPLETION_KEYS = ("completion", "output", "response")
# What a text without a prompt goes by.
TEXT_KEYS = ("text", "body", "email", "e-mail", "mail", "message", "content")
SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}


@dataclass(frozen=True)
class Example:
    """Token ids are the truth: a prompt (not empty) and a completion, encoded as separate segments.

    They are never joined as text, and only the completion's ids are scored.
    """

    prompt_ids: tuple[int, ...]
    completion_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.prompt_ids) == 0:
            raise InputError(
                "a sequence needs at least one prompt token to predict its completion from"
            )
        object.__setattr__(self, "prompt_ids", tuple(self.prompt_ids))
        object.__setattr__(self, "completion_ids", tuple(self.completion_ids))

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


@dataclass(frozen=True)
class Demonstration:
    """One example of how a person writes, known by its line: two may share a prompt."""

    messages: Messages  # what the completion answers
    completion: str
    source: str  # "emails.jsonl, line 3", for messages
    split: str | None = None

    @property
    def prompt(self) -> str:
        return self.messages[-1]["content"]


def load_demonstrations(path: str | Path) -> list[Demonstration]:
    """Every demonstration of a file, in its order, whatever its split.

    Raises InputError for a missing, empty or broken file, naming the line.
    """
    return [
        parse_demonstration(record, f"{path}, line {number}") for number, record in read_jsonl(path)
    ]


def load_prompts(path: str | Path) -> list[Messages]:
    """Prompts to answer: lines with `prompt`, or with `messages` whose last is not the assistant's.

    A file of demonstrations is a file of prompts too. Raises InputError naming the line.
    """
    return [
        _prompt(_as_ours(record, where), where)
        for number, record in read_jsonl(path)
        for where in [f"{path}, line {number}"]
    ]


def training_split(demonstrations: Iterable[Demonstration]) -> list[Demonstration]:
    return [d for d in demonstrations if d.split in (None, "train")]


def held_out_split(demonstrations: Iterable[Demonstration]) -> list[Demonstration]:
    """The lines to judge by: `test` lines if there are any, otherwise all that are not `train`."""
    others = [d for d in demonstrations if d.split not in (None, "train")]
    return [d for d in others if d.split == "test"] or others


def parse_demonstration(record: dict[str, Any], where: str) -> Demonstration:
    """A record as it stands at `where` in a file. Raises InputError for whatever is wrong."""
    messages, completion = _parts(_as_ours(record, where), where)
    # Outer white space is no style, and would stand before the end token.
    completion = completion.strip()
    if not completion:
        raise InputError(f"{where}: the completion is empty: write it or delete the line")
    return Demonstration(messages, completion, where, record.get("split"))


def _as_ours(record: dict[str, Any], where: str) -> dict[str, Any]:
    """Alpaca's and ShareGPT's records under our names; all others as they are."""
    if "conversations" in record and "messages" not in record:
        turns = record["conversations"]
        well_formed = isinstance(turns, list) and all(
            isinstance(t, dict) and t.get("from") in SHAREGPT_ROLES for t in turns
        )
        if not well_formed:
            raise InputError(
                f'{where}: "conversations" must be a list of {{"from": "human" or "gpt", "value"}}'
            )
        messages = [{"role": SHAREGPT_ROLES[t["from"]], "content": t.get("value")} for t in turns]
        return {**record, "messages": messages}
    if "instruction" in record and "prompt" not in record:
        asked, given = record["instruction"], record.get("input")
        if isinstance(asked, str) and isinstance(given, str) and given.strip():
            asked = f"{asked}\n\n{given}"
        return {**record, "prompt": asked}
    return record


def _parts(record: dict[str, Any], where: str) -> tuple[Messages, str]:
    if "messages" in record:
        return _from_messages(record["messages"], where)
    key = next((key for key in COMPLETION_KEYS if key in record), "completion")
    for field in ("prompt", key):
        if field not in record:
            texts = [key for key in TEXT_KEYS if key in record]
            advice = ": minialign import makes demonstrations of texts" if texts else ""
            raise InputError(f'{where}: the field "{field}" is missing{advice}')
        if not isinstance(record[field], str):
            raise InputError(f'{where}: the field "{field}" must be a text')
    if not record["prompt"].strip():
        raise InputError(f"{where}: the prompt is empty: say what the completion answers")
    return [{"role": "user", "content": record["prompt"]}], record[key]


def _check_messages(messages: Any, where: str) -> None:
    well_formed = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in messages
    )
    if not well_formed:
        raise InputError(f'{where}: "messages" must be a list of {{"role": ..., "content": ...}}')


def _from_messages(messages: Any, where: str) -> tuple[Messages, str]:
    _check_messages(messages, where)
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise InputError(f'{where}: the last of at least two "messages" must be the assistant\'s')
    return messages[:-1], messages[-1]["content"]


def _prompt(record: dict[str, Any], where: str) -> Messages:
    messages = record.get("messages")
    if messages is None:
        return _parts({**record, "completion": ""}, where)[0]
    _check_messages(messages, where)
    if messages and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    if not messages:
        raise InputError(f'{where}: "messages" holds nothing to answer')
    return messages


def check_held_out(train: Iterable[Demonstration], held_out: Iterable[Demonstration]) -> None:
    """Raises InputError where a text that was learned from is also to be judged by."""
    learned = {d.completion: d.source for d in train}
    for demonstration in held_out:
        if demonstration.completion in learned:
            raise InputError(
                f"{demonstration.source}: a held-out text must be new, this one is trained on "
                f"({learned[demonstration.completion]})"
            )


def plural(count: int, noun: str) -> str:
    """1 demonstration, 2 demonstrations."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
