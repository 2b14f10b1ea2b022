"""The conversation: a side each for adapter and base, and texts that are kept."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import call, sample, train_toy
from helpers.processes import ROOT, run_python
from helpers.workplaces import write_workplace

import minialign
from minialign.commands.chat import HELP, Chat, edited, history
from minialign.data.records import Messages, load_demonstrations
from minialign.errors import InputError
from minialign.policy.peft import load_adapter

ADAPTER = ("--adapter", "runs/demos")
SHORT = ("--max-new-tokens", "12")


class Scripted:
    """Answers with who it is and how many messages it saw; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], bool, float]] = []

    def __call__(self, messages: Messages, adapted: bool, temperature: float) -> str:
        if "too long" in messages[-1]["content"]:
            raise InputError("the prompt has 300 tokens")
        self.asked.append(([m["content"] for m in messages], adapted, temperature))
        return f"{'own' if adapted else 'base'} {len(messages)}"


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chat:
    monkeypatch.chdir(tmp_path)
    return Chat(Scripted(), 0.7, has_adapter=True)


def take(chat: Chat, *lines: str) -> list[tuple[list[str], bool, float]]:
    for line in lines:
        chat.take(line)
    assert isinstance(chat.say, Scripted)
    return chat.say.asked


def lines_of(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


# ---- a conversation each ----


def test_the_base_never_sees_what_the_adapter_wrote(chat: Chat) -> None:
    asked = take(chat, "Hi", "/adapter off", "Hello", "/adapter on", "Again")
    assert asked == [
        (["Hi"], True, 0.7),
        (["Hello"], False, 0.7),
        (["Hi", "own 1", "Again"], True, 0.7),
    ]


def test_side_lets_both_answer_in_their_own_conversation(chat: Chat) -> None:
    asked = take(chat, "Hi", "/side Well?")
    assert asked[1:] == [(["Well?"], False, 0.7), (["Hi", "own 1", "Well?"], True, 0.7)]


def test_side_alone_answers_the_last_turn_anew(
    chat: Chat, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = take(chat, "Hi", "/side", "/side")
    assert asked[1:] == [(["Hi"], False, 0.7), (["Hi"], True, 0.7)] * 2
    assert capsys.readouterr().out.count("--- without the adapter ---\n--- with the adapter") == 2


def test_without_an_adapter_there_are_no_sides(chat: Chat) -> None:
    bare = Chat(chat.say, 0.7, has_adapter=False)
    assert take(bare, "Hi") == [(["Hi"], False, 0.7)]
    for line in ("/adapter off", "/side Hi"):
        with pytest.raises(InputError, match="there is no adapter: start with --adapter"):
            bare.take(line)


def test_a_turn_that_cannot_be_answered_is_taken_back(chat: Chat) -> None:
    with pytest.raises(InputError, match="300 tokens; /reset starts anew"):
        chat.take("too long")
    assert take(chat, "Hi", "/reset", "Ho")[-1] == (["Ho"], True, 0.7)


def test_temp_is_the_temperature_from_then_on(chat: Chat) -> None:
    assert take(chat, "/temp 0", "Hi")[0][2] == 0
    for value in ("-1", "nan", "inf", "warm", ""):
        with pytest.raises(InputError, match="give a number from 0 on"):
            chat.take(f"/temp {value}")


@pytest.mark.parametrize("line", ["/what", "/adapter", "/adapter maybe", "/"])
def test_an_unknown_command_shows_what_there_is(
    chat: Chat, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    chat.take(line)
    assert capsys.readouterr().out == HELP + "\n"


# ---- texts that are kept ----


def test_keep_adds_the_last_answer_as_a_demonstration(chat: Chat) -> None:
    take(chat, "Hi", "/keep", "More", "/keep", "/keep other.jsonl")
    first, second = load_demonstrations("kept.jsonl")
    assert (first.prompt, first.completion) == ("Hi", "own 1")
    assert [m["content"] for m in second.messages] == ["Hi", "own 1", "More"]
    assert second.completion == "own 3" and len(lines_of("other.jsonl")) == 1


def test_edit_keeps_draft_and_final_and_goes_on_with_the_final(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", "sed -i s/own/my/")
    asked = take(chat, "Hi", "/edit", "More", "/edit")
    assert asked[1] == (["Hi", "my 1", "More"], True, 0.7)
    first, second = lines_of("edits.jsonl")
    assert first == {"prompt": "Hi", "draft": "own 1", "final": "my 1"}
    assert (second["prompt"], second["final"]) == ("More", "my 3")
    assert [m["content"] for m in second["messages"]] == ["Hi", "my 1", "More"]
    monkeypatch.setenv("EDITOR", "true")
    take(chat, "/edit")
    assert len(lines_of("edits.jsonl")) == 2


@pytest.mark.parametrize("editor", ["false", "/no/such/editor"])
def test_an_editor_that_fails_keeps_nothing(editor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VISUAL", editor)
    with pytest.raises(InputError, match="set EDITOR to an editor"):
        edited("text")


def test_save_keeps_the_conversation(chat: Chat) -> None:
    take(chat, "Hi", "/save talk.jsonl")
    (saved,) = lines_of("talk.jsonl")
    assert [m["content"] for m in saved["messages"]] == ["Hi", "own 1"] and saved["adapter"]
    for line in ("/save", "/save no/folder.jsonl"):
        with pytest.raises(InputError, match="needs a file|cannot be written"):
            chat.take(line)


@pytest.mark.parametrize("line", ["/keep", "/edit", "/save a.jsonl", "/side"])
def test_before_the_first_turn_there_is_nothing_to_keep(chat: Chat, line: str) -> None:
    with pytest.raises(InputError, match="nothing was said yet"):
        chat.take(line)
    assert not list(Path().iterdir())


def test_history_is_read_and_written_for_its_owner_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readline = pytest.importorskip("readline")
    file = tmp_path / "history"
    with history(file):
        assert not file.exists()  # no terminal here
    monkeypatch.setattr(os, "isatty", lambda number: number == 0)
    readline.clear_history()
    with history(file):
        readline.add_history("Dear Sam")
    readline.clear_history()
    with history(file):
        assert readline.get_history_item(readline.get_current_history_length()) == "Dear Sam"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


# ---- with a model ----


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_workplace(tmp_path_factory.mktemp("chat"))
    train_toy(folder)
    return folder


def expected(workplace: Path, messages: str | Messages, adapter: bool, **options: Any) -> str:
    model, tokenizer = minialign.load(str(workplace / "toy"))
    if adapter:
        load_adapter(model, workplace / "runs" / "demos" / "adapter")
    options = {"temperature": 0.7, "max_new_tokens": 12, "seed": 0, **options}
    return minialign.generate(model, tokenizer, [messages], **options)[0][0].text


def turns(out: str) -> list[str]:
    """What was printed after each "you> "."""
    return out.split("you> ")[1:]


def test_chat_in_a_pipe_compares_with_and_without_the_adapter(workplace: Path) -> None:
    typed = "Hello\n/adapter off\nHello\n/temp 0\nMore\n/quit\nnever read\n"
    arguments = [str(ROOT / "sample.py"), *ADAPTER, "--chat", *SHORT]
    process = run_python(arguments, workplace, stdin=typed)
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.startswith(HELP)
    answers = turns(process.stdout)
    own, base = (expected(workplace, "Hello", adapter) for adapter in (True, False))
    assert (answers[0], answers[2]) == (own + "\n\n", base + "\n\n") and own != base
    talk = [("user", "Hello"), ("assistant", base), ("user", "More")]
    messages = [{"role": role, "content": text} for role, text in talk]
    assert answers[4] == expected(workplace, messages, False, temperature=0.0) + "\n\n"
    assert len(answers) == 6 and answers[5] == ""


def test_chat_goes_on_after_what_is_refused(workplace: Path) -> None:
    typed = f"\n{'word ' * 300}\n/adapter on\n"
    outcome = call(sample, "--chat", *SHORT, "--model", "toy", cwd=workplace, stdin=typed)
    assert (outcome.code, outcome.err) == (0, "")
    empty, refused, none, end = turns(outcome.out)
    assert re.fullmatch(r"the prompt has \d+ tokens, .* 256: .*; /reset starts anew\n", refused)
    assert (empty, none, end) == ("", "there is no adapter: start with --adapter\n", "\n")
