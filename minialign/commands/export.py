"""What was learned, written for other programs, and checked before it is called done.

prepare    flags, adapters and the place to write to: all that can be refused is, before loading
write      merges in float32, rounds once, writes beside the place
verify     opens what was written, as any reader would, and lets it answer ten prompts
place      moves it there whole, and says what to do next
"""

from __future__ import annotations

import math
import os
import shlex
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from minialign.commands.cli import OneLineParser, add_flags
from minialign.data.knobs import config_from_flags, knob, require
from minialign.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from minialign.commands.verify import Rounding
    from minialign.model.transformer import CausalLM
    from minialign.weights.tokenizer import Tokenizer

DESCRIPTION = "Write what a run has learned for transformers, vLLM, llama.cpp, Ollama or PEFT."
FIRST = ("to", "out", "dtype", "adapter_only", "overwrite")
GGUF_FILE = "model.gguf"  # in an export for Ollama
OURS = {GGUF_FILE, "Modelfile", "README.md"}


@dataclass(frozen=True)
class ExportOptions:
    """`minialign export`'s flags."""

    to: Literal["hf", "gguf", "ollama", "peft"] = knob(
        "hf",
        "hf: a folder for transformers and vLLM; gguf: a file for llama.cpp and LM Studio; ollama: "
        "that and a Modelfile; peft: the adapter alone",
    )
    out: str = knob("", "where to write; by default the run's name and what it is for")
    dtype: Literal["auto", "float32", "float16", "bfloat16", "q8_0"] = knob(
        "auto", "of the weights; auto: the checkpoint's own for hf, float16 for gguf and ollama"
    )
    adapter_only: bool = knob(False, "with --to gguf: the adapter alone, for llama.cpp's --lora")
    temperature: float = knob(0.7, "with --to ollama: what the Modelfile says")
    texts: bool = knob(False, "with --to peft: the card quotes what was learned, and an answer")
    model: str = knob("", "alias, hub id, folder or GGUF file; by default the adapter's own base")
    revision: str = knob("", "the hub's branch, tag or commit")
    device: str = knob("auto", "where the check computes: auto, cpu, cuda, mps")
    overwrite: bool = knob(False, "replace an earlier export")

    def __post_init__(self) -> None:
        require(
            self.dtype != "q8_0" or self.to in ("gguf", "ollama"),
            "dtype q8_0 is GGUF's: use --to gguf or ollama",
        )
        require(
            not self.adapter_only or self.to == "gguf",
            "adapter_only goes with --to gguf (--to peft is the adapter alone as well)",
        )
        require(
            not self.texts or self.to == "peft", "texts goes with --to peft: only that has a card"
        )
        require(
            math.isfinite(self.temperature) and self.temperature >= 0,
            f"temperature must not be negative, not {self.temperature}",
        )

    @property
    def whole(self) -> bool:
        """A whole model, not the adapter alone."""
        return self.to != "peft" and not self.adapter_only


def parse(arguments: list[str]) -> tuple[list[str], ExportOptions]:
    parser = OneLineParser("minialign export", DESCRIPTION, arguments)
    parser.add_argument(
        "adapters",
        nargs="+",
        metavar="RUN",
        help="a run or adapter folder; several are added up, FOLDER=0.5 by half",
    )
    add_flags(parser, ExportOptions, "options [default]", ExportOptions(), first=FIRST)
    given = parser.parse(arguments)
    adapters = given.pop("adapters")
    return adapters, config_from_flags(ExportOptions(), given)


def main(arguments: list[str]) -> None:
    adapters, options = parse(arguments)
    export = prepare(adapters, options)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=export.out.parent) as temporary:
        partial = Path(temporary) / export.out.name
        told = export.write(partial)
        place(partial, export.out)
    print("\n".join([*told, f"written: {export.out}", *export.next_steps()]))


def place(partial: Path, out: Path) -> None:
    """Moves what is whole to its place, where an earlier export may stand."""
    if out.is_dir():
        shutil.rmtree(out)
    os.replace(partial, out)


# ---- prepare ----


