"""C3PO's measure: is the feedback followed where it belongs, and nowhere else?

Every test prompt's answer is compared with the base model's answer to it, which was sampled once,
by a check that a program can verify or by a judge: 1 follows the feedback more, -1 less, 0 as much
(arXiv 2402.10893, section 5).

    S_in      = mean of the scores in scope
    S_out     = mean of their absolute values, near scope and out of scope
    S_overall = (S_in + 1 - S_out) / 2

S_out is not 0 for a model that did not change: two samples of one model may differ in the very
thing that is checked. The row "base, again" shows by how much.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from collections.abc import Sequence as Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

from minialign.data.checks import score_response
from minialign.data.feedback import (
    SCOPES,
    FeedbackData,
    ScopeLine,
)
from minialign.data.records import Example, Messages
from minialign.errors import InputError
from minialign.evaluation.contestants import Answers, Contestant, Entry
from minialign.evaluation.judges import MODEL, QUALITY
from minialign.evaluation.judges.intervals import clustered_mean
from minialign.evaluation.judges.model import ModelJudge, Rating
from minialign.evaluation.knobs import FEEDBACK_EVALUATION, EvaluateOptions
from minialign.evaluation.measure import Hall, progress_bar
from minialign.evaluation.names import AGAIN, COT, IN_CONTEXT, REVISION
from minialign.evaluation.scope_checks import check_sources, check_unseen, data_to_test
from minialign.model.transformer import CausalLM
from minialign.policy.encode import encode_answer, encode_feedback
from minialign.policy.measure import drift, nats_per_token
from minialign.policy.reference import reference_policy
from minialign.training.folder import adapter_folder
from minialign.weights.tokenizer import Tokenizer

Scorer = Callable[[list[tuple[str, str, str]]], list[float | None]]  # (prompt, baseline, answer)
Column = dict[str, list[list[str]]]  # scope -> prompt -> answers


@dataclass(frozen=True)
class Mean:
    """With its standard error, which counts prompts; NaN without a value, or from one prompt."""

    value: float
    error: float
    count: int

    @classmethod
    def of(cls, by_prompt: Sequence[Sequence[float]]) -> Mean:
        return cls(*clustered_mean(by_prompt), sum(map(len, by_prompt)))


@dataclass(frozen=True)
class ScopeScores:
    """One method's result; `unscored` counts answers that the judge could not score."""

    s_in: Mean
    s_near: Mean  # absolute values
    s_far: Mean  # absolute values, out of scope
    s_out: Mean  # of both together
    overall: float
    overall_error: float
    unscored: int
    drift: float | None = None  # KL(base || policy), nats per token of the base's answers
    nats_per_token: float | None = None  # of the base's own answers out of scope

    @classmethod
    def of(
        cls, scores: dict[str, list[float | None]], answers: Column, **figures: float | None
    ) -> ScopeScores:
        """From a score an answer, by scope; `answers` says which are to one prompt."""
        known = {scope: _by_prompt(values, answers[scope]) for scope, values in scores.items()}
        inside = Mean.of(known["in_scope"])
        near, far = (
            [[abs(s) for s in group] for group in known[scope]]
            for scope in ("near_scope", "out_of_scope")
        )
        outside = Mean.of(near + far)
        missing = sum(values.count(None) for values in scores.values())
        return cls(
            inside,
            Mean.of(near),
            Mean.of(far),
            outside,
            (inside.value + 1 - outside.value) / 2,
            math.hypot(inside.error, outside.error) / 2,
            missing,
            **figures,
        )


def _by_prompt(
    values: Sequence[float | None], groups: Sequence[Sequence[str]]
) -> list[list[float]]:
    """A group for each prompt, without what could not be scored."""
    rest = iter(values)
    return [[s for s in islice(rest, len(group)) if s is not None] for group in groups]


def by_check(data: FeedbackData) -> Scorer:
    """The feedback's own check."""

    def scorer(items: list[tuple[str, str, str]]) -> list[float | None]:
        return [score_response(data.checks, answer, baseline) for _, baseline, answer in items]

    return scorer


