"""Ask a model, with or without an adapter.

python sample.py --adapter runs/emails --prompt "Write an email to ..." -n 3
python sample.py --adapter runs/emails --prompts prompts.jsonl --out answers.jsonl
python sample.py --adapter runs/emails --chat
python sample.py --adapter runs/emails --adapter runs/cheers=0.5 --prompt "..."
python sample.py --feedback "End every e-mail to my team with 'Cheers, Sam'"      (--help for more)
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minialign.commands.cli import OneLineParser, add_flags, run_main
from minialign.commands.options import SampleOptions
from minialign.data.knobs import config_from_flags
from minialign.errors import InputError

if TYPE_CHECKING:
    from minialign.data.records import Messages
    from minialign.model.transformer import CausalLM
    from minialign.weights.tokenizer import Tokenizer

HELP = (
    "/adapter on|off: with or without the adapter   /reset: forget the conversation   /quit: leave"
)


def parse(arguments: list[str]) -> SampleOptions:
    parser = OneLineParser("sample.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    add_flags(parser, SampleOptions, "options [default]", SampleOptions())
    return config_from_flags(SampleOptions(), vars(parser.parse_args(arguments)))


def main() -> None:
    if any(part.split("=")[0] == "--feedback" for part in sys.argv[1:]):
        from minialign.commands.feedback import command

        command(sys.argv[1:])
        return
    options = parse(sys.argv[1:])
    ways = [bool(options.prompt), bool(options.prompts), options.chat]
    if sum(ways) != 1:
        raise InputError('give one of --prompt "...", --prompts FILE.jsonl, --chat')
    if options.out and not options.prompts:
        raise InputError("--out writes the answers to a file of prompts: give --prompts FILE.jsonl")
    prompts = read_prompts(options)
    model, tokenizer = load_with_adapter(options)
    if options.chat:
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
    from minialign.commands.job import DEFAULT_MODEL
    from minialign.policy.adapters import combine_adapters
    from minialign.policy.peft import load_adapter
    from minialign.training.folder import adapter_folder, base_of
    from minialign.weights.load import load

    weighed = [folder_and_weight(text) for text in options.adapter]
    folders = [adapter_folder(text) for text, _ in weighed]
    name, revision = options.model or DEFAULT_MODEL, options.revision or None
    if folders and not options.model:
        name, trained_on = base_of(folders[0])
        revision = revision or trained_on
        for folder in folders[1:]:
            if base_of(folder)[0] != name:
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


def folder_and_weight(text: str) -> tuple[str, float]:
    """runs/a=0.5 -> runs/a, 0.5; without a number the weight is 1.

    A path that exists as it stands is one: a sweep's folders are called beta=0.1.
    """
    if Path(text).exists():
        return text, 1.0
    folder, equals, weight = text.rpartition("=")
    try:
        return (folder, float(weight)) if equals and folder else (text, 1.0)
    except ValueError:
        return text, 1.0


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
        self.shown: str | None = None  # of the current sample; None before its title

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
            text = text.rstrip("\ufffd")  # half a character waits for its other bytes
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

    from minialign.policy.sample import generate

    with tqdm(desc="writing", unit="token", disable=not sys.stderr.isatty()) as bar:
        groups = generate(
            model,
            tokenizer,
            prompts,
            n=options.n,
            on_token=lambda *_: bar.update(),
            **generation(options),
        )
    partial = Path(options.out + ".partial")
    partial.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "w", encoding="utf-8") as file:
        for messages, group in zip(prompts, groups, strict=True):
            for number, completion in enumerate(group):
                line = {
                    **as_demonstration(messages, completion.text),
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
    from minialign.policy.adapters import active_adapter, set_adapter

    adapter = active_adapter(model)
    messages: Messages = []
    print(HELP)
    while True:
        try:
            text = input("you> ").strip()
        except EOFError:
            print()
            return
        command = text.split()
        if text == "/quit":
            return
        if text == "/reset":
            messages = []
            print("forgotten")
        elif command[:1] == ["/adapter"] and command[1:] in (["on"], ["off"]):
            if adapter is None:
                print("there is no adapter: start with --adapter")
                continue
            set_adapter(model, adapter if command[1] == "on" else None)
            print(f"adapter {command[1]}")
        elif text.startswith("/"):
            print(HELP)
        elif text:
            messages.append({"role": "user", "content": text})
            try:
                messages.append(
                    {"role": "assistant", "content": stream(model, tokenizer, [messages], options)}
                )
            except InputError as error:  # the conversation has outgrown the context
                print(f"{error}; /reset starts anew")
                messages.pop()


if __name__ == "__main__":
    run_main("sample.py", main)
