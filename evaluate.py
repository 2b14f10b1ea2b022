"""Does it write like them now? Measures a run on demonstrations that it never saw.

python evaluate.py runs/emails
"""

from __future__ import annotations

import dataclasses
import json
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minialign.cli import OneLineParser, add_flags, config_from_flags, run_main
from minialign.config import EvaluateOptions
from minialign.errors import InputError

if TYPE_CHECKING:
    from minialign.data import Demonstration, Sequence
    from minialign.evaluation.held_out import Contestants, HeldOut
    from minialign.model import CausalLM
    from minialign.tokenizer import Tokenizer

WIDTH = 100


def parse(arguments: list[str]) -> tuple[Path, EvaluateOptions]:
    parser = OneLineParser("evaluate.py", description=__doc__.split("\n")[0], allow_abbrev=False)
    parser.add_argument("run", type=Path, help="a run folder")
    add_flags(parser, EvaluateOptions, "options [default]", EvaluateOptions())
    given = vars(parser.parse_args(arguments))
    return given.pop("run"), config_from_flags(EvaluateOptions(), given)


def main() -> None:
    folder, options = parse(sys.argv[1:])
    from minialign.runs import adapter_folder, read_run_record

    record = read_run_record(folder)
    adapter_folder(str(folder))  # refuses an unfinished run
    held_out = held_out_texts(record, options)
    model, tokenizer, contestants = load_contestants(folder, record, options)
    sequences, results = measure(model, tokenizer, contestants, held_out, record, options)
    print(table(results, held_out, sequences))
    print(side_by_side(results, held_out, tokenizer, options.show))
    write(folder / "evaluation.json", results, held_out, tokenizer, options)


def held_out_texts(record: dict[str, Any], options: EvaluateOptions) -> list[Demonstration]:
    """Checked before the model loads.

    Raises InputError where nothing is held out, or what was trained on is.
    """
    from minialign.data import held_out_split, load_demonstrations, training_split
    from minialign.job import check_held_out

    learned = load_demonstrations(record["options"]["demos"])
    test = options.test or record["options"]["test"]
    held_out = load_demonstrations(test) if test else held_out_split(learned)
    if not held_out:
        raise InputError(
            "no demonstrations are held out: give some that were not trained on: --test FILE.jsonl"
        )
    check_held_out(training_split(learned), held_out)
    return held_out


def load_contestants(
    folder: Path, record: dict[str, Any], options: EvaluateOptions
) -> tuple[CausalLM, Tokenizer, Contestants]:
    from minialign.lora import load_adapter
    from minialign.weights import load

    trained = record["options"]
    model, tokenizer = load(
        trained["model"],
        revision=trained["revision"] or None,
        dtype=options.dtype,
        device=options.device,
    )
    contestants: Contestants = {"base": None}
    for name, place in (("sft", "adapter-sft"), (trained["method"], "adapter")):
        if (folder / place).exists():
            load_adapter(model, folder / place, name)
            contestants[name] = name
    return model, tokenizer, contestants


def measure(
    model: CausalLM,
    tokenizer: Tokenizer,
    contestants: Contestants,
    held_out: list[Demonstration],
    record: dict[str, Any],
    options: EvaluateOptions,
) -> tuple[list[Sequence], dict[str, HeldOut]]:
    from minialign.config import SamplingConfig
    from minialign.data import encode_demonstration
    from minialign.evaluation.held_out import evaluate_held_out

    limit = min(record["knobs"]["max_length"], model.config.max_position_embeddings)
    sequences = [encode_demonstration(d, tokenizer, limit)[0] for d in held_out]
    longest = max(len(sequence.completion_ids) for sequence in sequences)
    new = options.max_new_tokens or longest + longest // 4
    results = evaluate_held_out(
        model,
        contestants,
        sequences,
        beta=record["knobs"]["beta"],
        n=options.n,
        sampling=SamplingConfig(new, options.temperature),
        seed=options.seed,
        max_tokens=options.micro_batch_tokens,
    )
    return sequences, results


def table(
    results: dict[str, HeldOut], held_out: list[Demonstration], sequences: list[Sequence]
) -> str:
    tokens = sum(len(sequence.completion_ids) for sequence in sequences)
    first = next(iter(results.values()))
    columns = list(results.values())
    rows = [("nats per token (lower is better)", [f"{c.nats_per_token:.3f}" for c in columns])]
    for rival in first.margins:
        rows += [
            (
                f"reward margin over {rival}'s answers",
                ["-", *(f"{c.margins[rival]:+.2f}" for c in columns[1:])],
            ),
            ("  ... positive in", ["-", *(f"{c.wins[rival]:.0%}" for c in columns[1:])]),
        ]
    rows += [
        ("answers that end by themselves", [f"{c.stops:.0%}" for c in columns]),
        ("tokens an answer", [f"{c.mean_tokens:.0f}" for c in columns]),
    ]
    lines = [f"{len(held_out)} held-out demonstrations, {tokens} tokens", ""]
    lines.append(f"{'':36}" + "".join(f"{name:>10}" for name in results))
    lines += [f"{name:36}" + "".join(f"{cell:>10}" for cell in cells) for name, cells in rows]
    return "\n".join(lines)


def side_by_side(
    results: dict[str, HeldOut], held_out: list[Demonstration], tokenizer: Tokenizer, prompts: int
) -> str:
    """The person's own text and each contestant's first answer, in columns."""
    blocks = []
    for place, demonstration in enumerate(held_out[:prompts]):
        columns = {"the person": demonstration.completion}
        columns |= {name: tokenizer.decode(r.answers[place][0].ids) for name, r in results.items()}
        width = WIDTH // len(columns) - 2
        wrapped = [[title, "-" * width, *_wrap(text, width)] for title, text in columns.items()]
        height = max(map(len, wrapped))
        lines = [
            "  ".join(f"{(c[i] if i < len(c) else ''):{width}}" for c in wrapped).rstrip()
            for i in range(height)
        ]
        blocks.append("\n".join(["", f"prompt: {demonstration.prompt}", "", *lines]))
    return "\n".join(blocks)


def _wrap(text: str, width: int) -> list[str]:
    return [
        line for paragraph in text.split("\n") for line in textwrap.wrap(paragraph, width) or [""]
    ]


def write(
    file: Path,
    results: dict[str, HeldOut],
    held_out: list[Demonstration],
    tokenizer: Tokenizer,
    options: EvaluateOptions,
) -> None:
    summary = {}
    for name, result in results.items():
        summary[name] = {
            **{k: v for k, v in dataclasses.asdict(result).items() if k != "answers"},
            "answers": [[tokenizer.decode(c.ids) for c in group] for group in result.answers],
        }
    content = {
        "options": dataclasses.asdict(options),
        "prompts": [d.prompt for d in held_out],
        "texts": [d.completion for d in held_out],
        "contestants": summary,
    }
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\nall answers and figures: {file}")


if __name__ == "__main__":
    run_main("evaluate.py", main)
