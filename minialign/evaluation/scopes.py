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

import math
from collections.abc import Callable
from collections.abc import Sequence as SequenceABC
from dataclasses import dataclass

from minialign.data.checks import score_response
from minialign.data.feedback import SCOPES, Example, FeedbackData
from minialign.data.records import Sequence
from minialign.evaluation.names import COT, IN_CONTEXT
from minialign.model.transformer import CausalLM
from minialign.policy.encode import encode_answer
from minialign.policy.knobs import SamplingConfig
from minialign.policy.measure import drift, nats_per_token
from minialign.policy.reference import reference_policy
from minialign.policy.sample import sample
from minialign.weights.tokenizer import Tokenizer

Scorer = Callable[[list[tuple[str, str, str]]], list[float | None]]  # (prompt, baseline, answer)
Progress = Callable[[str, int], Callable[[int, int, int], None]]


@dataclass(frozen=True)
class Mean:
    """With its standard error; NaN without a value."""

    value: float
    error: float
    count: int

    @classmethod
    def of(cls, values: SequenceABC[float]) -> Mean:
        if not values:
            return cls(math.nan, math.nan, 0)
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
        return cls(mean, math.sqrt(variance / len(values)), len(values))


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
    def of(cls, scores: dict[str, list[float | None]], **figures: float | None) -> ScopeScores:
        """From a score an answer, by scope."""
        known = {scope: [s for s in values if s is not None] for scope, values in scores.items()}
        inside = Mean.of(known["in_scope"])
        near, far = ([abs(s) for s in known[scope]] for scope in ("near_scope", "out_of_scope"))
        outside = Mean.of(near + far)
        missing = sum(map(len, scores.values())) - sum(map(len, known.values()))
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


def by_check(data: FeedbackData) -> Scorer:
    """The feedback's own check."""

    def scorer(items: list[tuple[str, str, str]]) -> list[float | None]:
        return [score_response(data.checks, answer, baseline) for _, baseline, answer in items]

    return scorer


def written_answers(data: FeedbackData) -> dict[str, dict[str, list[list[str]]]]:
    """Rivals that train nothing, as they stand in the data: method -> scope -> prompt -> answers.

    A method of which any test prompt has no answer is left out.
    """
    found: dict[str, dict[str, list[list[str]]]] = {}
    for name, field in ((IN_CONTEXT, "in_context"), (COT, "cot")):
        texts = {
            scope: [getattr(e, field) for e in data.examples(scope, "test")] for scope in SCOPES
        }
        if all(text for column in texts.values() for text in column):
            found[name] = {scope: [[text] for text in column] for scope, column in texts.items()}
    return found


def sampled_answers(
    model: CausalLM,
    tokenizer: Tokenizer,
    data: FeedbackData,
    adapters: dict[str, str | None],
    n: int,
    sampling: SamplingConfig,
    *,
    seed: int,
    progress: Progress,
) -> dict[str, dict[str, list[list[str]]]]:
    """Every adapter's n answers to every test prompt; None is the base model, again."""
    examples = [(scope, e) for scope in SCOPES for e in data.examples(scope, "test")]
    prompts = [tuple(tokenizer.encode_prompt(example.prompt)) for _, example in examples]
    found: dict[str, dict[str, list[list[str]]]] = {}
    for name, adapter in adapters.items():
        on_token = progress(name, len(prompts) * n)
        with reference_policy(model, adapter):
            groups = sample(model, prompts, n, sampling, seed=seed, on_token=on_token)
        found[name] = {scope: [] for scope in SCOPES}
        for (scope, _), group in zip(examples, groups, strict=True):
            found[name][scope].append([tokenizer.decode(c.ids) for c in group])
    return found


def scope_scores(
    data: FeedbackData, answers: dict[str, list[list[str]]], scorer: Scorer
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


def baseline_sequences(examples: list[Example], tokenizer: Tokenizer, limit: int) -> list[Sequence]:
    return [encode_answer(example, example.baseline, tokenizer, limit)[0] for example in examples]
