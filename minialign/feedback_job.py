"""What job.py is for demonstrations, for feedback: all that can be refused before a model loads."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minialign.checkpoints import find_checkpoint
from minialign.cli import config_from_dict, config_from_flags
from minialign.config import (
    C3PO_RECIPES,
    FEEDBACK_METHODS,
    C3POConfig,
    TrainOptions,
    recipe_for,
)
from minialign.data import Messages
from minialign.errors import InputError
from minialign.feedback import (
    DESCRIPTION,
    SCOPES,
    FeedbackData,
    FeedbackSequences,
    encode_feedback,
    load_feedback_data,
)
from minialign.job import DEFAULT_GPU_MODEL, DEFAULT_MODEL, common_record, interrupted_run
from minialign.lora import read_adapter_config
from minialign.run import check_free
from minialign.runs import adapter_folder
from minialign.tokenizer import Tokenizer
from minialign.weights import pick_device, pick_dtype, read_model_config


@dataclass(frozen=True)
class FeedbackJob:
    """A training run on a feedback's data that is ready to start."""

    options: TrainOptions
    config: C3POConfig
    recipe: str
    device: torch.device
    dtype: torch.dtype
    checkpoint: Path
    tokenizer: Tokenizer
    data: FeedbackData
    train: FeedbackSequences
    held_out: FeedbackSequences
    warnings: list[str]
    prompt: Messages  # what is answered before and after

    @property
    def out(self) -> Path:
        return Path(self.options.out)

    @property
    def longest(self) -> int:
        """Tokens of the longest revised answer."""
        return max(len(revised.completion_ids) for revised, *_ in self.train.in_scope)

    @property
    def tokens(self) -> int:
        """Of an epoch: every text that has a weight, once."""
        config, train = self.config, self.train
        pairs = [pair[:1] if config.in_scope_loss == "sft" else pair for pair in train.in_scope]
        answers = [
            *(train.out_of_scope if config.lambda_out else ()),
            *(train.near_scope if config.lambda_near else ()),
        ]
        in_scope = sum(len(p[0].prompt_ids) + sum(len(s.completion_ids) for s in p) for p in pairs)
        return in_scope + sum(map(len, answers))

    def record(self) -> dict[str, Any]:
        """config.json: what a person, or --resume, needs to know about this run."""
        return {
            **common_record(self),
            "feedback": self.data.feedback,
            "data_sha256": hash_of(self.options.data),
        }


def prepare_feedback(options: TrainOptions, knobs: dict[str, Any]) -> FeedbackJob:
    """Checks and encodes. Raises InputError for whatever a person can put right; writes nothing."""
    recipe, config = "", C3POConfig()
    if options.resume:
        options, record = interrupted_run(options, knobs)
        recipe, config = record["recipe"], config_from_dict(C3POConfig, record["knobs"])
        if hash_of(options.data) != record["data_sha256"]:
            raise InputError(
                f"{options.data}: has changed since the run in {options.out} began: start a new run"
            )
    else:
        options = _with_paths(options)
        check_free(Path(options.out), options.overwrite)
    data = load_feedback_data(options.data)
    device = pick_device(options.device)
    on_gpu = device.type == "cuda"
    options = dataclasses.replace(
        options, model=options.model or (DEFAULT_GPU_MODEL if on_gpu else DEFAULT_MODEL)
    )
    if not options.resume:
        recipe = options.recipe if options.recipe != "auto" else ("paper" if on_gpu else "laptop")
        config = _config(C3PO_RECIPES[recipe], options, knobs)
    checkpoint = find_checkpoint(options.model, options.revision or None)
    tokenizer = Tokenizer.from_folder(checkpoint)
    limit = min(config.max_length, read_model_config(checkpoint).max_position_embeddings)
    train, warnings = encode_feedback(data, "train", tokenizer, limit)
    held_out, _ = encode_feedback(data, "test", tokenizer, limit)
    return FeedbackJob(
        options,
        config,
        recipe,
        device,
        pick_dtype(options.dtype, device),
        checkpoint,
        tokenizer,
        data,
        train,
        held_out,
        warnings,
        [{"role": "user", "content": options.prompt or _preview(data)}],
    )


def _with_paths(options: TrainOptions) -> TrainOptions:
    if not options.data:
        raise InputError(f"--method {options.method} learns from feedback: give --data FOLDER")
    if options.method not in FEEDBACK_METHODS:
        raise InputError(
            f"--method {options.method} learns from --demos; with --data, choose one of "
            f"{', '.join(FEEDBACK_METHODS)}"
        )
    if options.demos:
        raise InputError("give --demos or --data, not both")
    if options.inspect:
        raise InputError("--inspect shows demonstrations: it needs --demos")
    return dataclasses.replace(
        options, out=options.out or str(Path("runs") / Path(options.data).resolve().name)
    )


def _config(base: C3POConfig, options: TrainOptions, knobs: dict[str, Any]) -> C3POConfig:
    """The recipe, what the method changes in it, and the knobs that were given."""
    fixed = FEEDBACK_METHODS[options.method]
    recipe = recipe_for(options.method, base, fixed, knobs, "c3po")
    config = config_from_flags(recipe, knobs)
    if not options.init_adapter:
        return config
    for name in knobs:
        if name.startswith("lora_"):
            raise InputError(f"--init-adapter brings its own --{name.replace('_', '-')}: leave it")
    lora = read_adapter_config(adapter_folder(options.init_adapter))
    return dataclasses.replace(config, lora=dataclasses.replace(lora, dropout=0.0))


def _preview(data: FeedbackData) -> str:
    """A prompt in scope, if possible one that is not trained on."""
    return [*data.examples("in_scope", "test"), *data.examples("in_scope", "train")][0].prompt


def hash_of(folder: str) -> str:
    """Of the files that a data folder consists of."""
    digest = hashlib.sha256()
    for name in (DESCRIPTION, *(f"{scope}.jsonl" for scope in SCOPES)):
        try:
            digest.update((Path(folder) / name).read_bytes())
        except OSError as error:
            raise InputError(f"{folder}/{name}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()
