"""One measurement of one contestant, in a process of its own, for speed.py.

    python benchmarks/contestants.py TASK CONTESTANT RESULT.json [--option value ...]

A process loads its model, warms up, works, and writes seconds, tokens, peak memory above the loaded
model, and what it computed (to be compared with the others'). Every contestant runs in float32 with
all processors.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch

from minialign.config import PAPER, LoRAConfig, SamplingConfig
from minialign.data import Sequence

LORA = LoRAConfig(rank=32, alpha=64.0, dropout=0.0)
BETA = 0.05
PROMPT = 40  # tokens of a prompt, where nothing else is said
COMPLETION = 250


class Memory:
    """The most that this process held since it was created, above what it held then."""

    STATUS = Path("/proc/self/status")

    def __init__(self) -> None:
        gc.collect()
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        except OSError:
            pass
        self.before = self._read("VmRSS")

    def peak(self) -> int | None:
        now = self._read("VmHWM")
        return None if now is None or self.before is None else now - self.before

    def _read(self, name: str) -> int | None:
        if not self.STATUS.exists():  # not Linux
            return None
        line = next(t for t in self.STATUS.read_text().splitlines() if t.startswith(name))
        return int(line.split()[1]) * 1024


def timed(work: Callable[[], Any], runs: int) -> list[float]:
    seconds = []
    for _ in range(runs):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return seconds


def touch(model: torch.nn.Module) -> None:
    """Weights are mapped from their file and read when first used: now."""
    for parameter in model.parameters():
        parameter.sum().item()


# ---- the work, the same for all ----


def text(generator: random.Random, length: int) -> tuple[int, ...]:
    return tuple(generator.randrange(20, 49_000) for _ in range(length))


def demonstrations(count: int, length: int) -> list[Sequence]:
    """Their lengths vary by a quarter around `length`, as people's do."""
    generator = random.Random(0)
    return [
        Sequence(
            text(generator, PROMPT), text(generator, round(length * generator.uniform(0.75, 1.25)))
        )
        for _ in range(count)
    ]


def plain_pairs() -> list[tuple[Sequence, Sequence]]:
    """Four comparisons without a repeated text: what any DPO trainer sees."""
    generator = random.Random(1)
    return [
        (a, Sequence(a.prompt_ids, text(generator, len(b.completion_ids))))
        for a, b in zip(demonstrations(4, 210), demonstrations(4, 210)[::-1], strict=True)
    ]


def ditto_comparisons(count: int, length: int, samples: int = 10) -> list[Any]:
    """A step of the paper's recipe in its third round: 24 comparisons, 17 + 5 + 2."""
    from minialign.methods.comparisons import ComparisonPool
    from minialign.sampler import Completion

    generator = random.Random(2)
    pool = ComparisonPool(demonstrations(count, length))
    for _ in range(3):
        pool.add_round(
            [
                [
                    Completion(
                        "",
                        text(generator, round(length * generator.uniform(0.75, 1.25))),
                        0.0,
                        "stop",
                    )
                    for _ in range(samples)
                ]
                for _ in range(count)
            ]
        )
    return pool.draw(PAPER.pairs_per_step, PAPER.mix, random.Random(3))


def adapters(model_path: str, folder: Path) -> tuple[Path, Path]:
    """A reference and a policy a little away from it, in PEFT's format; made once."""
    from minialign.lora import adapter_parameters, apply_lora, save_adapter

    reference, policy = folder / "adapter-reference", folder / "adapter-policy"
    if (policy / "adapter_model.safetensors").exists():
        return reference, policy
    model = load_ours(model_path)
    generator = torch.Generator().manual_seed(0)
    apply_lora(model, LORA, generator=generator)
    for path in (reference, policy):
        for parameter in adapter_parameters(model, "default"):
            parameter.data += 0.01 * torch.randn(parameter.shape, generator=generator)
        save_adapter(model, path)
    return reference, policy


def load_ours(path: str) -> Any:
    import minialign

    model, _ = minialign.load(path, dtype="float32", device="cpu")
    model.eval()
    touch(model)
    return model


def load_theirs(path: str) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.eval()
    touch(model)
    return model


# ---- a step of preference training ----


