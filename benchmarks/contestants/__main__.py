"""One measurement of one contestant, in a process of its own, for speed.py.

    python benchmarks/contestants TASK CONTESTANT RESULT.json [--option value ...]

A process loads its model, warms up, works, and writes seconds, tokens, peak memory above the loaded
model, and what it computed (to be compared with the others'). Every contestant runs with all
processors, and in float32 unless an option says otherwise.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.pop(0)  # this folder, whose modules are imported as those of the package
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # minialign

import torch

from contestants.tasks import TASKS
from contestants.workloads import COMPLETION


@contextmanager
def quiet() -> Iterator[None]:
    """Libraries talk; the result is in the file."""
    out = sys.stdout
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = out


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python benchmarks/contestants", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("contestant")
    parser.add_argument("result", type=Path)
    parser.add_argument("--model", default="checkpoints/smollm2-135m-instruct")
    parser.add_argument("--dtype", default="float32", help="of the base model")
    parser.add_argument("--rollout-dtype", default="model", help="minialign's")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--precomputed", action="store_true", help="reference scores are known")
    parser.add_argument("--checkpointing", default="cheap")
    parser.add_argument("--micro-batch-tokens", type=int, default=1024)
    parser.add_argument("--demonstrations", type=int, default=8)
    parser.add_argument("--length", type=int, default=COMPLETION)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4, help="TRL's pairs at a time")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="TRL's")
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--bits", type=int, default=16, help="of llama.cpp's weights")
    for name in "ndv":
        parser.add_argument(f"-{name}", type=int)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    with quiet():
        result = TASKS[options.task][options.contestant](options, options.result.parent)
    tensors = {k: v for k, v in result.pop("gradients", {}).items() if v is not None}
    if tensors:
        torch.save(tensors, options.result.with_suffix(".pt"))
    assert all(math.isfinite(s) for s in result["seconds"])
    options.result.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
