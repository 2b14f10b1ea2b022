"""What a training run needs besides the knobs of its method."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from minialign.data.knobs import knob, require
from minialign.policy.knobs import BASE_DTYPE_HELP, BaseDtype


@dataclass(frozen=True)
class TrainOptions:
    """What train.py needs besides the method's knobs."""

    method: str = knob(
        "", "how to learn; by default what suits --demos or --data", subject="what to learn from"
    )
    demos: str = knob(
        "",
        "demonstrations, JSON Lines of {prompt, completion} or {messages}; or a mailbox, texts or "
        "a table, of which such a file is made first: minialign import has more to choose; several "
        "files are several people, a run each below --out",
    )
    test: str = knob(
        "", "held-out demonstrations; by default NAME_test.jsonl beside --demos, if it is there"
    )
    data: str = knob(
        "",
        "a folder of feedback: feedback.json and a file of prompts a scope; several, to learn at "
        "once, with commas between; or preference pairs, JSON Lines of {prompt, chosen, rejected}, "
        "for dpo and sft",
    )
    edits: str = knob(
        "", "what /edit of sample.py --chat kept: JSON Lines of {prompt, draft, final}"
    )
    feedback: str = knob(
        "",
        "or a sentence, of which such a folder is made first, by the model that is trained: "
        "sample.py --feedback has more to choose",
    )
    votes: str = knob(
        "", "or a person's votes, from `minialign blind`, as preference pairs, for dpo and sft"
    )
    init_adapter: str = knob(
        "",
        "go on from this run's or folder's adapter (with --data or --votes)",
        subject="the model",
    )
    out: str = knob("", "run folder; by default runs/NAME of --demos or --data", subject="the run")
    model: str = knob(
        "",
        "alias, hub id or folder; by default smollm2-135m-instruct, on a GPU mistral-7b-instruct; "
        "auto: the largest of a short list that fits this machine",
        subject="the model",
    )
    revision: str = knob("", "the hub's branch, tag or commit")
    recipe: Literal["auto", "paper", "laptop"] = knob(
        "auto",
        "the knobs to start from; auto: paper on a GPU, else laptop",
        subject="how it learns",
    )
    device: str = knob(
        "auto",
        "auto, cpu, cuda, cuda:1, mps; with --plan also cuda:24GB, which need not be here",
        subject="memory and speed",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob(
        "auto", "of the base model; adapters are float32"
    )
    base_dtype: BaseDtype = knob("auto", BASE_DTYPE_HELP)
    seed: int = knob(0, "the same seed gives the same run", subject="the run")
    micro_batch_tokens: int = knob(
        1024,
        "tokens in flight, of one prompt up to twice as many: memory depends on it, gradients not",
        subject="memory and speed",
    )
    activation_checkpointing: Literal["none", "cheap", "full"] = knob(
        "cheap",
        "what the backward pass computes again: nothing; what is cheap; or whole layers, for half "
        "more time and a tenth of the memory",
    )
    save_every: float = knob(
        60.0, "seconds between two saved states, which --resume goes on from; 0: before every step"
    )
    keep: Literal["last", "best"] = knob(
        "last",
        "which state of the last stage becomes the result: the last, or the best, which has the "
        "lowest held-out loss, at the ends of rounds and of each quarter of the stage's steps",
        subject="the run",
    )
    stop_on_collapse: bool = knob(
        False,
        "end the run at the first warning that the training collapses, and keep the best state, as "
        "--keep best has it; where no demonstrations are held out, the one after the last quarter "
        "of the stage's steps that a quarter without a warning followed",
    )
    time_budget: str = knob(
        "",
        "end the run in order once this time is up, as 90s, 10m or 2h: no step begins after it; of "
        "a resumed run, all the time that it took counts",
    )
    prompt: str = knob(
        "",
        "what is answered before and after; by default the first held-out prompt",
        subject="the run",
    )
    sweep: tuple[str, ...] = knob(
        (),
        "KNOB=VALUE,VALUE: a run for each value (again --sweep: each combination), in folders of "
        "their own in --out; A:B=1:2,3:4 pairs the values of two knobs",
    )
    plan: bool = knob(
        False, "print what the run would hold in memory, by config.json alone, and exit"
    )
    resume: str = knob("", "go on with the interrupted run in this folder; its knobs are kept")
    continue_: str = knob(
        "",
        "a finished run that learns from more demonstrations, those of --demos: a round more, from "
        "its adapters, samples and knobs, in a folder of its own; the run itself is only read",
    )
    overwrite: bool = knob(False, "replace the run that --out holds")
    inspect: bool = knob(
        False, "print a demonstration's or pair's exact tokens, which are trained on, and exit"
    )

    def __post_init__(self) -> None:
        require(
            self.micro_batch_tokens >= 1,
            f"micro_batch_tokens must be at least 1, not {self.micro_batch_tokens}",
        )
        require(self.save_every >= 0, f"save_every must not be negative, not {self.save_every}")
        require(0 <= self.seed < 2**63, f"seed must lie in [0, 2^63), not {self.seed}")
        seconds_of(self.time_budget)


def seconds_of(budget: str) -> float:
    """`90s`, `10m` or `2h` in seconds; infinity for no budget.

    Raises InputError for what is no time above 0.
    """
    if not budget:
        return math.inf
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([smh])", budget)
    seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    require(seconds > 0, f"time_budget {budget!r}: write it as 90s, 10m or 2h")
    return seconds
