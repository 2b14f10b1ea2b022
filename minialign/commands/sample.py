"""Asking a model, with or without adapters: answers, files of answers, a conversation."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from minialign.commands.best_of import demonstrations_of, show_best
from minialign.commands.cli import OneLineParser, add_flags, join
from minialign.data.knobs import config_from_flags, knob, require
from minialign.errors import InputError
from minialign.policy.knobs import SamplingConfig

if TYPE_CHECKING:
    from minialign.data.records import Messages
    from minialign.model.transformer import CausalLM
    from minialign.weights.tokenizer import Tokenizer

DESCRIPTION = "Ask a model, with or without an adapter."
FIRST = (
    *("prompt", "prompts", "chat", "adapter", "n", "out"),
    *("max_new_tokens", "temperature", "seed", "model"),
)


@dataclass(frozen=True)
class SampleOptions:
    """sample.py's flags."""

    prompt: str = knob("", "what to answer", subject="what to ask")
    prompts: str = knob("", "or a file of prompts, JSON Lines of {prompt} or {messages}")
    chat: bool = knob(
        False, "or a conversation in the terminal; /side compares with and without the adapter"
    )
    adapter: tuple[str, ...] = knob(
        (),
        "a run folder, or an adapter folder in PEFT's format; several (again --adapter) are added "
        "up, FOLDER=0.5 by half",
        subject="the model",
    )
    n: int = knob(1, "answers a prompt", subject="the answers")
    best_of: int = knob(
        0, "write this many answers a prompt and show the one most like the person, with why"
    )
    out: str = knob("", "write the answers to --prompts into this file, a line each")
    max_new_tokens: int = knob(400, "tokens an answer at most")
    temperature: float = knob(0.7, "0 takes the likeliest token; 1 is the model as it is")
    top_p: float = knob(1.0, "keep the likeliest tokens that hold this share of the probability")
    top_k: int = knob(0, "keep this many of the likeliest tokens; 0: all")
    seed: int = knob(0, "the same seed gives the same answers")
    model: str = knob(
        "",
        "alias, hub id or folder; by default the one that the adapter was trained on",
        subject="the model",
    )
    revision: str = knob("", "the hub's branch, tag or commit")
    device: str = knob("auto", "auto, cpu, cuda, cuda:1, mps", subject="memory and speed")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob("auto", "of the base model")
    overwrite: bool = knob(False, "replace the file --out", subject="the answers")

    def __post_init__(self) -> None:
        require(self.n >= 1, f"n must be at least 1, not {self.n}")
        require(self.best_of == 0 or self.best_of > 1, "--best-of needs at least 2 answers")
        alone = self.n == 1 and not self.chat and not self.out
        require(alone or not self.best_of, "--best-of goes without -n, --chat and --out")
        require(
            self.max_new_tokens >= 1,
            f"max_new_tokens must be at least 1, not {self.max_new_tokens}",
        )
        require(0 <= self.seed < 2**63, f"seed must lie in [0, 2^63), not {self.seed}")
        # Checks the rest.
        SamplingConfig(self.max_new_tokens, self.temperature, self.top_p, self.top_k)


def parse(arguments: list[str]) -> SampleOptions:
    parser = OneLineParser("sample.py", DESCRIPTION, arguments)
    parser.epilog = (
        '--feedback "a sentence" makes the data folder of a sentence of feedback: '
        "sample.py --feedback --help"
    )
    add_flags(parser, SampleOptions, "options", SampleOptions(), first=FIRST)
    given = parser.parse(arguments)
    options = config_from_flags(SampleOptions(), given)
    require(bool(options.prompt.strip()) or "prompt" not in given, "--prompt is empty: give a text")
    return options


