"""A sentence of feedback as data: the folder that C3PO learns from.

    feedback.json        {"feedback", "domain", "effect"} and, optionally, "check" (checks.py) and
                         "second_check", of which whatever made the revisions knew nothing
    in_scope.jsonl       prompts that the feedback is about
    near_scope.jsonl     prompts that look as if it were, and are not
    out_of_scope.jsonl   any other prompts

A line holds `prompt`, `baseline` (the base model's own answer), `split` (`train`, `test`, or `eval`
for the loss while training) and, in scope, `revised` (the same model's answer after it was given
the feedback). Optional are `in_context` and `cot` (answers of rival methods, for the evaluation)
and `baseline_finish_reason` and `revised_finish_reason`: an answer that was cut off (`length`) is
trained on without an end token. feedback.json may say under `written_by` whose the answers are.
Whatever is wrong is one line that names the file, the line and what to do.

Preference pairs, JSON Lines of {"prompt", "chosen", "rejected"}, become the same data with nothing
outside the scope: `chosen` stands for `revised`, `rejected` for `baseline`. So do edits, lines of
{"prompt", "draft", "final"}, by their `final` and their `draft`.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minialign.data.checks import Check, parse_checks
from minialign.data.files import read_bytes, read_json, read_jsonl
from minialign.data.records import Messages, load_prompts
from minialign.errors import InputError

if TYPE_CHECKING:
    pass


SCOPES = ("in_scope", "near_scope", "out_of_scope")
_SAID = ("feedback", "domain", "effect")
SPLITS = ("train", "test", "eval")
FINISH_REASONS = ("stop", "length")
DESCRIPTION = "feedback.json"


@dataclass(frozen=True)
class Response:
    """A response as text; one that was cut off has not ended, and must not teach to end there."""

    text: str
    finish_reason: str = "stop"


@dataclass(frozen=True)
class ScopeLine:
    """One line: a prompt and what was answered to it. `revised` is there in scope."""

    messages: Messages  # what is answered; the user's is the last
    baseline: Response
    revised: Response | None
    in_context: str | None
    cot: str | None
    split: str
    source: str  # "ahoy/in_scope.jsonl, line 3", for messages

    @property
    def prompt(self) -> str:
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class FeedbackData:
    """A C3PO data folder, both splits; or a file of preference pairs, all of them in scope."""

    feedback: str  # what the person said; empty for preference pairs
    domain: str  # when it applies
    effect: str  # what an answer that follows it looks like
    checks: tuple[Check, ...]  # empty where no program can tell
    in_scope: tuple[ScopeLine, ...]
    near_scope: tuple[ScopeLine, ...]
    out_of_scope: tuple[ScopeLine, ...]
    second_checks: tuple[Check, ...] = ()  # independent of what made the revisions

    def examples(self, scope: str, split: str) -> list[ScopeLine]:
        """The lines of one scope and one split, in the file's order."""
        everything: tuple[ScopeLine, ...] = getattr(self, scope)
        return [example for example in everything if example.split == split]


