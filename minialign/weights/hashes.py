"""Does this folder still hold the model that a run began with?"""

from __future__ import annotations

import hashlib
from pathlib import Path

from minialign.weights.tokenizer import Tokenizer

# Of a larger file so many pieces are read, evenly spaced: another training of a model differs in
# every one of them, and a run must not wait for all of 14 GB.
PIECES, PIECE_BYTES = 512, 2**20
MODEL = ("*.safetensors", "config.json", "generation_config.json")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def hashes_of(folder: Path, tokenizer: Tokenizer) -> dict[str, str]:
    """Of the chat template, the model's files and the tokenizer's, by their names in a record."""
    template = hashlib.sha256((tokenizer.template or "").encode()).hexdigest()
    return {
        "template_sha256": template,
        "tokenizer_sha256": _hash(folder, TOKENIZER),
        "model_sha256": _hash(folder, MODEL),
    }


def _hash(folder: Path, patterns: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for file in sorted(file for pattern in patterns for file in folder.glob(pattern)):
        # A folder or a pipe of such a name is no part of a model.
        if not file.is_file():
            continue
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        step = max(PIECE_BYTES, size // PIECES)
        with open(file, "rb") as opened:
            for place in range(0, size, step):
                opened.seek(place)
                digest.update(opened.read(PIECE_BYTES))
    return digest.hexdigest()
