"""A contest: contestants answer prompts that none of them was trained on, and are measured.

From run folders to the results that evaluate.py prints and writes, and that report.html shows. What
is asked and measured depends on what the runs learned from: a measure each.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minialign.data.records import DEMONSTRATIONS, FEEDBACK, PAIRS
from minialign.errors import InputError
from minialign.evaluation.contestants import Contestant, write_answers
from minialign.evaluation.knobs import EvaluateOptions
from minialign.evaluation.measure import Hall, Measure, Results, writing
from minialign.evaluation.scopes import Scopes
from minialign.evaluation.voice import Voice
from minialign.feedback.endpoint import EndpointTeacher
from minialign.feedback.local_teacher import LocalTeacher
from minialign.feedback.teacher import Cached, Teacher
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import combine_adapters, remove_adapter
from minialign.policy.knobs import SamplingConfig
from minialign.policy.peft import load_adapter
from minialign.training import ranks
from minialign.training.folder import adapter_folder, read_run_record, source_of
from minialign.weights.find import find_checkpoint
from minialign.weights.load import load

# What a run learned from -> what is measured. Pairs have no scope: their measure says so.
MEASURES: dict[str, type[Measure]] = {DEMONSTRATIONS: Voice, FEEDBACK: Scopes, PAIRS: Scopes}


@dataclass(frozen=True)
class Contest:
    """Everything that is known, and checked, before the model loads."""

    # of the first run: its model counts
    record: dict[str, Any]
    measure: Measure


# ---- before the model loads ----


def measure_of(folder: Path) -> type[Measure]:
    """What is measured of a run; it knows the usual options."""
    return MEASURES[source_of(read_run_record(folder))]


def prepare(folders: Sequence[Path], options: EvaluateOptions) -> Contest:
    """Raises InputError for whatever a person can put right; writes nothing."""
    if options.judge_model and not options.judge_url:
        find_checkpoint(options.judge_model)
    records = [read_run_record(folder) for folder in folders]
    for folder, record in zip(folders, records, strict=True):
        # refuses an unfinished run
        adapter_folder(str(folder))
        if _base_of(record) != _base_of(records[0]):
            raise InputError(
                f"{folder}: was trained on {_base_of(record)}, {folders[0]} on "
                f"{_base_of(records[0])}: evaluate them one by one"
            )
    return Contest(records[0], measure_of(folders[0]).of(folders, records, options))


def _base_of(record: dict[str, Any]) -> str:
    model, revision = record["options"]["model"], record["options"]["revision"]
    return f"{model} at {revision}" if revision else str(model)


# ---- with the model ----


def hold(contest: Contest, options: EvaluateOptions, cache: Path) -> Results:
    """Loads the model, lets everybody answer, and measures; `cache` keeps a model judge's words."""
    measure, endpoint = contest.measure, _endpoint(options, cache)
    trained = contest.record["options"]
    model, tokenizer = load(
        trained["model"],
        revision=trained["revision"] or None,
        dtype=options.dtype,
        base_dtype=options.base_dtype,
        device=options.device,
    )
    contestants = _seated(model, measure)
    known, longest = measure.lengths(model, tokenizer)
    sampling = SamplingConfig(options.max_new_tokens or known + known // 4, options.temperature)
    answers = write_answers(
        model,
        tokenizer,
        contestants,
        measure.asked,
        options.n,
        sampling,
        seed=options.seed,
        progress=writing,
        longest=longest,
    )
    if not ranks.is_first():
        sys.exit(0)

    def teacher() -> Teacher:
        return endpoint or Cached(_local_teacher(options), cache)

    return measure.measured(
        Hall(model, tokenizer, contestants, answers, sampling, longest, options, teacher)
    )


def _seated(model: CausalLM, measure: Measure) -> list[Contestant]:
    """Loads everybody's adapter."""
    contestants = []
    for place, entry in enumerate(measure.entries):
        # A folder may have a name that no adapter can have, such as one with a dot.
        adapter = f"contestant_{place}" if entry.adapter or entry.summed else None
        if entry.adapter and adapter:
            load_adapter(model, entry.adapter, adapter)
        if entry.summed and adapter:
            _load_sum(model, entry.summed, adapter)
        contestants.append(measure.contestant(entry, adapter))
    return contestants


def _load_sum(model: CausalLM, summed: Sequence[tuple[Path, float]], name: str) -> None:
    parts = [f"{name}_{number}" for number in range(len(summed))]
    for part, (folder, _) in zip(parts, summed, strict=True):
        load_adapter(model, folder, part)
    combine_adapters(model, {part: w for part, (_, w) in zip(parts, summed, strict=True)}, name)
    for part in parts:
        remove_adapter(model, part)


def _endpoint(options: EvaluateOptions, cache: Path) -> Teacher | None:
    """Checked before anything long, its kept answers too; None without an address."""
    if not options.judge_url:
        return None
    how = asdict(options.endpoint)
    teacher = EndpointTeacher(options.judge_url, options.judge_model, **how)
    cached = Cached(teacher, cache)
    teacher.check()
    return cached


def _local_teacher(options: EvaluateOptions) -> Teacher:
    model, tokenizer = load(
        options.judge_model,
        dtype=options.dtype,
        base_dtype=options.base_dtype,
        device=options.device,
    )
    return LocalTeacher(model, tokenizer, options.judge_model)
