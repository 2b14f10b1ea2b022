"""The limits of a judge behind an address are evaluate.py's flags."""

from __future__ import annotations

from pathlib import Path

from helpers.loopback import Loopback

from minialign.data.knobs import config_from_flags
from minialign.evaluation import contest
from minialign.evaluation.knobs import EvaluateOptions
from minialign.feedback.endpoint import EndpointTeacher
from minialign.feedback.teacher import Cached


def test_the_limits_of_a_judge_s_endpoint_are_flags(server: Loopback, tmp_path: Path) -> None:
    given = {"judge_url": server.url, "judge_model": "m", "judges": ("model",)}
    limits = {"judge_concurrency": "2", "judge_timeout": "7", "judge_thinking_tokens": "5"}
    options = config_from_flags(EvaluateOptions(), {**given, **limits})
    cached = contest._endpoint(options, tmp_path / "judge.jsonl")
    assert isinstance(cached, Cached) and isinstance(cached.teacher, EndpointTeacher)
    assert (cached.teacher.concurrency, cached.teacher.timeout) == (2, 7.0)
    assert options.endpoint.thinking_tokens == 5
