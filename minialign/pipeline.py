"""From one sentence of feedback to a C3PO data folder (arXiv 2402.10893, section 4.1).

    1. the sentence becomes {feedback, domain, effect}                     the teacher
    2. categories of requests, a little wider than the domain              the teacher
    3. prompts in and near scope, by category: drafted, then revised       the teacher
    4. prompts out of scope: general ones, or a file's
    5. which prompts are to train on and which to test on
    6. responses: baseline; in scope revised; for the test in_context
       and cot, by which C3PO's rivals are judged                          the student

Every question follows from the answers before it, and every answer is kept in the folder
(teacher.jsonl, student.jsonl) the moment it arrives. So there is no other state: an interrupted run
that is started again asks nothing twice, and ends as if it had never stopped.

Deviations from the paper: the model that will be trained writes the revisions, as it writes the
baselines, and a prompt that nearly repeats another one is left out, whatever their scopes.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minialign import teacher_prompts
from minialign.config import knob, require
from minialign.data import read_json, read_jsonl
from minialign.errors import InputError
from minialign.evaluation.checks import Check, parse_checks, score_response
from minialign.feedback import DESCRIPTION, SCOPES, SPLITS, general_prompts, load_feedback_data
from minialign.prompt_lists import (
    Distinct,
    after_label,
    category_name,
    labelled_line,
    parse_list,
    strip_introduction,
)
from minialign.teacher import Ask, Cached, Failure, OnDone, Reply, Teacher

FILES = {scope: f"{scope}.jsonl" for scope in SCOPES}
TEACHER, STUDENT, DROPPED = "teacher.jsonl", "student.jsonl", "dropped.jsonl"
ENTRIES = {DESCRIPTION, TEACHER, STUDENT, DROPPED, *FILES.values()}
RESPONSES = ("baseline", "revised", "in_context", "cot")
ENDED = {"stop", "eos", "eos_token", "end_turn", "stop_sequence"}  # as servers spell it
GIVE_UP_AFTER = 16  # failures in a row

Line = dict[str, Any]  # of a data file
Progress = Callable[[str, int], OnDone]  # (what is asked, how often) -> called after each answer
Say = Callable[[str], None]


@dataclass(frozen=True)
class PipelineConfig:
    """How much is asked for. The paper works with some 30 x 32 prompts a scope."""

    categories: int = knob(8, "kinds of requests that prompts are written for (C3PO code 30)")
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
        False, "ask again for, and then drop, training pairs that the check finds no better"
    )

    def __post_init__(self) -> None:
        positive = ("categories", "prompts_per_category", "out_of_scope", "tries")
        for name in (*positive, "max_new_tokens", "max_list_tokens"):
            value = getattr(self, name)
            require(value >= 1, f"{name} must be at least 1, not {value}")
        require(
            0 <= self.test_fraction < 1,
            f"test_fraction must lie in [0, 1), not {self.test_fraction}",
        )
        require(self.temperature >= 0, f"temperature must not be negative, not {self.temperature}")
        require(0 <= self.seed < 2**31, f"seed must lie in [0, 2^31), not {self.seed}")


@dataclass
class Stage:
    """What was asked in one stage, and what became of everything found: kept, or lost and why."""

    name: str
    asked: int = 0
    unused: Counter[str] = field(default_factory=Counter)  # answers, by reason
    found: int = 0
    lost: Counter[str] = field(default_factory=Counter)  # of those found, by reason
    notes: list[str] = field(default_factory=list)

    @property
    def kept(self) -> int:
        return self.found - self.lost.total()

    def sift(self, reason: str | None) -> bool:
        """Counts one more that was found, and lost if there is a reason."""
        self.found += 1
        self.lost.update([reason] if reason else [])
        return reason is None

    def describe(self) -> str:
        line = f"{self.name}: {self.kept} of {self.found} kept{_counted(self.lost)}"
        if self.asked:
            line += f"; {self.asked} questions{_counted(self.unused)}"
        return "; ".join([line, *self.notes])


def _counted(reasons: Counter[str]) -> str:
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common() if count)
    return f" ({listed})" if listed else ""


@dataclass(frozen=True)
class PipelineReport:
    """Counts by stage, in order; the last one counts the lines of the data files."""

    stages: tuple[Stage, ...]

    def describe(self) -> list[str]:
        return [stage.describe() for stage in self.stages]


def make_feedback_data(
    feedback: str | dict[str, Any],
    folder: str | Path,
    config: PipelineConfig,
    *,
    teacher: Teacher,
    student: Teacher,
    general: str | Path | None = None,
    check: Any = None,
    say: Say = print,
    progress: Progress | None = None,
) -> PipelineReport:
    """Writes the data folder of one sentence of feedback, which `load_feedback_data` reads.

    `feedback` may also be a dict like feedback.json: a `domain` and `effect` that it holds are not
    asked for. `general` is a file of out-of-scope prompts, JSON Lines of {prompt}; `check` a check
    or a list of them, as in feedback.json. `say` hears a line as each stage ends. Failed answers
    cost their item, and are asked again when the same call is made again.

    Raises InputError before anything is asked for empty feedback, a folder that holds other things,
    a missing file or a wrong check; later if answers keep failing, or if no prompt is left to
    train on in some scope.
    """
    folder = Path(folder)
    described, checks = _read_feedback(feedback, check)
    _check_config(config, checks)
    _check_folder(folder, described["feedback"])
    unrelated = _unrelated_prompts(general, config)
    work = _Work(config, folder, student, teacher, say, progress)
    described |= {key: text for key, text in work.describe(described).items()}
    sentence, domain = described["feedback"], described["domain"]
    categories = work.categories(domain)
    distinct = Distinct()
    prompts = {
        scope: work.prompts(scope, sentence, domain, categories, distinct) for scope in SCOPES[:2]
    }
    with work.stage("out_of_scope prompts") as stage:
        sifted = [p for p in unrelated if stage.sift(distinct.reason_against(p))]
    prompts["out_of_scope"] = sifted
    lines = {scope: _split(prompts[scope], config) for scope in SCOPES}
    work.check_left(lines)
    work.respond(lines, sentence, checks)
    left = work.data(lines, {line["prompt"]: line for s in SCOPES for line in lines[s]} and None)
    return PipelineReport(tuple(work.stages))