def step_minialign(options: Any, folder: Path) -> dict[str, Any]:
    from minialign.lora import adapter_state, load_adapter, lora_layers
    from minialign.methods.comparisons import Comparison
    from minialign.methods.ditto import preference_step
    from minialign.scoring import ReferenceScores

    reference_folder, policy_folder = adapters(options.model, folder)
    model = load_ours(options.model)
    load_adapter(model, reference_folder, "reference")
    load_adapter(model, policy_folder, "default")
    model.set_activation_checkpointing(options.checkpointing)
    if options.task == "dpo":
        pairs = [Comparison("expert", i, a, b) for i, (a, b) in enumerate(plain_pairs())]
    else:
        pairs = ditto_comparisons(options.demonstrations, options.length, options.samples)
    memory = Memory()
    warm_up = pairs[:1]

    computed = 0.0

    def step(pairs: list[Any], reference: Any) -> None:
        nonlocal computed
        for parameter in model.parameters():
            parameter.grad = None
        metrics = preference_step(model, pairs, reference, PAPER, options.micro_batch_tokens)
        computed = metrics["tokens"]

    step(warm_up, ReferenceScores(model, "reference"))
    known = ReferenceScores(model, "reference")
    if options.precomputed:
        for pair in pairs:
            known([pair.chosen, pair.rejected])
    seconds = timed(
        lambda: step(pairs, known if options.precomputed else ReferenceScores(model, "reference")),
        options.runs,
    )
    peak = memory.peak()
    gradients = {}
    for path, layer in lora_layers(model).items():
        for kind in ("lora_A", "lora_B"):
            gradients[f"{path}.{kind}"] = getattr(layer, kind)["default"].grad
    assert len(gradients) == len(adapter_state(model, "default"))
    return {
        "seconds": seconds,
        "peak_bytes": peak,
        "computed_tokens": computed,
        "gradients": gradients,
    }


def step_trl(options: Any, folder: Path) -> dict[str, Any]:
    """TRL's DPOTrainer over a PEFT model, fed with the same token ids through its own collator.

    `padding_free` cannot be used: TRL 1.16 falls back to padding. Its chunked log-probabilities are
    always on.
    """
    import warnings

    from datasets import Dataset
    from peft import PeftModel, set_peft_model_state_dict
    from peft.utils import load_peft_weights
    from transformers import AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    warnings.filterwarnings("ignore")
    reference_folder, policy_folder = adapters(options.model, folder)
    base = load_theirs(options.model)
    peft = PeftModel.from_pretrained(base, str(reference_folder), is_trainable=True)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    arguments = DPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=options.batch,
        gradient_checkpointing=options.gradient_checkpointing,
        precompute_ref_log_probs=options.precomputed,
        max_length=None,
        beta=BETA,
        use_cpu=True,
        bf16=False,
        report_to=[],
        disable_tqdm=True,
        save_strategy="no",
    )
    tiny = Dataset.from_dict({"prompt": ["a"], "chosen": [" b"], "rejected": [" c"]})
    trainer = DPOTrainer(
        peft, args=arguments, train_dataset=tiny, processing_class=tokenizer
    )  # the reference is a copy of the adapter, as it is now
    set_peft_model_state_dict(peft, load_peft_weights(str(policy_folder)), adapter_name="default")
    model = trainer.model
    if options.gradient_checkpointing:  # Trainer.train() would switch it on
        model.gradient_checkpointing_enable({"use_reentrant": False})
    assert any(getattr(m, "gradient_checkpointing", False) for m in model.modules()) == (
        options.gradient_checkpointing
    )
    if options.task == "dpo":
        pairs = plain_pairs()
    else:
        comparisons = ditto_comparisons(options.demonstrations, options.length, options.samples)
        pairs = [(c.chosen, c.rejected) for c in comparisons]
    pairs.sort(key=lambda pair: max(len(pair[0]), len(pair[1])))  # its best case: little padding
    parts = [pairs[i : i + options.batch] for i in range(0, len(pairs), options.batch)]
    memory = Memory()

    def collated(part: list[Any]) -> dict[str, torch.Tensor]:
        return trainer.data_collator(
            [
                {
                    "prompt_ids": list(a.prompt_ids),
                    "chosen_ids": list(a.completion_ids),
                    "rejected_ids": list(b.completion_ids),
                }
                for a, b in part
            ]
        )

    batches = [collated(part) for part in parts]
    if options.precomputed:
        for batch in batches:
            chosen, rejected = trainer.compute_ref_log_probs(model, batch)
            batch |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}

    def step(batches: list[Any], count: int) -> None:
        for parameter in model.parameters():
            parameter.grad = None
        model.train()  # as the trainer does; the adapters have no dropout
        for batch, part in zip(batches, parts, strict=False):
            loss = trainer.compute_loss(model, batch)  # the mean of its pairs
            (loss * len(part) / count).backward()

    warm_up = collated(pairs[:1])
    if options.precomputed:
        warm_up |= {"ref_chosen_logps": torch.zeros(1), "ref_rejected_logps": torch.zeros(1)}
    step([warm_up], 1)
    seconds = timed(lambda: step(batches, len(pairs)), options.runs)
    gradients = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and ".default." in name:
            path = name.removeprefix("base_model.model.").removesuffix(".default.weight")
            gradients[path] = parameter.grad
    return {
        "seconds": seconds,
        "peak_bytes": memory.peak(),
        "computed_tokens": sum(len(a) + len(b) for a, b in pairs),
        "gradients": gradients,
    }