def scope_scores(
    data: FeedbackData, answers: Column, scorer: Scorer
) -> dict[str, list[float | None]]:
    """A score an answer, by scope; all answers are judged together."""
    items, places = [], []
    for scope in SCOPES:
        for example, group in zip(data.examples(scope, "test"), answers[scope], strict=True):
            items += [(example.prompt, example.baseline.text, answer) for answer in group]
            places += [scope] * len(group)
    found: dict[str, list[float | None]] = {scope: [] for scope in SCOPES}
    for scope, score in zip(places, scorer(items), strict=True):
        found[scope].append(score)
    return found


def kept_figures(
    model: CausalLM,
    tokenizer: Tokenizer,
    data: FeedbackData,
    adapter: str | None,
    max_tokens: int,
) -> dict[str, float | None]:
    """How far the policy moved out of scope, on the base model's own answers there."""
    ordinary = baseline_sequences(
        data.examples("out_of_scope", "test"), tokenizer, model.config.max_position_embeddings
    )
    with reference_policy(model, adapter):
        nats = nats_per_token(model, ordinary, max_tokens)
    return {"drift": drift(model, adapter, ordinary, max_tokens), "nats_per_token": nats}


def baseline_sequences(
    examples: list[ScopeLine], tokenizer: Tokenizer, limit: int
) -> list[Example]:
    return [encode_answer(example, example.baseline, tokenizer, limit)[0] for example in examples]


# ---- the measure ----


@dataclass(frozen=True)
class ScopeResults:
    """What was found, by contestant."""

    data: FeedbackData
    scores: dict[str, ScopeScores]
    by_answer: dict[str, dict[str, list[float | None]]]  # scope -> a score an answer
    answers: dict[str, Column]
    judge: str  # a line for a person: who scored

    def table(self, show: int) -> str:
        counts = [len(self.data.examples(scope, "test")) for scope in SCOPES]
        title = "test prompts: {} in scope, {} near, {} out of scope; scored {}"
        head = (
            f"{'':20}{'S_in':>14}{'S_out':>14}"
            f"{'(near)':>8}{'(far)':>8}{'S_overall':>15}{'drift':>8}"
        )
        lines = [self.data.feedback, title.format(*counts, self.judge), "", head]
        for name, found in self.scores.items():
            moved = "-" if found.drift is None else f"{found.drift:.3f}"
            lines.append(
                f"{name:20}{_pm(found.s_in.value, found.s_in.error):>14}"
                f"{_pm(found.s_out.value, found.s_out.error):>14}"
                f"{found.s_near.value:>8.2f}{found.s_far.value:>8.2f}"
                f"{_pm(found.overall, found.overall_error):>15}{moved:>8}"
            )
        if any(found.unscored for found in self.scores.values()):
            missing = {name: found.unscored for name, found in self.scores.items()}
            lines.append(f"answers without a score: {missing}")
        return "\n".join(lines)

    def content(self) -> dict[str, Any]:
        """Figures by method, and every answer by scope."""
        data = self.data
        return {
            "feedback": data.feedback,
            "domain": data.domain,
            "effect": data.effect,
            "scored": self.judge,
            "methods": {name: dataclasses.asdict(found) for name, found in self.scores.items()},
            "scopes": {
                scope: [
                    {
                        "prompt": example.prompt,
                        "baseline": example.baseline.text,
                        "answers": {name: self.answers[name][scope][i] for name in self.answers},
                        "scores": {name: self._of_prompt(name, scope, i) for name in self.answers},
                    }
                    for i, example in enumerate(data.examples(scope, "test"))
                ]
                for scope in SCOPES
            },
        }

    def _of_prompt(self, name: str, scope: str, place: int) -> list[float | None]:
        each = len(self.answers[name][scope][0])
        return self.by_answer[name][scope][place * each : (place + 1) * each]


def _pm(value: float, error: float) -> str:
    return f"{value:.2f} +- {error:.2f}"


