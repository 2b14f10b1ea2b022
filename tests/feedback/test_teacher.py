"""Teachers: answers in order, failures in their place, no key shown, and nothing asked twice."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.loopback import (
    Loopback,
    Move,
    completion,
    cuts,
    fails,
    hangs,
    html,
    raw,
    says,
    says_by,
    together,
    wants_key,
)
from helpers.refusals import refusal

from minialign.feedback import endpoint as module
from minialign.feedback.endpoint import LONGEST_WAIT, EndpointTeacher, parse_url
from minialign.feedback.local_teacher import LocalTeacher
from minialign.feedback.teacher import Answer, Ask, Cached, Failure, OnDone, Reply
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import active_adapter, adapter_parameters, apply_lora
from minialign.policy.knobs import LoRAConfig, SamplingConfig
from minialign.policy.sample import generate
from minialign.weights.tokenizer import Tokenizer

YES = Reply("yes", "stop")
KEY = "sk-very-secret-0123456789"


def ask(question: str, **changes: Any) -> Ask:
    return Ask((("user", question),), **{"max_tokens": 8, "temperature": 0.0, **changes})


def asks(count: int) -> list[Ask]:
    return [ask(f"question {number}") for number in range(count)]


def endpoint(server: Loopback, **options: Any) -> EndpointTeacher:
    return EndpointTeacher(server.url, "some-model", **options)


def reason(answer: Answer) -> str:
    assert isinstance(answer, Failure)
    assert answer.reason and "\n" not in answer.reason
    return answer.reason


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were to be waited, without waiting: the teacher's clock stands still."""
    waited: list[float] = []

    def note(seconds: float, stopped: threading.Event) -> None:
        if seconds > 0:
            waited.append(seconds)

    monkeypatch.setattr(module, "_wait", note)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    return waited


# ---- an endpoint that answers ----


def test_answers_come_in_the_order_of_the_questions(server: Loopback) -> None:
    server.default = says_by(lambda question: f"re: {question}")
    answers = endpoint(server).answer(asks(9))
    assert answers == [Reply(f"re: question {number}", "stop") for number in range(9)]


def test_a_request_carries_the_question_the_model_and_the_sampling(server: Loopback) -> None:
    endpoint(server).answer([Ask((("system", "Be brief."), ("user", "Why?")), 77, 0.7, seed=5)])
    (request,) = server.requests
    assert request.path == "/v1/chat/completions"
    assert request.body["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
    ]
    sent = {key: request.body[key] for key in ("model", "max_tokens", "temperature", "seed")}
    assert sent == {"model": "some-model", "max_tokens": 77, "temperature": 0.7, "seed": 5}


def test_requests_run_at_the_same_time_and_never_more_than_allowed(server: Loopback) -> None:
    server.default = together(3, says("yes"))  # two at a time would wait for a third in vain
    assert endpoint(server, concurrency=3).answer(asks(9)) == [YES] * 9
    assert server.busiest == 3


def test_requests_per_minute_spaces_them_evenly(server: Loopback, waits: list[float]) -> None:
    endpoint(server, requests_per_minute=120).answer(asks(4))
    assert sorted(waits) == [0.5, 1.0, 1.5]


def test_the_reason_why_an_answer_ended_is_kept(server: Loopback) -> None:
    server.script = [says("cut of", "length"), says("x", None)]
    answers = endpoint(server, concurrency=1).answer(asks(2))
    assert answers == [Reply("cut of", "length"), Reply("x", "unknown")]


def test_no_questions_are_no_requests(server: Loopback) -> None:
    assert endpoint(server).answer([]) == []
    assert server.requests == []


def test_half_a_character_in_an_answer_becomes_a_question_mark(server: Loopback) -> None:
    server.default = raw(200, json.dumps(completion("a\ud83d")))
    assert endpoint(server).answer(asks(1)) == [Reply("a?", "stop")]


def test_on_done_hears_of_every_item_in_the_caller_s_thread(server: Loopback) -> None:
    server.script = [fails(400, "no")]
    heard: dict[int, tuple[Answer, str]] = {}

    def on_done(index: int, answer: Answer) -> None:
        assert index not in heard
        heard[index] = answer, threading.current_thread().name

    answers = endpoint(server).answer(asks(5), on_done)
    here = threading.current_thread().name
    assert heard == {index: (answer, here) for index, answer in enumerate(answers)}


# ---- an endpoint that fails: what is tried again ----


