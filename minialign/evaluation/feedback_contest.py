"""evaluate.py for runs that learned from feedback: methods side by side, by scope."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence as SequenceABC
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minialign.data.feedback import SCOPES, FeedbackData, data_paths, load_data, load_feedback_data
from minialign.data.records import DEMONSTRATIONS, PAIRS
from minialign.errors import InputError
from minialign.evaluation.contest import endpoint, local_teacher, progress_bar, writing
from minialign.evaluation.judges.model import ModelJudge, Rating
from minialign.evaluation.knobs import EvaluateOptions
from minialign.evaluation.names import AGAIN, COT, IN_CONTEXT
from minialign.evaluation.scopes import (
    ScopeScores,
    Scorer,
    by_check,
    kept_figures,
    sampled_answers,
    scope_scores,
    written_answers,
)
from minialign.feedback.teacher import Cached, Teacher
from minialign.policy.encode import encode_feedback
from minialign.policy.knobs import SamplingConfig
from minialign.policy.peft import load_adapter
from minialign.training.folder import adapter_folder, read_run_record, source_of
from minialign.weights.load import load
from minialign.weights.tokenizer import Tokenizer


@dataclass(frozen=True)
class FeedbackContest:
    """Everything that is known, and checked, before the model loads."""

    record: dict[str, Any]  # of the first run
    data: FeedbackData
    adapters: dict[str, Path]  # method or run -> folder


@dataclass(frozen=True)
class FeedbackResults:
    scores: dict[str, ScopeScores]
    by_answer: dict[str, dict[str, list[float | None]]]  # method -> scope -> a score an answer
    answers: dict[str, dict[str, list[list[str]]]]  # method -> scope -> prompt -> answers
    judge: str  # a line for a person: who scored


def prepare_feedback_contest(
    folders: SequenceABC[Path], options: EvaluateOptions
) -> FeedbackContest:
    """Raises InputError for whatever a person can put right; writes nothing."""
    records = [read_run_record(folder) for folder in folders]
    first = records[0]["options"]
    for run, record in zip(folders, records, strict=True):
        if source_of(record) == DEMONSTRATIONS:
            raise InputError(f"{run}: learned from demonstrations: evaluate it by itself")
        if source_of(record) == PAIRS:
            raise InputError(
                f"{run}: learned from preference pairs, which have no scope to score: its "
                "report.html has the held-out pairs' figures, and --compare puts runs side by side"
            )
        for name in ("model",) if options.test else ("model", "data"):
            if not _same(name, record["options"][name], first[name]):
                raise InputError(
                    f"{run}: has another {name} than {folders[0]} "
                    f"({record['options'][name]}, {first[name]}): evaluate them one by one"
                    + (", or name one with --test" if name == "data" else "")
                )
    folder = options.test or first["data"]
    if len(joined := data_paths(folder)) > 1:
        raise InputError(
            f"{folders[0]}: learned from several feedbacks: choose which to test with "
            f"--test {joined[0]} or another"
        )
    data = load_feedback_data(folder)
    for scope in SCOPES:
        if not data.examples(scope, "test"):
            raise InputError(
                f'{folder}/{scope}.jsonl: no prompt to test on: give some lines the split "test"'
            )
    if "model" not in options.judges and not data.checks:
        raise InputError(
            f"{folder}/feedback.json: has no check, so a model must judge: "
            "--judges model --judge-model NAME [--judge-url URL]"
        )
    for run, record in zip(folders, records, strict=True):
        _check_unseen(data, run, record["options"]["data"])
    one = len(folders) == 1
    adapters: dict[str, Path] = {}
    for run, record in zip(folders, records, strict=True):
        name = record["options"]["method"] if one else run.resolve().name
        if name in adapters or name in (AGAIN, IN_CONTEXT, COT):
            raise InputError(f"{run}: there is another contestant called {name}: rename one")
        adapters[name] = adapter_folder(str(run))
    return FeedbackContest(records[0], data, adapters)


def _same(name: str, one: str, other: str) -> bool:
    """Whether two runs have one model or data; folders are the same however they are written."""
    if one == other or name != "data":
        return one == other
    return [p.resolve() for p in data_paths(one)] == [p.resolve() for p in data_paths(other)]


def _check_unseen(data: FeedbackData, run: Path, learned_from: str) -> None:
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


def hold_feedback_contest(
    contest: FeedbackContest, options: EvaluateOptions, cache: Path
) -> FeedbackResults:
    """Loads the model, lets every method answer the test prompts, and scores."""
    teacher = endpoint(options, cache)
    trained = contest.record["options"]
    model, tokenizer = load(
        trained["model"],
        revision=trained["revision"] or None,
        dtype=options.dtype,
        device=options.device,
    )
    policies: dict[str, str | None] = {AGAIN: None}
    for number, (name, folder) in enumerate(contest.adapters.items()):
        policies[name] = f"run {number + 1}"  # a folder's name may be no name for an adapter
        load_adapter(model, folder, f"run {number + 1}")
    new = options.max_new_tokens or _usual_length(contest, tokenizer)
    answers = written_answers(contest.data) | sampled_answers(
        model,
        tokenizer,
        contest.data,
        policies,
        options.n,
        SamplingConfig(new, options.temperature),
        seed=options.seed,
        progress=writing,
    )
    scorer = Scoring(contest, options, teacher, cache)
    scores, by_answer = {}, {}
    for name, texts in answers.items():
        by_answer[name] = scope_scores(contest.data, texts, scorer)
        figures = {}
        if name in policies:
            figures = kept_figures(
                model, tokenizer, contest.data, policies[name], options.micro_batch_tokens
            )
        scores[name] = ScopeScores.of(by_answer[name], **figures)
    return FeedbackResults(scores, by_answer, answers, scorer.describe())


def _usual_length(contest: FeedbackContest, tokenizer: Tokenizer) -> int:
    """Tokens: a quarter more than the longest answer of the data."""
    limit = contest.record["knobs"]["max_length"]
    sequences, _ = encode_feedback(contest.data, "train", tokenizer, limit)
    texts = [*(s for pair in sequences.in_scope for s in pair), *sequences.near_scope]
    longest = max(len(sequence.completion_ids) for sequence in texts)
    return longest + longest // 4


class Scoring:
    """The check of the feedback, or a model's word where one is asked for."""

    def __init__(
        self,
        contest: FeedbackContest,
        options: EvaluateOptions,
        teacher: Teacher | None,
        cache: Path,
    ) -> None:
        self.data = contest.data
        self.judge: ModelJudge | None = None
        self.lines: list[str] = []
        self._check: Scorer = by_check(contest.data)
        if "model" in options.judges:
            self.judge = ModelJudge(teacher or Cached(local_teacher(options), cache))

    def __call__(self, items: list[tuple[str, str, str]]) -> list[float | None]:
        if self.judge is None:
            return self._check(items)
        ratings = [Rating(p, self.data.feedback, baseline, a) for p, baseline, a in items]
        with progress_bar("asking the judge", 2 * len(ratings), "question") as bar:
            report = self.judge.rate(ratings, lambda *_: bar.update())
        self.lines.append(self.judge.describe(report))
        return report.scores

    def describe(self) -> str:
        if self.judge is None:
            return "by the feedback's own check: " + ", ".join(c.kind for c in self.data.checks)
        return self.lines[-1]


