"""What a method is handed, and what it says beforehand of the work that it will do."""

from __future__ import annotations

from collections.abc import Sequence as Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from minialign.data.records import Example
from minialign.policy.knobs import SamplingConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Lessons(Generic[T]):
    """What is learned from, in token ids, and what is kept apart to see how well.

    Of demonstrations each is a list of Example; of feedback and preference pairs, ScopedExamples.
    """

    train: T
    held_out: T


@dataclass(frozen=True)
class Part:
    """A run of tokens as `--inspect` shows it; those from `trained_from` on are trained on."""

    name: str
    ids: tuple[int, ...]
    first: int
    trained_from: int


@dataclass(frozen=True)
class Work:
    """What a method will compute, at most: it may stop early, and answers may end by themselves.

    Counts are of tokens; the plan makes seconds and bytes of them.
    """

    # read by the policy, with a gradient
    read: int
    # read by the reference, without one
    referred: int
    # in flight at a time
    largest: int
    # texts on which the speed is measured
    probe: Sequence[Example]
    # written by the sampler, in rounds of so many completions, each behind a prompt so long in all
    written: int = 0
    samples: int = 0
    longest: int = 0
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    # steps at most; those of the stage before, whose work is counted in, are that work's own
    steps: int = 0
    first: Work | None = None
    # in flight at a time where the adapter drops some of its inputs
    dropped: int = 0
    # adapters that are held besides the one that is trained
    references: int = 0
    # rows of the plan, and its words for the counts
    stages: list[tuple[str, str]] = field(default_factory=list)
    tokens: str = ""
    warnings: list[str] = field(default_factory=list)
    # what --inspect shows
    shown: list[Part] = field(default_factory=list)
