"""What a method is handed, and what it says beforehand of the work that it will do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Lessons(Generic[T]):
    """What is learned from, in token ids, and what is kept apart to see how well.

    Of demonstrations each is a list of Example; of feedback and of preference pairs, ScopedExamples.
    """

    train: T
    held_out: T


@dataclass(frozen=True)
class Part:
    """A run of tokens as `--inspect` shows it: those from `trained_from` on are trained on."""

    name: str
    ids: tuple[int, ...]
    first: int  # the place of the first one
    trained_from: int


@dataclass(frozen=True)
class Work:
    """What a method will compute, at most: it may stop early, and answers may end by themselves.

    Counts are of tokens. The plan makes seconds and bytes of them.
    """

    read: int  # by the policy, with a gradient
    referred: int  # by the reference, without one
    largest: int  # in flight at a time
    probe: list  # of Examples on which the speed is measured
    written: int = 0  # by the sampler
    samples: int = 0  # completions a round
    longest: int = 0  # of a prompt and its sample
    references: int = 0  # adapters that are held besides the one that is trained
    stages: list[tuple[str, str]] = field(default_factory=list)  # rows of the plan
    tokens: str = ""  # the plan's words for the counts
    warnings: list[str] = field(default_factory=list)
    shown: tuple[str, list[Part]] = ("", [])  # --inspect: counts, and the first lesson's parts