# ---- what is shown and written ----


def feedback_table(contest: FeedbackContest, results: FeedbackResults) -> str:
    counts = [len(contest.data.examples(scope, "test")) for scope in SCOPES]
    title = "test prompts: {} in scope, {} near, {} out of scope; scored {}"
    head = f"{'':20}{'S_in':>14}{'S_out':>14}{'(near)':>8}{'(far)':>8}{'S_overall':>15}{'drift':>8}"
    lines = [contest.data.feedback, title.format(*counts, results.judge), "", head]
    for name, found in results.scores.items():
        moved = "-" if found.drift is None else f"{found.drift:.3f}"
        lines.append(
            f"{name:20}{_pm(found.s_in.value, found.s_in.error):>14}"
            f"{_pm(found.s_out.value, found.s_out.error):>14}"
            f"{found.s_near.value:>8.2f}{found.s_far.value:>8.2f}"
            f"{_pm(found.overall, found.overall_error):>15}{moved:>8}"
        )
    if any(found.unscored for found in results.scores.values()):
        missing = {name: found.unscored for name, found in results.scores.items()}
        lines.append(f"answers without a score: {missing}")
    return "\n".join(lines)


def _pm(value: float, error: float) -> str:
    return f"{value:.2f} +- {error:.2f}"


def feedback_content(contest: FeedbackContest, results: FeedbackResults) -> dict[str, Any]:
    """evaluation.json's own part: figures by method, and every answer by scope."""
    data = contest.data
    return {
        "feedback": data.feedback,
        "domain": data.domain,
        "effect": data.effect,
        "scored": results.judge,
        "methods": {name: dataclasses.asdict(found) for name, found in results.scores.items()},
        "scopes": {
            scope: [
                {
                    "prompt": example.prompt,
                    "baseline": example.baseline.text,
                    "answers": {name: results.answers[name][scope][i] for name in results.answers},
                    "scores": {
                        name: _of_prompt(results, name, scope, i) for name in results.answers
                    },
                }
                for i, example in enumerate(data.examples(scope, "test"))
            ]
            for scope in SCOPES
        },
    }


def _of_prompt(results: FeedbackResults, name: str, scope: str, place: int) -> list[float | None]:
    each = len(results.answers[name][scope][0])
    return results.by_answer[name][scope][place * each : (place + 1) * each]
