"""transformers' `generate`: rollouts with PEFT's adapter merged into the weights, writing."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import torch

from .measuring import Memory, Result, timed
from .models import adapters, load_theirs
from .workloads import prompts, real_prompts

SAMPLING = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}


def rollouts(options: Namespace, folder: Path) -> Result:
    from peft import PeftModel
    from transformers import AutoTokenizer

    reference_folder, _ = adapters(options.model, folder)
    model = PeftModel.from_pretrained(
        load_theirs(options.model, options.dtype), str(reference_folder)
    )
    model = model.merge_and_unload().eval()  # its best setting
    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    asked = real_prompts(options.model)
    batch = tokenizer.pad({"input_ids": asked}, return_tensors="pt")
    width = batch["input_ids"].shape[1]
    stop = model.generation_config.eos_token_id or tokenizer.eos_token_id
    memory = Memory()
    settings = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": stop}
    greedy = model.generate(**batch, do_sample=False, max_new_tokens=24, **settings)
    written: list[int] = []

    def work() -> None:
        torch.manual_seed(len(written))
        out = model.generate(
            **batch, **SAMPLING, num_return_sequences=10, max_new_tokens=200, **settings
        )
        ended = (out[:, width:] == stop).int().cumsum(1)
        written.append(int((ended == 0).sum() + (ended.max(1).values > 0).sum()))

    seconds = timed(work, options.runs)
    ids = greedy[:, width:].tolist()
    cut = [row[: row.index(stop) + 1] if stop in row else row for row in ids]
    return {"seconds": seconds, "written": written, "peak_bytes": memory.peak(), "greedy": cut}


def decode(options: Namespace, folder: Path) -> Result:
    model = load_theirs(options.model, options.dtype)
    (prompt,) = prompts(1)
    ids = torch.tensor([prompt])
    memory = Memory()
    settings = {"pad_token_id": 0, "eos_token_id": None}
    greedy = model.generate(
        ids.repeat(options.rows, 1), do_sample=False, max_new_tokens=16, **settings
    )

    def write(new: int) -> Any:
        return model.generate(
            ids, **SAMPLING, num_return_sequences=options.rows, max_new_tokens=new, **settings
        )

    write(2)
    seconds = timed(lambda: write(options.new), options.runs)
    return {
        "seconds": seconds,
        "written": [options.rows * options.new] * options.runs,
        "peak_bytes": memory.peak(),
        "greedy": greedy[:, len(prompt) :].tolist(),
    }