# ---- writing ----


def prompts(count: int) -> list[tuple[int, ...]]:
    generator = random.Random(4)
    return [text(generator, generator.randint(30, 50)) for _ in range(count)]


def real_prompts(path: str) -> list[list[int]]:
    """Eight requests through the chat template: their answers end by themselves now and then."""
    from minialign.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_folder(path)
    subjects = (
        "Friday",
        "the budget",
        "a holiday",
        "the new office",
        "lunch",
        "a delay",
        "a party",
        "thanks",
    )
    return [tokenizer.encode_prompt(f"Write a short e-mail about {s}.") for s in subjects]


def rollouts_minialign(options: Any, folder: Path) -> dict[str, Any]:
    from minialign.lora import load_adapter
    from minialign.sampler import sample

    reference_folder, _ = adapters(options.model, folder)
    model = load_ours(options.model)
    load_adapter(model, reference_folder, "default")
    asked = real_prompts(options.model)
    config = SamplingConfig(max_new_tokens=200, max_rows=80)
    memory = Memory()
    greedy = sample(model, asked, 1, SamplingConfig(24, temperature=0), seed=0)
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


def rollouts_transformers(options: Any, folder: Path) -> dict[str, Any]:
    from peft import PeftModel
    from transformers import AutoTokenizer

    reference_folder, _ = adapters(options.model, folder)
    model = PeftModel.from_pretrained(load_theirs(options.model), str(reference_folder))
    model = model.merge_and_unload().eval()  # its best setting
    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    asked = real_prompts(options.model)
    batch = tokenizer.pad({"input_ids": asked}, return_tensors="pt")
    stop = model.generation_config.eos_token_id or tokenizer.eos_token_id
    memory = Memory()
    settings = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": stop}
    greedy = model.generate(**batch, do_sample=False, max_new_tokens=24, **settings)
    written: list[int] = []

    def work() -> None:
        torch.manual_seed(len(written))
        out = model.generate(
            **batch,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=10,
            max_new_tokens=200,
            **settings,
        )
        new = out[:, batch["input_ids"].shape[1] :]
        ended = (new == stop).int().cumsum(1)
        written.append(int((ended == 0).sum() + (ended.max(1).values > 0).sum()))

    seconds = timed(work, options.runs)
    ids = greedy[:, batch["input_ids"].shape[1] :].tolist()
    cut = [row[: row.index(stop) + 1] if stop in row else row for row in ids]
    return {"seconds": seconds, "written": written, "peak_bytes": memory.peak(), "greedy": cut}


