"""DITTO's Table 1 and Table 3 (arXiv 2406.00888) with any model and any authors, judged offline.

    python benchmarks/reproduce_ditto.py --data DIR                                # Table 1
    python benchmarks/reproduce_ditto.py --data DIR --authors 4,9 --ablations      # Table 3
    python benchmarks/reproduce_ditto.py --report               # the tables again, from the results

DIR is a folder of authors (ditto_authors.py, which also makes one from the official repository's
files). Texts are cut to their first `--words` words, at the end of a sentence, so that they are
whole texts, only short; 0 leaves them as they are.

Every arm answers the unseen prompts. What was measured of it is one line of
benchmarks/results/ditto.jsonl, written as it comes, so that the study can be stopped and started
again; no text is in it. The answers themselves stay in `--answers`, so that judges can be mended
without training anew: when an author's arms are done, ditto_judging.py judges all of them and
writes a line of scores. The warm start is trained once an author and seed, and shared by every arm
that begins with it; DITTO's rounds are arms of one run.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ditto_authors import UNSEEN, Author, read_authors
from ditto_judging import judge_author
from ditto_results import MAIN, answers_file, append, judged_beside, key_of, read_lines
from ditto_tables import all_tables, write_measured

from minialign.data.general import general_prompts
from minialign.data.knobs import config_from_flags
from minialign.data.records import Demonstration, Example
from minialign.evaluation.contestants import Answers, Contestant, write_answers
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
from minialign.policy.sample import sample
from minialign.training.run import Run
from minialign.weights.load import load
from minialign.weights.tokenizer import Tokenizer

HERE = Path(__file__).parent
PAGE, RESULTS = HERE / "ditto.md", HERE / "results" / "ditto.jsonl"
DRIFT_PROMPTS = 12  # none that anchors a model
BATCH = 1024  # tokens of a micro-batch


def variant(**changes: Any) -> Callable[[DittoConfig], DittoConfig]:
    return lambda config: dataclasses.replace(config, **changes)


def warm(**changes: Any) -> Callable[[DittoConfig], DittoConfig]:
    """A warm start of its own."""
    return lambda config: dataclasses.replace(
        config, sft=dataclasses.replace(config.sft, **changes)
    )


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
    "M = 2": variant(samples_per_prompt=2),
    "M = 10": variant(samples_per_prompt=10),
    "no NLL": variant(nll_weight=0.0),
    "SPIN without NLL": lambda config: as_spin(dataclasses.replace(config, nll_weight=0.0)),
    "anchors 0.5": variant(anchors=0.5),
    "anchors 1": variant(anchors=1.0),
}
DEMONSTRATIONS = {f"{count} demonstrations": count for count in (1, 2, 4)}  # the rest is DITTO


# ---- one author ----


class WatchedRun(Run):
    """Calls `at_round(n)` after every round of preferences but the last."""

    at_round: Callable[[int], None] | None = None

    def say(self, stage: str, text: str, unseen: float | None) -> None:
        super().say(stage, text, unseen)
        kind, _, number = stage.partition(" ")
        if self.at_round is not None and kind == "round":
            self.at_round(int(number))


class Bench:
    """One author and seed: a warm start, and arms that answer the unseen prompts."""

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
        self.train = self._encoded(author.cut("train"), config)
        self.asked = [d for split in UNSEEN for d in author.cut(split)]
        self.held_out = {s: self._encoded(author.cut(s), config) for s in UNSEEN}
        longest = max(len(example.completion_ids) for example in self.train)
        self.config = config.fitted(longest)
        self.sampling = SamplingConfig(self.config.sampling.max_new_tokens)
        self.ordinary = self._ordinary_answers()

    def _encoded(self, texts: list[Demonstration], config: DittoConfig) -> list[Example]:
        return [encode_demonstration(d, self.tokenizer, config.max_length)[0] for d in texts]

    def _ordinary_answers(self) -> list[Example]:
        """The base model's own, on which an adapter's drift is measured."""
        texts = general_prompts(DRIFT_PROMPTS, self.seed, "drift")
        prompts = [tuple(self.tokenizer.encode_prompt(text)) for text in texts]
        with reference_policy(self.model, None):
            groups = sample(self.model, prompts, 1, SamplingConfig(TOKENS), seed=self.seed)
        return [Example(p, group[0].ids) for p, group in zip(prompts, groups, strict=True)]

    def run(self, arm: str, keep: Callable[[str, dict[str, Any], Answers], None]) -> None:
        """Trains an arm; `keep` gets its name, what was measured, and its answers.

        DITTO's earlier rounds are handed over as arms of their own.
        """
        began = time.perf_counter()

        def done(name: str, adapter: str | None, shown: tuple[Demonstration, ...] = ()) -> None:
            trained = time.perf_counter() - began
            answers = self._answers(name, adapter, shown)
            keep(name, self._measured(adapter, shown, answers) | {"seconds": trained}, answers)

        if arm == "zero-shot":
            done(arm, None)
        elif arm == "few-shot":
            done(arm, None, tuple(self.author.cut("train")))
        elif arm == "SFT":
            done(arm, self._warm_start(self.config))
        elif arm in DEMONSTRATIONS:
            done(arm, self._train(self.config, self.train[: DEMONSTRATIONS[arm]]))
        else:
            config = ARMS[arm](self.config)

            def at_round(number: int) -> None:
                if arm == "DITTO" and number < config.rounds:
                    done(f"{number} round{'s' * (number > 1)}", ditto.ADAPTER)

            done(arm, self._train(config, None, at_round))

    def _answers(self, arm: str, adapter: str | None, shown: tuple[Demonstration, ...]) -> Answers:
        (answers,) = write_answers(
            self.model,
            self.tokenizer,
            [Contestant(arm, adapter, shown)],
            [d.messages for d in self.asked],
            self.options.samples,
            self.sampling,
            seed=self.seed,
            progress=lambda *_: lambda *_: None,
        ).values()
        return answers

    def _measured(
        self, adapter: str | None, shown: tuple[Demonstration, ...], answers: Answers
    ) -> dict[str, Any]:
        """Nats of unseen texts by split; what the base model thinks of the answers; drift."""
        nats, moved = None, None
        if not shown:
            with reference_policy(self.model, adapter):
                nats = {
                    split: nats_per_token(self.model, texts, BATCH)
                    for split, texts in self.held_out.items()
                }
            moved = drift(self.model, adapter, self.ordinary, BATCH)
        prompts = [tuple(self.tokenizer.encode_prompt(d.messages)) for d in self.asked]
        written = [
            Example(prompt, completion.ids)
            for prompt, group in zip(prompts, answers, strict=True)
            for completion in group
            if completion.ids
        ]
        with reference_policy(self.model, None):
            fluency = nats_per_token(self.model, written, BATCH)
        learned = [d.completion for d in self.author.cut("train")]
        figures = dataclasses.asdict(text_figures(answers, learned))
        return {"nats": nats, "fluency": fluency, "drift": moved, **figures}

    def _warm_start(self, config: DittoConfig) -> str:
        """SFT on all demonstrations, trained once and kept."""
        folder = self.options.work / "-".join(
            [self.author.name.replace("/", "-"), self.author.hash, str(self.seed), print_of(config)]
        )
        remove_adapter(self.model, sft.ADAPTER)
        if (folder / "adapter_config.json").exists():
            load_adapter(self.model, folder, sft.ADAPTER)
            return sft.ADAPTER
        self._fresh()
        with tempfile.TemporaryDirectory() as scratch:
            run = self._open_run(Path(scratch) / "run")
            sft.train(self.model, Lessons(self.train, self._held()), config, run)
        save_adapter(self.model, folder, sft.ADAPTER)
        return sft.ADAPTER

    def _train(
        self,
        config: DittoConfig,
        demonstrations: list[Example] | None,
        at_round: Callable[[int], None] | None = None,
    ) -> str:
        """DITTO or what resembles it, from the shared warm start unless it must have its own."""
        remove_adapter(self.model, ditto.ADAPTER)
        remove_adapter(self.model, ditto.FOLLOWER)
        if demonstrations is None and not config.anchors:
            self._warm_start(config)
            config = dataclasses.replace(config, sft=dataclasses.replace(config.sft, max_steps=0))
        else:
            self._fresh()
        train_only(self.model, sft.ADAPTER)
        with tempfile.TemporaryDirectory() as scratch:
            run = self._open_run(Path(scratch) / "run")
            run.at_round = at_round
            lessons = Lessons(demonstrations or self.train, self._held())
            ditto.train(self.model, lessons, config, run)
        return ditto.ADAPTER

    def _held(self) -> list[Example]:
        return [example for split in UNSEEN for example in self.held_out[split]]

    def _open_run(self, folder: Path) -> WatchedRun:
        run = WatchedRun.create(folder, {}, seed=self.seed)
        run.tokenizer = self.tokenizer
        return run

    def _fresh(self) -> None:
        for name in (sft.ADAPTER, ditto.ADAPTER, ditto.FOLLOWER):
            remove_adapter(self.model, name)
        generator = torch.Generator().manual_seed(self.seed)
        apply_lora(self.model, self.config.lora, sft.ADAPTER, generator)


def print_of(config: DittoConfig) -> str:
    """A short name of what the warm start depends on."""
    parts = [config.lora, config.sft]
    text = json.dumps([*map(dataclasses.asdict, parts), config.max_length, config.weight_decay])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


# ---- the command ----


def numbers_of(text: str) -> list[int]:
    """0-2,5 -> 0, 1, 2, 5"""
    found = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def parse_options(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a folder of authorNN.jsonl")
    parser.add_argument("--authors", default="0-9")
    parser.add_argument("--seeds", default="0", help="such as 0-2")
    parser.add_argument("--words", type=int, default=100, help="of a text at most; 0: whole texts")
    parser.add_argument("--samples", type=int, default=8, help="answers a prompt and arm")
    parser.add_argument("--ablations", action="store_true", help="Table 3's arms too")
    parser.add_argument("--arms", default="", help="these alone")
    parser.add_argument("--label", default="", help="a name for what --set changes")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--recipe", default="laptop", choices=sorted(RECIPES))
    parser.add_argument("--set", action="append", default=[], metavar="KNOB=VALUE")
    parser.add_argument("--results", type=Path, default=RESULTS)
    kept = Path(tempfile.gettempdir()) / "ditto-study"
    parser.add_argument("--work", type=Path, default=kept / "warm-starts")
    parser.add_argument("--answers", type=Path, default=kept / "answers")
    parser.add_argument("--judge", action="store_true", help="train nothing, judge kept answers")
    parser.add_argument("--report", action="store_true", help="train nothing, write the page")
    options = parser.parse_args()
    if not options.report and not (options.data and list(options.data.glob("author*.jsonl"))):
        parser.error("--data DIR: there is no authorNN.jsonl in it")
    return options


def main() -> None:
    options = parse_options(__doc__)
    if options.judge:
        judge_again(options)
    elif not options.report:
        study(options)
    tables = all_tables(read_lines(options.results), read_lines(judged_beside(options.results)))
    if options.results == RESULTS:
        write_measured(PAGE, "# DITTO", tables)
    print(tables)


def study(options: argparse.Namespace) -> None:
    loaded = load(options.model)
    config = config_from_flags(
        RECIPES[options.recipe], dict(item.split("=", 1) for item in options.set)
    )
    more = (*ARMS, *DEMONSTRATIONS) if options.ablations else ()
    wanted = options.arms.split(",") if options.arms else list(dict.fromkeys([*MAIN, *more]))
    options.results.parent.mkdir(parents=True, exist_ok=True)
    options.answers.mkdir(parents=True, exist_ok=True)
    everyone = read_authors(options.data, options.words)
    chosen = [everyone[number] for number in numbers_of(options.authors) if number < len(everyone)]
    for seed, author in itertools.product(numbers_of(options.seeds), chosen):
        fixed = {
            "author": author.name,
            "texts": author.hash,
            "seed": seed,
            "words": options.words,
            "samples": options.samples,
            "model": options.model,
            "label": options.label,
            "config": json.loads(json.dumps(dataclasses.asdict(config))),
        }
        known = [x for x in read_lines(options.results) if key_of(x) == key_of(fixed)]
        todo = [arm for arm in wanted if arm not in {line["arm"] for line in known}]
        if todo:
            train_and_answer(Bench(*loaded, author, config, options, seed), todo, fixed, options)
            judge(author, everyone, fixed, options)


def judge_again(options: argparse.Namespace) -> None:
    """Everything that was answered by this folder's authors."""
    lines = {key_of(line): line for line in read_lines(options.results)}
    for line in lines.values():
        everyone = read_authors(options.data, line["words"])
        for author in everyone:
            if (author.name, author.hash) == (line["author"], line["texts"]):
                judge(author, everyone, line, options)


def judge(
    author: Author, everyone: list[Author], fixed: dict[str, Any], options: argparse.Namespace
) -> None:
    others = [other for other in everyone if other is not author]
    judge_author(author, others, fixed, options.answers, judged_beside(options.results))


def train_and_answer(
    bench: Bench, arms: list[str], fixed: dict[str, Any], options: argparse.Namespace
) -> None:
    def keep(arm: str, measured: dict[str, Any], answers: Answers) -> None:
        texts = {d.prompt: [c.text for c in g] for d, g in zip(bench.asked, answers, strict=True)}
        answers_file(options.answers, fixed, arm).write_text(json.dumps(texts), encoding="utf-8")
        dtype = str(bench.model.dtype).removeprefix("torch.")
        append(options.results, {"arm": arm, **fixed, "dtype": dtype, **measured})
        shown = f"{fixed['author']} seed {fixed['seed']} {arm}: {measured['seconds']:.0f} s"
        print(shown, file=sys.stderr, flush=True)

    for arm in arms:
        bench.run(arm, keep)
    set_adapter(bench.model, None)


if __name__ == "__main__":
    main()
