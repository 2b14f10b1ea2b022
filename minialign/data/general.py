"""Prompts about nothing in particular, which come with the package."""

from __future__ import annotations

import random
from importlib import resources
from typing import TYPE_CHECKING, Literal

from minialign.data.files import read_jsonl
from minialign.errors import InputError

if TYPE_CHECKING:
    pass
from minialign.data.feedback import text_field

# ---- prompts about nothing in particular ----


def general_prompts(
    count: int, seed: int, share: Literal["all", "anchors", "drift"] = "all"
) -> list[str]:
    """`count` of the general prompts that are shipped with the package, drawn without repetition.

    What anchors a model and what measures its drift have no prompt in common: of each kind of
    prompt, every other one is in one share. Raises InputError if there are fewer.
    """
    with resources.as_file(resources.files("minialign.data") / "general_prompts.jsonl") as path:
        prompts = [text_field(record, "prompt", path.name) for _, record in read_jsonl(path)]
    if share != "all":
        prompts = prompts[("anchors", "drift").index(share) :: 2]
    if count > len(prompts):
        raise InputError(f"there are {len(prompts)} general prompts, not {count}: ask for fewer")
    return random.Random(f"{seed}/general_prompts").sample(prompts, count)
