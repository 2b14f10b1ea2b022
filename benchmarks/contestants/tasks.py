"""Which contestant does which task."""

from __future__ import annotations

from . import heads, llama_cpp_writing, machine, models, ours, transformers_writing, trl_step
from .measuring import Contestant

TASKS: dict[str, dict[str, Contestant]] = {
    "dpo": {"minialign": ours.step, "trl": trl_step.step},
    "ditto": {"minialign": ours.step, "trl": trl_step.step},
    "rollouts": {"minialign": ours.rollouts, "transformers": transformers_writing.rollouts},
    "decode": {
        "minialign": ours.decode,
        "transformers": transformers_writing.decode,
        "llama.cpp": llama_cpp_writing.decode,
    },
    "head": dict.fromkeys(("minialign", "plain", "recomputing", "trl"), heads.head),
    "machine": {"this": machine.limits},
    "prepare": {"this": models.prepare},
}
