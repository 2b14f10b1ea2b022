"""What job.py is for demonstrations, for feedback: all that can be refused before a model loads."""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from minialign.commands.job import AnyJob, check_prompt, interrupted_run, recipe_name, with_model
from minialign.data.feedback import (
    DESCRIPTION,
    SCOPES,
    FeedbackData,
    join_feedbacks,
    load_feedback_data,
    load_preference_pairs,
)
from minialign.data.knobs import config_from_dict, config_from_flags
from minialign.data.records import Messages
from minialign.errors import InputError
from minialign.methods.c3po import Batch, without_common_start
from minialign.methods.cards import FEEDBACK_METHODS, UNREAD, recipe_for
from minialign.methods.knobs import C3PO_RECIPES, C3POConfig
from minialign.policy.encode import FeedbackSequences, encode_feedback
from minialign.policy.knobs import LoRAConfig
from minialign.policy.peft import read_adapter_config
from minialign.training.folder import adapter_folder, check_free
from minialign.training.knobs import TrainOptions
from minialign.weights.devices import pick_device, pick_dtype
from minialign.weights.find import find_checkpoint
from minialign.weights.load import read_model_config
from minialign.weights.tokenizer import Tokenizer


@dataclass(frozen=True)
class FeedbackJob(AnyJob):
    """A run that learns from a feedback's data, or from preference pairs."""

    config: C3POConfig
    data: FeedbackData
    train: FeedbackSequences
    held_out: FeedbackSequences

    @property
    def longest(self) -> int:
        """Tokens of the longest revised answer."""
        return max(len(revised.completion_ids) for revised, *_ in self.train.in_scope)

    @property
    def tokens(self) -> int:
        """Of an epoch: every text that has a weight, once."""
        step = Batch.of(self.train, self.config)
        groups = [
            (len(pair[0].prompt_ids), *(len(s.completion_ids) for s in pair)) for pair in step.pairs
        ]
        return sum(map(sum, groups)) + sum(map(len, step.out + step.near))

    def record(self) -> dict[str, Any]:
        return {
            **super().record(),
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
        if not options.inspect:  # which writes nothing
            _check_kept(options)
            check_free(Path(options.out), options.overwrite)
    data = load_data(options.data)
    device = pick_device(options.device)
    options = with_model(options, device)
    if not options.resume:
        recipe = recipe_name(options, device)
        config = _config(C3PO_RECIPES[recipe], options, knobs)
    if (config.lambda_out or config.lambda_near) and not data.out_of_scope:
        raise InputError(
            f"{options.data}: preference pairs, and --method {options.method} needs prompts out of "
            "scope too, a folder of feedback: use --method dpo or sft"
        )
    checkpoint = find_checkpoint(options.model, options.revision or None)
    tokenizer = Tokenizer.from_folder(checkpoint)
    context = read_model_config(checkpoint).max_position_embeddings
    check_prompt(options.prompt, tokenizer, context)
    limit = min(config.max_length, context)
    train, warnings = encode_feedback(data, "train", tokenizer, limit)
    held_out, _ = encode_feedback(data, "test", tokenizer, limit)
    warnings += _equal_pairs(train, config)
    return FeedbackJob(
        options,
        config,
        recipe,
        device,
        pick_dtype(options.dtype, device),
        checkpoint,
        tokenizer,
        warnings,
        [{"role": "user", "content": options.prompt}] if options.prompt else _preview(data),
        data,
        train,
        held_out,
    )


def _equal_pairs(train: FeedbackSequences, config: C3POConfig) -> list[str]:
    """A warning where DPO has nothing to prefer, as when both answers were cut before they part."""
    equal = sum(chosen == rejected for chosen, rejected in train.in_scope)
    if config.in_scope_loss != "dpo" or not equal:
        return []
    return [
        f"in {equal} of {len(train.in_scope)} pairs both answers are the same, cut or as they "
        "stand: DPO learns nothing from them"
    ]


def data_paths(data: str) -> list[Path]:
    """--data is a folder, a file of preference pairs, or several folders with commas between."""
    if Path(data).exists():
        return [Path(data)]
    parts = [part.strip() for part in data.split(",")]
    if not all(parts):  # an empty one would be the folder that one is in
        raise InputError(f"{data}: a folder is missing beside a comma: name it, or drop the comma")
    return [Path(part) for part in parts]


def flag_for_test(data: str) -> str:
    """What evaluate.py needs besides the run: of several feedbacks that were learned at once, each
    has to be tested by itself.
    """
    first, *others = data_paths(data)
    return f" --test {shlex.quote(str(first))}" if others else ""


def load_data(data: str) -> FeedbackData:
    """What --data names. Raises InputError for whatever is wrong with it."""
    paths = data_paths(data)
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        if len(paths) > 1 and not path.is_dir():
            raise InputError(f"{path}: only folders of feedback can be joined, and this is a file")
    if len({path.resolve() for path in paths}) < len(paths):
        raise InputError(f"{data}: names a folder twice: leave it in once")
    if paths[0].is_file():
        return load_preference_pairs(paths[0])
    return join_feedbacks([load_feedback_data(path) for path in paths])


def _with_paths(options: TrainOptions) -> TrainOptions:
    if not options.data:
        raise InputError(
            f"--method {options.method} learns from feedback: give --data FOLDER (or, for dpo, "
            "a file of preference pairs)"
        )
    _check_options(options)
    paths = data_paths(options.data)
    name = "+".join(path.stem if path.is_file() else path.resolve().name for path in paths)
    return dataclasses.replace(options, out=options.out or str(Path("runs") / name))


def check_flags(options: TrainOptions, knobs: dict[str, Any]) -> None:
    """Raises InputError for what could never be trained, before data is made of --feedback."""
    _check_options(options)
    _config(C3PO_RECIPES["laptop"], options, knobs)
    if options.out:
        _check_kept(options)


def _check_options(options: TrainOptions) -> None:
    if options.method not in FEEDBACK_METHODS:
        raise InputError(
            f"--method {options.method} learns from --demos; with --data, choose one of "
            f"{', '.join(FEEDBACK_METHODS)}"
        )
    if options.demos:
        raise InputError("give --demos or --data, not both")
    if options.test:
        raise InputError(
            '--test belongs to --demos: in --data, the lines with the split "test" are held out'
        )


def _check_kept(options: TrainOptions) -> None:
    """The adapter to go on from must outlive --overwrite."""
    if not options.init_adapter:
        return
    adapter, out = adapter_folder(options.init_adapter).resolve(), Path(options.out).resolve()
    if adapter.is_relative_to(out):
        raise InputError(
            f"--init-adapter {options.init_adapter}: lies in --out, which is written anew: choose "
            "another --out"
        )


def _config(base: C3POConfig, options: TrainOptions, knobs: dict[str, Any]) -> C3POConfig:
    """The recipe, what the method changes in it, and the knobs that were given."""
    fixed = FEEDBACK_METHODS[options.method]
    recipe = recipe_for(options.method, base, fixed, knobs, "c3po", UNREAD[options.method])
    config = config_from_flags(recipe, knobs)
    if not options.init_adapter:
        return config
    for name in knobs:
        if name.startswith("lora_"):
            raise InputError(f"--init-adapter brings its own --{name.replace('_', '-')}: leave it")
    return dataclasses.replace(config, lora=_lora_of(adapter_folder(options.init_adapter)))


def _lora_of(folder: Path) -> LoRAConfig:
    """What an adapter consists of, as its tensors say: `--resume` builds it anew without them."""
    file = folder / "adapter_model.safetensors"
    lora = read_adapter_config(folder)
    try:
        with safe_open(file, framework="pt") as tensors:
            names = [key.split(".") for key in tensors.keys()]
    except (OSError, SafetensorError) as error:
        raise InputError(f"{file}: cannot be read: {error}") from None
    targets = tuple(sorted({parts[-3] for parts in names if len(parts) > 2}))
    return dataclasses.replace(lora, dropout=0.0, target_modules=targets)


def _preview(data: FeedbackData) -> Messages:
    """A prompt in scope, if possible one that is not trained on."""
    return [*data.examples("in_scope", "test"), *data.examples("in_scope", "train")][0].messages


def hash_of(data: str) -> str:
    """Of the files that data folders consist of, or of the one with preference pairs."""
    names = (DESCRIPTION, *(f"{scope}.jsonl" for scope in SCOPES))
    files = [
        file
        for path in data_paths(data)
        for file in ([path / name for name in names] if path.is_dir() else [path])
    ]
    digest = hashlib.sha256()
    for file in files:
        try:
            digest.update(file.read_bytes())
        except OSError as error:
            raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    return digest.hexdigest()


def inspect_pair(job: FeedbackJob) -> str:
    """The exact tokens of the first pair, both answers after the one prompt: place, id, text, and
    whether the loss covers it. DPO's does not cover what both answers begin with.
    """
    chosen, rejected = job.train.in_scope[0]
    after = len(chosen.prompt_ids)
    dpo = job.config.in_scope_loss == "dpo"
    start = len(without_common_start(chosen, rejected)[0].prompt_ids) if dpo else after
    never = after + len(rejected.completion_ids)
    parts = [
        ("prompt", chosen.prompt_ids, 0, after),
        ("chosen", chosen.completion_ids, after, start),
        ("rejected", rejected.completion_ids, after, start if dpo else never),
    ]
    source = job.data.examples("in_scope", "train")[0].source
    counts = ", ".join(f"{len(ids)} {part}" for part, ids, *_ in parts)
    lines = [f"{source}: {counts} tokens (* = trained on)"]
    for part, ids, begin, trained_from in parts:
        for place, token in enumerate(ids, begin):
            mark, text = "*" if place >= trained_from else " ", repr(job.tokenizer.token(token))
            lines.append(f"{place:5d} {token:7d} {mark} {part:10s} {text}")
    return "\n".join(lines)
