"""What a run learns from: demonstrations, a feedback's data, or preference pairs.

Each is read and checked before a model loads, and becomes token ids once there is a tokenizer.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from minialign.data.alike import near_duplicates
from minialign.data.feedback import (
    SCOPES,
    FeedbackData,
    data_paths,
    flag_for_test,
    hash_of,
    load_data,
)
from minialign.data.files import read_bytes
from minialign.data.knobs import require
from minialign.data.records import (
    DEMONSTRATIONS,
    EDITS,
    FEEDBACK,
    PAIRS,
    Demonstration,
    Messages,
    check_held_out,
    held_out_split,
    load_demonstrations,
    plural,
    training_split,
)
from minialign.data.votes import preference_pairs, read_votes
from minialign.errors import InputError
from minialign.feedback.questions import in_context
from minialign.feedback.writer import check_writer
from minialign.methods.lessons import Lessons
from minialign.policy.encode import ScopedExamples, encode_demonstration, encode_feedback
from minialign.training.knobs import TrainOptions
from minialign.weights.tokenizer import Tokenizer

DEFAULT_PROMPT = "Write an email to an old friend to say how your week went."


class Source(Protocol):
    """A kind of thing to learn from."""

    @property
    def kind(self) -> str:
        """demonstrations, feedback or pairs."""
        ...

    @property
    def first(self) -> str:
        """The file and line of what is learned from first."""
        ...

    @property
    def preview(self) -> Messages:
        """What is answered before and after, if possible something that is not trained on."""
        ...

    @property
    def evaluation(self) -> str | None:
        """The flags that evaluate.py needs besides the run; None where it has nothing to do."""
        ...

    def record(self) -> dict[str, Any]:
        """Its part of config.json: `--resume` goes on only with the same texts."""
        ...

    def encode(self, tokenizer: Tokenizer, limit: int) -> tuple[Lessons[Any], int, list[str]]:
        """The lessons, the tokens of the longest text, and a warning for each that was cut."""
        ...

    def rows(self, lessons: Lessons[Any]) -> list[tuple[str, str]]:
        """What the plan says of it."""
        ...


def kind_of(options: TrainOptions) -> str:
    """Told by the flags alone."""
    if options.edits:
        return EDITS
    if options.votes:
        return PAIRS
    if not options.data:
        return FEEDBACK if options.feedback else DEMONSTRATIONS
    paths = data_paths(options.data)
    return PAIRS if len(paths) == 1 and paths[0].is_file() else FEEDBACK


def read_source(options: TrainOptions) -> Source:
    """Raises InputError for whatever a person can put right."""
    if options.votes:
        return Votes(options.votes, preference_pairs(read_votes(options.votes), options.votes))
    if options.data:
        return Scopes(options.data, load_data(options.data))
    everything = load_demonstrations(options.demos)
    train, advice = distinct(training_split(everything))
    if not train:
        raise InputError(f'{options.demos}: no line has "split": "train" (or no split at all)')
    held_out = load_demonstrations(options.test) if options.test else held_out_split(everything)
    check_held_out(train, held_out)
    return Demonstrations(options.demos, options.test, train, held_out, advice)


def distinct(train: list[Demonstration]) -> tuple[list[Demonstration], list[str]]:
    """Without those that repeat another word for word, and advice, a line each."""
    first: dict[tuple[str, str], Demonstration] = {}
    for one in train:
        first.setdefault((str(one.messages), one.completion), one)
    kept, advice = list(first.values()), []
    if repeated := len(train) - len(kept):
        advice.append(f"{plural(repeated, 'demonstration')} that repeat others count once")
    for place, other in near_duplicates([one.completion for one in kept]).items():
        advice.append(
            f"{kept[place].source}: nearly the same as {kept[other].source}: together they teach "
            "little more than one"
        )
    if len(kept) == 1:
        advice.append("one demonstration alone is mostly learned by heart: give three to ten")
    return kept, advice


@dataclass(frozen=True)
class Demonstrations:
    """A file of how a person writes."""

    file: str
    test: str
    train: list[Demonstration]
    held_out: list[Demonstration]
    advice: list[str] = dataclasses.field(default_factory=list)
    kind: str = DEMONSTRATIONS

    @property
    def first(self) -> str:
        return self.train[0].source

    @property
    def preview(self) -> Messages:
        known = {str(d.messages) for d in self.train}
        unseen = [d.messages for d in self.held_out if str(d.messages) not in known]
        seen = [d.messages for d in self.held_out]
        return [*unseen, *seen, [{"role": "user", "content": DEFAULT_PROMPT}]][0]

    @property
    def evaluation(self) -> str | None:
        return "" if self.held_out else None

    def record(self) -> dict[str, Any]:
        test = {"test_sha256": _sha256(self.test)} if self.test else {}
        return {"demos_sha256": _sha256(self.file), **test}

    def encode(self, tokenizer: Tokenizer, limit: int) -> tuple[Lessons[Any], int, list[str]]:
        encoded = [encode_demonstration(d, tokenizer, limit) for d in self.train]
        train = [example for example, _ in encoded]
        held_out = [encode_demonstration(d, tokenizer, limit)[0] for d in self.held_out]
        longest = max(len(example.completion_ids) for example in train)
        cut = [warning for _, warning in encoded if warning]
        return Lessons(train, held_out), longest, [*self.advice, *cut]

    def rows(self, lessons: Lessons[Any]) -> list[tuple[str, str]]:
        tokens = sum(map(len, lessons.train))
        learned = f"{plural(len(self.train), 'demonstration')}, {tokens:,} tokens: {self.file}"
        judged = f"{plural(len(self.held_out), 'held-out demonstration')}: {self.test or self.file}"
        nothing = 'nothing: give some lines "split": "test", or --test FILE.jsonl'
        return [
            ("learns from", learned),
            ("judged by", judged if self.held_out else nothing),
        ]


def _sha256(file: str) -> str:
    return hashlib.sha256(read_bytes(file)).hexdigest()


@dataclass(frozen=True)
class Scopes:
    """A folder of feedback, several of them, or a file of preference pairs."""

    path: str
    data: FeedbackData

    @property
    def kind(self) -> str:
        return FEEDBACK if self.data.feedback else PAIRS

    @property
    def first(self) -> str:
        return self.data.examples("in_scope", "train")[0].source

    @property
    def preview(self) -> Messages:
        unseen, seen = (self.data.examples("in_scope", split) for split in ("test", "train"))
        return [*unseen, *seen][0].messages

    @property
    def evaluation(self) -> str | None:
        return flag_for_test(self.path) if self.data.feedback else None

    def record(self) -> dict[str, Any]:
        return {"feedback": self.data.feedback, "data_sha256": hash_of(self.path)}

    def encode(self, tokenizer: Tokenizer, limit: int) -> tuple[Lessons[Any], int, list[str]]:
        train, warnings = encode_feedback(self.data, "train", tokenizer, limit)
        train = dataclasses.replace(train, told=self._told(tokenizer))
        split = "eval" if self.data.examples("in_scope", "eval") else "test"
        held_out: ScopedExamples = encode_feedback(self.data, split, tokenizer, limit)[0]
        longest = max(len(revised.completion_ids) for revised, *_ in train.in_scope)
        return Lessons(train, held_out), longest, warnings

    def _told(self, tokenizer: Tokenizer) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
        """The training prompts of every scope, each also with the sentence of feedback in it."""
        feedback = self.data.feedback
        lines = [e for scope in SCOPES for e in self.data.examples(scope, "train") if feedback]
        encode = tokenizer.encode_prompt
        return tuple(
            (tuple(encode(line.messages)), tuple(encode(in_context(feedback, line.prompt))))
            for line in lines
        )

    def rows(self, lessons: Lessons[Any]) -> list[tuple[str, str]]:
        if self.data.feedback:
            return [("feedback", self.data.feedback)]
        train, test = (self.data.examples("in_scope", split) for split in ("train", "test"))
        nothing = 'nothing: give some lines the split "test"'
        return [
            ("learns from", f"{plural(len(train), 'pair')}: {self.path}"),
            ("judged by", plural(len(test), "held-out pair") if test else nothing),
        ]


@dataclass(frozen=True)
class Votes(Scopes):
    """A person's votes: each that prefers one answer is a preference pair."""

    def rows(self, lessons: Lessons[Any]) -> list[tuple[str, str]]:
        pairs = self.data.examples("in_scope", "train")
        prompts = len({pair.prompt for pair in pairs})
        learned = f"{plural(len(pairs), 'vote')} on {plural(prompts, 'prompt')}: {self.path}"
        return [
            ("learns from", learned),
            ("judged by", "nothing: these prompts are no longer unseen, vote on new ones"),
        ]


