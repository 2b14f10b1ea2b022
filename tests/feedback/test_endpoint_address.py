"""The address and the key of an endpoint: understood as people write them, and shown nowhere."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from helpers.loopback import Loopback, says, wants_key
from helpers.refusals import refusal
from helpers.teachers import YES, asks, endpoint, reason

from minialign.feedback.endpoint import EndpointTeacher, parse_url
from minialign.feedback.teacher import Cached

KEY = "sk-very-secret-0123456789"


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
