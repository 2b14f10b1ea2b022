"""The flags of `sample.py --feedback`, besides the pipeline's knobs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minialign.data.knobs import knob, require
from minialign.policy.knobs import BASE_DTYPE_HELP, BaseDtype

DEFAULT_FOLDER = "data"


@dataclass(frozen=True)
class FeedbackOptions:
    """What `sample.py --feedback` needs besides the pipeline's knobs."""

    feedback: str = knob(
        "", 'the sentence, such as "Be brief when writing to my boss"', subject="the feedback"
    )
    feedbacks: str = knob(
        "",
        "or a file of sentences, JSON Lines of {feedback, domain, effect, check} or with C3PO's "
        "own fields (content, metric, metric_value, ...): a folder each",
    )
    feedback_prefix: str = knob("", "of --feedbacks, those that begin so")
    feedback_category: str = knob("", "of --feedbacks, those with this entry in their categories")
    feedback_scope: Literal["", "global", "regional", "local"] = knob(
        "", "of --feedbacks, those of this scope"
    )
    feedback_kind: Literal["", "quantitative", "qualitative"] = knob(
        "", "of --feedbacks, those of this type: quantitative ones have a check"
    )
    rewrite: str = knob(
        "", "or a folder of feedback whose prompts are kept: --model writes the responses anew"
    )
    domain: str = knob("", "when the sentence applies; by default the teacher says it")
    effect: str = knob("", "what an answer that follows it looks like; by default the teacher's")
    out: str = knob(
        "",
        "the data folder; by default data/ and the first words of the sentence; with "
        "--feedbacks the folder of the folders",
    )
    check: str = knob(
        "", 'a check that a program can verify, as JSON: {"kind": "ends_with", "text": ...}'
    )
    general: str = knob("", "out-of-scope prompts, JSON Lines of {prompt}; by default shipped ones")
    model: str = knob(
        "",
        "the model that will be trained, which writes the responses; by default train.py's",
        subject="who writes",
    )
    revision: str = knob("", "the hub's branch, tag or commit")
    teacher: str = knob("", "a local model that writes the prompts; by default --model")
    teacher_url: str = knob(
        "", "or an OpenAI-compatible endpoint; its key is taken from MINIALIGN_API_KEY"
    )
    teacher_model: str = knob("", "the model's name at --teacher-url")
    responses: Literal["model", "teacher"] = knob(
        "model", "who writes the responses: the model that will be trained, as in the paper"
    )
    device: str = knob("auto", "auto, cpu, cuda, cuda:1, mps", subject="memory and speed")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob("auto", "of the local models")
    base_dtype: BaseDtype = knob("auto", BASE_DTYPE_HELP)

    def __post_init__(self) -> None:
        require(
            bool(self.teacher_url) == bool(self.teacher_model),
            "--teacher-url and --teacher-model need each other",
        )
        require(
            not (self.teacher and self.teacher_url), "give --teacher or --teacher-url, not both"
        )
        ways = [bool(self.feedback), bool(self.feedbacks), bool(self.rewrite)]
        require(sum(ways) < 2, "give one of --feedback, --feedbacks and --rewrite")
        filters = ("prefix", "category", "scope", "kind")
        given = [name for name in filters if getattr(self, f"feedback_{name}")]
        require(
            bool(self.feedbacks) or not given,
            f"--feedback-{'/'.join(given)} chooses from a file: give --feedbacks FILE.jsonl",
        )
        for name in ("domain", "effect", "check"):
            require(
                not (getattr(self, name) and (self.feedbacks or self.rewrite)),
                f"--{name} belongs to --feedback: leave it out",
            )

    @property
    def folder(self) -> Path:
        if self.out:
            return Path(self.out)
        if self.rewrite:
            name = f"{Path(self.rewrite).resolve().name}-{Path(self.model).name}"
            return Path(DEFAULT_FOLDER) / name
        return folder_of(self.feedback)

    @property
    def described(self) -> dict[str, Any]:
        """As feedback.json has it, with what is known."""
        return {"feedback": self.feedback, "domain": self.domain, "effect": self.effect}


def folder_of(feedback: str) -> Path:
    """data/end-every-e-mail, from the sentence's first words."""
    words = re.findall(r"[a-z0-9]+", feedback.lower())[:5]
    return Path(DEFAULT_FOLDER) / ("-".join(words) or "feedback")
