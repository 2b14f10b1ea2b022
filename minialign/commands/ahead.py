"""`--plan`: the memory of a run, by part, from config.json alone; the machine need not be here.

Texts are counted by the checkpoint's tokenizer, or at four characters a token where that is not
here. Without texts the plan is for as many, and as long ones, as in DITTO's paper.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from bisect import bisect_left
from typing import Any

import torch

from minialign.commands.bounds import outline, replanned
from minialign.commands.job import Job, check_method, chosen_knobs, recipe_name, with_model
from minialign.commands.needs import memory_of
from minialign.commands.sources import Demonstrations, read_source, with_paths
from minialign.data.knobs import config_from_flags, flags_of, require
from minialign.data.records import Demonstration, Messages
from minialign.model.matmul import frozen_weights
from minialign.training.knobs import TrainOptions
from minialign.weights.devices import has_gpu, pick_device, pick_dtype, total_bytes
from minialign.weights.find import find_config
from minialign.weights.load import read_model_config
from minialign.weights.tokenizer import Tokenizer

SIZED = re.compile(r"(cpu|cuda|mps):(\d+(?:\.\d+)?)GB", re.IGNORECASE)
LETTERS = 4
# DITTO's paper: demonstrations, tokens of a prompt and of its text.
PAPER_TEXTS, PAPER_PROMPT, PAPER_TEXT = 7, 90, 500
ANY, AT_WILL = 2**20, "with any --micro-batch-tokens"
# What is tried in turn where a run does not fit.
CHANGES: tuple[tuple[str, Any], ...] = (
    *(("dtype", "bfloat16"), ("micro_batch_tokens", 256), ("cache_gb", 2.0)),
    *(("activation_checkpointing", "full"), ("cache_gb", 0.5), ("max_new_tokens", 256)),
)
PARTS = {
    "weights": "of the base model, in {precision}",
    "adapters": "of rank {rank}: the policy's, and {references} as reference",
    "moments": "AdamW's two, and the gradient",
    "activations": "of a step: {tokens:,} tokens in flight",
    "head": "logits and their softmax, a chunk at a time",
    "cache": "keys and values of the rollout: {longest:,} tokens an answer",
    "copies": "of the weights while answers are written: merged, packed",
    "process": "Python and PyTorch; on a GPU a guess at what its driver takes",
}


class Letters(Tokenizer):
    """Stands in for a tokenizer that is not here: a token for every four characters."""

    def __init__(self) -> None: ...

    def encode_prompt(self, messages_or_text: Messages | str) -> list[int]:
        if isinstance(messages_or_text, str):
            return self.encode_completion(messages_or_text)
        return self.encode_completion("".join(turn["content"] for turn in messages_or_text))

    def encode_completion(self, text: str) -> list[int]:
        return [ord(letter) for letter in text[::LETTERS]]


def memory_plan(options: TrainOptions, given: dict[str, Any]) -> str:
    """What `--plan` prints. Raises InputError as a run would."""
    job, there = job_ahead(options, given)
    model = outline(job)
    memory = memory_of(model, job)
    facts = {
        "precision": job.precision,
        "rank": job.knobs.lora.rank,
        "references": job.work.references,
        "tokens": max(job.work.largest, job.work.dropped),
        "longest": job.work.longest or job.longest + job.preview_tokens,
    }
    parts = [
        (name, f"{getattr(memory, name) / 1e9:7.2f} GB  {text.format(**facts)}")
        for name, text in PARTS.items()
    ]
    million = sum(held.numel() for held in frozen_weights(model)) / 1e6
    never = "activations stand beside neither cache nor copies"
    rows = [
        ("model", f"{job.options.model}: {million:,.0f} M parameters, on {options.device}"),
        ("recipe", f"{job.recipe}, method {job.options.method}"),
        *_texts(job),
        *parts,
        ("at most", f"{memory.total / 1e9:7.2f} GB of {there / 1e9:.2f}; {never}"),
        ("fits" if memory.total <= there else "too much", advice(job, there)),
    ]
    return "\n".join(f"{name:>12}  {text}" for name, text in rows)


def _texts(job: Job) -> list[tuple[str, str]]:
    if not job.source.first:
        tokens = max(map(len, job.lessons.train))
        return [("learns from", f"{PAPER_TEXTS} texts of {tokens} tokens (--demos FILE: yours)")]
    counted = [("tokens", f"counted as {LETTERS} characters each: the tokenizer is not here")]
    return job.source.rows(job.lessons) + counted * isinstance(job.tokenizer, Letters)


# ---- the job, without weights ----


def job_ahead(options: TrainOptions, given: dict[str, Any]) -> tuple[Job, float]:
    """A job that cannot be run, and the bytes that its machine has."""
    for name in ("feedback", "resume", "sweep"):
        require(not getattr(options, name), f"--plan is of one new run: leave out --{name}")
    card = check_method(options, given)
    texts = options.demos or options.data or options.votes or options.edits
    options = dataclasses.replace(with_paths(options) if texts else options, method=card.name)
    device, there = machine(options.device)
    options = with_model(options, device)
    recipe = recipe_name(options, device)
    folder = find_config(options.model, options.revision or None)
    config = read_model_config(folder)
    knobs = chosen_knobs(card, recipe, options, given)
    has_tokenizer = folder.is_file() or (folder / "tokenizer.json").is_file()
    tokenizer = Tokenizer.from_folder(folder) if has_tokenizer and texts else Letters()
    source = read_source(options) if texts else as_in_the_paper()
    limit = min(knobs.max_length, config.max_position_embeddings)
    lessons, longest, warnings = source.encode(tokenizer, limit)
    knobs = knobs.fitted(longest)
    job = Job(
        options=options,
        card=card,
        knobs=knobs,
        recipe=recipe,
        device=device,
        dtype=dtype_on(options.dtype, device, config.hidden_size),
        # "auto" looks at the machine that is here
        base_dtype="model" if options.base_dtype == "auto" else options.base_dtype,
        checkpoint=folder,
        tokenizer=tokenizer,
        source=source,
        lessons=lessons,
        longest=longest,
        work=importlib.import_module(card.module).work(lessons, knobs, options.micro_batch_tokens),
        warnings=warnings,
        hashes={},
        resumed={},
    )
    return job, there


def machine(name: str) -> tuple[torch.device, float]:
    """A device and its bytes: this machine's, or one that is only spoken of, "cuda:24GB"."""
    if found := SIZED.fullmatch(name):
        return torch.device(found[1].lower()), float(found[2]) * 1e9
    device = pick_device(name)
    return device, total_bytes(device)