def load_feedback_data(folder: str | Path) -> FeedbackData:
    """Reads and checks a data folder.

    Raises InputError, one line that names the file, for anything missing, empty or contradictory.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: {'is no folder' if folder.exists() else 'no such folder'}")
    file = folder / DESCRIPTION
    description = read_json(file)
    feedback, domain, effect = (text_field(description, field, str(file)) for field in _SAID)
    checks, second = (
        parse_checks(description[field], where) if description.get(field) is not None else ()
        for field, where in (("check", str(file)), ("second_check", f"{file}: second"))
    )
    in_scope, near_scope, out_of_scope = (
        _read_scope(folder / f"{scope}.jsonl", scope) for scope in SCOPES
    )
    _check_splits([*in_scope, *near_scope, *out_of_scope])
    scopes = in_scope, near_scope, out_of_scope
    return FeedbackData(feedback, domain, effect, checks, *scopes, second)


def data_paths(data: str) -> list[Path]:
    """--data is a folder, a file of preference pairs, or several folders with commas between."""
    if Path(data).exists():
        return [Path(data)]
    parts = [part.strip() for part in data.split(",")]
    if not all(parts):  # an empty one would be the folder that one is in
        raise InputError(f"{data}: a folder is missing beside a comma: name it, or drop the comma")
    return [Path(part) for part in parts]


def flag_for_test(data: str) -> str:
    """What evaluate.py needs besides the run: of several feedbacks that were learned at once, each
    has to be tested by itself.
    """
    first, *others = data_paths(data)
    return f" --test {shlex.quote(str(first))}" if others else ""


def join_feedbacks(parts: Sequence[FeedbackData]) -> FeedbackData:
    """Several feedbacks to be learned at once. They keep no check: each has its own test.

    Raises InputError for a prompt that is learned from in one and judged by in another.
    """
    if len(parts) == 1:
        return parts[0]
    feedback, domain, effect = ("; ".join(getattr(part, name) for part in parts) for name in _SAID)
    in_scope, near_scope, out_of_scope = (
        tuple(e for part in parts for e in getattr(part, scope)) for scope in SCOPES
    )
    _check_splits([*in_scope, *near_scope, *out_of_scope])
    return FeedbackData(feedback, domain, effect, (), in_scope, near_scope, out_of_scope)


def _read_scope(path: Path, scope: str) -> tuple[ScopeLine, ...]:
    examples = tuple(
        _example(record, scope, f"{path}, line {number}") for number, record in read_jsonl(path)
    )
    if not any(example.split == "train" for example in examples):
        raise InputError(f'{path}: no prompt to train on: give some lines the split "train"')
    return examples


def _example(record: dict[str, Any], scope: str, where: str) -> ScopeLine:
    in_scope = scope == "in_scope"
    return ScopeLine(
        messages=[{"role": "user", "content": text_field(record, "prompt", where)}],
        baseline=_answer(record, "baseline", where),
        revised=_answer(record, "revised", where) if in_scope else None,
        in_context=text_field(record, "in_context", where) if record.get("in_context") else None,
        cot=text_field(record, "cot", where) if record.get("cot") else None,
        split=_split(text_field(record, "split", where), where),
        source=where,
    )


def _split(split: str, where: str) -> str:
    if split not in SPLITS:
        raise InputError(f"{where}: unknown split {split!r}: choose train, test or eval")
    return split


def _answer(record: dict[str, Any], field: str, where: str) -> Response:
    reason = record.get(f"{field}_finish_reason") or "stop"
    if reason not in FINISH_REASONS:
        raise InputError(f'{where}: "{field}_finish_reason" must be stop or length')
    # outer white space is no part of an answer, and would stand before the end token
    return Response(text_field(record, field, where).strip(), reason)


def text_field(record: dict[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise InputError(f'{where}: the field "{field}" is missing')
    if not isinstance(record[field], str):
        raise InputError(f'{where}: the field "{field}" must be a text')
    if not record[field].strip():
        raise InputError(f'{where}: the field "{field}" is empty')
    return str(record[field])


def _check_splits(examples: Iterable[ScopeLine]) -> None:
    """A prompt that is both learned from and judged by would make the result look better."""
    first: dict[tuple[tuple[str, str], ...], ScopeLine] = {}
    for example in examples:
        prompt = tuple((m["role"], m["content"].strip()) for m in example.messages)
        other = first.setdefault(prompt, example)
        if other.split != example.split:
            raise InputError(
                f"{example.source}: the prompt is in split {example.split}, and in split "
                f"{other.split} in {other.source}: leave it in one of the two"
            )


# ---- preference pairs ----


def load_preference_pairs(file: str | Path) -> FeedbackData:
    """Pairs as data without a feedback: `chosen` as revised answers, `rejected` as baselines.

    A line holds `prompt`, a text, or `messages`, of which the user's is the last; `chosen` and
    `rejected`, or `final` and `draft`; and, optionally, `split`: `test` lines are held out.
    Raises InputError, naming the line, for whatever is missing, empty or contradictory.
    """
    lines = zip(read_jsonl(file), load_prompts(file), strict=True)
    pairs = tuple(
        _pair(record, messages, f"{file}, line {number}") for (number, record), messages in lines
    )
    if not any(pair.split == "train" for pair in pairs):
        raise InputError(f'{file}: no pair to train on: give some lines the split "train", or none')
    _check_splits(pairs)
    return FeedbackData("", "", "", (), pairs, (), ())


def _pair(record: dict[str, Any], messages: Messages, where: str) -> ScopeLine:
    given = record.get("messages") or messages
    if given[-1]["role"] != "user":
        raise InputError(f'{where}: the last of the "messages" must be the user\'s')
    split = "train" if record.get("split") is None else record["split"]
    better, worse = ("final", "draft") if "draft" in record else ("chosen", "rejected")
    chosen, rejected = _answer(record, better, where), _answer(record, worse, where)
    if chosen.text == rejected.text:
        raise InputError(f'{where}: "{better}" and "{worse}" are the same: delete the line')
    return ScopeLine(messages, rejected, chosen, None, None, _split(split, where), where)


def load_data(data: str) -> FeedbackData:
    """What --data names. Raises InputError for whatever is wrong with it."""
    paths = data_paths(data)
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        if len(paths) > 1 and not path.is_dir():
            raise InputError(f"{path}: only folders of feedback can be joined, and this is a file")
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError(f"{data}: names a folder twice: leave it in once")
    if paths[0].is_file():
        return load_preference_pairs(paths[0])
    return join_feedbacks([load_feedback_data(path) for path in paths])


def hash_of(data: str) -> str:
    """Of the files that data folders consist of, or of the one with preference pairs."""
    names = (DESCRIPTION, *(f"{scope}.jsonl" for scope in SCOPES))
    files = [
        file
        for path in data_paths(data)
        for file in ([path / name for name in names] if path.is_dir() else [path])
    ]
    digest = hashlib.sha256()
    for file in files:
        digest.update(read_bytes(file))
    return digest.hexdigest()
