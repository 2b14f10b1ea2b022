"""Is minialign right on a GPU, and how near to the GPU's limits?

    make bench-gpu                                  # on a machine with a GPU: some minutes
    python benchmarks/gpu.py --device cpu --tiny    # the same code at toy size, anywhere

All models have random weights. Parity: the first step's loss is ln 2, what the sampler says of its
tokens is what `score` says, and a run that was stopped and resumed ends with the same adapter.
Speed: writing one answer, as a share of the memory's bandwidth; many answers, next to transformers
where that is installed; a DPO step, as a share of the rate of bfloat16 products; and DITTO's recipe
of the paper with Mistral-7B's shape, its memory next to the plan's. The results go to
benchmarks/results/gpu-DEVICE.json. No GPU has run this yet.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import math
import random
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from minialign.commands.ahead import job_ahead
from minialign.commands.bounds import outline
from minialign.commands.needs import memory_of
from minialign.data.records import Example
from minialign.methods import ditto
from minialign.methods.knobs import PAPER, DittoConfig
from minialign.methods.lessons import Lessons
from minialign.methods.pool import Comparison
from minialign.model.config import ModelConfig
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import apply_lora
from minialign.policy.knobs import SamplingConfig
from minialign.policy.packing import distinct_tokens
from minialign.policy.peft import adapter_state
from minialign.policy.reference_scores import ReferenceScores
from minialign.policy.sample import sample
from minialign.policy.score import score
from minialign.training.knobs import TrainOptions
from minialign.training.run import Interrupted, Run

RESULTS = Path(__file__).parent / "results"
MISTRAL = {
    **{"model_type": "mistral", "vocab_size": 32_000, "hidden_size": 4096},
    **{"intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32},
    **{"num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 32_768},
}
SMALL = MISTRAL | {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 8}
TINY = {
    **{"model_type": "mistral", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96},
    **{"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
    **{"head_dim": 16, "max_position_embeddings": 256},
}


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What is measured, at full size or as a toy."""

    large: dict[str, Any]
    small: dict[str, Any]
    prompt: int
    text: int
    rows: int
    product: int
    table: int
    recipe: DittoConfig


WHOLE = Sizes(MISTRAL, SMALL, 90, 500, 64, 8192, 2**30, PAPER)
TOY = Sizes(
    *(TINY, TINY, 6, 10, 4, 64, 2**16),
    dataclasses.replace(
        PAPER,
        sft=dataclasses.replace(PAPER.sft, max_steps=2),
        sampling=SamplingConfig(8),
        max_steps=4,
        resample_every=2,
        samples_per_prompt=2,
        pairs_per_step=6,
    ),
)


def random_model(raw: dict[str, Any], device: torch.device, dtype: torch.dtype) -> CausalLM:
    """Its answers never end by themselves."""
    with torch.device("meta"):
        model = CausalLM(ModelConfig.from_dict(raw), name="random").to(dtype)
    model.to_empty(device=device)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, 1.0 if name.endswith("norm.weight") else 0.0, 0.02)
    return model.requires_grad_(False).eval()


def policy(raw: dict[str, Any], device: torch.device, dtype: torch.dtype) -> CausalLM:
    model = random_model(raw, device, dtype)
    apply_lora(model, PAPER.lora, "sft", torch.Generator().manual_seed(0))
    return model


def texts(count: int, sizes: Sizes, vocabulary: int) -> list[Example]:
    draw = random.Random(0)
    lengths = (sizes.prompt, sizes.text)
    return [
        Example(*(tuple(draw.randrange(3, vocabulary) for _ in range(n)) for n in lengths))
        for _ in range(count)
    ]


