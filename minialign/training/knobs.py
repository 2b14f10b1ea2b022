"""What a training run needs besides the knobs of its method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from minialign.data.knobs import knob, require


@dataclass(frozen=True)
class TrainOptions:
    """What train.py needs besides the method's knobs."""

    method: str = knob(
        "", "how to learn; by default what suits --demos or --data", subject="what to learn from"
    )
    demos: str = knob(
        "",
        "demonstrations, JSON Lines of {prompt, completion} or {messages}; or a mailbox, texts or "
        "a table, of which such a file is made first: minialign import has more to choose",
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