def decode_minialign(options: Any, folder: Path) -> dict[str, Any]:
    from minialign.sampler import sample

    model = load_ours(options.model)
    model.stop_ids = ()
    (prompt,) = prompts(1)
    config = SamplingConfig(max_new_tokens=options.new, max_rows=options.rows)
    memory = Memory()
    (greedy,) = sample(model, [prompt], options.rows, SamplingConfig(16, temperature=0), seed=0)
    sample(model, [prompt], options.rows, SamplingConfig(2, max_rows=options.rows), seed=0)
    seconds = timed(lambda: sample(model, [prompt], options.rows, config, seed=0), options.runs)
    written = [options.rows * options.new] * options.runs
    return {
        "seconds": seconds,
        "written": written,
        "peak_bytes": memory.peak(),
        "greedy": [list(completion.ids) for completion in greedy],
    }


def decode_transformers(options: Any, folder: Path) -> dict[str, Any]:
    model = load_theirs(options.model)
    (prompt,) = prompts(1)
    ids = torch.tensor([prompt])
    memory = Memory()
    settings = {"pad_token_id": 0, "eos_token_id": None}
    greedy = model.generate(
        ids.repeat(options.rows, 1), do_sample=False, max_new_tokens=16, **settings
    )

    def write(new: int) -> Any:
        return model.generate(
            ids,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            num_return_sequences=options.rows,
            max_new_tokens=new,
            **settings,
        )

    write(2)
    seconds = timed(lambda: write(options.new), options.runs)
    written = [options.rows * options.new] * options.runs
    return {
        "seconds": seconds,
        "written": written,
        "peak_bytes": memory.peak(),
        "greedy": greedy[:, len(prompt) :].tolist(),
    }


def decode_llama_cpp(options: Any, folder: Path) -> dict[str, Any]:
    """llama.cpp's own batch of parallel sequences, with its own sampler in C.

    The prompt is read once and its cache shared by all rows, as here.
    """
    import os

    import llama_cpp as lc
    from gguf_export import export

    file = folder / f"model-{options.bits}.gguf"
    if not file.exists():  # before the process's memory is first looked at
        export(Path(options.model), file, options.bits)
    silent = lc.llama_log_callback(lambda *_: None)
    lc.llama_log_set(silent, None)
    lc.llama_backend_init()
    model = lc.llama_model_load_from_file(str(file).encode(), lc.llama_model_default_params())
    (prompt,) = prompts(1)
    rows, new, threads = options.rows, options.new, os.cpu_count() or 1
    settings = lc.llama_context_default_params()
    settings.n_ctx = (len(prompt) + new + 16) * rows
    settings.n_batch = settings.n_ubatch = max(len(prompt), rows)
    settings.n_seq_max = rows
    settings.n_threads = settings.n_threads_batch = threads
    context = lc.llama_init_from_model(model, settings)
    cache = lc.llama_get_memory(context)
    sampler = lc.llama_sampler_chain_init(lc.llama_sampler_chain_default_params())
    lc.llama_sampler_chain_add(sampler, lc.llama_sampler_init_temp(1.0))
    lc.llama_sampler_chain_add(sampler, lc.llama_sampler_init_dist(0))
    first = lc.llama_sampler_init_greedy()
    batch = lc.llama_batch_init(max(len(prompt), rows), 0, 1)
    memory = Memory()

    def feed(
        tokens: list[int], places: list[int], sequences: list[int], wanted: list[bool]
    ) -> None:
        batch.n_tokens = len(tokens)
        for i, (token, place, sequence, want) in enumerate(
            zip(tokens, places, sequences, wanted, strict=True)
        ):
            batch.token[i], batch.pos[i] = token, place
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = want
        assert lc.llama_decode(context, batch) == 0

    def write(count: int, steps: int, chosen_by: Any) -> list[list[int]]:
        lc.llama_memory_clear(cache, True)
        last = len(prompt) - 1
        feed(
            list(prompt),
            list(range(len(prompt))),
            [0] * len(prompt),
            [i == last for i in range(last + 1)],
        )
        for row in range(1, count):
            lc.llama_memory_seq_cp(cache, 0, row, -1, -1)
        out = [[lc.llama_sampler_sample(chosen_by, context, -1)] for _ in range(count)]
        for step in range(1, steps):
            position = len(prompt) + step - 1
            feed([row[-1] for row in out], [position] * count, list(range(count)), [True] * count)
            for i, row in enumerate(out):
                row.append(lc.llama_sampler_sample(chosen_by, context, i))
        return out

    greedy = write(rows, 16, first)
    write(rows, 2, sampler)
    seconds = timed(lambda: write(rows, new, sampler), options.runs)
    return {
        "seconds": seconds,
        "written": [rows * new] * options.runs,
        "peak_bytes": memory.peak(),
        "greedy": greedy,
    }


