"""The flags of an evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minialign.data.knobs import knob, knobs, require
from minialign.data.records import DEMONSTRATIONS
from minialign.evaluation.judges import ASKING, MODEL, OFFLINE, VOTES, check_judge
from minialign.evaluation.names import BASE, FEW_SHOT
from minialign.feedback.knobs import EndpointConfig
from minialign.methods.cards import method_names, warm_starts
from minialign.policy.knobs import BASE_DTYPE_HELP, BaseDtype, SamplingConfig


@dataclass(frozen=True)
class EvaluateOptions:
    """evaluate.py's flags, after the run folders."""

    against: tuple[str, ...] = knob(
        (BASE, FEW_SHOT, *warm_starts()),
        f"contestants: {BASE}, {FEW_SHOT}, a method ({', '.join(method_names(DEMONSTRATIONS))}: "
        "RUN's own, a stage of it, or RUN-METHOD), a run folder, a sum of such "
        "(runs/a+runs/b=0.5), a file of answers",
        subject="who answers, and what",
    )
    judges: tuple[str, ...] = knob(OFFLINE, "who judges", subject="who judges")
    votes: str = knob(
        "",
        "the person's votes, from `minialign blind RUN`, judge too; alone, of the answers that RUN "
        "was evaluated with, at once",
    )
    test: str = knob(
        "",
        "held-out demonstrations, or a folder of feedback, as the run learned from; by default "
        "the run's own",
        subject="who answers, and what",
    )
    n: int = knob(4, "answers a prompt and contestant")
    max_new_tokens: int = knob(0, "tokens an answer at most; 0: 1.25 x the longest held-out text")
    temperature: float = knob(1.0, "of the answers")
    others: str = knob(
        "",
        "other people's texts, for the style judge: JSON Lines of {text} or demonstrations",
        subject="who judges",
    )
    judge_model: str = knob("", "the model that judges: a name at --judge-url, or a local model")
    judge_url: str = knob(
        "", "an OpenAI-compatible endpoint; its key is taken from MINIALIGN_API_KEY"
    )
    endpoint: EndpointConfig = knobs(EndpointConfig(), "judge_")
    general: int = knob(
        12,
        "general prompts on which the drift from the base is measured; 0: none",
        subject="what is measured and shown",
    )
    compare: bool = knob(
        False, "compare the runs' curves and knobs on one page instead: runs/comparison.html"
    )
    show: int = knob(2, "prompts whose answers are printed side by side")
    seed: int = knob(0, "the same seed gives the same answers", subject="who answers, and what")
    device: str = knob("auto", "auto, cpu, cuda, cuda:1, mps", subject="memory and speed")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob("auto", "of the base model")
    base_dtype: BaseDtype = knob("auto", BASE_DTYPE_HELP)
    micro_batch_tokens: int = knob(
        1024,
        "tokens in flight, of one prompt up to twice as many: memory depends on it, gradients not",
    )

    def __post_init__(self) -> None:
        require(self.n >= 1, f"n must be at least 1, not {self.n}")
        require(self.show >= 0, f"show must not be negative, not {self.show}")
        require(self.general >= 0, f"general must not be negative, not {self.general}")
        for judge in self.judges:
            check_judge(judge)
        require(bool(self.votes) or VOTES not in self.judges, "--judges votes needs --votes FILE")
        asking = [judge for judge in self.judges if judge in ASKING]
        require(
            bool(asking) == bool(self.judge_model),
            f"--judges {(asking or [MODEL])[0]} and --judge-model NAME need each other",
        )
        require(
            bool(asking) or not self.judge_url,
            f"--judge-url needs --judges {MODEL} --judge-model NAME",
        )
        require(0 <= self.seed < 2**63, f"seed must lie in [0, 2^63), not {self.seed}")
        require(
            self.micro_batch_tokens >= 1,
            f"micro_batch_tokens must be at least 1, not {self.micro_batch_tokens}",
        )
        SamplingConfig(self.max_new_tokens, self.temperature)  # checks the rest


# C3PO's responses are sampled at .7 (arXiv 2402.10893, appendix), one to a prompt.
FEEDBACK_EVALUATION = EvaluateOptions(n=1, temperature=0.7)