@dataclass(frozen=True)
class Scopes:
    """The measure of runs that learned from a sentence of feedback."""

    usual: ClassVar[EvaluateOptions] = FEEDBACK_EVALUATION
    useless: ClassVar[tuple[str, ...]] = ("against", "others", "general", "show", "votes")
    everywhere: ClassVar[bool] = True

    data: FeedbackData
    entries: list[Entry]
    max_length: int  # of a text that was learned from
    written: dict[str, tuple[tuple[str, ...], ...]]  # rivals that stand in the data

    @classmethod
    def of(
        cls,
        folders: Sequence[Path],
        records: Sequence[dict[str, Any]],
        options: EvaluateOptions,
    ) -> Scopes:
        check_sources(folders, records, options)
        if QUALITY in options.judges:
            raise InputError(
                f"--judges {QUALITY}: compares answers to a person's prompts: leave it out for a "
                "run that learned from feedback"
            )
        data = data_to_test(folders[0], options.test or records[0]["options"]["data"], options)
        for run, record in zip(folders, records, strict=True):
            check_unseen(data, run, record["options"]["data"])
        written = _written_answers(data)
        entries = [*map(Entry, written), Entry(AGAIN)]
        for run, record in zip(folders, records, strict=True):
            name = record["options"]["method"] if len(folders) == 1 else run.resolve().name
            if name in (AGAIN, IN_CONTEXT, COT, *(e.name for e in entries)):
                raise InputError(f"{run}: there is another contestant called {name}: rename one")
            entries.append(Entry(name, adapter_folder(str(run))))
        return cls(data, entries, records[0]["knobs"]["max_length"], written)

    @property
    def asked(self) -> list[Messages]:
        return [
            [{"role": "user", "content": example.prompt}]
            for scope in SCOPES
            for example in self.data.examples(scope, "test")
        ]

    def contestant(self, entry: Entry, adapter: str | None) -> Contestant:
        return Contestant(entry.name, adapter, answers=self.written.get(entry.name, ()))

    def lengths(self, model: CausalLM, tokenizer: Tokenizer) -> tuple[int, int]:
        sequences, _ = encode_feedback(self.data, "train", tokenizer, self.max_length)
        texts = [*(s for pair in sequences.in_scope for s in pair), *sequences.near_scope]
        return max(len(sequence.completion_ids) for sequence in texts), 0

    def measured(self, hall: Hall) -> ScopeResults:
        scoring = Scoring(self.data, hall)
        scores, by_answer, answers = {}, {}, {}
        for contestant in hall.contestants:
            name = contestant.name
            answers[name] = _by_scope(self.data, hall.answers[name])
            by_answer[name] = scope_scores(self.data, answers[name], scoring)
            figures = {}
            if contestant.is_policy:
                figures = kept_figures(
                    hall.model,
                    hall.tokenizer,
                    self.data,
                    contestant.adapter,
                    hall.options.micro_batch_tokens,
                )
            scores[name] = ScopeScores.of(by_answer[name], answers[name], **figures)
        return ScopeResults(self.data, scores, by_answer, answers, scoring.describe())


class Scoring:
    """The check of the feedback, or a model's word where one is asked for."""

    def __init__(self, data: FeedbackData, hall: Hall) -> None:
        self.data, self.line = data, ""
        self._check: Scorer = by_check(data)
        self.judge = ModelJudge(hall.teacher()) if MODEL in hall.options.judges else None

    def __call__(self, items: list[tuple[str, str, str]]) -> list[float | None]:
        if self.judge is None:
            return self._check(items)
        ratings = [Rating(p, self.data.feedback, baseline, a) for p, baseline, a in items]
        with progress_bar("asking the judge", 2 * len(ratings), "question") as bar:
            report = self.judge.rate(ratings, lambda *_: bar.update())
        self.line = self.judge.describe(report)
        return report.scores

    def describe(self) -> str:
        if self.judge is None:
            return "by the feedback's own check: " + ", ".join(c.kind for c in self.data.checks)
        return self.line


def _by_scope(data: FeedbackData, answers: Answers) -> Column:
    groups = iter([c.text for c in group] for group in answers)
    return {scope: [next(groups) for _ in data.examples(scope, "test")] for scope in SCOPES}


def _written_answers(data: FeedbackData) -> dict[str, tuple[tuple[str, ...], ...]]:
    """Rivals that train nothing, as they stand in the data: an answer a test prompt.

    The teacher's revision is what could be reached at best.

    One of which any test prompt has no answer is left out.
    """
    examples = [example for scope in SCOPES for example in data.examples(scope, "test")]
    found: dict[str, tuple[tuple[str, ...], ...]] = {}
    for name, field in ((IN_CONTEXT, "in_context"), (COT, "cot")):
        texts = [getattr(example, field) for example in examples]
        if all(texts):
            found[name] = tuple((text,) for text in texts)
    # Outside the scope there was nothing to revise.
    found[REVISION] = tuple(((e.revised or e.baseline).text,) for e in examples)
    return found