@pytest.mark.parametrize("move", [fails(429), fails(500), fails(503), fails(408), cuts])
def test_what_may_pass_is_tried_again(server: Loopback, waits: list[float], move: Move) -> None:
    server.script = [move, move]
    assert endpoint(server).answer(asks(1)) == [YES]
    assert len(server.requests) == 3
    assert 0.5 <= waits[0] <= 1.5 and 1 <= waits[1] <= 3  # doubled, give or take a half


def test_tries_end_and_the_item_fails_with_the_server_s_words(
    server: Loopback, waits: list[float]
) -> None:
    server.default = fails(503, "model is\n loading")
    (answer,) = endpoint(server, tries=4).answer(asks(1))
    assert reason(answer) == "HTTP 503: model is loading (tried 4 times)"
    assert len(server.requests) == 4 and len(waits) == 3


def test_retry_after_in_seconds_is_honoured_by_all(server: Loopback, waits: list[float]) -> None:
    server.script = [fails(429, Retry_After="7")]
    assert endpoint(server, concurrency=1).answer(asks(2)) == [YES, YES]
    assert waits == [7.0, 7.0]  # the clock stands still: the second question still has to wait
    assert server.questions == ["question 0", "question 0", "question 1"]


def test_retry_after_may_be_a_date(server: Loopback, waits: list[float]) -> None:
    moment = datetime.now(UTC) + timedelta(seconds=30)
    server.script = [fails(503, Retry_After=format_datetime(moment, usegmt=True))]
    assert endpoint(server).answer(asks(1)) == [YES]
    assert waits[0] == pytest.approx(28, abs=2)


@pytest.mark.parametrize("value", ["soon", "-3", "", "Mon, 99 Foo", "nan", "inf"])
def test_a_retry_after_that_says_nothing_is_no_wait_of_its_own(
    server: Loopback, waits: list[float], value: str
) -> None:
    server.script = [fails(429, Retry_After=value)]
    assert endpoint(server).answer(asks(1)) == [YES]
    assert len(waits) == 1 and 0.5 <= waits[0] <= 1.5


def test_a_server_that_wants_hours_has_failed(server: Loopback, waits: list[float]) -> None:
    server.default = fails(429, "daily limit", Retry_After=str(int(LONGEST_WAIT) + 1))
    (answer,) = endpoint(server).answer(asks(1))
    assert reason(answer) == "HTTP 429: not before 121 s have passed: daily limit"
    assert len(server.requests) == 1 and waits == []


def test_a_server_that_hangs_times_out(server: Loopback, waits: list[float]) -> None:
    server.default = hangs
    (answer,) = endpoint(server, timeout=0.2, tries=2).answer(asks(1))
    assert reason(answer) == "no answer within 0.2 s (tried 2 times)"
    assert len(server.requests) == 2


def test_a_server_that_is_not_there_is_tried_again(direct: None, waits: list[float]) -> None:
    teacher = EndpointTeacher(f"http://127.0.0.1:{free_port()}", "m", tries=3)
    (answer,) = teacher.answer(asks(1))
    assert reason(answer).startswith("cannot be reached: ")
    assert len(waits) == 2


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# ---- an endpoint that fails: what is final ----


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_refusal_is_final_and_says_why(server: Loopback, waits: list[float], status: int) -> None:
    server.default = fails(status, "because\nof that")
    (answer,) = endpoint(server).answer(asks(1))
    assert reason(answer).startswith(f"HTTP {status}: ")
    assert reason(answer).endswith(": because of that")
    assert len(server.requests) == 1 and waits == []


def test_an_account_without_money_is_not_asked_again(server: Loopback, waits: list[float]) -> None:
    error = {"message": "You exceeded your quota", "code": "insufficient_quota"}
    server.default = raw(429, {"error": error})
    (answer,) = endpoint(server).answer(asks(1))
    assert reason(answer) == "HTTP 429: You exceeded your quota"
    assert len(server.requests) == 1 and waits == []


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"error": {"message": "m"}}, "HTTP 400: m"),
        ({"error": "m"}, "HTTP 400: m"),
        ({"object": "error", "message": "m"}, "HTTP 400: m"),
        ({"detail": "m"}, "HTTP 400: m"),
        ("m", "HTTP 400: m"),
        ("<html>m</html>", "HTTP 400"),
        ({}, "HTTP 400"),
        ("x" * 5000, "HTTP 400: " + "x" * 287 + "..."),
    ],
)
def test_servers_words_are_found_where_they_put_them(
    server: Loopback, body: Any, expected: str
) -> None:
    server.default = raw(400, body)
    (answer,) = endpoint(server).answer(asks(1))
    assert reason(answer) == expected


