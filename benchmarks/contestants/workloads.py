"""The work, the same for all: texts of random tokens in which nothing can be guessed or reused."""

from __future__ import annotations

import random
from argparse import Namespace
from typing import TYPE_CHECKING

from minialign.data.records import Example
from minialign.methods.knobs import PAPER

if TYPE_CHECKING:
    from minialign.methods.pool import Comparison

PROMPT = 40  # tokens of a prompt, where nothing else is said
COMPLETION = 250


def text(generator: random.Random, length: int) -> tuple[int, ...]:
    return tuple(generator.randrange(20, 49_000) for _ in range(length))


# ---- a step of preference training ----


def demonstrations(count: int, length: int) -> list[Example]:
    """Their lengths vary by a quarter around `length`, as people's do."""
    generator = random.Random(0)
    return [
        Example(
            text(generator, PROMPT), text(generator, round(length * generator.uniform(0.75, 1.25)))
        )
        for _ in range(count)
    ]


def comparisons(options: Namespace) -> list[Comparison]:
    """What the task asks for: plain pairs, or a step of DITTO."""
    from minialign.methods.pool import Comparison

    if options.task == "dpo":
        return [Comparison("expert", i, a, b) for i, (a, b) in enumerate(plain_pairs())]
    return ditto_comparisons(options.demonstrations, options.length, options.samples)


def plain_pairs() -> list[tuple[Example, Example]]:
    """Four comparisons without a repeated text: what any DPO trainer sees."""
    generator = random.Random(1)
    return [
        (a, Example(a.prompt_ids, text(generator, len(b.completion_ids))))
        for a, b in zip(demonstrations(4, 210), demonstrations(4, 210)[::-1], strict=True)
    ]


def ditto_comparisons(count: int, length: int, samples: int = 10) -> list[Comparison]:
    """A step of the paper's recipe in its third round: 24 comparisons, 17 + 5 + 2."""
    from minialign.methods.pool import ComparisonPool
    from minialign.policy.sample import Completion

    generator = random.Random(2)

    def answer() -> Completion:
        ids = text(generator, round(length * generator.uniform(0.75, 1.25)))
        return Completion("", ids, 0.0, "stop")

    pool = ComparisonPool(demonstrations(count, length))
    for _ in range(3):
        pool.add_round([[answer() for _ in range(samples)] for _ in range(count)])
    return pool.draw(PAPER.pairs_per_step, PAPER.mix, random.Random(3))


# ---- writing ----


def prompts(count: int) -> list[tuple[int, ...]]:
    generator = random.Random(4)
    return [text(generator, generator.randint(30, 50)) for _ in range(count)]


def real_prompts(path: str) -> list[list[int]]:
    """Eight requests through the chat template: their answers end by themselves now and then."""
    from minialign.weights.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(path)
    subjects = (
        "Friday",
        "the budget",
        "a holiday",
        "the new office",
        "lunch",
        "a delay",
        "a party",
        "thanks",
    )
    return [tokenizer.encode_prompt(f"Write a short e-mail about {s}.") for s in subjects]
