"""The model judge: both orders, answers read but never guessed, and every lost answer counted."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from helpers.loopback import Loopback, direct, fails, says, says_by, server
from helpers.refusals import refusal
from hypothesis import example as case
from hypothesis import given
from hypothesis import strategies as st

from minialign.evaluation.judges.model import (
    JudgeReport,
    ModelJudge,
    Question,
    Rating,
    RatingReport,
    Verdict,
    delimited,
    parse_letter,
    parse_score,
)
from minialign.feedback.endpoint import EndpointTeacher
from minialign.feedback.teacher import Answer, Ask, Cached, Failure, OnDone, Reply

__all__ = ["direct", "server"]  # fixtures

A, B, REFUSAL = '{"answer": "A"}', '{"answer": "B"}', "I cannot tell."


class Scripted:
    """Answers with what `write` makes of a question."""

    name = "scripted"

    def __init__(self, write: Callable[[str], str | None]) -> None:
        self.write, self.asked = write, list[Ask]()

    def answer(self, asks: Sequence[Ask], on_done: OnDone | None = None) -> list[Answer]:
        self.asked += asks
        answers: list[Answer] = []
        for index, ask in enumerate(asks):
            text = self.write(ask.chat[-1]["content"])
            answers.append(Failure("broken") if text is None else Reply(text, "stop"))
            if on_done:
                on_done(index, answers[-1])
        return answers


def in_turn(*texts: str | None) -> Scripted:
    rest = iter(texts)
    return Scripted(lambda _: next(rest))


def comparisons(count: int) -> list[Question]:
    return [Question(f"example {i}", f"first {i}", f"second {i}") for i in range(count)]


def shares(report: JudgeReport) -> list[float | None]:
    return [verdict.share for verdict in report.verdicts]


def place(question: str, tag: str) -> str:
    """The text between the tags."""
    found = re.search(rf"<{tag}>\n(.*?)\n</{tag}>", question, re.DOTALL)
    assert found
    return found.group(1)


# ---- both orders ----


def test_a_judge_that_knows_finds_the_author_wherever_the_text_stands() -> None:
    def knows(question: str) -> str:
        return A if "human" in place(question, "text A") else B

    report = ModelJudge(Scripted(knows)).compare(
        [Question("e", "human", "machine"), Question("e", "machine", "human")]
    )
    assert report == JudgeReport([Verdict(1.0), Verdict(0.0)], 4, 0, 0, 0)


@pytest.mark.parametrize("answer", [A, B])
def test_a_judge_that_favours_a_place_gives_ties_and_is_found_out(answer: str) -> None:
    report = ModelJudge(Scripted(lambda _: answer)).compare(comparisons(3))
    assert report == JudgeReport([Verdict(0.5)] * 3, 6, 0, 0, 3)


def test_each_pair_is_asked_once_in_each_order_with_its_example_at_temperature_0() -> None:
    teacher = Scripted(lambda _: A)
    heard: list[int] = []
    ModelJudge(teacher, max_tokens=9).compare(comparisons(2), lambda i, _: heard.append(i))
    tags = ("example", "text A", "text B")
    seen = [tuple(place(ask.chat[0]["content"], tag) for tag in tags) for ask in teacher.asked]
    assert seen == [
        ("example 0", "first 0", "second 0"),
        ("example 0", "second 0", "first 0"),
        ("example 1", "first 1", "second 1"),
        ("example 1", "second 1", "first 1"),
    ]
    assert {(ask.temperature, ask.max_tokens) for ask in teacher.asked} == {(0.0, 9)}
    assert heard == [0, 1, 2, 3]


def test_nothing_to_compare_is_nothing_asked() -> None:
    assert ModelJudge(in_turn()).compare([]) == JudgeReport([], 0, 0, 0, 0)


# ---- what is lost is counted ----


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((A, B), JudgeReport([Verdict(1.0)], 2, 0, 0, 0)),
        ((B, A), JudgeReport([Verdict(0.0)], 2, 0, 0, 0)),
        ((A, A), JudgeReport([Verdict(0.5)], 2, 0, 0, 1)),
        ((A, REFUSAL), JudgeReport([Verdict(None)], 2, 1, 0, 0)),
        ((REFUSAL, B), JudgeReport([Verdict(None)], 2, 1, 0, 0)),
        ((REFUSAL, REFUSAL), JudgeReport([Verdict(None)], 2, 2, 0, 0)),
        ((A, None), JudgeReport([Verdict(None)], 2, 0, 1, 0)),
        ((None, REFUSAL), JudgeReport([Verdict(None)], 2, 1, 1, 0)),
        ((None, None), JudgeReport([Verdict(None)], 2, 0, 2, 0)),
    ],
)
def test_a_pair_with_a_missing_order_has_no_verdict(
    answers: tuple[str | None, str | None], expected: JudgeReport
) -> None:
    assert ModelJudge(in_turn(*answers)).compare(comparisons(1)) == expected


def test_a_lost_pair_does_not_shift_the_others() -> None:
    judge = ModelJudge(in_turn(A, B, None, A, B, A))
    assert shares(judge.compare(comparisons(3))) == [1.0, None, 0.0]


def test_one_line_tells_a_person_who_judged_and_what_it_is_worth() -> None:
    judge = ModelJudge(in_turn(A, B, A, A, REFUSAL, None))
    assert judge.describe(judge.compare(comparisons(3))) == (
        "judge: scripted; 6 questions on 3 pairs in both orders; the orders contradicted each "
        "other on 1 of 2 usable pairs; 1 answers could not be read, 1 failed"
    )


# ---- reading answers ----


@pytest.mark.parametrize(("letter", "expected"), [("A", 1.0), ("B", -1.0)])
@pytest.mark.parametrize(
    "text",
    [
        '{"answer": "@"}',
        '{"answer":"#"}',
        '{"Answer": " @ "}',
        '{"answer": "Option @"}',
        '{"answer": "text #", "reason": "A and B are both long."}',
        '{\n  "answer": "@"\n}',
        '```json\n{"answer": "@"}\n```',
        'Sure! {"answer": "@"} I chose it for its {tone}.',
        '{"answer": "@"}\n{"answer": "@"}',
        "{'answer': '@'}",
        "{answer: @}",
        '{"answer": "@',
        "@",
        "#.",
        " (@)\n",
        "**@**",
        "Option @",
        "Text @.",
        "The answer is: @",
        "Answer: @\n\nIt has the same short sentences as the example.",
    ],
)
def test_a_clear_answer_is_read_however_it_is_dressed(
    text: str, letter: str, expected: float
) -> None:
    assert parse_letter(text.replace("@", letter).replace("#", letter.lower())) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "C",
        "AB",
        "A or B",
        "A/B",
        "A and a half",
        "Both A and B",
        "not A",
        "A\nB",
        "I cannot decide between the texts.",
        "As an assistant, I would rather not say.",
        "Option A sounds human, but option B does too.",
        "a text by the author",
        '{"answer": "A"} or {"answer": "B"}',
        '{"answer": "A", "answer": "B"}',
        '{"answer": "A or B"}',
        '{"answer": "both"}',
        '{"answer": null}',
        '{"answer": "C"}\nA',
        '{"choice": "A"}',
        '{"answer": {"answer": "A"}}',
        "{" * 1000,
        '{"answer": ' * 3000,
    ],
)
def test_what_is_not_clear_is_not_guessed(text: str) -> None:
    assert parse_letter(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"score": 1}', 1.0),
        ('{"score": "2"}', 0.5),
        ("```\n{'score': 3}\n```", 0.0),
        ("Score: 4/5", -0.5),
        ("The rating is 5.", -1.0),
        ('{"score": 4.0}', -0.5),
        ('{"score": 0}', None),
        ('{"score": 6}', None),
        ('{"score": 2.5}', None),
        ('{"score": -3}', None),
        ('{"score": true}', None),
        ("-3", None),
        ("3.5", None),
        ("34", None),
        ("2 or 3", None),
        ("1\n2", None),
        ("three", None),
        ("", None),
    ],
)
def test_scores_are_read_and_never_guessed(text: str, expected: float | None) -> None:
    assert parse_score(text) == expected


@given(st.text())
def test_reading_takes_any_text(text: str) -> None:
    assert parse_letter(text) in (1.0, -1.0, None)
    assert parse_score(text) in (1.0, 0.5, 0.0, -0.5, -1.0, None)


# ---- the texts in the question ----

PARTS = st.lists(
    st.sampled_from(
        ["</text A>", "<text B>", "< / TEXT  a >", "<example 2>", "</example 3>", "x", "\n", "{0}"]
    ),
    max_size=6,
).map("".join)


@case("</text  A>", "", "")
@case("", "< / TEXT A >", "</example 2>")
@given(PARTS, PARTS, PARTS)
def test_no_text_can_end_its_place_or_open_another(example: str, a: str, b: str) -> None:
    parts = {"example": example, "text A": a, "text B": b}
    shown = delimited(parts)
    first = shown.splitlines()[0]
    suffix = first.removeprefix("<example").removesuffix(">")
    tags = [name + suffix for name in parts]
    for tag, text in zip(tags, parts.values(), strict=True):
        assert place(shown, tag) == text
        spelt = r"\s+".join(map(re.escape, tag.split()))
        assert len(re.findall(rf"<\s*/?\s*{spelt}\s*>", shown, re.IGNORECASE)) == 2


def test_ordinary_texts_stand_between_plain_tags_word_for_word() -> None:
    parts = {"text A": " Dear {Sam},\n\n  bye\n", "text B": 'say "hi" \\n'}
    assert delimited(parts) == (
        '<text A>\n Dear {Sam},\n\n  bye\n\n</text A>\n\n<text B>\nsay "hi" \\n\n</text B>'
    )


# ---- rating ----

RATING = Rating("Write to Sam.", "Be brief.", "A long letter.", "Short.")


def score(number: int) -> str:
    return json.dumps({"score": number})


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ((score(1), score(5)), RatingReport([1.0], 2, 0, 0, 0)),  # trained stands first as A
        ((score(5), score(1)), RatingReport([-1.0], 2, 0, 0, 0)),
        ((score(2), score(5)), RatingReport([0.75], 2, 0, 0, 0)),
        ((score(3), score(3)), RatingReport([0.0], 2, 0, 0, 0)),
        ((score(1), score(1)), RatingReport([0.0], 2, 0, 0, 1)),
        ((score(1), score(2)), RatingReport([0.25], 2, 0, 0, 1)),
        ((score(1), score(3)), RatingReport([0.5], 2, 0, 0, 0)),  # undecided is no contradiction
        ((score(1), "7"), RatingReport([None], 2, 1, 0, 0)),
        ((None, score(1)), RatingReport([None], 2, 0, 1, 0)),
    ],
)
def test_ratings_are_averaged_over_both_orders(
    answers: tuple[str | None, str | None], expected: RatingReport
) -> None:
    assert ModelJudge(in_turn(*answers)).rate([RATING]) == expected


def test_a_rating_shows_prompt_feedback_and_both_responses_in_both_orders() -> None:
    teacher = Scripted(lambda _: score(3))
    heard: list[int] = []
    judge = ModelJudge(teacher)
    report = judge.rate([RATING], lambda index, _: heard.append(index))
    tags = ("prompt", "feedback", "response A", "response B")
    seen = [[place(ask.chat[0]["content"], tag) for tag in tags] for ask in teacher.asked]
    assert seen == [
        ["Write to Sam.", "Be brief.", "Short.", "A long letter."],
        ["Write to Sam.", "Be brief.", "A long letter.", "Short."],
    ]
    assert heard == [0, 1]
    assert judge.describe(report).startswith(
        "judge: scripted; 2 questions on 1 pairs in both orders"
    )


# ---- through an endpoint ----


def test_a_judge_behind_an_endpoint_counts_its_failures(server: Loopback) -> None:
    server.script = [fails(400, "too long")]
    server.default = says(A)
    judge = ModelJudge(EndpointTeacher(server.url, "m", concurrency=1))
    report = judge.compare(comparisons(2))
    assert report == JudgeReport([Verdict(None), Verdict(0.5)], 4, 0, 1, 1)
    assert f"judge: m at {server.url}; " in judge.describe(report)


def test_a_judge_that_was_asked_before_is_not_asked_again(server: Loopback, tmp_path: Path) -> None:
    server.default = says_by(lambda question: A if "first" in place(question, "text A") else B)
    for _ in range(2):
        teacher = Cached(EndpointTeacher(server.url, "m"), tmp_path / "judge.jsonl")
        report = ModelJudge(teacher).compare(comparisons(3))
        assert report == JudgeReport([Verdict(1.0)] * 3, 6, 0, 0, 0)
    assert len(server.requests) == 6


# ---- a real server ----

MODULES = ("llama_cpp", "gguf", "fastapi", "uvicorn", "sse_starlette", "starlette_context")
ABSENT = [name for name in (*MODULES, "pydantic_settings") if not importlib.util.find_spec(name)]
KEY = "sk-of-the-test"
EXAMPLE = "Hiya Sam,\n\nno worries at all!! c u monday :)\n\nKim xx"
OWN = "Hiya Jo,\n\nprinter's dead again!! use the other one pls :)\n\nKim xx"
OTHERS = [
    "Dear Colleague, I am writing to inform you that the printer is currently out of order.",
    "Dear Sir or Madam, I would like to express my sincere gratitude for your assistance.",
    "I hope this message finds you well. Please be advised that the meeting is on Monday.",
    "To whom it may concern: the device on the second floor requires maintenance.",
]


def write_gguf(folder: Path, target: Path) -> None:
    """The checkpoint with its tokenizer and chat template, at 16 bits."""
    sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
    import gguf_export

    gguf_export.export(folder, target, 16)


@pytest.fixture
def llama_server(
    default_checkpoint: Path, direct: None, tmp_path: Path
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """(address, process) of llama.cpp's own server, with the default model and a key."""
    if ABSENT:
        pytest.skip(f"llama-cpp-python's server is not here: no {', '.join(ABSENT)}")
    write_gguf(default_checkpoint, tmp_path / "model.gguf")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = {"model": tmp_path / "model.gguf", "port": port, "api_key": KEY, "verbose": False}
    command = [sys.executable, "-m", "llama_cpp.server", "--host", "127.0.0.1", "--n_threads", "1"]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not listening(port):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


def listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_real_server_judges_and_is_asked_nothing_twice(
    llama_server: tuple[str, subprocess.Popen[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four comparisons in both orders. The second run goes on without the server."""
    url, process = llama_server
    assert "asks for a key" in refusal(EndpointTeacher(url, "smollm2").check)
    monkeypatch.setenv("MINIALIGN_API_KEY", KEY)
    teacher = EndpointTeacher(url, "smollm2", concurrency=2)
    teacher.check()
    pairs = [Question(EXAMPLE, OWN, other) for other in OTHERS]
    judge = ModelJudge(Cached(teacher, tmp_path / "judge.jsonl"))
    report = judge.compare(pairs)
    records = [json.loads(line) for line in (tmp_path / "judge.jsonl").open(encoding="utf-8")]
    print(judge.describe(report), shares(report), [record["text"] for record in records])
    assert report.asked == len(records) == 8 and report.failed == 0
    assert {record["finish_reason"] for record in records} <= {"stop", "length"}
    unread = [record for record in records if parse_letter(record["text"]) is None]
    assert report.unparsable == len(unread)
    process.kill()
    process.wait()
    again = ModelJudge(Cached(teacher, tmp_path / "judge.jsonl"))
    assert again.compare(pairs) == report
