"""An endpoint: answers in order, failures in their place, and the check before anything long."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
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
)
from helpers.refusals import refusal
from helpers.teachers import YES, asks, endpoint, reason

from minialign.feedback import endpoint as module
from minialign.feedback.endpoint import LONGEST_WAIT, EndpointTeacher
from minialign.feedback.teacher import Answer, Ask, Cached, Reply


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
    (answer,) = endpoint(server, timeout=0.5, tries=2).answer(asks(1))
    assert reason(answer) == "no answer within 0.5 s (tried 2 times)"
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
        (raw(200, [completion("x")]), "the answer holds no choices"),
        (raw(200, "7"), "the answer holds no choices"),
        (raw(200, "[" * 100_000), "RecursionError"),
        (raw(400, [1]), "HTTP 400"),
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


# ---- the check before anything long ----


def test_the_check_passes_with_one_short_request(server: Loopback) -> None:
    endpoint(server).check()
    (request,) = server.requests
    assert request.body["max_tokens"] == 16  # some models refuse less


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


def test_the_hub_s_offline_switch_is_about_the_hub_alone(
    server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    endpoint(server).check()


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
        "from minialign.feedback.endpoint import EndpointTeacher\n"
        "from minialign.feedback.teacher import Ask, Cached\n"
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
