"""A hostile endpoint: no answer takes all memory or time, and the key goes nowhere else."""

from __future__ import annotations

import gzip
import json
import time
import tracemalloc
from pathlib import Path

import pytest
from helpers.loopback import Handler, Loopback, Move, Request, completion, fails, raw, says, serve
from helpers.refusals import refusal
from helpers.teachers import YES, asks, endpoint, reason

from minialign.feedback.teacher import Cached, Reply
from minialign.feedback.wire import MOST_BYTES

KEY = "sk-very-secret-0123456789"


def pours(handler: Handler, request: Request) -> None:
    """Two gigabytes, or as much as is taken."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.end_headers()
    handler.close_connection = True
    part = b" " * 2**16
    try:
        for _ in range(2**15):
            handler.wfile.write(part)
            handler.loopback.poured += len(part)
    except OSError:
        pass


BOMB = gzip.compress(bytes(2**26))  # 64 kB that unpack to 64 MB


def bomb(handler: Handler, request: Request) -> None:
    handler.send(200, BOMB, "application/json", Content_Encoding="gzip")


def drips(where: str) -> Move:
    """A byte every twentieth of a second, in the headers or in the body, and never an end."""

    def move(handler: Handler, request: Request) -> None:
        handler.close_connection = True
        begin = b"HTTP/1.1 200 OK\r\nX-Long: " if where == "headers" else b"HTTP/1.1 200 OK\r\n\r\n"
        try:
            handler.wfile.write(begin)
            while not handler.loopback.closing.wait(0.05):
                handler.wfile.write(b" ")
        except OSError:
            pass

    return move


def test_an_answer_of_gigabytes_is_cut_off_while_it_is_read(server: Loopback) -> None:
    server.default = pours
    (answer,) = endpoint(server).answer(asks(1))
    assert reason(answer) == "answers more than 4 MB: no chat completion"
    assert server.poured < 16 * MOST_BYTES


def test_an_answer_that_would_unpack_to_gigabytes_is_not_unpacked(server: Loopback) -> None:
    server.default = bomb
    tracemalloc.start()
    try:
        (answer,) = endpoint(server).answer(asks(1))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reason(answer) == "answers compressed, which was not asked for"
    assert server.requests[0].headers["accept-encoding"] == "identity"
    assert peak < 2**24


@pytest.mark.parametrize("where", ["headers", "body"])
def test_an_answer_that_trickles_ends_with_the_time(server: Loopback, where: str) -> None:
    server.default = drips(where)
    before = time.monotonic()
    (answer,) = endpoint(server, timeout=0.4, tries=1).answer(asks(1))
    assert reason(answer) == "no answer within 0.4 s (tried 1 times)"
    assert time.monotonic() - before < 10


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_named_and_not_followed(
    server: Loopback, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("MINIALIGN_API_KEY", KEY)
    with serve(says("caught")) as other:
        target = f"{other.url}/chat/completions"
        server.default = raw(status, "", Location=f"{target}?key={KEY}")
        message = refusal(endpoint(server).check)
    assert message == (
        f"{server.url}: HTTP {status}: sends on to {target}, which is not followed: "
        "give that address"
    )
    assert other.requests == []


def test_a_key_that_comes_back_in_an_answer_is_not_kept(
    server: Loopback, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MINIALIGN_API_KEY", KEY)
    server.script = [
        says(f"You said: Bearer {KEY}", KEY),
        raw(200, json.dumps(completion(None, f"stop {KEY}"))),
        fails(400, KEY),
    ]
    cached = Cached(endpoint(server, concurrency=1), tmp_path / "judge.jsonl")
    first, *others = cached.answer(asks(3))
    assert first == Reply("You said: Bearer [the key]", "[the key]")
    assert not any(KEY in reason(answer) for answer in others)
    assert KEY not in (tmp_path / "judge.jsonl").read_text()


# ---- what models refuse ----


def refuses(*names: str) -> Move:
    """A model that knows none of these parameters, in the words of OpenAI's servers."""

    def move(handler: Handler, request: Request) -> None:
        for name in names:
            if name in request.body:
                said = f"Unsupported parameter: '{name}' is not supported with this model."
                error = {"message": said, "param": name, "code": "unsupported_parameter"}
                return raw(400, {"error": error})(handler, request)
        return says("yes")(handler, request)

    return move


def test_a_refused_limit_is_sent_by_its_newer_name_and_never_again_by_the_old(
    server: Loopback,
) -> None:
    server.default = refuses("max_tokens", "temperature")
    teacher = endpoint(server, concurrency=1)
    teacher.check()
    assert len(server.requests) == 3
    assert teacher.answer(asks(4)) == [YES] * 4
    assert len(server.requests) == 7
    body = server.requests[-1].body
    assert body["max_completion_tokens"] == 8 and body["seed"] == 0
    assert not {"max_tokens", "temperature"} & body.keys()
    assert teacher.learned == [
        "max_tokens is refused: max_completion_tokens is sent",
        "temperature is refused: the model's own holds",
    ]


def test_threads_that_are_refused_together_learn_it_once(server: Loopback) -> None:
    server.default = refuses("max_tokens", "seed")
    teacher = endpoint(server, concurrency=4)
    assert teacher.answer(asks(12)) == [YES] * 12
    assert len(teacher.learned) == 2 and "max_completion_tokens" in server.requests[-1].body


def test_a_server_that_forbids_extra_fields_is_understood(server: Loopback) -> None:
    detail = [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]
    server.script = [raw(422, {"detail": detail})]
    assert endpoint(server).answer(asks(1)) == [YES]
    assert "seed" not in server.requests[1].body


def test_a_limit_that_is_too_high_is_no_unknown_parameter(server: Loopback) -> None:
    server.default = fails(400, "max_tokens is too large: the model supports at most 4 tokens")
    (answer,) = endpoint(server).answer(asks(1))
    assert reason(answer).startswith("HTTP 400: max_tokens is too large")
    assert len(server.requests) == 1


def thinks(tokens: int, left_in: bool) -> Move:
    """A model that needs `tokens` for its thoughts; servers take them out of the text, or not."""

    def move(handler: Handler, request: Request) -> None:
        if request.body["max_tokens"] <= tokens:
            return says("<think>Let me" if left_in else None, "length")(handler, request)
        return says("<think>Let me see.</think>\n\nyes" if left_in else "yes")(handler, request)

    return move


@pytest.mark.parametrize("left_in", [True, False])
def test_a_model_that_thinks_first_gets_room_for_it(server: Loopback, left_in: bool) -> None:
    server.default = thinks(100, left_in)
    teacher = endpoint(server, concurrency=1, thinking_tokens=300)
    assert teacher.answer(asks(3)) == [YES] * 3
    assert [request.body["max_tokens"] for request in server.requests] == [8, 308, 308, 308]
    assert teacher.learned == ["it thinks first: 300 tokens more each time"]


def test_a_refusal_that_ran_out_of_tokens_is_the_same(server: Loopback) -> None:
    said = "Could not finish the message because max_tokens or model output limit was reached."
    server.script = [fails(400, said)]
    assert endpoint(server).answer(asks(1)) == [YES]
    assert server.requests[1].body["max_tokens"] == 8 + 2048


@pytest.mark.parametrize("tokens", [0, 50])
def test_thoughts_without_an_end_cost_one_item(server: Loopback, tokens: int) -> None:
    server.default = thinks(100, True)
    (answer,) = endpoint(server, thinking_tokens=tokens).answer(asks(1))
    assert "raise the limit for thoughts" in reason(answer)
    assert len(server.requests) == (2 if tokens else 1)
