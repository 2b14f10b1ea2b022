"""Which learning rates, steps and lengths make a small model visibly change?  Tries settings, one
JSON line each.

    python benchmarks/recipes.py --demos examples/emails.jsonl --test examples/emails_test.jsonl \
        --others other_texts.jsonl --out benchmarks/results/recipes.jsonl --set learning_rate=1e-4
        --set max_steps=20

`--demos` may be given several times (a file with a `split` field brings its own held-out texts).
The texts of the other `--demos` files and of `--others` teach the style scorer what the author is
not. Knobs go by their command-line names. Settings that stand in `--out` already are skipped, so a
sweep can be stopped and started again.

The scorer is deliberately plain: tf-idf over character 2- to 4-grams, cosine to the author's mean
minus cosine to the mean of everybody else and of the base model's own answers. It prints how well
it tells the author's held-out texts from the others' (area under the curve), so that its word can
be weighed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from minialign.data.knobs import config_from_flags
from minialign.data.records import held_out_split, load_demonstrations, training_split
from minialign.methods import ditto
from minialign.methods.knobs import RECIPES, DittoConfig
from minialign.methods.lessons import Lessons
from minialign.policy.adapters import apply_lora, set_adapter
from minialign.policy.encode import encode_demonstration
from minialign.policy.measure import nats_per_token
from minialign.policy.reference import reference_policy
from minialign.policy.sample import Completion, generate
from minialign.policy.score import score
from minialign.training.run import Run
from minialign.weights.load import load


class StyleScorer:
    """How much more a text looks like the author's than like the others'; linear in the text's
    tf-idf vector.
    """

    def __init__(self, author: list[str], others: list[str]) -> None:
        documents = [grams(text) for text in author + others]
        frequency = Counter(gram for document in documents for gram in document)
        self.places = {
            gram: i for i, gram in enumerate(g for g, count in frequency.items() if count > 1)
        }
        self.idf = 1 + np.log(len(documents) / np.array([frequency[gram] for gram in self.places]))
        vectors = np.array([self.vector(text) for text in author + others])
        self.direction = unit(vectors[: len(author)].mean(0)) - unit(vectors[len(author) :].mean(0))

    def vector(self, text: str) -> np.ndarray:
        found = np.zeros(len(self.places))
        for gram, count in grams(text).items():
            if gram in self.places:
                found[self.places[gram]] = 1 + np.log(count)
        return unit(found * self.idf)

    def __call__(self, text: str) -> float:
        return float(self.vector(text) @ self.direction)


def grams(text: str) -> Counter[str]:
    text = " ".join(text.split())
    return Counter(text[i : i + size] for size in (2, 3, 4) for i in range(len(text) - size + 1))


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / (np.linalg.norm(vector) + 1e-9)


def win_rate(ours: list[float], theirs: list[float]) -> float:
    """The share of all pairs that we win, ties by half; also the area under the ROC curve."""
    return float(np.mean([[(a > b) + 0.5 * (a == b) for b in theirs] for a in ours]))


class Author:
    """One person's texts, and everybody else's."""

    def __init__(self, demos: Path, test: Path | None, others: list[Path]) -> None:
        everything = load_demonstrations(demos)
        self.name = demos.stem
        self.train = training_split(everything)
        self.held_out = load_demonstrations(test) if test else held_out_split(everything)
        foreign = [d for path in others if path != demos for d in load_demonstrations(path)]
        self.foreign = [d.completion for d in training_split(foreign)]
        self.foreign_held_out = [d.completion for d in held_out_split(foreign)] or self.foreign


def cut(text: str, words: int) -> str:
    return " ".join(text.split()[:words])


def measure(
    author: Author, config: DittoConfig, arguments: argparse.Namespace
) -> dict[str, object]:
    """Trains once and compares base, SFT and DITTO on prompts that were not trained on."""
    model, tokenizer = load(arguments.model, dtype=arguments.dtype)
    train = [encode_demonstration(d, tokenizer, config.max_length)[0] for d in author.train]
    held_out = [encode_demonstration(d, tokenizer, config.max_length)[0] for d in author.held_out]
    longest = max(len(sequence.completion_ids) for sequence in train)
    prompts = [d.messages for d in author.held_out]

    def answers(temperature: float) -> list[Completion]:
        groups = generate(
            model,
            tokenizer,
            prompts,
            n=arguments.samples,
            max_new_tokens=round(1.25 * longest),
            temperature=temperature,
            seed=1,
        )
        return [completion for group in groups for completion in group]

    base = answers(1.0)
    words = round(longest * 0.7)  # all texts are judged at about the same length
    scorer = StyleScorer(
        [cut(d.completion, words) for d in author.train],
        [cut(text, words) for text in author.foreign + [c.text for c in base]],
    )
    real = [scorer(cut(d.completion, words)) for d in author.held_out]
    styles = {
        "real": real,
        "others": [scorer(cut(t, words)) for t in author.foreign_held_out],
        "base": [scorer(cut(c.text, words)) for c in base],
    }
    apply_lora(model, config.lora, "sft", torch.Generator().manual_seed(arguments.seed))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = Run.create(Path(folder) / "run", {}, seed=arguments.seed)
        run.tokenizer = tokenizer
        ditto.train(model, Lessons(train, held_out), config, run)
        metrics = [json.loads(line) for line in open(run.folder / "metrics.jsonl")]
    result: dict[str, object] = {
        "train_seconds": round(time.perf_counter() - began),
        "phases": run.seconds,
    }
    written = {}
    for name in ("sft", "ditto"):
        set_adapter(model, name)
        written[name] = answers(1.0)
        styles[name] = [scorer(cut(c.text, words)) for c in written[name]]
        result[f"{name}_stops"] = float(np.mean([c.finish_reason == "stop" for c in written[name]]))
        result[f"{name}_text"] = answers(0.7)[0].text
    result["nats"] = {n or "base": nats(model, n, held_out) for n in (None, "sft", "ditto")}
    result["train_nats"] = {n: nats(model, n, train) for n in ("sft", "ditto")}
    result["held_out_margin"] = held_out_margin(model, held_out, written["sft"], config.beta)
    result["style"] = {name: round(float(np.mean(values)), 4) for name, values in styles.items()}
    result["auc_scorer"] = win_rate(real, styles["others"])
    result["wins"] = {
        "sft>base": win_rate(styles["sft"], styles["base"]),
        "ditto>base": win_rate(styles["ditto"], styles["base"]),
        "ditto>sft": win_rate(styles["ditto"], styles["sft"]),
    }
    steps = [m for m in metrics if m["stage"] == "ditto" and "loss" in m]
    result["ditto_curve"] = [
        [round(m["loss"], 3), round(m.get("rewards/margins", 0), 2)] for m in steps
    ]
    result["sft_curve"] = [
        round(m["loss"], 2) for m in metrics if m["stage"] == "sft" and "loss" in m
    ]
    return result


def nats(model, adapter: str | None, texts: list) -> float | None:
    with reference_policy(model, adapter):
        return nats_per_token(model, texts, 2048)


def held_out_margin(model, held_out, written: list[Completion], beta: float) -> float:
    """Mean reward margin of a held-out text over the SFT model's own answers to the same prompt."""
    from minialign.data.records import Example

    each = len(written) // len(held_out)
    rejected = [Example(held_out[i // each].prompt_ids, c.ids) for i, c in enumerate(written)]
    rewards = []
    for sequences in (held_out, rejected):
        with torch.no_grad():
            set_adapter(model, "ditto")
            policy = torch.cat([score(model, [s]) for s in sequences])
            with reference_policy(model, "sft"):
                reference = torch.cat([score(model, [s]) for s in sequences])
        rewards.append(float((beta * (policy - reference)).mean()))
    return rewards[0] - rewards[1]


def table(lines: list[dict]) -> str:
    """The results as a Markdown table; all but the knobs is measured on held-out texts."""
    head = (
        "author | SFT lr | until | DPO lr | NLL | nats: base | SFT | DITTO | style: real | base "
        "| SFT | DITTO | DITTO > SFT | ends itself: SFT | DITTO | margin"
    ).split(" | ")
    rows = [head, ["---"] * len(head)]
    for line in lines:
        config, nats, style = line["config"], line["nats"], line["style"]
        cells = [
            line["author"] + ("*" if "scorer" in line else ""),
            *(f"{config['sft'][knob]:g}" for knob in ("learning_rate", "stop_loss")),
            *(f"{config[knob]:g}" for knob in ("learning_rate", "nll_weight")),
            *(f"{nats[name]:.2f}" for name in ("base", "sft", "ditto")),
            *(f"{style[name]:+.3f}" for name in ("real", "base", "sft", "ditto")),
            *(f"{line['wins']['ditto>sft']:.0%}", f"{line['sft_stops']:.0%}"),
            *(f"{line['ditto_stops']:.0%}", f"{line['held_out_margin']:+.2f}"),
        ]
        rows.append(cells)
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", action="store_true", help="print the results so far and exit")
    parser.add_argument("--demos", type=Path, action="append", default=[])
    parser.add_argument("--test", type=Path, help="held-out texts of the first --demos file")
    parser.add_argument("--others", type=Path, action="append", default=[])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--samples", type=int, default=8, help="answers per held-out prompt and contestant"
    )
    parser.add_argument("--recipe", default="laptop", choices=sorted(RECIPES))
    parser.add_argument("--set", action="append", default=[], metavar="KNOB=VALUE")
    arguments = parser.parse_args()
    knobs = dict(item.split("=", 1) for item in arguments.set)
    config = config_from_flags(RECIPES[arguments.recipe], knobs)
    done = [json.loads(line) for line in open(arguments.out)] if arguments.out.exists() else []
    if arguments.table:
        print(table(done))
        return
    for demos in arguments.demos:
        key = {
            "author": demos.stem,
            "seed": arguments.seed,
            "dtype": arguments.dtype,
            "config": json.loads(json.dumps(dataclasses.asdict(config))),
        }
        if any(all(line[k] == v for k, v in key.items()) for line in done):
            continue
        test = arguments.test if demos == arguments.demos[0] else None
        author = Author(demos, test, arguments.demos + arguments.others)
        line = {**key, "torch": torch.__version__, **measure(author, config, arguments)}
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with open(arguments.out, "a") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
        print(table([line]), flush=True)


if __name__ == "__main__":
    main()
