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
    test_fraction: float = knob(0.2, "share of the prompts kept for the evaluation (paper .2)")
    max_new_tokens: int = knob(400, "tokens a response at most (C3PO code 600)")
    max_list_tokens: int = knob(1024, "tokens at most where the teacher writes a list")
    temperature: float = knob(0.7, "of teacher and student; 0 takes the likeliest token (C3PO .7)")
    tries: int = knob(3, "how often the same is asked, each time with another seed, at most")
    seed: int = knob(0, "the same seed and the same answers give the same folder")
    keep_improved: bool = knob(
        False, "ask again for, and in the end drop, training pairs that the check finds no better"
    )

    def __post_init__(self) -> None:
        counts = ("categories", "prompts_per_category", "out_of_scope", "tries")
        for name in (*counts, "max_new_tokens", "max_list_tokens"):
            value = getattr(self, name)
            require(value >= 1, f"{name} must be at least 1, not {value}")
        require(
            0 <= self.test_fraction < 1,
            f"test_fraction must lie in [0, 1), not {self.test_fraction}",
        )
        require(self.temperature >= 0, f"temperature must not be negative, not {self.temperature}")
        require(0 <= self.seed < 2**31, f"seed must lie in [0, 2^31), not {self.seed}")
