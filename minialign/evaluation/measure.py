"""What a contest measures: the protocol of a measure, and what it is handed when it measures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from tqdm import tqdm

from minialign.data.records import Messages
from minialign.evaluation.contestants import Answers, Contestant, Entry
from minialign.evaluation.knobs import EvaluateOptions
from minialign.feedback.teacher import Teacher
from minialign.model.transformer import CausalLM
from minialign.policy.knobs import SamplingConfig
from minialign.weights.tokenizer import Tokenizer


@dataclass(frozen=True)
class Hall:
    """What there is once the model is loaded and everybody has answered."""

    model: CausalLM
    tokenizer: Tokenizer
    contestants: list[Contestant]
    answers: dict[str, Answers]
    sampling: SamplingConfig
    # tokens of the longest text that is scored behind the prompts
    longest: int
    options: EvaluateOptions
    # who answers a model judge's questions
    teacher: Callable[[], Teacher]


class Results(Protocol):
    """What was found."""

    def table(self, show: int) -> str:
        """For the terminal, with the answers to `show` prompts where answers are shown."""

    def content(self) -> dict[str, Any]:
        """evaluation.json's own part."""


class Measure(Protocol):
    """What is asked, who takes part and what is measured, for runs that learned from one source."""

    usual: ClassVar[EvaluateOptions]
    # flags that it has no use for
    useless: ClassVar[tuple[str, ...]]
    # whether each run's folder gets the results, or the first alone
    everywhere: ClassVar[bool]

    @property
    def entries(self) -> list[Entry]: ...

    @classmethod
    def of(
        cls,
        folders: Sequence[Path],
        records: Sequence[dict[str, Any]],
        options: EvaluateOptions,
    ) -> Measure:
        """Raises InputError for whatever a person can put right; writes nothing."""

    @property
    def asked(self) -> list[Messages]: ...

    def contestant(self, entry: Entry, adapter: str | None) -> Contestant: ...

    def lengths(self, model: CausalLM, tokenizer: Tokenizer) -> tuple[int, int]:
        """Tokens of the longest known answer, and of the longest text that is to be scored."""

    def measured(self, hall: Hall) -> Results: ...


def writing(name: str, texts: int) -> Callable[[int, int, int], None]:
    bar = progress_bar(f"{name}: writing {texts} texts", None, "token")

    def on_token(prompt: int, sample: int, token: int) -> None:
        bar.update()

    return on_token


def progress_bar(title: str, total: int | None, unit: str) -> tqdm:
    return tqdm(
        desc=title, total=total, unit=unit, dynamic_ncols=True, disable=not sys.stderr.isatty()
    )