def seconds(device: torch.device, work: Callable[[], Any], runs: int = 5) -> float:
    """The median of some runs after one that warms up."""
    found = []
    for _ in range(runs + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
    return statistics.median(found[1:])


# ---- the machine ----


def limits(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """What a large product and a copy reach: operations and bytes a second."""
    a = torch.randn(sizes.product, sizes.product, device=device, dtype=dtype)
    table = torch.ones(sizes.table, device=device, dtype=dtype)
    target = torch.empty_like(table)
    copied = 2 * table.nbytes
    return {
        "product_flops": 2 * sizes.product**3 / seconds(device, lambda: a @ a),
        "bandwidth": copied / seconds(device, lambda: target.copy_(table)),
    }


# ---- parity ----


def parity(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    model = policy(sizes.small, device, dtype)
    vocabulary = model.config.vocab_size
    chosen = texts(4, sizes, vocabulary)
    step = preference(model, chosen)
    prompts = [text.prompt_ids for text in chosen]
    groups = sample(model, prompts, 2, SamplingConfig(sizes.text), seed=0)
    written = [
        (Example(prompt, answer.ids), answer.logprob)
        for prompt, group in zip(prompts, groups, strict=True)
        for answer in group
    ]
    with torch.no_grad():
        scores = score(model, [example for example, _ in written]).tolist()
    gaps = [
        abs(own - read) / len(example.completion_ids)
        for (example, own), read in zip(written, scores, strict=True)
    ]
    gap, differs = step() - math.log(2), resumed_differs(sizes, device, dtype)
    return {
        "first_loss_minus_ln2": gap,
        "sampler_minus_score_nats_a_token": max(gaps),
        "resumed_adapter_differs_by": differs,
        "holds": abs(gap) < 1e-6 and max(gaps) < 0.05 and differs == 0,
    }


def preference(model: CausalLM, chosen: list[Example]) -> Callable[[], float]:
    """A step of DPO on a pair a text; the reference is the policy as it is."""
    pairs = [
        Comparison("expert", i, one, Example(one.prompt_ids, one.completion_ids[::-1]))
        for i, one in enumerate(chosen)
    ]
    reference = ReferenceScores(model, "sft")
    knobs = dataclasses.replace(PAPER, nll_weight=0.0)
    budget = TrainOptions().micro_batch_tokens

    def step() -> float:
        model.zero_grad()
        return ditto.preference_step(model, pairs, reference, knobs, budget)["loss"]

    return step


class Stopped(Run):
    """A run that is asked to stop after its third step of DPO."""

    def log(self, stage: str, step: int, metrics: dict[str, Any]) -> None:
        super().log(stage, step, metrics)
        self.interrupted = self.interrupted or (stage, step) == (ditto.ADAPTER, 2)


def resumed_differs(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> float:
    """The largest difference between adapters of two runs, one of them stopped and resumed."""
    knobs = TOY.recipe
    lessons = Lessons(texts(3, dataclasses.replace(sizes, prompt=6, text=10), 300), [])
    found = []
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder, "whole"), Path(folder, "parts")
        for kind, place in ((Run.create, whole), (Stopped.create, parts)):
            model = policy(sizes.small, device, dtype)
            try:
                ditto.train(model, lessons, knobs, kind(place, {}))
                found.append(adapter_state(model, ditto.ADAPTER))
            except Interrupted:
                model = policy(sizes.small, device, dtype)
                ditto.train(model, lessons, knobs, Run.resume(parts))
                found.append(adapter_state(model, ditto.ADAPTER))
    one, other = found
    return max(float((one[name] - other[name]).abs().max()) for name in one)


# ---- speed ----


def layer_numbers(config: ModelConfig) -> int:
    """Of the matrices of all layers."""
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    attention = config.hidden_size * (2 * queries + 2 * keys)
    mlp = 3 * config.hidden_size * config.intermediate_size
    return config.num_hidden_layers * (attention + mlp)


def writing(model: CausalLM, sizes: Sizes, device: torch.device) -> dict[str, float]:
    """Tokens a second; of one answer, the share of reading every weight once a token."""
    prompt = texts(1, sizes, model.config.vocab_size)[0].prompt_ids

    def rate(rows: int) -> float:
        def write(tokens: int) -> float:
            config = SamplingConfig(tokens, max_rows=rows)
            return seconds(device, lambda: sample(model, [prompt], rows, config, seed=0), 3)

        # The difference leaves out the prompt.
        return rows * (sizes.text - 1) / max(1e-9, write(sizes.text) - write(1))

    one = rate(1)
    read = layer_numbers(model.config) + model.config.vocab_size * model.config.hidden_size
    return {
        "tokens_a_second_1_row": one,
        "bytes_a_second_1_row": one * read * model.dtype.itemsize,
        f"tokens_a_second_{sizes.rows}_rows": rate(sizes.rows),
    }


def peer(sizes: Sizes, device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """transformers at the same rows and tokens, on random weights of the same shape."""
    if importlib.util.find_spec("transformers") is None:
        return {}
    from transformers import MistralConfig, MistralForCausalLM

    config = MistralConfig(**{k: v for k, v in sizes.large.items() if k != "model_type"})
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = MistralForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    prompt = torch.tensor([texts(1, sizes, config.vocab_size)[0].prompt_ids] * sizes.rows)
    prompt = prompt.to(device)

    def write(tokens: int) -> float:
        asked = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": True, "top_k": 0}
        mask = torch.ones_like(prompt)
        return seconds(device, lambda: model.generate(prompt, attention_mask=mask, **asked), 3)

    spent = max(1e-9, write(sizes.text) - write(1))
    return {
        f"transformers_tokens_a_second_{sizes.rows}_rows": sizes.rows * (sizes.text - 1) / spent
    }


def dpo_step(model: CausalLM, sizes: Sizes, device: torch.device) -> dict[str, float]:
    """Four pairs, references known: products of frozen weights, forward and back, a second."""
    chosen, config = texts(4, sizes, model.config.vocab_size), model.config
    both = [*chosen, *(Example(one.prompt_ids, one.completion_ids[::-1]) for one in chosen)]
    targets = sum(len(one.completion_ids) for one in both)
    head = targets * config.vocab_size * config.hidden_size
    flops = 4 * (distinct_tokens(both) * layer_numbers(config) + head)
    spent = seconds(device, preference(model, chosen))
    return {"dpo_step_seconds": spent, "dpo_step_flops": flops / spent}


def paper(model: CausalLM, sizes: Sizes, device: torch.device) -> dict[str, Any]:
    """DITTO's recipe, every answer as long as it may be, and its memory next to the plan's."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    lessons = Lessons(texts(7, sizes, model.config.vocab_size), [])
    model.zero_grad()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(sizes.large))
        run = Run.create(Path(folder) / "run", {})
        began = time.perf_counter()
        ditto.train(model, lessons, sizes.recipe, run)
        spent = time.perf_counter() - began
        options = TrainOptions(model=folder, recipe="paper", device=f"{device.type}:80GB")
        job, _ = job_ahead(options, {})
        memory = memory_of(outline(job), job)
        # PyTorch does not count what the driver takes.
        planned = memory.total - memory.process
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return {"paper_seconds": spent, "by_phase": run.seconds, "planned": planned, "peak": peak}


# ---- all of it ----


def measure(device: torch.device, sizes: Sizes) -> dict[str, Any]:
    dtype = torch.bfloat16
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "a processor, toy size"
    found: dict[str, Any] = {"device": name, "torch": torch.__version__}
    found["limits"] = limits(sizes, device, dtype)
    found["parity"] = parity(sizes, device, dtype)
    model = policy(sizes.large, device, dtype)
    speed = found["speed"] = writing(model, sizes, device) | dpo_step(model, sizes, device)
    found["paper"] = paper(model, sizes, device)
    # Two models of 7 billion parameters do not stand beside each other everywhere.
    del model
    speed |= peer(sizes, device, dtype)
    speed["share_of_bandwidth_1_row"] = speed["bytes_a_second_1_row"] / found["limits"]["bandwidth"]
    speed["share_of_rate_dpo"] = speed["dpo_step_flops"] / found["limits"]["product_flops"]
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="toy sizes; nothing is written")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        line = "gpu.py: PyTorch sees no GPU here (to try its code: --device cpu --tiny)"
        print(line, file=sys.stderr)
        return 2
    # A run says how far it is.
    with contextlib.redirect_stdout(sys.stderr):
        found = measure(device, TOY if options.tiny else WHOLE)
    text = json.dumps(found, indent=2) + "\n"
    print(text, end="")
    if not options.tiny:
        slug = re.sub(r"[^a-z0-9]+", "-", found["device"].lower()).strip("-")
        (RESULTS / f"gpu-{slug}.json").write_text(text)
    return 0 if found["parity"]["holds"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
