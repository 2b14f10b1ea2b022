"""Whoever writes or judges text for us: a model in this process, or one behind an address.

* What goes wrong costs one item: a `Failure` with its reason stands in its place, and no answer is
  ever half used.
* Nothing is asked twice: `Cached` keeps each answer the moment it arrives.

The model behind an address is endpoint.py's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from minialign.errors import InputError

if TYPE_CHECKING:
    from minialign.data.records import Messages


@dataclass(frozen=True)
class Ask:
    """One question. Equal ones are the same question, and `Cached` asks it once."""

    messages: tuple[tuple[str, str], ...]  # (role, content)
    max_tokens: int
    temperature: float
    seed: int = 0
    top_p: float = 1.0

    @property
    def chat(self) -> Messages:
        return [{"role": role, "content": content} for role, content in self.messages]


@dataclass(frozen=True)
class Reply:
    text: str
    finish_reason: str  # "stop", "length", or what else the endpoint says


@dataclass(frozen=True)
class Failure:
    reason: str  # one line


Answer = Reply | Failure
OnDone = Callable[[int, Answer], None]


class Teacher(Protocol):
    """`name` is shown to people and tells a cache whose answer it is: which model, and where."""

    name: str

    def answer(self, asks: Sequence[Ask], on_done: OnDone | None = None) -> list[Answer]:
        """An answer each, in order; `on_done(index, answer)` in the caller's thread, as they come.

        Ctrl-C ends it soon, and whatever was finished has been reported by then.
        """


# ---- nothing is asked twice ----


class Cached:
    """A teacher whose answers are kept in a JSON Lines file, each the moment it arrives.

    A line holds the teacher's name, the question and the answer; together the first two are the
    key. Failures are not kept. A last line that was cut off while it was written is dropped.

    Raises InputError for a file that cannot be read or written, or that holds other things.
    """

    def __init__(self, teacher: Teacher, file: str | Path) -> None:
        self.teacher, self.name, self.file = teacher, teacher.name, Path(file)
        self._known, self._half_line = self._read()

    def answer(self, asks: Sequence[Ask], on_done: OnDone | None = None) -> list[Answer]:
        answers: dict[int, Answer] = {}
        places: dict[Ask, list[int]] = {}
        for index, ask in enumerate(asks):
            places.setdefault(ask, []).append(index)
        missing = [ask for ask in places if ask not in self._known]

        def hand_over(ask: Ask, answer: Answer) -> None:
            for index in places[ask]:
                answers[index] = answer
                if on_done:
                    on_done(index, answer)

        def keep(place: int, answer: Answer) -> None:
            if isinstance(answer, Reply):
                self._append(missing[place], answer)
            hand_over(missing[place], answer)

        for ask in [ask for ask in places if ask in self._known]:
            hand_over(ask, self._known[ask])
        if missing:
            self.teacher.answer(missing, keep)
        return [answers[index] for index in range(len(asks))]

    def _append(self, ask: Ask, reply: Reply) -> None:
        record = {"teacher": self.name, **asdict(ask), **asdict(reply)}
        line = json.dumps(record, ensure_ascii=False) + "\n"
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("ab") as file:
                if self._half_line:
                    file.truncate(file.tell() - self._half_line)
                    self._half_line = 0
                file.write(line.encode("utf-8"))
        except OSError as error:
            raise InputError(f"{self.file}: cannot be written: {error.strerror}") from None
        self._known[ask] = reply

    def _read(self) -> tuple[dict[Ask, Reply], int]:
        """This teacher's answers, and the bytes of half a line at the end."""
        try:
            data = self.file.read_bytes() if self.file.exists() else b""
        except OSError as error:
            raise InputError(f"{self.file}: cannot be read: {error.strerror}") from None
        *lines, rest = data.split(b"\n")
        known = {}
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                messages = tuple((role, content) for role, content in record["messages"])
                # Lines of earlier versions have no top_p.
                record = {"top_p": 1.0, **record}
                keys = ("max_tokens", "temperature", "seed", "top_p")
                ask = Ask(messages, *(record[key] for key in keys))
                reply, whose = Reply(record["text"], record["finish_reason"]), record["teacher"]
            except (ValueError, KeyError, TypeError):
                where = f"{self.file}, line {number}"
                raise InputError(f"{where}: not a kept answer: give another file") from None
            if whose == self.name:
                known[ask] = reply
        start = b'{"teacher": '
        if not (rest.startswith(start) or start.startswith(rest)):
            raise InputError(f"{self.file}: holds no kept answers: give another file")
        return known, len(rest)
