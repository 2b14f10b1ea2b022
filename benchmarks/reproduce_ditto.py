"""DITTO's Table 1 and Table 3 (arXiv 2406.00888) with any model and any authors, judged offline.

    python benchmarks/reproduce_ditto.py --data DIR --authors 0-9                  # Table 1
    python benchmarks/reproduce_ditto.py --data DIR --authors 4,9 --ablations      # Table 3
    python benchmarks/reproduce_ditto.py --report                  # the tables again, from results

DIR holds a file an author, authorNN.jsonl, with lines of {prompt, completion, split}: train is
learned from, test is answered and judged, val is for choosing knobs (`--split val`). Texts are cut
to their first `--words` words, at the end of a sentence, so that they are whole texts, only short.

Each author and arm is one line of benchmarks/results/ditto.jsonl, written as it comes, so that the
experiment can be stopped and started again: the style judge's scores of every answer (never a
text), and what else was measured. The warm start is trained once an author and seed, and shared by
every arm that begins with it.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from ditto_tables import MAIN, all_tables, read_results, write_measured

from minialign.data.general import general_prompts
from minialign.data.knobs import config_from_flags
from minialign.data.records import Demonstration, Example, load_demonstrations
from minialign.evaluation.contestants import Contestant, write_answers
from minialign.evaluation.judges.style import StyleJudge
from minialign.evaluation.texts import text_figures
from minialign.methods import ditto, sft
from minialign.methods.anchors import TOKENS
from minialign.methods.knobs import RECIPES, DittoConfig
from minialign.methods.lessons import Lessons
from minialign.methods.spin import as_spin
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import apply_lora, remove_adapter, set_adapter, train_only
from minialign.policy.encode import encode_demonstration
from minialign.policy.knobs import SamplingConfig
from minialign.policy.measure import drift, nats_per_token
from minialign.policy.peft import load_adapter, save_adapter
from minialign.policy.reference import reference_policy
from minialign.policy.sample import generate, sample
from minialign.training.run import Run
from minialign.weights.load import load
from minialign.weights.tokenizer import Tokenizer

HERE = Path(__file__).parent
PAGE, RESULTS = HERE / "ditto.md", HERE / "results" / "ditto.jsonl"
DRIFT_PROMPTS = 24  # none that anchors a model
BASE_ANSWERS = 4  # a prompt, of the base model, for the style judge


def variant(**changes: Any) -> Callable[[DittoConfig], DittoConfig]:
    return lambda config: dataclasses.replace(config, **changes)


def sample_once(config: DittoConfig) -> DittoConfig:
    """As many answers as in all rounds, all of them before the first step."""
    return dataclasses.replace(
        config,
        resample_every=config.max_steps,
        samples_per_prompt=config.samples_per_prompt * config.rounds,
    )


def rounds(count: int) -> Callable[[DittoConfig], DittoConfig]:
    return lambda config: dataclasses.replace(config, max_steps=count * config.resample_every)


ARMS: dict[str, Callable[[DittoConfig], DittoConfig]] = {
    "DITTO": variant(),
    "SPIN": as_spin,
    "no inter-model": variant(expert_fraction=0.8, inter_model_fraction=0.0),
    "no replay": variant(expert_fraction=0.9, replay_fraction=0.0),
    "sample once": sample_once,
    "update the reference": variant(update_reference=True),
    "1 round": rounds(1),
    "2 rounds": rounds(2),
    "3 rounds": rounds(3),
    "M = 2": variant(samples_per_prompt=2),
    "M = 10": variant(samples_per_prompt=10),
    "no NLL": variant(nll_weight=0.0),
    "SPIN without NLL": lambda config: as_spin(dataclasses.replace(config, nll_weight=0.0)),
    "anchors 0.5": variant(anchors=0.5),
    "anchors 1": variant(anchors=1.0),
}
DEMONSTRATIONS = {f"{count} demonstrations": count for count in (1, 2, 4)}  # the rest is DITTO


# ---- one author ----


@dataclasses.dataclass(frozen=True)
class Author:
    name: str
    train: list[Demonstration]
    asked: list[Demonstration]  # the split that is judged
    others: list[str]  # other authors' training texts


def read_authors(data: Path, numbers: list[int], split: str, words: int) -> list[Author]:
    everyone = {
        path.stem: [cut(d, words) for d in load_demonstrations(path)]
        for path in sorted(data.glob("author*.jsonl"))
    }
    return [
        Author(
            name,
            [d for d in own if d.split == "train"],
            [d for d in own if d.split == split],
            others_by_prompt(own, [texts for other, texts in everyone.items() if other != name]),
        )
        for number, (name, own) in enumerate(everyone.items())
        if number in numbers
    ]


def others_by_prompt(own: list[Demonstration], others: list[list[Demonstration]]) -> list[str]:
    """Other authors' training texts, in the order of the author's prompts: what the judge holds out
    together then shares its topic.
    """
    order = {d.prompt: place for place, d in enumerate(d for d in own if d.split == "train")}
    texts = [d for group in others for d in group if d.split == "train"]
    texts.sort(key=lambda d: order.get(d.prompt, len(order)))
    return [d.completion for d in texts]


def cut(demonstration: Demonstration, words: int) -> Demonstration:
    """To the last sentence that ends within `words` words; to the words if none does."""
    pieces = re.findall(r"\S+\s*", demonstration.completion)
    if len(pieces) <= words:
        return demonstration
    head = "".join(pieces[:words])
    ends = [match.end() for match in re.finditer(r"[.!?][\"')\u2019\u201d]*(?=\s|$)", head)]
    return dataclasses.replace(demonstration, completion=head[: ends[-1]] if ends else head.strip())


class Bench:
    """One author and seed: a judge, a warm start, and arms that answer and are scored."""

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        author: Author,
        config: DittoConfig,
        options: argparse.Namespace,
        seed: int,
    ) -> None:
        self.model, self.tokenizer, self.author = model, tokenizer, author
        self.options, self.seed = options, seed
        self.train = self._encoded(author.train, config)
        self.held_out = self._encoded(author.asked, config)
        longest = max(len(sequence.completion_ids) for sequence in self.train)
        new = longest + longest // 4
        self.sampling = SamplingConfig(new)
        self.config = dataclasses.replace(
            config, sampling=dataclasses.replace(config.sampling, max_new_tokens=new)
        )
        self.judge = self._judge()
        self.ordinary = self._ordinary_answers()

    def _encoded(self, texts: list[Demonstration], config: DittoConfig) -> list[Example]:
        return [encode_demonstration(d, self.tokenizer, config.max_length)[0] for d in texts]

    def _judge(self) -> StyleJudge:
        """Built from what the model trains on, against the base model and the other authors."""
        groups = generate(
            self.model,
            self.tokenizer,
            [d.messages for d in self.author.train],
            n=BASE_ANSWERS,
            max_new_tokens=self.sampling.max_new_tokens,
            seed=1000,
        )
        base = [answer.text for group in groups for answer in group]
        own = [d.completion for d in self.author.train]
        return StyleJudge.fit(own, [base, self.author.others])

    def _general(self, count: int, share: Literal["anchors", "drift"]) -> list[tuple[int, ...]]:
        texts = general_prompts(count, self.seed, share)
        return [tuple(self.tokenizer.encode_prompt(text)) for text in texts]

    def _ordinary_answers(self) -> list[Example]:
        """The base model's own, on which an adapter's drift is measured."""
        prompts = self._general(DRIFT_PROMPTS, "drift")
        with reference_policy(self.model, None):
            groups = sample(self.model, prompts, 1, SamplingConfig(TOKENS), seed=self.seed)
        return [Example(p, group[0].ids) for p, group in zip(prompts, groups, strict=True)]

    def run(self, arm: str) -> dict[str, Any]:
        """The line of an arm."""
        began = time.perf_counter()
        name, shown = None, ()
        if arm == "few-shot":
            shown = tuple(self.author.train)
        elif arm in DEMONSTRATIONS:
            name = self._train(ARMS["DITTO"](self.config), self.train[: DEMONSTRATIONS[arm]])
        elif arm == "SFT":
            name = self._warm_start()
        elif arm != "zero-shot":
            name = self._train(ARMS[arm](self.config), None)
        trained = time.perf_counter() - began
        (answers,) = write_answers(
            self.model,
            self.tokenizer,
            [Contestant(arm, name, shown)],
            [d.messages for d in self.author.asked],
            self.options.samples,
            self.sampling,
            seed=self.seed,
            progress=lambda *_: lambda *_: None,
        ).values()
        learned = [d.completion for d in self.author.train]
        scores = [self.judge.scores([c.text for c in group]).tolist() for group in answers]
        with reference_policy(self.model, name):
            nats = None if shown else nats_per_token(self.model, self.held_out, 1024)
        moved = None if shown else drift(self.model, name, self.ordinary, 1024)
        set_adapter(self.model, None)
        return {
            "scores": [[round(s, 4) for s in group] for group in scores],
            "nats": nats,
            "drift": moved,
            **dataclasses.asdict(text_figures(answers, learned)),
            "train_seconds": round(trained, 1),
            "seconds": round(time.perf_counter() - began, 1),
        }

    def real(self) -> dict[str, Any]:
        """The person's own texts, and how far the judge can be trusted on them."""
        scores = self.judge.scores([d.completion for d in self.author.asked])
        return {"scores": [[round(float(s), 4)] for s in scores], "judge_auc": self.judge.auc}

    def _warm_start(self) -> str:
        """SFT on all demonstrations, trained once and kept."""
        folder = self.options.work / f"{self.author.name}-{self.seed}-{fingerprint(self.config)}"
        remove_adapter(self.model, "sft")
        if (folder / "adapter_config.json").exists():
            load_adapter(self.model, folder, "sft")
            return "sft"
        self._fresh()
        with tempfile.TemporaryDirectory() as scratch:
            run = self._open_run(Path(scratch) / "run")
            sft.train(self.model, Lessons(self.train, self.held_out), self.config, run)
        save_adapter(self.model, folder, "sft")
        return "sft"

    def _train(self, config: DittoConfig, demonstrations: list[Example] | None) -> str:
        """DITTO or what resembles it, from the shared warm start unless it must have its own."""
        if demonstrations is None and not config.anchors:
            self._warm_start()
            config = dataclasses.replace(config, sft=dataclasses.replace(config.sft, max_steps=0))
        else:
            self._fresh()
        train_only(self.model, "sft")
        with tempfile.TemporaryDirectory() as scratch:
            run = self._open_run(Path(scratch) / "run")
            lessons = Lessons(demonstrations or self.train, self.held_out)
            ditto.train(self.model, lessons, config, run)
        return "ditto"

    def _open_run(self, folder: Path) -> Run:
        run = Run.create(folder, {}, seed=self.seed)
        run.tokenizer = self.tokenizer
        return run

    def _fresh(self) -> None:
        for name in ("sft", "ditto", "reference"):
            remove_adapter(self.model, name)
        generator = torch.Generator().manual_seed(self.seed)
        apply_lora(self.model, self.config.lora, "sft", generator)