@pytest.mark.parametrize(
    ("move", "expected"),
    [
        (html(), "answers HTML"),
        (raw(200, '{"choices": [{"mess'), "answers no JSON"),
        (raw(200, ""), "answers no JSON"),
        (raw(200, {"choices": []}), "the answer holds no choices"),
        (raw(200, {"choices": None}), "the answer holds no choices"),
        (raw(200, {"choices": [{"message": None}]}), "the answer holds no choices"),
        (raw(200, {"error": {"message": "overloaded"}}), "the answer holds no choices: overloaded"),
        (says(None, "content_filter"), "the answer holds no text (finish_reason content_filter)"),
        (raw(200, completion(["a"])), "the answer holds no text"),  # type: ignore[arg-type]
        (raw(200, [completion("x")]), "ValueError"),
        (raw(200, "7"), "ValueError"),
        (raw(500, [1]), "AttributeError"),
    ],
)
def test_an_answer_that_is_none_costs_one_item(
    server: Loopback, waits: list[float], move: Move, expected: str
) -> None:
    server.script = [says("yes"), move]
    first, second, third = endpoint(server, concurrency=1).answer(asks(3))
    assert (first, third) == (YES, YES)
    assert reason(second).startswith(expected)
    assert len(server.requests) == 3 and waits == []


# ---- the key ----


