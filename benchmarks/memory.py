"""Does a run hold as much memory as its plan says?

    python benchmarks/memory.py               # all configurations anew: half an hour on one thread
    python benchmarks/memory.py sft/small     # those whose names begin so
    python benchmarks/memory.py --report      # planned anew, next to what was measured

Each configuration is a whole run of train.py in a process of its own, on a model of random weights
and texts of random letters. Measured is the most that the process ever held, Python, PyTorch and
the mapped weights included; planned is what `train.py` says before it loads them. The results go to
benchmarks/results/memory.json, the table to benchmarks/memory.md.
"""

from __future__ import annotations

import json
import os
import random
import string
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from minialign.commands.ahead import job_ahead
from minialign.commands.bounds import outline
from minialign.commands.job import Job
from minialign.commands.needs import Memory, memory_of
from minialign.commands.train import parse
from minialign.model.config import ModelConfig
from minialign.model.transformer import CausalLM

HERE = Path(__file__).parent
RESULTS, PAGE, MARK = HERE / "results" / "memory.json", HERE / "memory.md", "<!-- measured -->\n"


def shape(hidden: int, width: int, layers: int, heads: int, vocabulary: int) -> dict[str, Any]:
    return {
        **{"model_type": "llama", "hidden_size": hidden, "intermediate_size": width},
        **{"num_hidden_layers": layers, "num_attention_heads": heads, "eos_token_id": 1},
        **{"num_key_value_heads": heads // 3 if heads % 3 == 0 else heads // 4},
        **{"vocab_size": vocabulary, "tie_word_embeddings": vocabulary > 40_000},
        "max_position_embeddings": 8192,
    }


SHAPES = {
    "small": shape(512, 1536, 8, 8, 16_384),
    "wide": shape(1024, 4096, 4, 16, 32_000),
    "135M": shape(576, 1536, 30, 9, 49_152),
}
# One step of each stage holds as much as many.
FEW = "--sft-max-steps 2 --sft-stop-loss 0 --sft-stop-ratio 1"
ROUNDS = f"{FEW} --max-steps 3 --resample-every 1 --pairs-per-step 12 --samples-per-prompt"
PAIRS = "--epochs 1 --pairs-per-step 4"


@dataclass(frozen=True)
class Configuration:
    """`texts` of `prompt` and `text` tokens, on a shape, with flags."""

    method: str
    shape: str
    dtype: str
    texts: int
    text: int
    flags: str
    prompt: int = 40

    @property
    def name(self) -> str:
        kept = "cheap"
        words = self.flags.split()
        if "--activation-checkpointing" in words:
            kept = words[words.index("--activation-checkpointing") + 1]
        return f"{self.method}/{self.shape}/{self.dtype}/{self.texts}x{self.text}/{kept}"


NONE, FULL = "--activation-checkpointing none", "--activation-checkpointing full"
MANY = "--max-new-tokens 300 --max-rows 64"
CONFIGURATIONS = [
    Configuration("sft", "small", "float32", 8, 250, FEW),
    Configuration("sft", "small", "float32", 8, 251, f"{FEW} {NONE} --lora-dropout 0"),
    Configuration("sft", "small", "float32", 8, 252, f"{FEW} {FULL}"),
    Configuration("sft", "small", "bfloat16", 8, 253, FEW),
    Configuration("sft", "small", "float32", 2, 2000, FEW),
    Configuration("sft", "wide", "float32", 8, 250, FEW),
    Configuration("sft", "wide", "bfloat16", 8, 400, f"{FEW} --micro-batch-tokens 2048"),
    Configuration("sft", "135M", "bfloat16", 4, 200, FEW),
    Configuration("sft", "135M", "float32", 4, 200, f"{FEW} {FULL}"),
    Configuration("ditto", "small", "float32", 4, 200, f"{ROUNDS} 4 --max-new-tokens 200"),
    Configuration("ditto", "small", "bfloat16", 4, 200, f"{ROUNDS} 4 --max-new-tokens 200 {NONE}"),
    Configuration("ditto", "small", "float32", 8, 150, f"{ROUNDS} 8 {MANY}"),
    Configuration("ditto", "wide", "bfloat16", 4, 150, f"{ROUNDS} 4 --max-new-tokens 150"),
    Configuration("ditto", "wide", "float32", 4, 150, f"{ROUNDS} 16 {MANY}"),
    Configuration("ditto", "135M", "bfloat16", 3, 100, f"{ROUNDS} 3 --max-new-tokens 64"),
    Configuration("ditto", "135M", "float32", 3, 100, f"{ROUNDS} 3 --max-new-tokens 64"),
    Configuration("spin", "small", "float32", 4, 200, f"{ROUNDS} 4 --max-new-tokens 200"),
    Configuration("dpo", "small", "float32", 8, 300, PAIRS),
    Configuration("dpo", "wide", "bfloat16", 8, 300, f"{PAIRS} {FULL}"),
    Configuration("dpo", "135M", "bfloat16", 4, 150, f"{PAIRS} --lora-rank 64"),
]


# ---- what a run reads ----


def letters(count: int, seed: int) -> str:
    return "".join(random.Random(seed).choices(string.ascii_letters, k=count))


def write_texts(asked: Configuration, folder: Path) -> list[str]:
    """All that a run reads but for the weights; returns its flags."""
    model = folder / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(SHAPES[asked.shape]))
    alphabet = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(model / "tokenizer.json"))
    (model / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    lines = []
    for i in range(asked.texts):
        line = {"prompt": letters(asked.prompt, i), "completion": letters(asked.text, 1000 + i)}
        if asked.method == "dpo":
            line["chosen"] = line.pop("completion")
            line["rejected"] = letters(asked.text, 2000 + i)
        lines.append(json.dumps(line))
    (folder / "texts.jsonl").write_text("\n".join(lines))
    flags = ["--data" if asked.method == "dpo" else "--demos", str(folder / "texts.jsonl")]
    flags += ["--model", str(model), "--dtype", asked.dtype, "--out", str(folder / "run")]
    flags += ["--method", asked.method, "--recipe", "laptop", "--device", "cpu"]
    return [*flags, "--max-length", "4096", *asked.flags.split()]


def write_weights(asked: Configuration, folder: Path) -> None:
    model = CausalLM(ModelConfig.from_dict(SHAPES[asked.shape])).to(getattr(torch, asked.dtype))
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter.data, 1.0 if name.endswith("norm.weight") else 0.0, 0.02)
    state = {name: parameter.data for name, parameter in model.named_parameters()}
    save_file(state, folder / "model" / "model.safetensors")