def fingerprint(config: DittoConfig) -> str:
    import hashlib

    part = [dataclasses.asdict(config.lora), dataclasses.asdict(config.sft), config.max_length]
    return hashlib.sha256(json.dumps(part).encode()).hexdigest()[:8]


# ---- the command ----


def numbers_of(text: str) -> list[int]:
    """0-2,5 -> 0, 1, 2, 5"""
    found = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def parse_options(description: str | None, results: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a folder of authorNN.jsonl")
    parser.add_argument("--authors", default="0-9")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--split", default="test", choices=("test", "val"))
    parser.add_argument("--words", type=int, default=100, help="of a text at most")
    parser.add_argument("--samples", type=int, default=8, help="answers a prompt and arm")
    parser.add_argument("--ablations", action="store_true", help="Table 3's arms too")
    parser.add_argument("--arms", default="", help="these alone")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--recipe", default="laptop", choices=sorted(RECIPES))
    parser.add_argument("--set", action="append", default=[], metavar="KNOB=VALUE")
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()) / "ditto-warm-starts"
    )
    parser.add_argument("--report", action="store_true", help="train nothing, write the page")
    options = parser.parse_args()
    if not options.report and not (options.data and list(options.data.glob("author*.jsonl"))):
        parser.error("--data DIR: there is no authorNN.jsonl in it")
    return options


