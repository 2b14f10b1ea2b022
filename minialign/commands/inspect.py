"""`train.py --inspect`: what exactly is learned from, text by text and token by token."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from minialign.commands.job import Job
from minialign.commands.sources import Demonstrations
from minialign.data.records import Messages
from minialign.weights.tokenizer import Tokenizer

# A character has no more bytes, so it cannot stand in more tokens.
MOST_BYTES = 4
REPLACED = "\ufffd"
SHOWN = 160


def inspect(job: Job) -> str:
    """Every demonstration with its counts, then the exact tokens of the first lesson.

    A token's line: its place, id, whether the loss covers it, its part, its text.
    """
    counts = ", ".join(f"{len(part.ids)} {part.name}" for part in job.work.shown)
    lines = [f"{job.source.first}: {counts} tokens (* = trained on)"]
    for part in job.work.shown:
        texts = texts_of(part.ids, job.tokenizer)
        for place, (token, text) in enumerate(zip(part.ids, texts, strict=True), part.first):
            mark = "*" if place >= part.trained_from else " "
            lines.append(f"{place:5d} {token:7d} {mark} {part.name:10s} {text!r}")
    return "\n".join([*overview(job), *lines])


def overview(job: Job) -> Iterator[str]:
    """A line a demonstration, where its system prompt comes from, and what there is to say."""
    if not isinstance(job.source, Demonstrations):
        return
    last = ""
    for demonstration, example in zip(job.source.train, job.lessons.train, strict=True):
        whole = len(job.tokenizer.encode_completion(demonstration.completion))
        kept = len(example.completion_ids)
        cut = f", cut to {kept} (without an end token)" if kept < whole else ""
        counts = f"{len(example.prompt_ids)} prompt + {whole} completion tokens{cut}"
        yield f"{demonstration.source}: {counts}"
        if (system := system_prompt(demonstration.messages, job.tokenizer)) != last:
            last = system
            yield f"  system prompt: {system}"
    yield from (f"warning: {warning}" for warning in job.warnings)
    yield ""


def system_prompt(messages: Messages, tokenizer: Tokenizer) -> str:
    """Where it comes from, the file or the model's chat template, and how it begins."""
    first = messages[0]
    if first["role"] == "system":
        return f"the file's: {first['content'][:SHOWN]!r}"
    mark = "\u2042"
    before = tokenizer.render([{"role": "user", "content": mark}]).split(mark)[0]
    words = re.sub(r"<[^<>\s]{1,40}>|\[/?\w+\]|\b(system|user|human)\b:?", " ", before, flags=re.I)
    if not (said := " ".join(words.split())):
        return "none"
    return f"the chat template's own: {said[:SHOWN]!r}"


def texts_of(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """Each token's text; a character of several tokens stands whole at the last one."""
    texts: list[str] = []
    waiting: list[int] = []
    for token in ids:
        waiting.append(token)
        text = tokenizer.token(*waiting)
        if text.endswith(REPLACED) and len(waiting) < MOST_BYTES:
            texts.append("…")
            continue
        texts.append(text)
        waiting = []
    return texts
