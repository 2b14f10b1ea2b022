"""Teachers whose answers are kept: nothing is asked twice, and nothing is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from helpers.loopback import Loopback, fails
from helpers.refusals import refusal
from helpers.teachers import YES, ask, asks, endpoint

from minialign.feedback.teacher import Answer, Ask, Cached, Failure, OnDone, Reply


class Scripted:
    """Answers from a list, then "yes"; `asked` is what it was asked."""

    def __init__(self, *script: Answer | type[BaseException], name: str = "scripted") -> None:
        self.script, self.name = list(script), name
        self.asked: list[Ask] = []

    def answer(self, asks: Sequence[Ask], on_done: OnDone | None = None) -> list[Answer]:
        answers: list[Answer] = []
        for index, question in enumerate(asks):
            self.asked.append(question)
            answer = self.script.pop(0) if self.script else YES
            if isinstance(answer, type):
                raise answer
            answers.append(answer)
            if on_done:
                on_done(index, answer)
        return answers


def test_a_second_run_asks_nothing(tmp_path: Path) -> None:
    file = tmp_path / "new" / "cache.jsonl"
    replies = [Reply('ä "quoted"\nline\u2028', "stop"), Reply("", "length"), YES]
    assert Cached(Scripted(*replies), file).answer(asks(3)) == replies
    again = Scripted()
    heard: list[tuple[int, Answer]] = []
    assert Cached(again, file).answer(asks(3), lambda *done: heard.append(done)) == replies
    assert again.asked == [] and sorted(heard) == list(enumerate(replies))


def test_only_what_is_missing_is_asked_and_order_is_kept(tmp_path: Path) -> None:
    Cached(Scripted(Reply("b", "stop")), tmp_path / "c").answer([ask("b")])
    teacher = Scripted(Reply("a", "stop"), Reply("c", "stop"))
    answers = Cached(teacher, tmp_path / "c").answer([ask("a"), ask("b"), ask("c")])
    assert answers == [Reply("a", "stop"), Reply("b", "stop"), Reply("c", "stop")]
    assert teacher.asked == [ask("a"), ask("c")]


def test_equal_questions_of_one_call_are_asked_once_and_answered_each(tmp_path: Path) -> None:
    teacher = Scripted(Reply("a", "stop"))
    heard: list[int] = []
    answers = Cached(teacher, tmp_path / "c").answer(
        [ask("a"), ask("b"), ask("a")], lambda index, _: heard.append(index)
    )
    assert answers == [Reply("a", "stop"), YES, Reply("a", "stop")]
    assert teacher.asked == [ask("a"), ask("b")] and sorted(heard) == [0, 1, 2]


def test_failures_are_not_kept(tmp_path: Path) -> None:
    teacher = Scripted(Failure("busy"))
    cached = Cached(teacher, tmp_path / "c")
    assert cached.answer([ask("a"), ask("a")]) == [Failure("busy"), Failure("busy")]
    assert cached.answer([ask("a")]) == [YES]
    assert teacher.asked == [ask("a"), ask("a")]


@pytest.mark.parametrize(
    "other",
    [
        ask("A"),
        ask("a", max_tokens=9),
        ask("a", temperature=0.5),
        ask("a", seed=1),
        Ask((("system", "a"),), 8, 0.0),
        Ask((("user", "a"), ("user", "a")), 8, 0.0),
    ],
)
def test_every_part_of_a_question_tells_it_from_others(tmp_path: Path, other: Ask) -> None:
    Cached(Scripted(), tmp_path / "c").answer([ask("a")])
    teacher = Scripted()
    Cached(teacher, tmp_path / "c").answer([ask("a"), other])
    assert teacher.asked == [other]


def test_another_teacher_s_answers_are_not_taken(tmp_path: Path) -> None:
    Cached(Scripted(Reply("by one", "stop"), name="one"), tmp_path / "c").answer([ask("a")])
    assert Cached(Scripted(name="two"), tmp_path / "c").answer([ask("a")]) == [YES]
    both = [Cached(Scripted(Failure("x"), name=n), tmp_path / "c") for n in ("one", "two")]
    assert [cached.answer([ask("a")]) for cached in both] == [[Reply("by one", "stop")], [YES]]


def test_an_answer_stands_in_the_file_the_moment_it_arrives(tmp_path: Path) -> None:
    file = tmp_path / "c"
    lines: list[int] = []
    Cached(Scripted(), file).answer(
        asks(3), lambda *_: lines.append(file.read_bytes().count(b"\n"))
    )
    assert lines == [1, 2, 3]


def test_an_interruption_loses_nothing_that_was_finished(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        Cached(Scripted(YES, YES, KeyboardInterrupt), tmp_path / "c").answer(asks(4))
    teacher = Scripted()
    Cached(teacher, tmp_path / "c").answer(asks(4))
    assert teacher.asked == asks(4)[2:]


@pytest.mark.parametrize("bytes_left", [1, 5, 12, 40, -1])
def test_half_a_last_line_is_dropped_and_its_question_asked_again(
    tmp_path: Path, bytes_left: int
) -> None:
    file = tmp_path / "c"
    Cached(Scripted(), file).answer(asks(2))
    whole = file.read_bytes()
    first, second, _ = whole.split(b"\n")
    file.write_bytes(first + b"\n" + second[:bytes_left])
    teacher = Scripted()
    assert Cached(teacher, file).answer(asks(2)) == [YES, YES]
    assert teacher.asked == asks(2)[1:]
    assert file.read_bytes() == whole


@pytest.mark.parametrize(
    "content",
    [
        b'{"prompt": "p", "completion": "c"}\n',
        b'{"prompt": "p", "completion": "c"}',
        b"a letter",
        b"[1]\n",
        b"\xff\xfe\n",
        b'{"teacher": "x"}\n',
    ],
)
def test_a_file_that_holds_other_things_is_refused_and_left_alone(
    tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "emails.jsonl"
    file.write_bytes(content)
    assert str(file) in refusal(lambda: Cached(Scripted(), file))
    assert file.read_bytes() == content


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    Cached(Scripted(), tmp_path / "c").answer(asks(2))
    lines = (tmp_path / "c").read_text().splitlines()
    (tmp_path / "c").write_text("\n".join([lines[0], lines[1][:30], lines[0], ""]))
    assert "line 2" in refusal(lambda: Cached(Scripted(), tmp_path / "c"))


def test_a_file_that_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(lambda: Cached(Scripted(), tmp_path))
    (tmp_path / "file").write_text("")
    cached = Cached(Scripted(), tmp_path / "file" / "c")
    assert "cannot be written" in refusal(lambda: cached.answer(asks(1)))


def test_an_endpoint_is_asked_nothing_twice(server: Loopback, tmp_path: Path) -> None:
    server.script = [fails(400, "no")]
    questions = [*asks(4), *asks(4)]
    first = Cached(endpoint(server, concurrency=1), tmp_path / "c").answer(questions)
    assert [isinstance(answer, Failure) for answer in first] == [True, False, False, False] * 2
    assert Cached(endpoint(server), tmp_path / "c").answer(questions) == [YES] * 8
    assert server.questions == [*(q.chat[0]["content"] for q in asks(4)), "question 0"]


def test_importing_teachers_is_light() -> None:
    """No torch and no hub before anything is asked."""
    program = (
        "import sys, minialign.feedback.endpoint, minialign.feedback.teacher\n"
        "print({'torch', 'numpy', 'huggingface_hub', 'tokenizers'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=True,
    )
    assert done.stdout.strip() == "set()"