# ---- the head ----


def plain_logps(hidden: Any, weight: Any, targets: Any) -> Any:
    return (hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


def recomputed_logps(hidden: Any, weight: Any, targets: Any) -> Any:
    """In chunks, each made again in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    parts = zip(hidden.split(341), targets.split(341), strict=True)
    return torch.cat([checkpoint(plain_logps, h, weight, t, use_reentrant=False) for h, t in parts])


def trl_logps(hidden: Any, weight: Any, targets: Any) -> Any:
    """At its best: no statistics besides the log-probabilities; the trainer's own chunk size."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as CHUNK

    return ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, CHUNK, None, 1.0, ())[0]


def head(options: Any, folder: Path) -> dict[str, Any]:
    from minialign.fused import linear_logps

    function = {
        "minialign": linear_logps,
        "plain": plain_logps,
        "recomputing": recomputed_logps,
        "trl": trl_logps,
    }[options.contestant]
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(options.n, options.d, generator=generator).requires_grad_()
    weight = torch.randn(options.v, options.d, generator=generator).mul_(options.d**-0.5)
    targets = torch.randint(options.v, (options.n,), generator=generator)
    memory = Memory()
    values = None

    def work() -> None:
        nonlocal values
        hidden.grad = None
        values = function(hidden, weight, targets)
        values.sum().backward()

    work()
    seconds = timed(work, options.runs)
    assert values is not None
    return {
        "seconds": seconds,
        "peak_bytes": memory.peak(),
        "gradients": {"values": values.detach(), "hidden": hidden.grad},
    }


# ---- the machine ----


def machine(options: Any, folder: Path) -> dict[str, Any]:
    """What a large product and a pass over memory reach here."""
    from minialign.matmul import product

    def best(work: Callable[[], Any]) -> float:
        work()
        return min(timed(work, 7))

    size = 2048
    a, b = torch.randn(size, size), torch.randn(size, size)
    table = torch.randn(2**27)
    with torch.no_grad():
        flops = 2 * size**3
        return {
            "seconds": [0.0],
            "matmul_flops": flops / best(lambda: a @ b),
            "product_flops": flops / best(lambda: product(a, b)),
            "read_bytes": 4 * len(table) / best(table.sum),
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }


def prepare(options: Any, folder: Path) -> dict[str, Any]:
    """What all contestants read, made before any of them is measured."""
    adapters(options.model, folder)
    return {"seconds": [0.0]}


def processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        import platform

        return platform.processor()
    names = [
        line.split(":")[1].strip()
        for line in info.read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{names[0]}, {len(names)} cores" if names else "unknown"


TASKS: dict[str, dict[str, Callable[[Any, Path], dict[str, Any]]]] = {
    "dpo": {"minialign": step_minialign, "trl": step_trl},
    "ditto": {"minialign": step_minialign, "trl": step_trl},
    "rollouts": {"minialign": rollouts_minialign, "transformers": rollouts_transformers},
    "decode": {
        "minialign": decode_minialign,
        "transformers": decode_transformers,
        "llama.cpp": decode_llama_cpp,
    },
    "head": dict.fromkeys(("minialign", "plain", "recomputing", "trl"), head),
    "machine": {"this": machine},
    "prepare": {"this": prepare},
}


@contextmanager
def quiet() -> Iterator[None]:
    """Libraries talk; the result is in the file."""
    out = sys.stdout
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("contestant")
    parser.add_argument("result", type=Path)
    parser.add_argument("--model", default="checkpoints/smollm2-135m-instruct")
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
    options = parser.parse_args()
    folder = options.result.parent
    with quiet():
        result = TASKS[options.task][options.contestant](options, folder)
    tensors = {k: v for k, v in result.pop("gradients", {}).items() if v is not None}
    if tensors:
        torch.save(tensors, options.result.with_suffix(".pt"))
    assert all(math.isfinite(s) for s in result["seconds"])
    options.result.write_text(json.dumps(result))


if __name__ == "__main__":
    main()
