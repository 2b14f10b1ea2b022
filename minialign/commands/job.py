"""Everything that can be known, and refused, before a model is loaded: files, folders, lengths,
knobs.

A run that would fail after an hour fails here, in one line, with nothing written.
"""

from __future__ import annotations

import dataclasses
import datetime
import importlib
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import minialign
from minialign.commands.sources import (
    Source,
    check_writers,
    kind_of,
    read_source,
    with_paths,
)
from minialign.data.files import require_fields
from minialign.data.knobs import config_from_dict, require
from minialign.data.records import DEMONSTRATIONS, Example, Messages
from minialign.errors import InputError
from minialign.methods.cards import Card, card_of
from minialign.methods.knobs import MethodKnobs
from minialign.methods.lessons import Lessons, Work
from minialign.policy.peft import lora_of
from minialign.training import ranks
from minialign.training.folder import (
    CONFIG,
    adapter_folder,
    check_free,
    check_idle,
    read_run_record,
    source_of,
)
from minialign.training.knobs import TrainOptions
from minialign.training.state import check_unfinished
from minialign.weights.devices import pick_device, pick_dtype
from minialign.weights.find import DEFAULT_GPU_MODEL, DEFAULT_MODEL, find_checkpoint
from minialign.weights.hashes import hashes_of
from minialign.weights.holding import pick_base_dtype
from minialign.weights.load import read_model_config
from minialign.weights.tokenizer import Tokenizer


