"""The authors of a study of DITTO: their texts by split, cut to a length, and whose they are.

A folder holds a file an author, authorNN.jsonl, with lines of {prompt, completion, split}: `train`
is learned from, `val` is for choosing knobs, `test` for results. `python ditto_authors.py SOURCE
OUT` makes such a folder from the files of the official repository (SALT-NLP/demonstrated-feedback).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import pickle
import re
from pathlib import Path
from typing import Any

from minialign.data.records import Demonstration, load_demonstrations
from minialign.errors import InputError

UNSEEN = ("val", "test")


@dataclasses.dataclass(frozen=True)
class Author:
    """`whole` are the texts as they were written, `texts` the same ones cut."""

    name: str  # folder/authorNN
    whole: list[Demonstration]
    texts: list[Demonstration]

    def cut(self, *splits: str) -> list[Demonstration]:
        return [d for d in self.texts if d.split in splits]

    def uncut(self, *splits: str) -> list[Demonstration]:
        return [d for d in self.whole if d.split in splits]

    @property
    def hash(self) -> str:
        """Of the texts as they are used, so that a result says on what it was found."""
        lines = [json.dumps([d.split, d.messages, d.completion]) for d in self.texts]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def read_authors(data: Path, words: int) -> list[Author]:
    """Everybody in the folder; texts are cut to `words` words, 0 leaves them whole."""
    found = []
    for path in sorted(data.glob("author*.jsonl")):
        whole = load_demonstrations(path)
        texts = [cut(d, words) for d in whole] if words else whole
        found.append(Author(f"{data.name}/{path.stem}", whole, texts))
    return found


def topic_of(prompt: str) -> str:
    """What follows "an essay on the following prompt: ", which authors share, if anything."""
    return prompt.split(": ", 1)[-1].strip()


def cut(demonstration: Demonstration, words: int) -> Demonstration:
    """To the last sentence that ends within `words` words; to the words if none does."""
    return dataclasses.replace(demonstration, completion=cut_text(demonstration.completion, words))


def cut_text(text: str, words: int) -> str:
    pieces = re.findall(r"\S+\s*", text)
    if len(pieces) <= words:
        return text
    head = "".join(pieces[:words])
    ends = [match.end() for match in re.finditer(r"[.!?][\"')\u2019\u201d]*(?=\s|$)", head)]
    return head[: ends[-1]] if ends else head.strip()


# ---- the official repository's files ----


class PlainUnpickler(pickle.Unpickler):
    """Admits lists, dictionaries, strings and numbers, and no class: a pickle can run anything."""

    def find_class(self, module: str, name: str) -> Any:
        raise InputError(f"the file asks for {module}.{name}: only plain lists and dictionaries")


def read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        return PlainUnpickler(file).load()


def convert(source: Path, out: Path) -> int:
    """SOURCE/*{train,val,test}.pkl, each {author: [{prompt, output}]}, to a file an author."""
    splits: dict[str, dict[Any, list[dict[str, str]]]] = {}
    for split in ("train", *UNSEEN):
        files = sorted(source.glob(f"*{split}.pkl"))
        if not files:
            raise InputError(
                f"{source} has no *{split}.pkl: name a folder of the repository's data"
            )
        splits[split] = read_pickle(files[0])
    out.mkdir(parents=True, exist_ok=True)
    authors = sorted(splits["train"], key=str)
    for number, author in enumerate(authors):
        with (out / f"author{number:02}.jsonl").open("w", encoding="utf-8") as file:
            for split, by_author in splits.items():
                for line in by_author.get(author, []):
                    record = {"prompt": line["prompt"], "completion": line["output"]}
                    file.write(json.dumps(record | {"split": split}, ensure_ascii=False) + "\n")
    return len(authors)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    print(f"{convert(options.source, options.out)} authors in {options.out}")