def main(arguments: list[str]) -> None:
    """Answers; with --feedback it is another command, with flags of its own."""
    others = ("--feedback", "--feedbacks", "--rewrite")
    if any(part.split("=")[0] in others for part in arguments):
        from minialign.commands.feedback import main as feedback

        feedback(arguments)
        return
    options = parse(arguments)
    if options.out:
        join()
    ways = [bool(options.prompt), bool(options.prompts), options.chat]
    if sum(ways) != 1:
        raise InputError('give one of --prompt "...", --prompts FILE.jsonl, --chat')
    if options.out and not options.prompts:
        raise InputError("--out writes the answers to a file of prompts: give --prompts FILE.jsonl")
    prompts = read_prompts(options)
    learned = demonstrations_of(options.adapter) if options.best_of else []
    model, tokenizer = load_with_adapter(options)
    if options.best_of:
        how = generation(options)
        show_best(model, tokenizer, prompts, learned, options.best_of, how)
    elif options.chat:
        chat(model, tokenizer, options)
    elif options.out:
        write_answers(model, tokenizer, prompts, options)
    else:
        stream(model, tokenizer, prompts, options)


def read_prompts(options: SampleOptions) -> list[Messages]:
    """Checked before the model loads."""
    from minialign.data.records import load_prompts

    if options.prompt:
        return [[{"role": "user", "content": options.prompt}]]
    if options.chat:
        return []
    if options.out:
        check_out(Path(options.out), options.overwrite)
    return load_prompts(options.prompts)


def check_out(file: Path, overwrite: bool) -> None:
    """Raises InputError unless the answers may be written to `file`. Changes nothing."""
    if file.is_dir():
        raise InputError(f"{file}: is a folder: choose another --out")
    if file.exists() and not overwrite:
        raise InputError(f"{file}: exists already: choose another --out or add --overwrite")
    existing = next(path for path in file.absolute().parents if path.exists())
    if not existing.is_dir():
        raise InputError(f"{existing}: is a file: choose another --out")
    if not os.access(existing, os.W_OK):
        raise InputError(f"{existing}: cannot be written to: choose another --out")


def load_with_adapter(options: SampleOptions) -> tuple[CausalLM, Tokenizer]:
    from minialign.policy.adapters import combine_adapters
    from minialign.policy.peft import load_adapter
    from minialign.training.folder import adapter_folder, base_of, folder_and_weight
    from minialign.weights.find import ALIASES, DEFAULT_MODEL
    from minialign.weights.load import load

    weighed = [folder_and_weight(text) for text in options.adapter]
    folders = [adapter_folder(text) for text, _ in weighed]
    name, revision = options.model or DEFAULT_MODEL, options.revision or None
    if folders and not options.model:
        name, trained_on = base_of(folders[0])
        revision = revision or trained_on
        for folder in folders[1:]:
            if ALIASES.get(base_of(folder)[0], base_of(folder)[0]) != ALIASES.get(name, name):
                raise InputError(
                    f"{folder}: was trained on {base_of(folder)[0]}, {folders[0]} on {name}: only "
                    "adapters of one model can be added up"
                )
    model, tokenizer = load(name, revision=revision, dtype=options.dtype, device=options.device)
    weights = {}
    for number, (folder, (_, weight)) in enumerate(zip(folders, weighed, strict=True)):
        weights[f"adapter {number + 1}"] = weight
        load_adapter(model, folder, f"adapter {number + 1}")
    if weights and list(weights.values()) != [1.0]:
        combine_adapters(model, weights)
    return model, tokenizer


def generation(options: SampleOptions) -> dict[str, Any]:
    return {
        "max_new_tokens": options.max_new_tokens,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "top_k": options.top_k,
        "seed": options.seed,
    }


