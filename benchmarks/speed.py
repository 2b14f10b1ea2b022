"""How fast are the two verbs and the fused kernel here, and how close to what the machine can do?

    python benchmarks/speed.py [--model smollm2-135m-instruct] [--dtype float32]

Prints one table and writes benchmarks/results/speed.json. The machine's own limit, a large matrix
product in the same type, is measured in the same run, and every row says what share of it was
reached. Medians of several runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from minialign.config import LoRAConfig, SamplingConfig
from minialign.data import Sequence
from minialign.fused import linear_logps
from minialign.lora import apply_lora, merged_adapter
from minialign.model import CausalLM
from minialign.sampler import sample
from minialign.scoring import score
from minialign.weights import load

RESULTS = Path(__file__).parent / "results" / "speed.json"


def seconds(work: Callable[[], object], runs: int = 5) -> float:
    work()  # warm up
    times = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def matmul_limit(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a 2048 x 2048 matrix product."""
    size = 2048
    a = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / seconds(lambda: (a @ a).sum().item())


def frozen_parameters(model: CausalLM) -> int:
    return sum(p.numel() for p in model.parameters() if not p.requires_grad)


def training(model: CausalLM, tokens: int, completions: int) -> tuple[float, float]:
    """Tokens per second, and FLOP/s, of scoring one prompt group forward and backward."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, 1000, (completions, tokens), generator=generator).tolist()
    group = [Sequence(tuple(ids[0][:40]), tuple(row)) for row in ids]
    spent = seconds(lambda: score(model, group).sum().backward(), runs=3)
    # frozen weights: one product forward, one backward for the activations, none for the weights
    return tokens * completions / spent, 4 * frozen_parameters(model) * tokens * completions / spent


def sampling(model: CausalLM, rows: int, new: int = 48) -> tuple[float, float]:
    stop_ids, model.stop_ids = model.stop_ids, ()
    with merged_adapter(model):
        config = SamplingConfig(max_new_tokens=new, max_rows=rows)
        spent = seconds(lambda: sample(model, [tuple(range(10, 50))], rows, config, seed=0), runs=3)
    model.stop_ids = stop_ids
    return rows * new / spent, 2 * frozen_parameters(model) * rows * new / spent


def kernel(name: str, tokens: int, width: int, vocabulary: int, dtype: torch.dtype) -> list[tuple]:
    """linear_logps against the plain computation, forward and backward, with a frozen head."""
    hidden = torch.randn(tokens, width).to(dtype).requires_grad_()
    weight, targets = torch.randn(vocabulary, width).to(dtype) / width**0.5, torch.arange(tokens)

    def plain() -> None:
        logps = (hidden @ weight.T).float().log_softmax(-1)
        logps.gather(1, targets[:, None]).sum().backward()

    fused = seconds(lambda: linear_logps(hidden, weight, targets).sum().backward())
    rows = [(f"{name}: fused", tokens / fused, 4 * tokens * width * vocabulary / fused)]
    return [
        *rows,
        (
            f"{name}: plain",
            tokens / (spent := seconds(plain)),
            6 * tokens * width * vocabulary / spent,
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="auto")
    arguments = parser.parse_args()
    model, _ = load(arguments.model, dtype=arguments.dtype)
    apply_lora(model, LoRAConfig(rank=32, alpha=64.0, dropout=0.0))
    limit = matmul_limit(model.dtype, model.device)
    rows = [("matrix product, 2048 x 2048", float("nan"), limit)]
    for completions in (1, 8):
        rows.append(
            (f"score, {completions} x 250 tokens, both ways", *training(model, 250, completions))
        )
    for alive in (1, 8, 40, 80):
        rows.append((f"sample, {alive} rows", *sampling(model, alive)))
    if model.device.type == "cpu":
        vocabulary, width = model.lm_head.weight.shape
        rows += kernel("log-probabilities of 1,000 tokens", 1000, width, vocabulary, model.dtype)
    print(f"{arguments.model}, {model.dtype}, {torch.get_num_threads()} threads\n")
    print(f"{'':44}{'tokens/s':>10}{'GFLOP/s':>10}{'of limit':>10}")
    for name, rate, flops in rows:
        shown = "" if rate != rate else f"{rate:,.0f}"
        print(f"{name:44}{shown:>10}{flops / 1e9:>10,.0f}{flops / limit:>10.0%}")
    RESULTS.parent.mkdir(exist_ok=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "dtype": str(model.dtype),
    }
    content = {
        "machine": machine,
        "rows": [
            {"name": n, "tokens_per_second": None if r != r else r, "flops": f} for n, r, f in rows
        ],
    }
    RESULTS.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