def with_paths(options: TrainOptions) -> TrainOptions:
    """The options with the paths that follow from others. Raises InputError for contradictions."""
    if options.edits:
        require(
            not (options.data or options.demos or options.votes),
            "give --edits, --votes, --demos or --data, not several",
        )
        options = dataclasses.replace(options, data=options.edits, edits="")
    if options.votes:
        return _with_vote_paths(options)
    if options.data:
        return _with_data_paths(options)
    if not options.demos:
        raise InputError(
            '--demos FILE.jsonl is missing: a line each of {"prompt": ..., "completion": ...}; or '
            "name a mailbox (.mbox, .eml, Maildir), or texts"
        )
    demos = Path(options.demos)
    beside = demos.with_name(f"{demos.stem}_test{demos.suffix}")
    return dataclasses.replace(
        options,
        test=options.test or (str(beside) if beside.exists() else ""),
        out=options.out or str(Path("runs") / demos.stem),
    )


def _with_vote_paths(options: TrainOptions) -> TrainOptions:
    if options.data or options.demos or options.test:
        raise InputError("--votes is all that is learned from: leave out --data, --demos, --test")
    start = Path(options.init_adapter).resolve().name if options.init_adapter else ""
    name = f"{start}-votes" if start else Path(options.votes).stem
    return dataclasses.replace(options, out=options.out or str(Path("runs") / name))


def _with_data_paths(options: TrainOptions) -> TrainOptions:
    if options.demos:
        raise InputError("give --demos or --data, not both")
    if options.test:
        raise InputError(
            '--test belongs to --demos: in --data, the lines with the split "test" are held out'
        )
    paths = data_paths(options.data)
    # Unlike `resolve`, this comes to an end where links lead round in a circle.
    folders = (path.stem if path.is_file() else Path(os.path.realpath(path)).name for path in paths)
    name = "+".join(folders)
    return dataclasses.replace(options, out=options.out or str(Path("runs") / name))


def check_writers(options: TrainOptions, checkpoint: Path) -> None:
    """Raises InputError where another model wrote the responses of a folder that is learned from.

    Pairs are a person's, whoever wrote them.
    """
    for path in data_paths(options.data) if options.data else []:
        if path.is_dir():
            check_writer(path, options.model, checkpoint)


def evaluation_command(out: Path, source: Source) -> str:
    """What to do next to see how good it is; empty where there is nothing to judge by."""
    flags = source.evaluation
    return "" if flags is None else f"python evaluate.py {shlex.quote(str(out))}{flags}"
