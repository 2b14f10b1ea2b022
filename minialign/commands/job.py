"""Everything that can be known, and refused, before a model is loaded: files, folders, lengths,
knobs.

A run that would fail after an hour fails here, in one line, with nothing written.
"""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import minialign
from minialign.data.general import general_prompts
from minialign.data.knobs import config_from_dict, config_from_flags
from minialign.data.records import (
    Demonstration,
    Messages,
    Sequence,
    held_out_split,
    load_demonstrations,
    training_split,
)
from minialign.errors import InputError
from minialign.methods.anchors import ANSWERS
from minialign.methods.cards import DEMONSTRATION_METHODS, is_read_by_sft, recipe_for
from minialign.methods.knobs import RECIPES, C3POConfig, DittoConfig
from minialign.policy.encode import encode_demonstration
from minialign.training.folder import check_free, check_unfinished, read_run_record
from minialign.training.knobs import TrainOptions
from minialign.weights.devices import pick_device, pick_dtype
from minialign.weights.find import find_checkpoint
from minialign.weights.load import read_model_config
from minialign.weights.tokenizer import Tokenizer

DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_GPU_MODEL = "mistral-7b-instruct"
DEFAULT_PROMPT = "Write an email to an old friend to say how your week went."


@dataclass(frozen=True)
class AnyJob:
    """A training run that is ready to start: what each one knows, whatever it learns from."""

    options: TrainOptions
    config: DittoConfig | C3POConfig
    recipe: str
    device: torch.device
    dtype: torch.dtype
    checkpoint: Path
    tokenizer: Tokenizer
    warnings: list[str]
    prompt: Messages  # what is answered before and after

    @property
    def out(self) -> Path:
        return Path(self.options.out)

    def record(self) -> dict[str, Any]:
        """config.json: what a person, or --resume, needs to know about this run."""
        return {
            "minialign": minialign.__version__,
            "options": dataclasses.asdict(self.options),
            "recipe": self.recipe,
            "knobs": dataclasses.asdict(self.config),
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "checkpoint": str(self.checkpoint),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
        }


@dataclass(frozen=True)
class Job(AnyJob):
    """A run that learns from demonstrations."""

    config: DittoConfig
    demonstrations: list[Demonstration]
    train: list[Sequence]
    held_out: list[Sequence]

    @property
    def longest(self) -> int:
        """Tokens of the longest demonstrated completion."""
        return max(len(sequence.completion_ids) for sequence in self.train)

    @property
    def anchor_prompts(self) -> list[tuple[int, ...]]:
        """General prompts, none that is longer than the context allows."""
        if not self.config.anchors:
            return []
        texts = general_prompts(ANSWERS, self.options.seed, "anchors")
        prompts = [tuple(self.tokenizer.encode_prompt(text)) for text in texts]
        return [prompt for prompt in prompts if len(prompt) < self.config.max_length]

    def record(self) -> dict[str, Any]:
        return {**super().record(), "demos_sha256": _sha256(self.options.demos)}


def prepare(options: TrainOptions, knobs: dict[str, Any]) -> Job:
    """Checks and encodes. Raises InputError for whatever a person can put right; writes nothing."""
    if options.resume:
        options, record = interrupted_run(options, knobs)
        recipe, base = record["recipe"], config_from_dict(DittoConfig, record["knobs"])
        if _sha256(options.demos) != record["demos_sha256"]:
            raise InputError(
                f"{options.demos}: has changed since the run in {options.out} began: "
                "start a new run"
            )
    else:
        options = _with_default_paths(options)
        if options.init_adapter:
            raise InputError("--init-adapter belongs to --data: with --demos, leave it out")
        if not options.inspect:  # which writes nothing
            check_free(Path(options.out), options.overwrite)
    demonstrations, held_out = _load_demonstrations(options)
    device = pick_device(options.device)
    options = with_model(options, device)
    if not options.resume:
        recipe = recipe_name(options, device)
        fixed = DEMONSTRATION_METHODS[options.method]
        base = recipe_for(options.method, RECIPES[recipe], fixed, knobs, "ditto")
    config = config_from_flags(base, knobs)
    checkpoint = find_checkpoint(options.model, options.revision or None)
    model_config = read_model_config(checkpoint)
    tokenizer = Tokenizer.from_folder(checkpoint)
    check_prompt(options.prompt, tokenizer, model_config.max_position_embeddings)
    limit = min(config.max_length, model_config.max_position_embeddings)
    encoded = [encode_demonstration(d, tokenizer, limit) for d in demonstrations]
    train = [sequence for sequence, _ in encoded]
    return Job(
        options,
        _with_sampling_length(config, train),
        recipe,
        device,
        pick_dtype(options.dtype, device),
        checkpoint,
        tokenizer,
        [*_unused(options.method, knobs), *(warning for _, warning in encoded if warning)],
        _preview_prompt(options.prompt, demonstrations, held_out),
        demonstrations,
        train,
        [encode_demonstration(d, tokenizer, limit)[0] for d in held_out],
    )