def test_the_key_leaves_in_the_authorization_header_alone(
    server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIALIGN_API_KEY", f" {KEY}\n")  # as `$(cat file)` or an editor leave it
    server.default = wants_key(KEY, says("yes"))
    assert endpoint(server).answer(asks(1)) == [YES]
    (request,) = server.requests
    assert request.headers["authorization"] == f"Bearer {KEY}"
    rest = {name: value for name, value in request.headers.items() if name != "authorization"}
    assert KEY not in json.dumps([request.path, rest, request.body])


def test_the_key_is_shown_nowhere_even_if_the_server_sends_it_back(
    server: Loopback,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("MINIALIGN_API_KEY", KEY)
    server.default = wants_key("another", says("yes"))
    teacher = endpoint(server)
    with caplog.at_level(logging.DEBUG):
        refused = refusal(teacher.check)
        (answer,) = Cached(teacher, tmp_path / "cache.jsonl").answer(asks(1))
    assert "refuses the key in MINIALIGN_API_KEY: no good: Bearer [the key]" in refused
    shown = [refused, reason(answer), caplog.text, *capfd.readouterr(), repr(teacher), teacher.name]
    assert not any(KEY in text for text in shown)
    assert not any(KEY.encode() in file.read_bytes() for file in tmp_path.iterdir())


def test_without_a_key_there_is_no_header_though_a_hub_token_lies_around(
    server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    assert endpoint(server).answer(asks(1)) == [YES]
    (request,) = server.requests
    assert "authorization" not in request.headers
    assert "hf_of_somebody" not in json.dumps([request.headers, request.body])


def test_the_key_may_stand_in_another_variable(
    server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTHER_KEY", KEY)
    endpoint(server, key_env="OTHER_KEY").answer(asks(1))
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("key", ["sk-secret\nX-Other: 1", "sk-secrét", "sk-secret\t1"])
def test_a_key_that_cannot_be_one_is_refused_without_showing_it(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIALIGN_API_KEY", key)
    message = refusal(lambda: EndpointTeacher("http://127.0.0.1:1", "m"))
    assert "MINIALIGN_API_KEY" in message and "secr" not in message


# ---- the check before anything long ----


def test_the_check_passes_with_one_short_request(server: Loopback) -> None:
    endpoint(server).check()
    (request,) = server.requests
    assert request.body["max_tokens"] == 1


@pytest.mark.parametrize("move", [fails(429, "busy"), says(None, "length"), says("")])
def test_a_busy_endpoint_or_one_without_words_is_in_order(server: Loopback, move: Move) -> None:
    server.default = move
    endpoint(server).check()


@pytest.mark.parametrize(
    ("move", "expected"),
    [
        (html(), "answers HTML: no chat completions here; most addresses end in /v1"),
        (html(404), "HTTP 404: no such path, or no model 'some-model' there"),
        (fails(404, "no model x"), "no such path, or no model 'some-model' there: no model x"),
        (fails(401), "HTTP 401: asks for a key, MINIALIGN_API_KEY is not set"),
        (raw(429, {"error": {"code": "insufficient_quota"}}), "HTTP 429"),
        (fails(500, "broken"), "HTTP 500: broken"),
        (raw(200, {"hello": "world"}), "the answer holds no choices"),
        (cuts, "cannot be reached: "),
    ],
)
def test_the_check_says_in_one_line_what_is_wrong(
    server: Loopback, waits: list[float], move: Move, expected: str
) -> None:
    server.default = move
    message = refusal(endpoint(server).check)
    assert message.startswith(f"{server.url}: ") and expected in message
    assert len(server.requests) == 1 and waits == []


def test_the_check_names_a_server_that_is_not_there(direct: None) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    assert refusal(EndpointTeacher(url, "m").check).startswith(f"{url}: cannot be reached: ")


def test_the_check_gives_up_on_a_server_that_hangs(server: Loopback) -> None:
    server.default = hangs
    message = refusal(endpoint(server, timeout=0.2).check)
    assert message == f"{server.url}: no answer within 0.2 s"


def test_the_hub_s_offline_switch_is_named(
    server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE" in refusal(endpoint(server).check)
    assert server.requests == []


# ---- addresses and knobs ----


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://localhost:8080", "http://localhost:8080/v1"),
        ("http://localhost:8080/", "http://localhost:8080/v1"),
        ("http://localhost:8080/v1/", "http://localhost:8080/v1"),
        (" https://a.example/v1/chat/completions ", "https://a.example/v1"),
        ("https://a.example/v1beta/openai/", "https://a.example/v1beta/openai"),
        ("http://a.example/chat/completions", "http://a.example"),
        ("http://[::1]:8080/v1", "http://[::1]:8080/v1"),
    ],
)
def test_addresses_are_understood_as_people_write_them(url: str, expected: str) -> None:
    assert parse_url(url) == expected


@pytest.mark.parametrize(
    "url", ["", "localhost:8080", "ftp://a/v1", "http://", "http://a:b", "a b"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    assert "not an address" in refusal(lambda: parse_url(url))


@pytest.mark.parametrize(
    "url",
    [
        "http://me:secret@a/v1",
        "http://a/v1?key=secret",
        "http://secret@a",
        "http://a/#secret",
        "ftp://me:secret@a",
        "a:8080?key=secret",
    ],
)
def test_an_address_that_holds_a_secret_is_refused_without_showing_it(url: str) -> None:
    assert "secret" not in refusal(lambda: parse_url(url))


def test_a_path_that_does_not_end_in_v1_is_taken_as_it_is(server: Loopback) -> None:
    base = server.url.removesuffix("/v1")
    EndpointTeacher(f"{base}/v1beta/openai", "m").answer(asks(1))
    EndpointTeacher(f"{base}/chat/completions", "m").answer(asks(1))
    paths = [request.path for request in server.requests]
    assert paths == ["/v1beta/openai/chat/completions", "/chat/completions"]


@pytest.mark.parametrize(
    "knobs",
    [{"concurrency": 0}, {"tries": 0}, {"timeout": 0}, {"requests_per_minute": -1}, {"model": " "}],
)
def test_impossible_knobs_are_refused(knobs: dict[str, Any]) -> None:
    model = knobs.pop("model", "m")
    refusal(lambda: EndpointTeacher("http://127.0.0.1:1", model, **knobs))


def test_the_name_says_which_model_and_where() -> None:
    assert EndpointTeacher("http://127.0.0.1:1/v1", "m").name == "m at http://127.0.0.1:1/v1"


# ---- nothing is asked twice ----


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


# ---- Ctrl-C ----


def test_what_has_arrived_by_then_survives_ctrl_c(server: Loopback, tmp_path: Path) -> None:
    server.default = together(4, says("yes"))

    def interrupted(index: int, answer: Answer) -> None:
        if not seen:
            seen.append(index)
            time.sleep(0.3)  # meanwhile the other three arrive
            raise KeyboardInterrupt

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        Cached(endpoint(server, concurrency=4), tmp_path / "c").answer(asks(4), interrupted)
    server.default = says("asked again")
    assert Cached(endpoint(server), tmp_path / "c").answer(asks(4)) == [YES] * 4


def test_after_an_interruption_no_further_request_is_sent(server: Loopback) -> None:
    def interrupted(index: int, answer: Answer) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        endpoint(server, concurrency=2).answer(asks(500), interrupted)
    wait_until(lambda: server.busy == 0)
    sent = len(server.requests)
    time.sleep(0.3)
    assert len(server.requests) - sent <= 2  # those that were about to leave
    assert len(server.requests) < 250


def test_ctrl_c_ends_the_process_soon_though_the_server_hangs(
    server: Loopback, tmp_path: Path
) -> None:
    server.script, server.default = [says("yes")] * 3, hangs
    file = tmp_path / "c"
    program = (
        "from minialign.endpoint import EndpointTeacher\n"
        "from minialign.teacher import Ask, Cached\n"
        f"teacher = Cached(EndpointTeacher({server.url!r}, 'm'), {str(file)!r})\n"
        "teacher.answer([Ask((('user', str(i)),), 8, 0.0) for i in range(9)])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "HF_HUB_OFFLINE": "0"},
    )
    try:
        wait_until(lambda: server.busy == 4 and file.read_bytes().count(b"\n") == 3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=5)
    finally:
        process.kill()
    assert b"KeyboardInterrupt" in errors
    assert file.read_bytes().count(b"\n") == 3


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---- a model in this process ----


@pytest.fixture
def local(toy_model: CausalLM, toy_tokenizer: Tokenizer) -> LocalTeacher:
    return LocalTeacher(toy_model, toy_tokenizer, "toy")


def test_a_local_model_s_answers_are_what_the_sampler_writes(
    local: LocalTeacher, toy_model: CausalLM, toy_tokenizer: Tokenizer
) -> None:
    questions = [ask("Dear Sam"), ask("Hello all", max_tokens=20), ask("Best regards")]
    heard: dict[int, Answer] = {}
    answers = local.answer(questions, heard.__setitem__)
    assert heard == dict(enumerate(answers))
    for question, answer in zip(questions, answers, strict=True):
        ((expected,),) = generate(
            toy_model,
            toy_tokenizer,
            [question.chat],
            max_new_tokens=question.max_tokens,
            temperature=0,
        )
        assert answer == Reply(expected.text, expected.finish_reason)


def test_a_local_model_answers_without_its_adapter_and_gets_it_back(
    local: LocalTeacher, toy_model: CausalLM
) -> None:
    before = local.answer(asks(2))
    apply_lora(toy_model, LoRAConfig(rank=4), "mine")
    for parameter in adapter_parameters(toy_model, "mine"):
        parameter.data.fill_(0.5)
    assert local.answer(asks(2)) == before
    assert active_adapter(toy_model) == "mine"


def test_a_question_beyond_the_context_fails_alone(local: LocalTeacher) -> None:
    short, long, last = local.answer([ask("a"), ask("Dear Sam " * 200), ask("b")])
    assert isinstance(short, Reply) and isinstance(last, Reply)
    assert "the model's context holds 256" in reason(long)
    assert local.answer([ask("a"), ask("b")]) == [short, last]


def test_a_question_that_the_chat_template_refuses_fails_alone(
    local: LocalTeacher, toy_tokenizer: Tokenizer
) -> None:
    toy_tokenizer.template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        "{{ messages[0].content }}"
    )
    refused, answered = local.answer([Ask((("system", "a"), ("user", "b")), 8, 0.0), ask("b")])
    assert "no system here" in reason(refused) and isinstance(answered, Reply)


def test_equal_calls_give_equal_answers_and_another_seed_others(local: LocalTeacher) -> None:
    questions = [ask(f"question {i}", temperature=1.0) for i in range(3)]
    assert local.answer(questions) == local.answer(questions)
    others = [ask(f"question {i}", temperature=1.0, seed=1) for i in range(3)]
    assert local.answer(questions) != local.answer(others)


def test_an_answer_depends_on_its_own_question_alone(local: LocalTeacher) -> None:
    """Whatever stands in the same batch, and in whichever batch it falls."""
    rows = SamplingConfig().max_rows
    heard: list[int] = []
    questions = [ask(f"q{i}", temperature=1.0) for i in range(rows + 1)]
    answers = local.answer(questions, lambda index, _: heard.append(index))
    assert sorted(heard) == list(range(rows + 1))
    for place in (0, 5, rows):
        assert local.answer([questions[place]]) == [answers[place]]
    assert len(set(answers)) > rows / 2  # each draws numbers of its own


def test_importing_teachers_and_judge_is_light() -> None:
    """No torch and no hub before anything is asked."""
    program = (
        "import sys, minialign.endpoint, minialign.teacher, minialign.evaluation.judge\n"
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