# ---- measuring ----


def planned(flags: list[str]) -> tuple[Job, Memory]:
    job, _ = job_ahead(*parse(flags))
    return job, memory_of(outline(job), job)


def planned_anew(asked: Configuration) -> dict[str, Any]:
    """What the formulas say now of a configuration that was measured before."""
    with tempfile.TemporaryDirectory() as folder:
        job, memory = planned(write_texts(asked, Path(folder)))
    return {"planned": memory.total, "parts": vars(memory), "tokens": job.work.largest}


def measured(asked: Configuration) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        flags = write_texts(asked, folder)
        write_weights(asked, folder)
        command = [sys.executable, str(HERE.parent / "train.py"), *flags]
        with open(folder / "log", "w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
            _, status, usage = os.wait4(process.pid, 0)
        assert status == 0, (folder / "log").read_text()[-2000:]
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    unit = 1 if sys.platform == "darwin" else 1024
    return {
        "name": asked.name,
        "flags": asked.flags,
        "measured": usage.ru_maxrss * unit,
        "peaks": json.loads(lines[-1])["peak_bytes"],
    }


def table(found: dict[str, Any]) -> str:
    rows = [
        f"| {one['name']} | {one['planned'] / 1e9:.2f} | {one['measured'] / 1e9:.2f} "
        f"| {one['planned'] / one['measured'] - 1:+.0%} |"
        for one in found.values()
    ]
    head = ["| method/shape/dtype/texts/kept | planned, GB | measured, GB | off by |"]
    return "\n".join([*head, "|---|---|---|---|", *rows]) + "\n"


def main(arguments: list[str]) -> None:
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for asked in CONFIGURATIONS:
        wanted = [one for one in arguments if asked.name.startswith(one)]
        if "--report" in arguments or (arguments and not wanted):
            continue
        found[asked.name] = one = measured(asked) | planned_anew(asked)
        print(f"{one['name']}: {one['planned'] / 1e9:.3f} planned, {one['measured'] / 1e9:.3f}")
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    for asked in CONFIGURATIONS:
        if asked.name in found:
            found[asked.name] |= planned_anew(asked)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    if PAGE.exists():
        text = PAGE.read_text().partition(MARK)[0]
        PAGE.write_text(text + MARK + "\n" + table(found))
    print(table(found))


if __name__ == "__main__":
    main(sys.argv[1:])