def prepare(adapters: list[str], options: ExportOptions) -> Export:
    """Everything that can be refused before the model loads is, here."""
    from minialign.commands.sample import SampleOptions, load_with_adapter
    from minialign.training.folder import adapter_folder, base_of, folder_and_weight
    from minialign.weights.find import find_checkpoint
    from minialign.weights.gguf_header import require_gguf
    from minialign.weights.gguf_names import architecture_for
    from minialign.weights.load import read_config

    folders = [adapter_folder(folder_and_weight(text)[0]) for text in adapters]
    base, revision = (options.model, None) if options.model else base_of(folders[0])
    options = replace(options, model=base, revision=options.revision or revision or "")
    out = _free_place(Path(folder_and_weight(adapters[0])[0]), options)
    checkpoint = find_checkpoint(base, options.revision or None)
    config = read_config(checkpoint)
    if options.to in ("gguf", "ollama"):
        require_gguf(out)
        architecture_for(config["model_type"])
    asked = SampleOptions(
        adapter=tuple(adapters),
        model=base,
        revision=options.revision,
        device=options.device,
        dtype="float32",
        base_dtype="model",
    )
    model, tokenizer = load_with_adapter(asked)
    return Export(options, out, checkpoint, config, model, tokenizer, Path(adapters[0]))


def _free_place(run: Path, options: ExportOptions) -> Path:
    """Where to write. Raises InputError where something else stands, or nothing may be written."""
    endings = {"gguf": "-lora.gguf" if options.adapter_only else ".gguf"}
    ending = endings.get(options.to, f"-{options.to}")
    out = Path(options.out or f"{run.parent / run.resolve().name}{ending}").absolute()
    if out.exists() and not options.overwrite:
        raise InputError(f"{out}: exists already: choose another --out or add --overwrite")
    if out.is_dir() and not _is_an_export(out):
        raise InputError(f"{out}: holds other files than an export's: choose another --out")
    if out.is_dir() != (options.to != "gguf") and out.exists():
        raise InputError(f"{out}: is of another kind: choose another --out")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out.parent}: cannot be made: {error.strerror}: choose --out") from None
    if not os.access(out.parent, os.W_OK):
        raise InputError(f"{out.parent}: cannot be written to: choose another --out")
    return out


def _is_an_export(folder: Path) -> bool:
    from minialign.policy.peft import ADAPTER_FILES
    from minialign.weights.write import CHECKPOINT_FILES

    known = {*OURS, *ADAPTER_FILES, *CHECKPOINT_FILES}
    return all(entry.is_file() and entry.name in known for entry in folder.iterdir())


# ---- write ----


