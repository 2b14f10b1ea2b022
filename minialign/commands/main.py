"""`minialign COMMAND ...`: what the three scripts do, and more, from anywhere."""

from __future__ import annotations

import importlib
import sys

from minialign.commands.cli import run_main
from minialign.data.knobs import nearest
from minialign.errors import InputError

# A command, and what it is for. Each is a module of this room with a `main(arguments)`.
COMMANDS = {
    "train": "teach a model a way of writing, or a sentence of feedback (train.py)",
    "sample": "ask a model, with or without an adapter (sample.py)",
    "evaluate": "let a run and its rivals answer unseen prompts, and judge (evaluate.py)",
    "blind": "make a page on which the person judges, blind",
    "import": "make demonstrations of a mailbox, of texts, or of a table",
    "feedback": "make the data folder of a sentence of feedback (sample.py --feedback)",
    "export": "write what a run has learned for transformers, vLLM, llama.cpp, Ollama or PEFT",
    "fetch": "fetch a model, and print its folder",
}

# Where the word cannot be a module's name.
MODULES = {"import": "import_mail"}


def main() -> None:
    run_main("minialign", lambda: dispatch(sys.argv[1:]))


def dispatch(arguments: list[str]) -> None:
    """Calls the command that the first word names. Without one it lists them."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print("minialign COMMAND ... (COMMAND --help shows its flags)\n")
        print("\n".join(f"  {name:10} {text}" for name, text in COMMANDS.items()))
        return
    name, *rest = arguments
    if name not in COMMANDS:
        raise InputError(f"{name}: there is no such command{nearest(name, COMMANDS)}")
    importlib.import_module(f"minialign.commands.{MODULES.get(name, name)}").main(rest)