def main() -> None:
    options = parse_options(__doc__, RESULTS)
    if not options.report:
        measure(options)
    lines = [line for line in read_results(options.results) if line["split"] == options.split]
    tables = all_tables(lines, [*ARMS, *DEMONSTRATIONS])
    if options.results == RESULTS:
        write_measured(PAGE, "# DITTO", tables)
    print(tables)


def measure(options: argparse.Namespace) -> None:
    model, tokenizer = load(options.model)
    config = config_from_flags(
        RECIPES[options.recipe], dict(item.split("=", 1) for item in options.set)
    )
    arms = list(MAIN)
    if options.ablations:
        arms += [arm for arm in (*ARMS, *DEMONSTRATIONS) if arm not in arms]
    if options.arms:
        arms = options.arms.split(",")
    options.results.parent.mkdir(parents=True, exist_ok=True)
    authors = read_authors(options.data, numbers_of(options.authors), options.split, options.words)
    for seed, author in itertools.product(range(options.seeds), authors):
        fixed = {
            "author": author.name,
            "seed": seed,
            "split": options.split,
            "words": options.words,
            "samples": options.samples,
            "model": options.model,
            "config": json.loads(json.dumps(dataclasses.asdict(config))),
        }
        known = read_results(options.results)
        done = {x["arm"] for x in known if all(x[key] == fixed[key] for key in fixed)}
        todo = [arm for arm in ("person", *arms) if arm not in done]
        if not todo:
            continue
        bench = Bench(model, tokenizer, author, config, options, seed)
        for arm in todo:
            found = bench.real() if arm == "person" else bench.run(arm)
            with options.results.open("a") as file:
                file.write(json.dumps({"arm": arm, **fixed, **found}) + "\n")
            shown = f"{found.get('seconds', 0):.0f} s, mean score {np.mean(found['scores']):+.2f}"
            print(f"{author.name} seed {seed} {arm}: {shown}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