@dataclass
class Export:
    """A model with its adapter, and where it goes."""

    options: ExportOptions
    out: Path
    checkpoint: Path
    config: dict[str, Any]
    model: CausalLM
    tokenizer: Tokenizer
    run: Path

    @property
    def dtype(self) -> str:
        from minialign.weights.load import stored_dtype

        if self.options.dtype != "auto":
            return self.options.dtype
        return stored_dtype(self.checkpoint) if self.options.to == "hf" else "float16"

    def write(self, partial: Path) -> list[str]:
        """Writes to `partial`, checks it, and returns what a person should know of it."""
        if self.options.whole:
            return self._write_whole(partial)
        if self.options.to == "peft":
            return self._write_adapter(partial)
        from minialign.weights.gguf_write import write_gguf_factors

        factors, alpha = self._factors()
        write_gguf_factors(partial, self.settings(), factors, alpha, self.out.stem)
        return ["the adapter alone: it needs the base model that it was trained on"]

    def settings(self) -> dict[str, Any]:
        """config.json's with every default filled in, as GGUF needs them."""
        from minialign.weights.gguf_settings import SETTINGS, plain_rope

        model = self.model.config
        known = {key: getattr(model, key) for key in SETTINGS if hasattr(model, key)}
        # llama.cpp knows no window for Llama's kin: within it, both compute the same.
        if model.sliding_window:
            context = min(model.max_position_embeddings, model.sliding_window)
            known["max_position_embeddings"] = context
        return {**self.config, "vocab_size": model.vocab_size, **known, **plain_rope(self.config)}

    def _factors(self) -> tuple[list[tuple[str, Tensor, Tensor]], float]:
        from minialign.policy.adapters import active_adapter, lora_layers
        from minialign.policy.merge import active_factors

        name = active_adapter(self.model)
        layers = lora_layers(self.model).values()
        alpha = next(layer.configs[name].alpha for layer in layers if name in layer.configs)
        return list(active_factors(self.model)), alpha

    def _write_adapter(self, partial: Path) -> list[str]:
        from minialign.evaluation.report.card import write_card
        from minialign.policy.peft import save_adapter

        save_adapter(self.model, partial)
        if (self.run / "config.json").exists():
            write_card(self.run, partial, texts=self.options.texts)
        return []

    def _write_whole(self, partial: Path) -> list[str]:
        from minialign.commands.verify import Answers, Rounding, verify

        before = Answers.of(self.model, self.tokenizer)
        rounding = Rounding(self._stored)
        warnings = self._write_model(partial, rounding)
        found = verify(self._readable(partial), before, rounding, str(self.model.device))
        return [*warnings, *found]

    def _stored(self, tensor: Tensor) -> Any:
        """The float32 array that a reader gets back."""
        from minialign.weights.devices import DTYPES
        from minialign.weights.gguf_write import rounded

        if self.options.to == "hf":
            return tensor.cpu().to(DTYPES[self.dtype]).float().numpy()
        return rounded(tensor, self.dtype)

    def _readable(self, partial: Path) -> Path:
        return partial / GGUF_FILE if self.options.to == "ollama" else partial

    def _write_model(self, partial: Path, rounding: Rounding) -> list[str]:
        from minialign.policy.merge import base_parameters, merged_tensors
        from minialign.weights.gguf_write import write_gguf
        from minialign.weights.load import joined, joined_shapes
        from minialign.weights.write import write_checkpoint

        shapes = {name: tuple(tensor.shape) for name, tensor in base_parameters(self.model)}
        tensors = rounding.watch(merged_tensors(self.model))
        if self.options.to == "hf":
            partial.mkdir()
            if self.model.config.family.fused:
                shapes, tensors = joined_shapes(shapes), joined(tensors)
            write_checkpoint(partial, self.checkpoint, self.config, shapes, tensors, self.dtype)
            return []
        if self.options.to == "ollama":
            partial.mkdir()
        write_gguf(
            self._readable(partial),
            self.settings(),
            self.tokenizer,
            self.model.stop_ids,
            shapes,
            tensors,
            self.dtype,
            self.out.stem,
        )
        return self._write_modelfile(partial) if self.options.to == "ollama" else []

    def _write_modelfile(self, partial: Path) -> list[str]:
        from minialign.weights.modelfile import modelfile

        stops = [self.tokenizer.token(token) for token in self.model.stop_ids]
        context = min(self.model.config.max_position_embeddings, 8192)
        text, warning = modelfile(
            GGUF_FILE, self.tokenizer, stops, self.options.temperature, context
        )
        (partial / "Modelfile").write_text(text, encoding="utf-8")
        return [f"warning: {warning}"] if warning else []

    # ---- place ----

    def next_steps(self) -> list[str]:
        """What a plain user does next."""
        out, name = shlex.quote(str(self.out)), self.out.name.lower().removesuffix("-ollama")
        if self.options.adapter_only:
            return [f"next: llama-cli -m BASE.gguf --lora {out}"]
        return {
            "hf": [
                f"next: vllm serve {out}",
                f'      or in Python: transformers.pipeline("text-generation", "{self.out}")',
            ],
            "gguf": [
                f"next: llama-cli -m {out}",
                f"      or: lms import {out}   (LM Studio)",
            ],
            "ollama": [
                f"next: ollama create {name} -f {shlex.quote(str(self.out / 'Modelfile'))}",
                f"      ollama run {name}",
            ],
            "peft": [
                f'next, in Python: peft.AutoPeftModelForCausalLM.from_pretrained("{self.out}")',
                f"      or: vllm serve {shlex.quote(self.model.name)} --enable-lora --lora-modules "
                f"{name}={out}",
            ],
        }[self.options.to]
