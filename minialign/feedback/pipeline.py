"""From one sentence of feedback to a C3PO data folder (arXiv 2402.10893, section 4.1).

    1. the sentence becomes {feedback, domain, effect}                     the teacher
    2. categories of requests, a little wider than the domain              the teacher
    3. prompts in and near scope, by category: drafted, then revised       the teacher
    4. prompts out of scope: general ones, or a file's
    5. which prompts to train on, and which to test on
    6. responses: baseline; in scope revised; for the test in_context
       and cot, which C3PO's rivals are judged by                          the student

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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minialign.data.checks import Check, parse_checks
from minialign.data.feedback import DESCRIPTION, SCOPES, SPLITS, load_feedback_data
from minialign.data.files import read_json, read_jsonl
from minialign.data.general import general_prompts
from minialign.data.knobs import require
from minialign.errors import InputError
from minialign.feedback.knobs import PipelineConfig
from minialign.feedback.lists import Distinct
from minialign.feedback.stages import Line, Progress, Say, Stage, Stages
from minialign.feedback.teacher import Cached, Teacher
from minialign.feedback.writer import WRITTEN_BY, written_by

FILES = {scope: f"{scope}.jsonl" for scope in SCOPES}
TEACHER, STUDENT, DROPPED = "teacher.jsonl", "student.jsonl", "dropped.jsonl"
ENTRIES = {DESCRIPTION, TEACHER, STUDENT, DROPPED, *FILES.values()}
PARTS = ("feedback", "domain", "effect")
RESPONSES = ("baseline", "revised", "in_context", "cot")


@dataclass(frozen=True)
class PipelineReport:
    """Counts by stage, in order. The last stage counts the lines of the data files."""

    stages: tuple[Stage, ...]

    def describe(self) -> list[str]:
        """A line a stage."""
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
    weights: str = "",
    say: Say = print,
    progress: Progress | None = None,
) -> PipelineReport:
    """Writes the data folder of one sentence of feedback, which `load_feedback_data` reads.

    `feedback` may also be a dict like feedback.json: a `domain` or `effect` that it holds is not
    asked for. `general` is a file of out-of-scope prompts, JSON Lines of {prompt}; `check` is a
    check or a list of them, as in feedback.json; `weights` is the student's fingerprint, where it
    is the model to be trained. `say` hears a line as each stage ends. A failed
    answer costs its item, and is asked for again when the same call is made again. Lines that can
    only get a response of no use (empty; for training also a revision equal to the baseline, or not
    improved) stand in dropped.jsonl, with the reason.

    Raises InputError before anything is asked for empty feedback, a folder that holds other things,
    a missing file or a wrong check; later where answers keep failing, or no prompt is left to train
    on in some scope.
    """
    folder = Path(folder)
    described, checks = _read_feedback(feedback, check, "feedback")
    _check_improvable(config, checks)
    _check_folder(folder, described["feedback"])
    unrelated = _unrelated_prompts(general, config)
    stages = Stages(config, say, progress, Cached(student, folder / STUDENT))
    cached = Cached(teacher, folder / TEACHER)
    described |= stages.describe(cached, described)
    categories = stages.categories(cached, described["domain"])
    distinct = Distinct()
    prompts = {
        scope: stages.prompts(cached, scope, described, categories, distinct)
        for scope in ("in_scope", "near_scope")
    }
    with stages.stage("out_of_scope prompts") as stage:
        kept = [prompt for prompt in unrelated if stage.sift(distinct.reason_against(prompt))]
        prompts["out_of_scope"] = stages.at_most(kept, "out_of_scope")
    lines = {scope: split_prompts(prompts[scope], config) for scope in SCOPES}
    _require_training(lines, stages)
    stages.respond(lines, described["feedback"], checks)
    complete = _complete(lines, stages)
    _require_training(complete, stages)
    described = {key: described[key] for key in PARTS} | described
    writers = {"prompts": teacher.name, **written_by(student, weights)}
    _write_description(folder, {**described, WRITTEN_BY: writers})
    _write_scopes(folder, complete, _dropped(lines))
    load_feedback_data(folder)
    return PipelineReport(tuple(stages.done))


def complete_responses(
    folder: str | Path,
    config: PipelineConfig,
    *,
    student: Teacher,
    weights: str = "",
    say: Say = print,
    progress: Progress | None = None,
) -> PipelineReport:
    """Fills in the responses that a hand-written folder lacks; what is there stays as it is.

    Who wrote them is recorded where all of them are the student's.

    Its lines need no more than `prompt` and `split`. A line whose answer failed stays without it,
    and is completed when the same call is made again. Lines that can only get a response of no use
    move to dropped.jsonl.

    Raises InputError before anything is asked for a missing file or a line that is wrong, later
    where answers keep failing.
    """
    folder = Path(folder)
    require(folder.is_dir(), f"{folder}: no such folder")
    source = folder / DESCRIPTION
    described, checks = _read_feedback(read_json(source), None, str(source))
    for key in PARTS:
        _text(described, key, str(source))
    _check_improvable(config, checks)
    lines = {scope: _read_lines(folder / FILES[scope]) for scope in SCOPES}
    _check_leaks(folder, lines)
    dropped_before = _read_dropped(folder)
    begun = any(line.get(name) for scope in SCOPES for line in lines[scope] for name in RESPONSES)
    stages = Stages(config, say, progress, Cached(student, folder / STUDENT))
    stages.respond(lines, described["feedback"], checks)
    complete = _complete(lines, stages)
    left = {s: [line for line in lines[s] if "dropped" not in line] for s in SCOPES}
    _write_scopes(folder, left, dropped_before + _dropped(lines))
    if not begun:
        writers = described.get(WRITTEN_BY, {}) | written_by(student, weights)
        _write_description(folder, {**read_json(source), WRITTEN_BY: writers})
    if complete == left:
        load_feedback_data(folder)
    return PipelineReport(tuple(stages.done))


def copy_prompts(source: Path, folder: Path) -> None:
    """A folder with the prompts of `source`, for responses by another model."""
    data = load_feedback_data(source)
    described = read_json(source / DESCRIPTION)
    described.pop(WRITTEN_BY, None)
    for scope in SCOPES:
        lines = [{"prompt": e.prompt, "split": e.split} for e in getattr(data, scope)]
        write_lines(folder / FILES[scope], lines)
    # Last: with it the folder counts as one.
    _write_description(folder, described)


# ---- what goes in ----


def _read_feedback(
    feedback: str | dict[str, Any], check: Any, source: str
) -> tuple[dict[str, Any], tuple[Check, ...]]:
    """What feedback.json holds, as far as it is known, and the parsed check."""
    described = {"feedback": feedback} if isinstance(feedback, str) else dict(feedback)
    for key in PARTS:
        text = described.pop(key, "")
        require(isinstance(text, str), f'{source}: the field "{key}" must be a text')
        if text.strip():
            described[key] = " ".join(text.split())
    if "feedback" not in described:
        example = "'Use no exclamation marks in e-mails to my boss'"
        raise InputError(f"{source}: it is empty: write a sentence, such as {example}")
    raw = described.get("check") if check is None else check
    if raw is None:
        return described, ()
    return described | {"check": raw}, parse_checks(raw, source)


def _check_improvable(config: PipelineConfig, checks: tuple[Check, ...]) -> None:
    require(
        bool(checks) or not config.keep_improved,
        "keep_improved needs a check to tell what is better: give one, or leave it out",
    )


def _check_folder(folder: Path, feedback: str) -> None:
    """The folder may be new, or hold what an earlier run for the same feedback left there."""
    if not folder.exists():
        return
    require(folder.is_dir(), f"{folder}: is a file: choose another folder")
    entries = {entry.removesuffix(".partial") for entry in os.listdir(folder)}
    if foreign := sorted(entries - ENTRIES):
        raise InputError(f"{folder}: holds other files ({foreign[0]}): choose another folder")
    if entries and not entries & {TEACHER, STUDENT}:
        raise InputError(
            f"{folder}: holds data that was written by hand: complete it, or choose another folder"
        )
    if (folder / DESCRIPTION).exists():
        other = read_json(folder / DESCRIPTION).get("feedback")
        require(
            other == feedback,
            f"{folder}: holds data for another feedback ({other!r}): choose another folder",
        )


def _unrelated_prompts(general: str | Path | None, config: PipelineConfig) -> list[str]:
    """Out-of-scope prompts: the package's, or at most as many of a person's file."""
    if general is None:
        return general_prompts(config.out_of_scope, config.seed)
    prompts = [_text(line, "prompt", f"{general}, line {n}") for n, line in read_jsonl(general)]
    if len(prompts) <= config.out_of_scope:
        return prompts
    return random.Random(f"{config.seed}/general").sample(prompts, config.out_of_scope)


def _text(line: Line, field: str, where: str) -> str:
    text = line.get(field)
    if not isinstance(text, str) or not text.strip():
        raise InputError(f'{where}: the field "{field}" must be a text that is not empty')
    return text


def _read_lines(path: Path) -> list[Line]:
    lines = []
    for number, line in read_jsonl(path):
        where = f"{path}, line {number}"
        _text(line, "prompt", where)
        require(line.get("split") in SPLITS, f'{where}: "split" must be train, test or eval')
        for response in RESPONSES:
            if line.get(response) is not None:
                _text(line, response, where)
        lines.append(line)
    return lines


def _check_leaks(folder: Path, lines: dict[str, list[Line]]) -> None:
    splits: dict[str, str] = {}
    for line in (line for scope in SCOPES for line in lines[scope]):
        known = splits.setdefault(line["prompt"].strip(), line["split"])
        prompt = line["prompt"][:60]
        require(
            known == line["split"],
            f"{folder}: the prompt {prompt!r} is in both splits: leave it in one of the two",
        )


def _read_dropped(folder: Path) -> list[Line]:
    file = folder / DROPPED
    return [line for _, line in read_jsonl(file)] if file.exists() else []


def split_prompts(prompts: list[str], config: PipelineConfig) -> list[Line]:
    """Lines with a split, in the order of the prompts.

    The test takes its share of them, rounded, but at least one and never all if there are two or
    more; then the evaluation while training, of those that are left. Who is in which depends on a
    hash of each prompt, so a few prompts more move few others.
    """
    test = _share(config.test_fraction, len(prompts))
    evaluated = _share(config.eval_fraction, len(prompts) - test)

    def rank(prompt: str) -> bytes:
        return hashlib.sha256(f"{config.seed}/{prompt}".encode("utf-8", "replace")).digest()

    ranked = sorted(prompts, key=rank)
    splits = dict.fromkeys(ranked, "train") | dict.fromkeys(ranked[:test], "test")
    splits |= dict.fromkeys(ranked[test : test + evaluated], "eval")
    return [{"prompt": prompt, "split": splits[prompt]} for prompt in prompts]


def _share(fraction: float, count: int) -> int:
    """At least one where any are wanted, and never all."""
    return min(max(1, round(fraction * count)), max(0, count - 1)) if fraction else 0


# ---- what comes out ----


def _complete(lines: dict[str, list[Line]], stages: Stages) -> dict[str, list[Line]]:
    """The lines that hold all that training needs."""
    with stages.stage("data") as stage:
        return {
            scope: [line for line in lines[scope] if stage.sift(_lacking(line, scope))]
            for scope in SCOPES
        }


def _lacking(line: Line, scope: str) -> str | None:
    if "dropped" in line:
        return f"dropped ({line['dropped']})"
    if not line.get("baseline"):
        return "without a baseline: start again to go on"
    if scope == "in_scope" and not line.get("revised"):
        return "without a revision: start again to go on"
    return None


def _dropped(lines: dict[str, list[Line]]) -> list[Line]:
    return [
        {"scope": scope, **line} for scope in SCOPES for line in lines[scope] if "dropped" in line
    ]


def _require_training(lines: dict[str, list[Line]], stages: Stages) -> None:
    for scope in SCOPES:
        if any(line["split"] == "train" for line in lines[scope]):
            continue
        names = {f"{scope} prompts", "baseline responses", "revised responses"}
        about = [stage for stage in stages.done if stage.name in names]
        happened = " | ".join(stage.describe() for stage in about)
        remedy = "raise tries, categories or the token limits, take a stronger teacher, or write "
        remedy += "the prompts by hand"
        if any(stage.unused["failed"] for stage in about):
            remedy = "start again to go on"
        elif scope == "out_of_scope":
            remedy = "give other general prompts"
        raise InputError(f"{scope}: no prompt is left to train on: {remedy} ({happened})")


def _write_scopes(folder: Path, lines: dict[str, list[Line]], dropped: list[Line]) -> None:
    """The dropped lines first: a crash in between repeats some of them, and loses none."""
    for name, written in [(DROPPED, dropped), *((FILES[s], lines[s]) for s in SCOPES)]:
        if written or (folder / name).exists():
            write_lines(folder / name, written)


def _write_description(folder: Path, described: dict[str, Any]) -> None:
    _write(folder / DESCRIPTION, json.dumps(described, ensure_ascii=False, indent=2) + "\n")


def write_lines(file: Path, lines: list[Line]) -> None:
    """JSON Lines, written whole or not at all."""
    _write(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    partial = file.with_name(file.name + ".partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, file)
    except OSError as error:
        raise InputError(f"{file}: cannot be written: {error.strerror}") from None