def dtype_on(name: str, device: torch.device, width: int) -> torch.dtype:
    """As a run would take it; a GPU that is only spoken of has bfloat16."""
    absent = device.type == "cuda" and not has_gpu()
    return torch.bfloat16 if absent and name == "auto" else pick_dtype(name, device, width)


def as_in_the_paper() -> Demonstrations:
    letters = [chr(ord("a") + place) * LETTERS for place in range(PAPER_TEXTS)]
    train = [
        Demonstration([{"role": "user", "content": one * PAPER_PROMPT}], one * PAPER_TEXT, "")
        for one in letters
    ]
    return Demonstrations("", "", train, [])


# ---- what fits ----


def advice(job: Job, there: float) -> str:
    """The largest budget of tokens, or what to change where none fits."""
    if tokens := largest_budget(job, there):
        return f"with --micro-batch-tokens up to {tokens:,}" if tokens < ANY else AT_WILL
    changed: dict[str, Any] = {}
    for flag, value in CHANGES * 2:
        other = _with(job, flag, value)
        if _total(other) < _total(job):
            job, changed[flag] = other, value
        if _total(job) <= there:
            break
    flags = " ".join(f"--{flag.replace('_', '-')} {value}" for flag, value in changed.items())
    made = f"{flags or 'as it is'}: {_total(job) / 1e9:.2f} GB"
    return made if _total(job) <= there else f"{made} at least; choose a smaller model"


def largest_budget(job: Job, there: float) -> int:
    """The most --micro-batch-tokens that fit, ANY where all do, 0 where none does."""
    model = outline(job)

    def is_too_much(tokens: int) -> bool:
        return memory_of(model, _with(job, "micro_batch_tokens", tokens)).total > there

    return bisect_left(range(1, ANY + 1), True, key=is_too_much)


def _total(job: Job) -> int:
    return memory_of(outline(job), job).total


def _with(job: Job, flag: str, value: Any) -> Job:
    """The job with another value of a flag, where it has one."""
    if flag == "dtype":
        return dataclasses.replace(job, dtype=getattr(torch, value))
    if flag in TrainOptions.__dataclass_fields__:
        return replanned(job, options=dataclasses.replace(job.options, **{flag: value}))
    if flag in {known.name for known in flags_of(type(job.knobs))}:
        return replanned(job, knobs=config_from_flags(job.knobs, {flag: value}))
    return job
