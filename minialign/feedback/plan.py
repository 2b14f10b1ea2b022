"""How much a sentence asks of its writers, before anything is asked."""

from __future__ import annotations

from dataclasses import dataclass

from minialign.feedback.knobs import EndpointConfig, PipelineConfig

UNITS = ((3600, "h"), (60, "min"), (1, "s"))


@dataclass(frozen=True)
class Workload:
    """Questions and the most tokens that their answers can have, if each is asked once."""

    questions: int
    tokens: int


def workload(config: PipelineConfig, described: bool) -> tuple[Workload, Workload]:
    """The teacher's and the student's. `described`: domain and effect are given."""
    # A draft and a revision for each category, in scope and near it.
    lists = 2 + 4 * config.categories - described
    scoped = config.categories * config.prompts_per_category
    most = config.max_prompts or max(scoped, config.out_of_scope)
    scoped, unrelated = min(scoped, most), min(config.out_of_scope, most)
    tested = 2 * round(config.test_fraction * scoped) + round(config.test_fraction * unrelated)
    # Baselines, revisions in scope, and what the rivals say to the test's prompts.
    responses = 2 * scoped + unrelated + scoped + 2 * tested
    return (
        Workload(lists, lists * config.max_list_tokens),
        Workload(responses, responses * config.max_new_tokens),
    )


def describe_plan(
    teacher: tuple[str, Workload, float],
    student: tuple[str, Workload, float],
    limits: EndpointConfig,
    tries: int,
) -> str:
    """One line. A writer is a name, its work and its tokens a second, 0 behind an address."""
    parts, seconds = [], 0.0
    for what, (name, work, speed) in (("lists", teacher), ("responses", student)):
        parts.append(f"{work.questions} {what} by {name}")
        if speed:
            seconds += work.tokens / speed
        elif limits.requests_per_minute:
            seconds += 60 * work.questions / limits.requests_per_minute
    local = sum(work.tokens for _, work, speed in (teacher, student) if speed)
    if local:
        parts.append(f"at most {local:,} tokens written here")
    if seconds:
        parts.append(f"about {in_words(seconds)} at most, {tries} times that if all is asked again")
    return "plan: " + ", ".join(parts)


def in_words(seconds: float) -> str:
    size, unit = next((u for u in UNITS if seconds >= u[0]), UNITS[-1])
    return f"{max(1, round(seconds / size))} {unit}"
