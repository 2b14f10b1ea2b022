"""llama.cpp's own batch of parallel sequences, with its own sampler in C.

The prompt is read once and its cache shared by all rows, as in minialign.
"""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from .measuring import Memory, Result, timed
from .workloads import prompts


def decode(options: Namespace, folder: Path) -> Result:
    from gguf_export import export

    file = folder / f"model-{options.bits}.gguf"
    if not file.exists():  # before the process's memory is first looked at
        export(Path(options.model), file, options.bits)
    (prompt,) = prompts(1)
    rows, new = options.rows, options.new
    writer = Writer(file, prompt, rows, new)
    memory = Memory()
    greedy = writer.write(16, writer.greedy)
    writer.write(2, writer.sampler)
    seconds = timed(lambda: writer.write(new, writer.sampler), options.runs)
    return {
        "seconds": seconds,
        "written": [rows * new] * options.runs,
        "peak_bytes": memory.peak(),
        "greedy": greedy,
    }


class Writer:
    """`rows` continuations of one prompt, each of up to `new` + 16 tokens."""

    def __init__(self, file: Path, prompt: tuple[int, ...], rows: int, new: int) -> None:
        import llama_cpp as lc

        self.lc, self.prompt, self.rows = lc, prompt, rows
        self.silent = lc.llama_log_callback(lambda *_: None)  # C calls it: it must live on
        lc.llama_log_set(self.silent, None)
        lc.llama_backend_init()
        model = lc.llama_model_load_from_file(str(file).encode(), lc.llama_model_default_params())
        settings = lc.llama_context_default_params()
        settings.n_ctx = (len(prompt) + new + 16) * rows
        settings.n_batch = settings.n_ubatch = max(len(prompt), rows)
        settings.n_seq_max = rows
        settings.n_threads = settings.n_threads_batch = os.cpu_count() or 1
        self.context = lc.llama_init_from_model(model, settings)
        self.cache = lc.llama_get_memory(self.context)
        self.sampler = lc.llama_sampler_chain_init(lc.llama_sampler_chain_default_params())
        lc.llama_sampler_chain_add(self.sampler, lc.llama_sampler_init_temp(1.0))
        lc.llama_sampler_chain_add(self.sampler, lc.llama_sampler_init_dist(0))
        self.greedy = lc.llama_sampler_init_greedy()
        self.batch = lc.llama_batch_init(max(len(prompt), rows), 0, 1)

    def write(self, steps: int, sampler: Any) -> list[list[int]]:
        """The first `steps` tokens of every row, chosen by `sampler`."""
        lc, context, count, length = self.lc, self.context, self.rows, len(self.prompt)
        lc.llama_memory_clear(self.cache, True)
        last = [i == length - 1 for i in range(length)]
        self._feed(list(self.prompt), list(range(length)), [0] * length, last)
        for row in range(1, count):
            lc.llama_memory_seq_cp(self.cache, 0, row, -1, -1)
        out = [[lc.llama_sampler_sample(sampler, context, -1)] for _ in range(count)]
        for step in range(1, steps):
            tokens, position = [row[-1] for row in out], length + step - 1
            self._feed(tokens, [position] * count, list(range(count)), [True] * count)
            for i, row in enumerate(out):
                row.append(lc.llama_sampler_sample(sampler, context, i))
        return out

    def _feed(
        self, tokens: list[int], places: list[int], sequences: list[int], wanted: list[bool]
    ) -> None:
        """Reads tokens into the cache; keeps the logits of the wanted ones."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, (token, place, sequence, want) in enumerate(
            zip(tokens, places, sequences, wanted, strict=True)
        ):
            batch.token[i], batch.pos[i] = token, place
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = want
        assert self.lc.llama_decode(self.context, batch) == 0