class Printer:
    """Prints the samples one after the other while all are being written.

    Always the first unfinished one, live; `prompts` are shown above their answers, if several.
    """

    def __init__(
        self, tokenizer: Tokenizer, n: int, stop_ids: tuple[int, ...], prompts: list[str]
    ) -> None:
        self.tokenizer, self.n, self.stop_ids, self.prompts = tokenizer, n, stop_ids, prompts
        self.ids: list[list[int]] = [[] for _ in range(n * len(prompts))]
        self.current = 0
        # of the current sample; None before its title
        self.shown: str | None = None

    def __call__(self, prompt: int, sample: int, token: int) -> None:
        self.ids[prompt * self.n + sample].append(token)
        while self.current < len(self.ids) and self.ids[self.current]:
            ended = self.ids[self.current][-1] in self.stop_ids
            self._print_new(ended)
            if not ended:
                return

    def finish(self) -> None:
        """Everything is written: prints what is left; what was cut off has no stop token."""
        while self.current < len(self.ids):
            self._print_new(True)

    def _print_new(self, ended: bool) -> None:
        if self.shown is None:
            self.shown = ""
            prompt, sample = divmod(self.current, self.n)
            if len(self.prompts) > 1 and sample == 0:
                print(f"=== {self.prompts[prompt]} ===\n")
            if self.n > 1:
                print(f"--- {sample + 1} of {self.n} ---")
        text = self.tokenizer.decode(self.ids[self.current])
        if not ended:
            # half a character waits for its other bytes
            text = text.rstrip("\ufffd")
        print(text[len(self.shown) :], end="\n\n" if ended else "", flush=True)
        self.shown = text
        if ended:
            self.current, self.shown = self.current + 1, None


def stream(
    model: CausalLM, tokenizer: Tokenizer, prompts: list[Messages], options: SampleOptions
) -> str:
    """Prints n answers to each prompt as they are written; returns the very first."""
    from minialign.policy.sample import generate

    asked = [messages[-1]["content"] for messages in prompts]
    printer = Printer(tokenizer, options.n, model.stop_ids, asked)
    groups = generate(
        model, tokenizer, prompts, n=options.n, on_token=printer, **generation(options)
    )
    printer.finish()
    return groups[0][0].text


def write_answers(
    model: CausalLM, tokenizer: Tokenizer, prompts: list[Messages], options: SampleOptions
) -> None:
    """A line a completion, in the form of demonstrations; the file appears whole or not at all."""
    from tqdm import tqdm

    from minialign.policy.sample import with_text
    from minialign.training import ranks
    from minialign.training.rollouts import rollouts

    how = SamplingConfig(options.max_new_tokens, options.temperature, options.top_p, options.top_k)
    ids = [tokenizer.encode_prompt(messages) for messages in prompts]
    with tqdm(desc="writing", unit="token", disable=not sys.stderr.isatty()) as bar:
        groups = rollouts(
            model, ids, options.n, how, seed=options.seed, on_token=lambda *_: bar.update()
        )
    if not ranks.is_first():
        return
    partial = Path(options.out + ".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "w", encoding="utf-8") as file:
        for messages, group in zip(prompts, groups, strict=True):
            for number, completion in enumerate(group):
                line = {
                    **as_demonstration(messages, with_text(completion, tokenizer).text),
                    "sample": number,
                    "finish_reason": completion.finish_reason,
                    "logprob": completion.logprob,
                }
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
    os.replace(partial, options.out)
    print(f"{options.out}: {sum(map(len, groups))} answers to {len(prompts)} prompts")


def as_demonstration(messages: Messages, text: str) -> dict[str, Any]:
    if len(messages) == 1:
        return {"prompt": messages[0]["content"], "completion": text}
    return {"messages": [*messages, {"role": "assistant", "content": text}]}


def chat(model: CausalLM, tokenizer: Tokenizer, options: SampleOptions) -> None:
    """A conversation in the terminal."""
    from minialign.commands.chat import Chat, talk
    from minialign.policy.adapters import active_adapter
    from minialign.policy.reference import reference_policy

    adapter = active_adapter(model)

    def say(messages: Messages, adapted: bool, temperature: float) -> str:
        with reference_policy(model, adapter if adapted else None):
            warm = dataclasses.replace(options, temperature=temperature)
            return stream(model, tokenizer, [messages], warm)

    talk(Chat(say, options.temperature, has_adapter=adapter is not None))
