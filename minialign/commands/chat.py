"""A conversation in the terminal, with the adapter and without it, of which texts can be kept.

The two sides have a conversation each: what the adapter wrote is never shown to the base model, or
its next answer would be coloured by it, and a comparison would say nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from minialign.data.records import Messages
from minialign.errors import InputError

# Prints an answer to a conversation as it is written, with the adapter or without it, at a
# temperature; returns it.
Say = Callable[[Messages, bool, float], str]
HELP = """\
/adapter on|off  with or without the adapter; each has a conversation of its own
/side [TEXT]     both answer: TEXT, or once more what was said last
/temp X          the temperature of the next answers
/keep [FILE]     add the last answer to FILE as a demonstration (kept.jsonl)
/edit [FILE]     correct the last answer in $EDITOR; FILE keeps draft and final (edits.jsonl)
/save FILE       add the conversation to FILE
/reset           forget what was said
/quit            leave"""


class Chat:
    """What was said, and what the commands do with it."""

    def __init__(self, say: Say, temperature: float, *, has_adapter: bool) -> None:
        self.say, self.temperature, self.has_adapter = say, temperature, has_adapter
        self.adapted = has_adapter
        # With the adapter or without it -> what was said.
        self.talks: dict[bool, Messages] = {True: [], False: []}

    @property
    def talk(self) -> Messages:
        return self.talks[self.adapted]

    def take(self, text: str) -> None:
        """A turn, or a command. Raises InputError for what the person can put right."""
        name, _, rest = text.partition(" ")
        if not name.startswith("/"):
            self.answer(text, self.adapted)
            return
        commands: dict[str, Callable[[str], object]] = {
            "/adapter": self.switch,
            "/side": self.side,
            "/temp": self.warm,
            "/keep": self.keep,
            "/edit": self.edit,
            "/save": self.save,
            "/reset": self.reset,
        }
        commands.get(name, lambda _: print(HELP))(rest.strip())

    def answer(self, text: str, adapted: bool) -> None:
        """One more turn of one side; what cannot be answered is taken back."""
        talk = self.talks[adapted]
        talk.append({"role": "user", "content": text})
        try:
            answer = self.say(talk, adapted, self.temperature)
        except InputError as error:
            talk.pop()
            raise InputError(f"{error}; /reset starts anew") from None
        talk.append({"role": "assistant", "content": answer})

    def switch(self, which: str) -> None:
        if which not in ("on", "off"):
            print(HELP)
            return
        self._require_adapter()
        self.adapted = which == "on"
        turns = len(self.talk) // 2
        said = f"{turns} turn{'' if turns == 1 else 's'} so far" if turns else "nothing said yet"
        print(f"adapter {which}: a conversation of its own, {said}")

    def side(self, text: str) -> None:
        """Both answer; where `text` is empty, this side's last turn is answered anew by both."""
        self._require_adapter()
        asked = text or self._last()[-2]["content"]
        for adapted, title in ((False, "without the adapter"), (True, "with the adapter")):
            talk = self.talks[adapted]
            if not text and talk and talk[-2]["content"] == asked:
                del talk[-2:]
            print(f"--- {title} ---")
            self.answer(asked, adapted)

    def warm(self, value: str) -> None:
        try:
            temperature = float(value)
        except ValueError:
            temperature = math.nan
        if not 0 <= temperature < math.inf:
            raise InputError(f"/temp {value}: give a number from 0 on, such as /temp 0.7")
        self.temperature = temperature
        print(f"temperature {temperature:g}")

    def keep(self, file: str) -> None:
        """The last answer as a demonstration, which train.py reads."""
        *before, answer = self._last()
        record: dict[str, Any] = {"messages": [*before, answer]}
        if len(before) == 1:
            record = {"prompt": before[0]["content"], "completion": answer["content"]}
        _add(Path(file or "kept.jsonl"), record)

    def edit(self, file: str) -> None:
        """The last answer as the person would have written it, which the conversation goes on with.

        The file keeps {prompt, draft, final}, and what was said before where that was more.
        """
        *before, answer = self._last()
        draft = answer["content"]
        final = edited(draft)
        if final == draft or not final:
            print("nothing was changed, nothing is kept")
            return
        record: dict[str, Any] = {"prompt": before[-1]["content"], "draft": draft, "final": final}
        if len(before) > 1:
            record["messages"] = before
        _add(Path(file or "edits.jsonl"), record)
        answer["content"] = final

    def save(self, file: str) -> None:
        if not file:
            raise InputError("/save needs a file: /save talk.jsonl")
        _add(Path(file), {"messages": self._last(), "adapter": self.adapted})

    def reset(self, _: str) -> None:
        self.talks = {True: [], False: []}
        print("forgotten")

    def _last(self) -> Messages:
        """The conversation of this side, which must have begun."""
        if not self.talk:
            raise InputError("nothing was said yet")
        return self.talk

    def _require_adapter(self) -> None:
        if not self.has_adapter:
            raise InputError("there is no adapter: start with --adapter")


def talk(chat: Chat) -> None:
    """Reads turns and commands until /quit, or the end of the input."""
    print(HELP)
    with history(Path.home() / ".minialign_history"):
        while True:
            try:
                text = input("you> ").strip()
            except EOFError:
                print()
                return
            if text == "/quit":
                return
            try:
                if text:
                    chat.take(text)
            except InputError as error:
                print(error)


@contextlib.contextmanager
def history(file: Path) -> Iterator[None]:
    """Arrow keys bring back earlier lines, those of earlier conversations too.

    Only in a terminal, and where Python has readline. Nobody else may read the file.
    """
    try:
        import readline
    except ImportError:
        readline = None  # type: ignore[assignment]
    if readline is None or not os.isatty(0):
        yield
        return
    with contextlib.suppress(OSError):
        readline.read_history_file(file)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.touch(mode=0o600)
            readline.write_history_file(file)


def edited(text: str) -> str:
    """The text as it comes back from $VISUAL or $EDITOR, without white space around it.

    Raises InputError where there is no such editor, or it fails.
    """
    editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "answer.txt"
        file.write_text(text + "\n", encoding="utf-8")
        try:
            subprocess.run([*editor, str(file)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise InputError(f"{editor[0]}: {error}: set EDITOR to an editor") from None
        return file.read_text(encoding="utf-8").strip()


def _add(file: Path, record: dict[str, Any]) -> None:
    """A line more in a JSON Lines file."""
    try:
        with open(file, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")
    except OSError as error:
        raise InputError(f"{file}: cannot be written: {error.strerror}") from None
    print(f"added to {file}")
