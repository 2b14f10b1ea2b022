"""What a comparison by scope refuses before a model loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minialign.data.feedback import (
    SCOPES,
    FeedbackData,
    data_paths,
    load_data,
    load_feedback_data,
)
from minialign.data.records import DEMONSTRATIONS, PAIRS
from minialign.errors import InputError
from minialign.evaluation.judges import MODEL
from minialign.evaluation.knobs import EvaluateOptions
from minialign.training.folder import source_of


def check_sources(
    folders: Sequence[Path], records: Sequence[dict[str, Any]], options: EvaluateOptions
) -> None:
    """Raises InputError unless all learned from one feedback."""
    usual = records[0]["options"]["data"]
    for run, record in zip(folders, records, strict=True):
        if source_of(record) == DEMONSTRATIONS:
            raise InputError(f"{run}: learned from demonstrations: evaluate it by itself")
        if source_of(record) == PAIRS:
            raise InputError(
                f"{run}: learned from preference pairs, which have no scope to score: its "
                "report.html has the held-out pairs' figures, and --compare puts runs side by side"
            )
        data = record["options"]["data"]
        if not options.test and not _same(data, usual):
            raise InputError(
                f"{run}: has another data than {folders[0]} ({data}, {usual}): evaluate them one "
                "by one, or name one with --test"
            )


def data_to_test(run: Path, folder: str, options: EvaluateOptions) -> FeedbackData:
    if len(joined := data_paths(folder)) > 1:
        raise InputError(
            f"{run}: learned from several feedbacks: choose which to test with "
            f"--test {joined[0]} or another"
        )
    data = load_feedback_data(folder)
    for scope in SCOPES:
        if not data.examples(scope, "test"):
            raise InputError(
                f'{folder}/{scope}.jsonl: no prompt to test on: give some lines the split "test"'
            )
    if MODEL not in options.judges and not data.checks:
        raise InputError(
            f"{folder}/feedback.json: has no check, so a model must judge: "
            "--judges model --judge-model NAME [--judge-url URL]"
        )
    return data


def _same(one: str, other: str) -> bool:
    """Whether two runs have one data; folders are the same however they are written."""
    return one == other or [p.resolve() for p in data_paths(one)] == [
        p.resolve() for p in data_paths(other)
    ]


def check_unseen(data: FeedbackData, run: Path, learned_from: str) -> None:
    """Raises InputError where a prompt to test on is one that the run was trained on.

    Nothing is known where the run's data is no longer there.
    """
    try:
        learned = load_data(learned_from)
    except InputError:
        return
    known = {
        example.prompt.strip(): example.source
        for scope in SCOPES
        for example in learned.examples(scope, "train")
    }
    for scope in SCOPES:
        for example in data.examples(scope, "test"):
            if source := known.get(example.prompt.strip()):
                raise InputError(
                    f"{example.source}: a prompt to test on must be new, {run} was trained on it "
                    f"({source}): choose another --test, or delete the line"
                )
