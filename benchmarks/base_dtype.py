"""What a base in 8 or 4 bits saves and costs: bytes, held-out loss, processor time. A table.

    python benchmarks/base_dtype.py [MODEL]

Each row is measured in this process, one after the other, on the same texts.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch

from minialign.data.records import load_demonstrations
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import apply_lora, trainable_parameters
from minialign.policy.encode import encode_demonstration
from minialign.policy.knobs import LoRAConfig, SamplingConfig
from minialign.policy.measure import nats_per_token
from minialign.policy.sample import sample
from minialign.policy.score import score
from minialign.weights.find import DEFAULT_MODEL
from minialign.weights.holding import weight_bytes
from minialign.weights.load import load

EXAMPLES = Path(__file__).parents[1] / "examples"
TOKENS, STEPS, ROWS = 1024, 16, 16


def seconds(work: object) -> float:
    """The least of three tries, of the processor's own time: other work does not count."""
    tries = []
    for _ in range(3):
        began = time.process_time()
        work()  # type: ignore[operator]
        tries.append(time.process_time() - began)
    return min(tries)


def row(name: str, base_dtype: str) -> tuple[int, float, float, float]:
    """Bytes, nats per token, seconds of a gradient of some 400 tokens, seconds of a token drawn."""
    model, tokenizer = load(name, dtype="float32", base_dtype=base_dtype)
    held_out, learned = (
        [encode_demonstration(d, tokenizer, 512)[0] for d in load_demonstrations(EXAMPLES / file)]
        for file in ("emails_test.jsonl", "emails.jsonl")
    )
    size, loss = weight_bytes(model), nats_per_token(model, held_out, TOKENS)
    apply_lora(model, LoRAConfig(dropout=0.0))

    def learn() -> None:
        score(model, learned[:2]).sum().backward()
        for parameter in trainable_parameters(model):
            parameter.grad = None

    return size, float(loss or 0), seconds(learn), _seconds_a_step(model, learned[0].prompt_ids)


def _seconds_a_step(model: CausalLM, prompt: tuple[int, ...]) -> float:
    model.stop_ids = ()
    took = [
        seconds(lambda n=n: sample(model, [prompt], ROWS, SamplingConfig(n), seed=0))
        for n in (1, 1 + STEPS)
    ]
    return (took[1] - took[0]) / STEPS


def main(name: str) -> None:
    torch.set_num_threads(1)
    rows = {kind: row(name, kind) for kind in ("model", "int8", "nf4")}
    size, loss, learning, writing = rows["model"]
    print("| `--base-dtype` | memory | held-out loss | a gradient | a token |")
    print("|---|---|---|---|---|")
    for kind, found in rows.items():
        print(
            f"| `{kind}` | {found[0] / 1e6:,.0f} MB ({found[0] / size:.1%}) | {found[1]:.3f} "
            f"({found[1] / loss - 1:+.1%}) | {found[2]:.2f} s ({found[2] / learning:.1f} x) | "
            f"{1000 * found[3]:.0f} ms ({found[3] / writing:.1f} x) |"
        )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_MODEL)
