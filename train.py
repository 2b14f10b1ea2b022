"""Teach a language model one person's way of writing, or one sentence of feedback.

python train.py --method ditto --demos emails.jsonl
python train.py --method c3po --data examples/c3po/cheers
python train.py --method dpo --data pairs.jsonl
"""

from __future__ import annotations

import sys

from minialign.commands.cli import run_main
from minialign.commands.session import load, prepare, save, show, train
from minialign.commands.train import main, parse


def one_run(arguments: list[str]) -> None:
    """A run from beginning to end; `main` also knows sweeps and --inspect."""
    # flags, files and knobs: what is wrong is refused here, in one line, with nothing written
    job = prepare(*parse(arguments))
    # the frozen base model with a fresh adapter; says what will happen and what it will cost
    session = load(job)
    # the method's own file, such as minialign/methods/ditto.py
    train(session)
    # the adapters, in PEFT's format, which other tools read
    save(session)
    # one prompt before and after, the report, and what to do next
    show(session)


if __name__ == "__main__":
    run_main("train.py", lambda: main(sys.argv[1:]))
