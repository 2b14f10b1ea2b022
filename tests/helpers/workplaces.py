"""A folder in which commands are called: a toy checkpoint, demonstrations, tiny knobs."""

from __future__ import annotations

from pathlib import Path

from helpers.files import write_jsonl
from helpers.models import write_checkpoint

LOADING = "timing a few steps ...\n"  # train.py's word on stderr before a silent while

# Two demonstrations share a prompt, one is not ASCII.
DEMOS = [
    {"prompt": "Write to Sam.", "completion": "Dear Sam, I will be there at nine. Kim"},
    {"prompt": "Write to Sam.", "completion": "Dear Sam, bring the numbers. Regards, Kim"},
    {"prompt": "Write to the team.", "completion": "Hello all, the café is shut on Monday. Kim"},
]
HELD_OUT = [
    {"prompt": "Write about the printer.", "completion": "Hello all, the printer is broken. Kim"},
    {"prompt": "Ask for the numbers.", "completion": "Dear Sam, the numbers for Monday? Kim"},
]
TINY_SFT = (
    *("--sft-max-steps", "6", "--sft-learning-rate", "0.03", "--sft-stop-loss", "0"),
    *("--lora-rank", "4"),
)
TINY = (
    *TINY_SFT,
    *("--max-steps", "4", "--resample-every", "2", "--samples-per-prompt", "2"),
    *("--pairs-per-step", "6", "--learning-rate", "0.003", "--max-new-tokens", "12"),
)


def write_workplace(folder: Path) -> Path:
    """A folder with toy/, demos.jsonl and demos_test.jsonl, in which commands are called."""
    folder.mkdir(parents=True, exist_ok=True)
    write_checkpoint(folder / "toy")
    write_jsonl(folder / "demos.jsonl", DEMOS)
    write_jsonl(folder / "demos_test.jsonl", HELD_OUT)
    return folder
