"""Token ids to score: at random and by name."""

from __future__ import annotations

import random

import torch

from minialign.data.records import Example

A, B = (5, 6, 7), (9,)
WINDOW = 8


def random_sequences(seed: int = 0, prompts: int = 3, each: int = 3) -> list[Example]:
    """Prompts and completions of unequal lengths, in mixed order."""
    rng = random.Random(seed)
    found = []
    for _ in range(prompts):
        prompt = tuple(rng.randrange(3, 272) for _ in range(rng.randint(1, 9)))
        for _ in range(each):
            completion = tuple(rng.randrange(3, 272) for _ in range(rng.randint(1, 12)))
            found.append(Example(prompt, completion))
    rng.shuffle(found)
    return found


def one(sequence: Example) -> tuple[Example]:
    return (sequence,)


def text(seed: int, length: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 300, (length,), generator=generator).tolist()
