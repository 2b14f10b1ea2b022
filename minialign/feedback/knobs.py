"""How much is asked for when a sentence becomes data."""

from __future__ import annotations

from dataclasses import dataclass

from minialign.data.knobs import knob, require


@dataclass(frozen=True)
class PipelineConfig:
    """How much is asked for. The paper works with some 30 x 32 prompts a scope."""

    categories: int = knob(
        8, "kinds of requests that prompts are written for (C3PO code 30)", subject="how much"
    )
    prompts_per_category: int = knob(
        8, "prompts in scope, and as many near scope, a category (C3PO code 32)"
    )
    out_of_scope: int = knob(64, "prompts about anything else (C3PO code 960)")
    max_prompts: int = knob(0, "prompts a scope at most, drawn from all categories; 0: all")
    test_fraction: float = knob(0.2, "share of the prompts kept for the evaluation (paper .2)")
    eval_fraction: float = knob(
        0.0,
        "share of the others that is neither trained nor tested on, for the loss while training "
        "(C3PO code .05); 0: the test's are taken",
    )
    max_new_tokens: int = knob(400, "tokens a response at most (C3PO code 600)")
    max_list_tokens: int = knob(1024, "tokens at most where the teacher writes a list")
    temperature: float = knob(0.7, "of teacher and student; 0 takes the likeliest token (C3PO .7)")
    top_p: float = knob(0.7, "keep the likeliest tokens that hold this share (C3PO .7)")
    tries: int = knob(3, "how often the same is asked, each time with another seed, at most")
    seed: int = knob(0, "the same seed and the same answers give the same folder")
    keep_improved: bool = knob(
        False, "ask again for, and in the end drop, training pairs that the check finds no better"
    )
    stop_early: bool = knob(
        True, "stop as soon as a teacher or student turns out to give next to nothing of use"
    )

    def __post_init__(self) -> None:
        counts = ("categories", "prompts_per_category", "out_of_scope", "tries")
        for name in (*counts, "max_new_tokens", "max_list_tokens"):
            value = getattr(self, name)
            require(value >= 1, f"{name} must be at least 1, not {value}")
        for name in ("test_fraction", "eval_fraction"):
            value = getattr(self, name)
            require(0 <= value < 1, f"{name} must lie in [0, 1), not {value}")
        require(self.max_prompts >= 0, f"max_prompts must not be negative, not {self.max_prompts}")
        require(0 < self.top_p <= 1, f"top_p must lie in (0, 1], not {self.top_p}")
        require(self.temperature >= 0, f"temperature must not be negative, not {self.temperature}")
        require(0 <= self.seed < 2**31, f"seed must lie in [0, 2^31), not {self.seed}")


@dataclass(frozen=True)
class EndpointConfig:
    """How a model behind an address is asked."""

    concurrency: int = knob(4, "requests at a time", subject="the endpoint")
    requests_per_minute: float = knob(0.0, "requests a minute at most, begun evenly; 0: no limit")
    timeout: float = knob(180.0, "seconds that an answer may take in all")
    thinking_tokens: int = knob(
        2048, "tokens more an answer for a model that turns out to think before it answers"
    )