@dataclass(frozen=True)
class Job:
    """A training run that is ready to start."""

    options: TrainOptions
    card: Card
    knobs: MethodKnobs
    recipe: str
    device: torch.device
    dtype: torch.dtype
    base_dtype: str
    checkpoint: Path
    tokenizer: Tokenizer
    source: Source
    lessons: Lessons[Any]
    longest: int  # tokens of the longest text that is learned from
    work: Work
    warnings: list[str]
    hashes: dict[str, str]
    resumed: dict[str, Any]  # the record of the run that goes on; empty for a new one
    asks: bool = False  # whether a person confirms the plan

    @property
    def out(self) -> Path:
        return Path(self.options.out)

    @property
    def method(self) -> Any:
        """The method's module, with its `train` and `work`."""
        return importlib.import_module(self.card.module)

    @property
    def precision(self) -> str:
        """How the base model's weights are kept, and multiplied where that is another type."""
        dtype = str(self.dtype).removeprefix("torch.")
        kept = self.base_dtype
        return dtype if kept == "model" else f"{kept}, multiplied in {dtype}"

    @property
    def held_out_demonstrations(self) -> list[Example]:
        return self.lessons.held_out if self.source.kind == DEMONSTRATIONS else []

    @property
    def prompt(self) -> Messages:
        """What is answered before and after."""
        asked = self.options.prompt
        return [{"role": "user", "content": asked}] if asked else self.source.preview

    @property
    def preview_tokens(self) -> int:
        """Of an answer before or after, at most."""
        return min(self.longest + self.longest // 2, self.work.sampling.max_new_tokens)

    def record(self) -> dict[str, Any]:
        """config.json: what a person, or --resume, needs to know about this run."""
        return {
            "minialign": minialign.__version__,
            "learns_from": self.source.kind,
            "options": dataclasses.asdict(self.options),
            "recipe": self.recipe,
            "knobs": dataclasses.asdict(self.knobs),  # type: ignore[call-overload]
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "base_dtype": self.base_dtype,
            "checkpoint": str(self.checkpoint),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "today": self.tokenizer.today.isoformat(),
            **self.hashes,
            **self.source.record(),
        }


def prepare_job(options: TrainOptions, given: dict[str, Any]) -> Job:
    """Checks and encodes. Raises InputError for whatever a person can put right; writes nothing.

    `given` are the knobs from the command line, by their flags' names.
    """
    record: dict[str, Any] = {}
    if options.resume:
        options, record = interrupted_run(options, given)
        card = card_of(options.method, source_of(record))
    else:
        card = check_method(options, given)
        options = dataclasses.replace(with_paths(options), method=card.name)
        # --inspect writes nothing.
        if not options.inspect:
            check_free(Path(options.out), options.overwrite)
    source = read_source(options)
    _check_guard(options, source)
    place = options.votes or options.data or options.demos
    check_unchanged(source.record(), record, place, options)
    # What a run goes by that goes on, interrupted or finished.
    known = record or (read_run_record(options.continue_) if options.continue_ else {})
    device = pick_device(options.device)
    options = with_model(options, device)
    recipe = known["recipe"] if known else recipe_name(options, device)
    knobs = chosen_knobs(card, recipe, options, given, known)
    checkpoint = find_checkpoint(options.model, options.revision or None)
    check_writers(options, checkpoint)
    config, tokenizer = read_model_config(checkpoint), Tokenizer.from_folder(checkpoint)
    context = config.max_position_embeddings
    tokenizer.fit(config.vocab_size)
    hashes = hashes_of(checkpoint, tokenizer)
    check_unchanged(hashes, known, str(checkpoint), options)
    tokenizer.today = _today(known, options) if known else tokenizer.today
    check_prompt(options.prompt, tokenizer, context)
    lessons, longest, warnings = source.encode(tokenizer, min(knobs.max_length, context))
    knobs, method = knobs.fitted(longest), importlib.import_module(card.module)
    if options.continue_ and not record:
        knobs = method.prolonged(knobs)
    work_of = method.work_of_more if options.continue_ else method.work
    work = work_of(lessons, knobs, options.micro_batch_tokens)
    # a run goes on in the types that it began with
    dtype = pick_dtype(known.get("dtype", options.dtype), device, config.hidden_size)
    return Job(
        options=options,
        card=card,
        knobs=knobs,
        recipe=recipe,
        device=device,
        dtype=dtype,
        base_dtype=pick_base_dtype(options.base_dtype, config, dtype, device),
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        source=source,
        lessons=lessons,
        longest=longest,
        work=work,
        warnings=[*warnings, *work.warnings],
        hashes=hashes,
        resumed=record,
    )


def check_method(options: TrainOptions, given: dict[str, Any]) -> Card:
    """The method's card. Raises InputError for what could never be trained, by the flags alone."""
    kind = kind_of(options)
    sources = (options.data, options.votes, options.edits, options.demos, options.feedback)
    if not any(sources) and options.method:
        _require_data(options.method)
    card = card_of(options.method, kind)
    if options.init_adapter and not card.starts_from_adapter:
        raise InputError(f"--init-adapter is of no use to --method {card.name}: leave it out")
    chosen_knobs(card, next(iter(card.recipes)), options, given)
    if options.out:
        _check_kept(options)
    return card


def _require_data(method: str) -> None:
    """Raises InputError where a method needs --data and there is none."""
    try:
        card_of(method, kind_of(TrainOptions()))
    except InputError as error:
        if "learns from" not in str(error):
            raise
        raise InputError(
            f"--method {method} learns from feedback: give --data FOLDER (or, for some methods, a "
            "file of preference pairs)"
        ) from None


def chosen_knobs(
    card: Card,
    recipe: str,
    options: TrainOptions,
    given: dict[str, Any],
    known: dict[str, Any] | None = None,
) -> MethodKnobs:
    """The recipe, what the method fixes in it, and the knobs that were given.

    Those of a run that goes on are as its record `known` has them.
    """
    if known:
        folder = options.resume or options.continue_
        return recorded(card.knobs_class, known["knobs"], folder)
    knobs = card.with_flags(card.recipe(recipe), given)
    if not options.init_adapter:
        return knobs
    for name in given:
        if name.startswith("lora_"):
            raise InputError(f"--init-adapter brings its own --{name.replace('_', '-')}: leave it")
    lora = lora_of(adapter_folder(options.init_adapter))
    return dataclasses.replace(knobs, lora=lora)  # type: ignore[type-var]


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


def _check_guard(options: TrainOptions, source: Source) -> None:
    """Raises InputError where `--keep best` has nothing to choose by, or processes would differ."""
    guarded = options.keep == "best" or options.stop_on_collapse or options.time_budget
    require(
        ranks.count() == 1 or not guarded,
        "--keep best, --stop-on-collapse and --time-budget are for one process: "
        "start this run without torchrun",
    )
    there = source.kind == DEMONSTRATIONS and source.evaluation is not None
    require(
        options.keep == "last" or there,
        '--keep best needs held-out demonstrations: give some lines "split": "test", or --test '
        "FILE.jsonl",
    )


def check_unchanged(
    found: dict[str, Any], record: dict[str, Any], place: str, options: TrainOptions
) -> None:
    """Raises InputError where a run would go on with other files than it began with."""
    for name, value in found.items() if record else ():
        if name.endswith("sha256") and record.get(name) != value:
            what = options.test if name.startswith("test") else place
            part = name.removesuffix("_sha256")
            said = f"the {part} in {what}" if part in ("model", "tokenizer", "template") else what
            raise InputError(
                f"{said}: has changed since the run in {options.out} began: start a new run"
            )


def recorded(config_class: type, raw: dict[str, Any], folder: str) -> Any:
    """Options or knobs as a run's record has them. Raises InputError, naming the file."""
    try:
        return config_from_dict(config_class, raw)
    except InputError as error:
        raise InputError(f"{Path(folder) / CONFIG}: {error}") from None


def _today(record: dict[str, Any], options: TrainOptions) -> datetime.datetime:
    """The date that the template saw when the run began."""
    try:
        return datetime.datetime.fromisoformat(record["today"])
    except (KeyError, TypeError, ValueError):
        file = Path(options.resume or options.continue_) / CONFIG
        raise InputError(f"{file}: today is not a date") from None


def with_model(options: TrainOptions, device: torch.device) -> TrainOptions:
    """Where no model is named, the default one."""
    default = DEFAULT_GPU_MODEL if device.type == "cuda" else DEFAULT_MODEL
    return dataclasses.replace(options, model=options.model or default)


def recipe_name(options: TrainOptions, device: torch.device) -> str:
    if options.recipe != "auto":
        return options.recipe
    return "paper" if device.type == "cuda" else "laptop"


def check_prompt(prompt: str, tokenizer: Tokenizer, context: int) -> None:
    """Raises InputError where `--prompt` leaves no room, of `context` tokens, for an answer."""
    length = len(tokenizer.encode_prompt(prompt)) if prompt else 0
    if length >= context:
        raise InputError(
            f"--prompt has {length} tokens, the model's context holds {context}: shorten it"
        )


def kept_record(
    options: TrainOptions, given: dict[str, Any], name: str, free: Sequence[str] = ()
) -> dict[str, Any]:
    """The record of the run that option `name` names, whose knobs are kept.

    Raises InputError if other options than it and the `free` ones were given.
    """
    plain = dataclasses.replace(TrainOptions(), **{n: getattr(options, n) for n in (name, *free)})
    changed = [other for other in vars(plain) if getattr(options, other) != getattr(plain, other)]
    for other in [*changed, *given]:
        flags = [f"--{part.rstrip('_').replace('_', '-')}" for part in (name, other)]
        raise InputError(f"{flags[0]} keeps the knobs of the run: leave out {flags[1]}")
    folder = getattr(options, name)
    record = read_run_record(folder)
    require_fields(record, dict.fromkeys(("recipe", "device", "dtype"), str), folder)
    return record


def interrupted_run(
    options: TrainOptions, given: dict[str, Any]
) -> tuple[TrainOptions, dict[str, Any]]:
    """The options of the run in `options.resume`, exactly as they were, and its record.

    Raises InputError if there is nothing to go on with, or if anything else was given.
    """
    record = kept_record(options, given, "resume")
    check_idle(Path(options.resume))
    check_unfinished(Path(options.resume))
    before = recorded(TrainOptions, record["options"], options.resume)
    again = dataclasses.replace(
        before,
        resume=options.resume,
        out=options.resume,
        overwrite=False,
        device=record["device"],
        dtype=record["dtype"],
        base_dtype=record["base_dtype"],
    )
    return again, record
