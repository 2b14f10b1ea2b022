"""The stages of the pipeline: what is asked in each, what is read from the answers, what is lost.

A stage's questions follow from the answers of the stages before it, which `Cached` keeps. Where too
little comes of an answer the same is asked again with another seed, `tries` times in all.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from minialign.data.checks import Check, score_response
from minialign.data.feedback import SCOPES
from minialign.errors import InputError
from minialign.feedback import questions as ask_for
from minialign.feedback.lists import (
    Distinct,
    after_label,
    category_name,
    labelled_line,
    parse_list,
    strip_introduction,
)
from minialign.feedback.teacher import Answer, Ask, Failure, OnDone, Reply, Teacher

if TYPE_CHECKING:
    from minialign.feedback.knobs import PipelineConfig


ENDED = {"stop", "eos", "eos_token", "end_turn", "stop_sequence"}  # as servers spell it
GIVE_UP_AFTER = 16  # failures in a row
SURPLUS = "more than asked for"
HOPELESS = 0.1  # of what was asked for: whoever gives less on the first try is not asked again
FEWEST = 10  # responses by which a student is known
Line = dict[str, Any]  # of a data file
Progress = Callable[[str, int], OnDone]  # (what is asked, how often) -> called at each answer
Say = Callable[[str], None]


@dataclass
class Stage:
    """What was asked in one stage, and what became of all that was found: kept, or lost and why."""

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
        """Counts one more that was found, and as lost if there is a reason. True if it is kept."""
        self.found += 1
        self.lost.update([reason] if reason else [])
        return reason is None

    def describe(self) -> str:
        line = f"{self.name}: {self.kept} of {self.found} kept{_counted(self.lost)}"
        if self.asked:
            line += f"; {self.asked} questions{_counted(self.unused)}"
        return "; ".join([line, *self.notes])


def _counted(reasons: Counter[str]) -> str:
    listed = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    return f" ({listed})" if listed else ""


class Stages:
    """Runs the stages, and holds what they share: whom to ask, how, and the counts so far."""

    def __init__(
        self, config: PipelineConfig, say: Say, progress: Progress | None, student: Teacher
    ) -> None:
        self.config, self.say, self.progress = config, say, progress
        self.student = student
        self.done: list[Stage] = []
        self._failed_in_a_row = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        stage = Stage(name)
        yield stage
        self.done.append(stage)
        self.say(stage.describe())

    def ask(
        self, who: Teacher, stage: Stage, questions: Sequence[str], limit: int, attempt: int
    ) -> list[Reply | None]:
        """None where an answer failed. Raises InputError once too many in a row did."""
        config = self.config
        asks = [
            Ask(
                (("user", question),),
                limit,
                config.temperature,
                config.seed + attempt,
                config.top_p,
            )
            for question in questions
        ]
        tick = self.progress(stage.name, len(asks)) if self.progress and asks else None

        def on_done(index: int, answer: Answer) -> None:
            if tick:
                tick(index, answer)
            if not isinstance(answer, Failure):
                self._failed_in_a_row = 0
                return
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= GIVE_UP_AFTER:
                raise _no_answers(who, f"{GIVE_UP_AFTER} answers in a row failed", answer.reason)

        answers = who.answer(asks, on_done)
        stage.asked += len(asks)
        failures = [answer.reason for answer in answers if isinstance(answer, Failure)]
        if failures:
            if "failed" not in stage.unused:
                stage.notes.append(f"first failure: {failures[0]}")
            stage.unused["failed"] += len(failures)
        return [answer if isinstance(answer, Reply) else None for answer in answers]

    def _check_yield(self, who: Teacher, stage: Stage, kept: int, wanted: int) -> None:
        """Raises InputError, with the choices that are left, where next to nothing is of use.

        Where answers failed that is no fault of the writer's.
        """
        hopeless = kept < HOPELESS * wanted and not stage.unused["failed"]
        if hopeless and self.config.stop_early:
            why = _counted(stage.unused + stage.lost)
            raise InputError(
                f"{stage.name}: {kept} of {wanted} of use{why}: stopped, since {who.name} will "
                "hardly do better. Choose: a stronger writer (--teacher-url and --teacher-model, "
                "or --teacher; --responses teacher where answers are at fault), "
                "--domain and --effect in your own words, or --no-stop-early"
            )

    # ---- the teacher's: from the sentence to prompts ----

    def describe(self, teacher: Teacher, described: dict[str, Any]) -> dict[str, str]:
        """Those of `domain` and `effect` that are not given."""
        feedback = described["feedback"]
        wanted = [name for name in ("domain", "effect") if name not in described]
        read: dict[str, str] = {}
        if not wanted:
            return read
        with self.stage("domain and effect") as stage:
            question = ask_for.describe(feedback)
            for attempt in range(self.config.tries):
                replies = self._ask_teacher(teacher, stage, [question], attempt)
                read = _read_description(replies[0].text if replies[0] else "") | read
                if set(wanted) <= read.keys():
                    break
                if replies[0]:
                    stage.unused["unparsable"] += 1
            _require_answers(teacher, stage)
            for name in wanted:
                if not stage.sift(None if name in read else "not found in any answer"):
                    stage.notes.append(f"the {name} is the sentence itself: better write one")
            self._check_yield(teacher, stage, stage.kept, len(wanted))
        fallback = {"domain": f'whatever "{feedback}" is about', "effect": feedback}
        return {name: read.get(name, fallback[name]) for name in wanted}

    def categories(self, teacher: Teacher, domain: str) -> list[str]:
        """At most as many as asked for; the domain itself where there is none."""
        count, distinct = self.config.categories, Distinct(shortest=1, longest=15)
        found: list[str] = []
        with self.stage("categories") as stage:
            question = ask_for.categories(domain, count)
            for attempt in range(self.config.tries):
                (entries,) = self._lists(teacher, stage, [question], attempt)
                _collect(stage, map(category_name, entries), found, count, distinct)
                if len(found) == count:
                    break
            _require_answers(teacher, stage)
            self._check_yield(teacher, stage, len(found), count)
            if not found:
                stage.notes.append("the domain is the only category")
        return found or [domain]

    def prompts(
        self,
        teacher: Teacher,
        scope: str,
        described: dict[str, Any],
        categories: list[str],
        distinct: Distinct,
    ) -> list[str]:
        """Prompts in scope or near scope, as many a category as asked for, or fewer."""
        about = (described["feedback"], described["domain"])
        count = self.config.prompts_per_category
        applies = scope == "in_scope"
        write = ask_for.in_scope_prompts if applies else ask_for.near_scope_prompts
        found: dict[str, list[str]] = {category: [] for category in categories}
        with self.stage(f"{scope} prompts") as stage:
            for attempt in range(self.config.tries):
                lacking = [name for name in categories if len(found[name]) < count]
                if not lacking:
                    break
                questions = [write(*about, name, count) for name in lacking]
                drafts = self._lists(teacher, stage, questions, attempt)
                revised = self._revised(teacher, stage, about, drafts, applies, attempt)
                for name, prompts in zip(lacking, revised, strict=True):
                    _collect(stage, prompts, found[name], count, distinct)
                if attempt == 0:
                    kept = sum(map(len, found.values()))
                    self._check_yield(teacher, stage, kept, count * len(categories))
        return self.at_most([prompt for prompts in found.values() for prompt in prompts], scope)

    def at_most(self, prompts: list[str], scope: str) -> list[str]:
        """`max_prompts` of them, from all categories, in their order."""
        most = self.config.max_prompts or len(prompts)
        if len(prompts) <= most:
            return prompts
        draw = random.Random(f"{self.config.seed}/{scope}")
        return [prompts[place] for place in sorted(draw.sample(range(len(prompts)), most))]

    def _revised(
        self,
        teacher: Teacher,
        stage: Stage,
        about: tuple[str, str],
        drafts: list[list[str]],
        applies: bool,
        attempt: int,
    ) -> list[list[str]]:
        """The drafts as the teacher corrects them, or as they are where that cannot be read."""
        places = [place for place, draft in enumerate(drafts) if draft]
        questions = [ask_for.revise_prompts(*about, drafts[p], applies) for p in places]
        revised = list(drafts)
        replies = self._ask_teacher(teacher, stage, questions, attempt)
        for place, reply in zip(places, replies, strict=True):
            label = ask_for.REVISED_PROMPTS
            rest = after_label(reply.text, label) if reply else None
            better = parse_list(rest, cut_off=_is_cut_off(reply)) if rest else []
            if better:
                revised[place] = better
                for _ in range(len(drafts[place]) - len(better)):
                    stage.sift("left out by the revision")
            elif reply:
                stage.unused["without revised prompts"] += 1
        return revised

    def _lists(
        self, teacher: Teacher, stage: Stage, questions: Sequence[str], attempt: int
    ) -> list[list[str]]:
        """The list in each answer, empty where there is none."""
        replies = self._ask_teacher(teacher, stage, questions, attempt)
        lists = [parse_list(r.text, cut_off=_is_cut_off(r)) if r else [] for r in replies]
        for reply, entries in zip(replies, lists, strict=True):
            if reply and not entries:
                stage.unused["without a list"] += 1
        return lists

    def _ask_teacher(
        self, teacher: Teacher, stage: Stage, questions: Sequence[str], attempt: int
    ) -> list[Reply | None]:
        return self.ask(teacher, stage, questions, self.config.max_list_tokens, attempt)

    # ---- the student's: responses ----

    def respond(
        self, lines: dict[str, list[Line]], feedback: str, checks: tuple[Check, ...]
    ) -> None:
        """Fills in the responses that lines lack. One that can only get a useless response gets
        `dropped`, the reason; one whose answer failed gets nothing.
        """

        def revision(line: Line) -> str:
            return ask_for.revise_response(feedback, line["prompt"], line["baseline"])

        def in_context(line: Line) -> str:
            return ask_for.in_context(feedback, line["prompt"])

        def thoughts(line: Line) -> str:
            return ask_for.chain_of_thought(feedback, line["prompt"])

        def after_thoughts(text: str) -> str:
            return (after_label(text, ask_for.RESPONSE) or text).strip()

        def against(line: Line, revised: str) -> str | None:
            return self._against(line, revised, checks)

        everything = [line for scope in SCOPES for line in lines[scope]]
        self._fill("baseline", everything, lambda line: line["prompt"])
        answered = [line for line in lines["in_scope"] if line.get("baseline")]
        self._fill("revised", answered, revision, strip_introduction, against)
        test = [line for line in everything if line["split"] == "test"]
        self._fill("in_context", test, in_context)
        self._fill("cot", test, thoughts, after_thoughts)

    def _fill(
        self,
        response: str,
        lines: list[Line],
        question: Callable[[Line], str],
        read: Callable[[str], str] = str.strip,
        against: Callable[[Line, str], str | None] = lambda line, text: None,
    ) -> None:
        """`read` takes the response from an answer; `against` says why a line has no use for it."""
        waiting = [line for line in lines if not line.get(response) and "dropped" not in line]
        if not waiting:
            return
        with self.stage(f"{response} responses") as stage:
            stage.found = len(waiting)
            refused: list[tuple[Line, str]] = []
            for attempt in range(self.config.tries):
                questions = [question(line) for line in waiting]
                limit = self.config.max_new_tokens
                replies = self.ask(self.student, stage, questions, limit, attempt)
                refused = []
                for line, reply in zip(waiting, replies, strict=True):
                    text = read(reply.text) if reply else ""
                    if reply is None:
                        stage.lost["failed"] += 1
                    elif reason := against(line, text) if text else "empty":
                        refused.append((line, reason))
                    else:
                        line[response] = text
                        if response in ("baseline", "revised"):
                            ending = "length" if _is_cut_off(reply) else "stop"
                            line[f"{response}_finish_reason"] = ending
                waiting = [line for line, _ in refused]
                if attempt == 0 and stage.found >= FEWEST:
                    kept = stage.found - len(waiting)
                    self._check_yield(self.student, stage, kept, stage.found)
            for line, reason in refused:
                stage.lost[reason] += 1
                if response in ("baseline", "revised"):
                    line["dropped"] = f"{response}: {reason}"

    def _against(self, line: Line, revised: str, checks: tuple[Check, ...]) -> str | None:
        """What speaks against a revision to train on. The test is not picked by its results."""
        if line["split"] == "test":
            return None
        if revised == line["baseline"].strip():
            return "equal to the baseline"
        if self.config.keep_improved and score_response(checks, revised, line["baseline"]) <= 0:
            return "no better by the check"
        return None


def _collect(
    stage: Stage, candidates: Iterator[str] | list[str], found: list[str], count: int, d: Distinct
) -> None:
    """Moves candidates into `found` until they are `count`, and counts the others as lost."""
    for candidate in candidates:
        surplus = SURPLUS if len(found) == count else None
        if stage.sift(surplus or d.reason_against(candidate)):
            found.append(candidate)


def _read_description(text: str) -> dict[str, str]:
    labels = {"domain": ask_for.DOMAIN, "effect": ask_for.EFFECT}
    read = {name: labelled_line(text, label) for name, label in labels.items()}
    return {name: line for name, line in read.items() if line}


def _is_cut_off(reply: Reply | None) -> bool:
    """Whether an answer may not have ended: only what is known to have ended gets an end token."""
    return reply is not None and reply.finish_reason not in ENDED


def _require_answers(who: Teacher, stage: Stage) -> None:
    """Nothing can be guessed where there was no answer at all."""
    if stage.unused["failed"] == stage.asked:
        raise _no_answers(who, "no answer", "; ".join(stage.notes))


def _no_answers(who: Teacher, what: str, why: str) -> InputError:
    return InputError(f"{who.name}: {what} ({why}): all others are kept, start again to go on")