def _unused(method: str, knobs: dict[str, Any]) -> list[str]:
    """A warning, no refusal: who compares methods gives all of them the same knobs."""
    idle = [f"--{name.replace('_', '-')}" for name in knobs if not is_read_by_sft(name)]
    if method != "sft" or not idle:
        return []
    return [f"--method sft makes no use of {', '.join(idle)} (its own: --sft-...)"]


def with_model(options: TrainOptions, device: torch.device) -> TrainOptions:
    """Where no model is named, the default one."""
    default = DEFAULT_GPU_MODEL if device.type == "cuda" else DEFAULT_MODEL
    return dataclasses.replace(options, model=options.model or default)


def recipe_name(options: TrainOptions, device: torch.device) -> str:
    if options.recipe != "auto":
        return options.recipe
    return "paper" if device.type == "cuda" else "laptop"


def _preview_prompt(
    given: str, train: list[Demonstration], held_out: list[Demonstration]
) -> Messages:
    """What the person asked for; else a held-out prompt, if possible one not trained on."""
    if given:
        return [{"role": "user", "content": given}]
    known = [d.messages for d in train]
    unseen = [d.messages for d in held_out if d.messages not in known]
    seen = [d.messages for d in held_out]
    return [*unseen, *seen, [{"role": "user", "content": DEFAULT_PROMPT}]][0]


def _with_default_paths(options: TrainOptions) -> TrainOptions:
    if not options.demos:
        raise InputError(
            '--demos FILE.jsonl is missing: a line each of {"prompt": ..., "completion": ...}'
        )
    demos = Path(options.demos)
    beside = demos.with_name(f"{demos.stem}_test{demos.suffix}")
    return dataclasses.replace(
        options,
        test=options.test or (str(beside) if beside.exists() else ""),
        out=options.out or str(Path("runs") / demos.stem),
    )


def _load_demonstrations(options: TrainOptions) -> tuple[list[Demonstration], list[Demonstration]]:
    everything = load_demonstrations(options.demos)
    train = training_split(everything)
    if not train:
        raise InputError(f'{options.demos}: no line has "split": "train" (or no split at all)')
    held_out = load_demonstrations(options.test) if options.test else held_out_split(everything)
    check_held_out(train, held_out)
    return train, held_out


def check_held_out(train: list[Demonstration], held_out: list[Demonstration]) -> None:
    """Raises InputError where a text that was learned from is also to be judged by."""
    learned = {d.completion: d.source for d in train}
    for demonstration in held_out:
        if demonstration.completion in learned:
            raise InputError(
                f"{demonstration.source}: a held-out text must be new, this one is trained on "
                f"({learned[demonstration.completion]})"
            )


def check_prompt(prompt: str, tokenizer: Tokenizer, context: int) -> None:
    """Raises InputError where `--prompt` leaves no room, of `context` tokens, for an answer."""
    length = len(tokenizer.encode_prompt(prompt)) if prompt else 0
    if length >= context:
        raise InputError(
            f"--prompt has {length} tokens, the model's context holds {context}: shorten it"
        )


def _with_sampling_length(config: DittoConfig, train: list[Sequence]) -> DittoConfig:
    """max_new_tokens = 0 stands for what the demonstrations need, with a quarter to spare."""
    if config.sampling.max_new_tokens:
        return config
    longest = max(len(sequence.completion_ids) for sequence in train)
    return dataclasses.replace(
        config, sampling=dataclasses.replace(config.sampling, max_new_tokens=longest + longest // 4)
    )


def interrupted_run(
    options: TrainOptions, knobs: dict[str, Any]
) -> tuple[TrainOptions, dict[str, Any]]:
    """The options of the run in `options.resume`, exactly as they were, and its record.

    Raises InputError if there is nothing to go on with, or if anything else was given.
    """
    plain = TrainOptions(resume=options.resume)
    given = [name for name in vars(plain) if getattr(options, name) != getattr(plain, name)]
    for name in [*given, *knobs]:
        flag = "--" + name.replace("_", "-")
        raise InputError(f"--resume keeps the knobs of the run: leave out {flag}")
    record = read_run_record(options.resume)
    check_unfinished(Path(options.resume))
    before = config_from_dict(TrainOptions, record["options"])
    again = dataclasses.replace(
        before,
        resume=options.resume,
        out=options.resume,
        overwrite=False,
        device=record["device"],
        dtype=record["dtype"],
    )
    return again, record


def _sha256(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def inspect(job: Job) -> str:
    """The exact tokens of the first demonstration: id, text, and whether the loss covers it."""
    sequence = job.train[0]
    prompt_trained = job.config.sft.train_on_prompt
    lines = [
        f"{job.demonstrations[0].source}: {len(sequence.prompt_ids)} prompt tokens, "
        f"{len(sequence.completion_ids)} completion tokens (* = trained on)"
    ]
    for place, token in enumerate(sequence.prompt_ids + sequence.completion_ids):
        in_completion = place >= len(sequence.prompt_ids)
        trained = in_completion or (prompt_trained and place > 0)
        part = "completion" if in_completion else "prompt"
        mark, text = "*" if trained else " ", repr(job.tokenizer.token(token))
        lines.append(f"{place:5d} {token:7d} {mark} {part:10s} {text}")
    return "\n".join(lines)
