"""minialign: a step of preference training, rollouts, writing."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from minialign.methods.knobs import PAPER
from minialign.policy.knobs import SamplingConfig

from .measuring import Memory, Result, timed
from .models import adapters, load_ours
from .workloads import comparisons, prompts, real_prompts


def step(options: Namespace, folder: Path) -> Result:
    from minialign.methods.ditto import preference_step
    from minialign.policy.peft import load_adapter
    from minialign.policy.reference_scores import ReferenceScores

    reference_folder, policy_folder = adapters(options.model, folder)
    model = load_ours(options.model, options.dtype)
    load_adapter(model, reference_folder, "reference")
    load_adapter(model, policy_folder, "default")
    model.set_activation_checkpointing(options.checkpointing)
    pairs = comparisons(options)
    memory = Memory()

    computed = 0.0

    def one_step(pairs: list[Any], reference: Any) -> None:
        nonlocal computed
        for parameter in model.parameters():
            parameter.grad = None
        metrics = preference_step(model, pairs, reference, PAPER, options.micro_batch_tokens)
        computed = metrics["tokens"]

    one_step(pairs[:1], ReferenceScores(model, "reference"))  # warm up
    known = ReferenceScores(model, "reference")
    if options.precomputed:
        for pair in pairs:
            known([pair.chosen, pair.rejected])
    seconds = timed(
        lambda: one_step(
            pairs, known if options.precomputed else ReferenceScores(model, "reference")
        ),
        options.runs,
    )
    return {
        "seconds": seconds,
        "peak_bytes": memory.peak(),
        "computed_tokens": computed,
        "gradients": adapter_gradients(model),
    }


def adapter_gradients(model: Any) -> dict[str, Any]:
    """By the names of PEFT's modules."""
    from minialign.policy.adapters import lora_layers
    from minialign.policy.peft import adapter_state

    gradients = {}
    for path, layer in lora_layers(model).items():
        for kind in ("lora_A", "lora_B"):
            gradients[f"{path}.{kind}"] = getattr(layer, kind)["default"].grad
    assert len(gradients) == len(adapter_state(model, "default"))
    return gradients


def rollouts(options: Namespace, folder: Path) -> Result:
    from minialign.policy.peft import load_adapter
    from minialign.policy.sample import sample

    reference_folder, _ = adapters(options.model, folder)
    model = load_ours(options.model, options.dtype)
    load_adapter(model, reference_folder, "default")
    asked = real_prompts(options.model)
    own = {"rollout_dtype": options.rollout_dtype}
    config = SamplingConfig(max_new_tokens=200, max_rows=80, **own)
    memory = Memory()
    greedy = sample(model, asked, 1, SamplingConfig(24, temperature=0, **own), seed=0)
    written: list[int] = []

    def work() -> None:
        groups = sample(model, asked, 10, config, seed=len(written))
        written.append(sum(len(c.ids) for group in groups for c in group))

    seconds = timed(work, options.runs)
    return {
        "seconds": seconds,
        "written": written,
        "peak_bytes": memory.peak(),
        "greedy": [list(group[0].ids) for group in greedy],
    }


def decode(options: Namespace, folder: Path) -> Result:
    from minialign.policy.sample import sample

    model = load_ours(options.model, options.dtype)
    model.stop_ids = ()
    (prompt,) = prompts(1)
    own = {"max_rows": options.rows, "rollout_dtype": options.rollout_dtype}
    config = SamplingConfig(max_new_tokens=options.new, **own)
    memory = Memory()
    likeliest = SamplingConfig(16, temperature=0, rollout_dtype=options.rollout_dtype)
    (greedy,) = sample(model, [prompt], options.rows, likeliest, seed=0)
    sample(model, [prompt], options.rows, SamplingConfig(2, **own), seed=0)
    seconds = timed(lambda: sample(model, [prompt], options.rows, config, seed=0), options.runs)
    return {
        "seconds": seconds,
        "written": [options.rows * options.new] * options.runs,
        "peak_bytes": memory.peak(),
        "greedy": [list(completion.ids) for completion in greedy],
    }
