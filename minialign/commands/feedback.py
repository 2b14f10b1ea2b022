"""`sample.py --feedback "..."`, and train.py's first half: a sentence becomes a data folder.

The flags, who writes what, and the progress bars; the work itself is pipeline.py's.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minialign.commands.cli import OneLineParser, add_flags
from minialign.data.knobs import config_from_flags, knob, require
from minialign.errors import InputError
from minialign.feedback.endpoint import EndpointTeacher
from minialign.feedback.knobs import PipelineConfig
from minialign.feedback.local_teacher import LocalTeacher
from minialign.feedback.pipeline import make_feedback_data
from minialign.feedback.teacher import Answer, OnDone, Teacher

DEFAULT_FOLDER = "data"
FIRST = (
    *("feedback", "out", "model", "teacher_url", "teacher_model", "check", "general", "responses"),
    *("categories", "prompts_per_category"),
)


@dataclass(frozen=True)
class FeedbackOptions:
    """What `sample.py --feedback` needs besides the pipeline's knobs."""

    feedback: str = knob(
        "", 'the sentence, such as "Be brief when writing to my boss"', subject="the feedback"
    )
    out: str = knob("", "the data folder; by default data/ and the first words of the sentence")
    check: str = knob(
        "", 'a check that a program can verify, as JSON: {"kind": "ends_with", "text": ...}'
    )
    general: str = knob("", "out-of-scope prompts, JSON Lines of {prompt}; by default shipped ones")
    model: str = knob(
        "", "the model that will be trained, which writes the responses", subject="who writes"
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

    def __post_init__(self) -> None:
        require(
            bool(self.teacher_url) == bool(self.teacher_model),
            "--teacher-url and --teacher-model need each other",
        )
        require(
            not (self.teacher and self.teacher_url), "give --teacher or --teacher-url, not both"
        )

    @property
    def folder(self) -> Path:
        return Path(self.out) if self.out else folder_of(self.feedback)


def folder_of(feedback: str) -> Path:
    """data/end-every-e-mail, from the sentence's first words."""
    words = re.findall(r"[a-z0-9]+", feedback.lower())[:5]
    return Path(DEFAULT_FOLDER) / ("-".join(words) or "feedback")


def main(arguments: list[str]) -> None:
    """`sample.py --feedback ...`: makes the folder and says what to do with it."""
    parser = OneLineParser(
        "sample.py", "Make the data folder of one sentence of feedback.", arguments
    )
    add_flags(parser, FeedbackOptions, "options", FeedbackOptions(), first=FIRST)
    add_flags(parser, PipelineConfig, "how much", PipelineConfig(), first=FIRST)
    parser.add_argument("sentence", nargs="?", default="", help="the sentence, as --feedback")
    # `sample.py --feedback --help` asks for help, and gives no sentence.
    asks = [word for word in arguments if word in ("-h", "--help", "--help-all")]
    given = parser.parse(asks or arguments)
    if sentence := given.pop("sentence"):
        require("feedback" not in given, "the sentence stands there twice: leave out --feedback")
        given["feedback"] = sentence
    names = FeedbackOptions.__dataclass_fields__
    options = config_from_flags(FeedbackOptions(), {k: v for k, v in given.items() if k in names})
    config = config_from_flags(PipelineConfig(), {k: v for k, v in given.items() if k not in names})
    folder = make_data(options, config)
    model = f" --model {shlex.quote(options.model)}" if options.model else ""
    print(f"next: python train.py --data {shlex.quote(str(folder))}{model}")


def make_data(options: FeedbackOptions, config: PipelineConfig) -> Path:
    """Runs the pipeline; the endpoint is asked once before a model loads."""
    check = _parsed(options.check)
    if not options.feedback.strip():
        raise InputError("--feedback is empty: give a sentence")
    endpoint = None
    if options.teacher_url:
        endpoint = EndpointTeacher(options.teacher_url, options.teacher_model)
        endpoint.check()
    teacher, student = _teachers(options, endpoint)
    make_feedback_data(
        options.feedback,
        options.folder,
        config,
        teacher=teacher,
        student=student,
        general=options.general or None,
        check=check,
        say=lambda line: print(line, flush=True),
        progress=_progress,
    )
    return options.folder


def _parsed(check: str) -> Any:
    if not check:
        return None
    try:
        return json.loads(check)
    except ValueError as error:
        raise InputError(f"--check is not JSON ({error}): see minialign/data/checks.py") from None


def _teachers(options: FeedbackOptions, endpoint: Teacher | None) -> tuple[Teacher, Teacher]:
    """Who writes prompts, and who writes responses; a model is loaded once, and only if needed."""
    from minialign.weights.find import DEFAULT_MODEL

    name = options.model or DEFAULT_MODEL
    if endpoint is not None and options.responses == "teacher":
        return endpoint, endpoint
    student = None
    if options.responses == "model" or not (endpoint or options.teacher):
        student = _local(name, options)
    teacher = endpoint or (_local(options.teacher, options) if options.teacher else student)
    assert teacher is not None
    return teacher, (student if student and options.responses == "model" else teacher)


def _local(name: str, options: FeedbackOptions) -> Teacher:
    from minialign.weights.load import load

    revision = options.revision or None
    model, tokenizer = load(name, revision=revision, dtype=options.dtype, device=options.device)
    return LocalTeacher(model, tokenizer, name)


def _progress(title: str, total: int) -> OnDone:
    """A bar of answers."""
    from tqdm import tqdm

    bar = tqdm(
        desc=title,
        total=total,
        unit="answer",
        leave=False,
        dynamic_ncols=True,
        disable=not sys.stderr.isatty(),
    )

    def on_done(index: int, answer: Answer) -> None:
        bar.update()
        if bar.n == total:
            bar.close()

    return on_done
