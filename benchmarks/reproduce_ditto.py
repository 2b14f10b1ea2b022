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

from minialign.cli import config_from_flags
from minialign.config import RECIPES, DittoConfig, SamplingConfig
from minialign.data import Demonstration, Sequence, encode_demonstration, load_demonstrations
from minialign.evaluation.contestants import Contestant, write_answers
from minialign.evaluation.held_out import drift, nats_per_token
from minialign.evaluation.style import StyleJudge
from minialign.evaluation.texts import text_figures
from minialign.evaluation.winrates import shares_by_score, win_rates
from minialign.feedback import general_prompts
from minialign.lora import (
    apply_lora,
    load_adapter,
    reference_policy,
    remove_adapter,
    save_adapter,
    set_adapter,
    train_only,
)
from minialign.methods.anchors import ANSWERS, TOKENS, Anchors
from minialign.methods.ditto import train_ditto
from minialign.methods.sft import train_sft
from minialign.methods.spin import as_spin
from minialign.model import CausalLM
from minialign.run import Run
from minialign.sampler import generate, sample
from minialign.tokenizer import Tokenizer
from minialign.weights import load

HERE = Path(__file__).parent
PAGE, RESULTS = HERE / "ditto.md", HERE / "results" / "ditto.jsonl"
MAIN = ("zero-shot", "few-shot", "SPIN", "SFT", "DITTO")
PAPER = {"zero-shot": 27.33, "few-shot": 46.89, "SPIN": 51.56, "SFT": 56.78, "DITTO": 71.67}
PAPER_ABLATIONS = {
    "DITTO": 70.1,
    "no inter-model": 68.1,
    "no replay": 63.6,
    "sample once": 57.3,
    "update the reference": 45.8,
}
MARKER = "<!-- measured -->"
REPLICATES = 2000
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

    def _encoded(self, texts: list[Demonstration], config: DittoConfig) -> list[Sequence]:
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

    def _ordinary_answers(self) -> list[Sequence]:
        """The base model's own, on which an adapter's drift is measured."""
        prompts = self._general(DRIFT_PROMPTS, "drift")
        with reference_policy(self.model, None):
            groups = sample(self.model, prompts, 1, SamplingConfig(TOKENS), seed=self.seed)
        return [Sequence(p, group[0].ids) for p, group in zip(prompts, groups, strict=True)]

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
        nats = None if shown else nats_per_token(self.model, name, self.held_out, 1024)
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
            run = Run.create(Path(scratch) / "run", {}, seed=self.seed)
            train_sft(self.model, self.train, self.config, run, self.held_out)
        save_adapter(self.model, folder, "sft")
        return "sft"

    def _train(self, config: DittoConfig, demonstrations: list[Sequence] | None) -> str:
        """DITTO or what resembles it, from the shared warm start unless it must have its own."""
        if demonstrations is None and not config.anchors:
            self._warm_start()
            config = dataclasses.replace(config, sft=dataclasses.replace(config.sft, max_steps=0))
        else:
            self._fresh()
        train_only(self.model, "sft")
        with tempfile.TemporaryDirectory() as scratch:
            run = Run.create(Path(scratch) / "run", {}, seed=self.seed)
            general = self._general(ANSWERS, "anchors")
            anchors = Anchors.written(self.model, general, config.anchors, run)
            train_ditto(
                self.model, demonstrations or self.train, config, run, self.held_out, anchors
            )
        return "ditto"

    def _fresh(self) -> None:
        for name in ("sft", "ditto", "reference"):
            remove_adapter(self.model, name)
        generator = torch.Generator().manual_seed(self.seed)
        apply_lora(self.model, self.config.lora, "sft", generator)


def fingerprint(config: DittoConfig) -> str:
    import hashlib

    part = [dataclasses.asdict(config.lora), dataclasses.asdict(config.sft), config.max_length]
    return hashlib.sha256(json.dumps(part).encode()).hexdigest()[:8]


# ---- results ----


def read_results(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.open()] if file.exists() else []


def scores_by_arm(lines: list[dict[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """author/seed -> arm -> scores (prompts, answers)."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for line in lines:
        key = f"{line['author']}/{line['seed']}"
        found.setdefault(key, {})[line["arm"]] = np.array(line["scores"])
    return found


@dataclasses.dataclass(frozen=True)
class Rate:
    rate: float
    low: float
    high: float
    authors: int

    def __str__(self) -> str:
        return f"{self.rate:.1%} ({self.low:.1%} to {self.high:.1%})"


def compared(
    found: dict[str, dict[str, np.ndarray]], arm: str, rivals: list[str], seed: int = 0
) -> Rate | None:
    """The mean win rate over rivals and authors.

    The interval is a bootstrap's over authors, prompts and answers.
    """
    rates, draws = [], []
    rng = np.random.default_rng(seed)
    for arms in found.values():
        if arm not in arms or not all(rival in arms for rival in rivals):
            continue
        outcomes = [shares_by_score(arms[arm], arms[rival]) for rival in rivals]
        rates.append(float(np.mean([o.mean() for o in outcomes])))
        draws.append(np.mean([resampled(o, rng) for o in outcomes], axis=0))
    if not rates:
        return None
    chosen = rng.integers(len(rates), size=(REPLICATES, len(rates)))
    means = np.array(draws)[chosen, np.arange(REPLICATES)[:, None]].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Rate(float(np.mean(rates)), float(low), float(high), len(rates))


def resampled(outcomes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    prompts, a, b = outcomes.shape
    chosen = rng.integers(prompts, size=(REPLICATES, prompts))[:, :, None, None]
    firsts = rng.integers(a, size=(REPLICATES, prompts, a, 1))
    seconds = rng.integers(b, size=(REPLICATES, prompts, 1, b))
    return outcomes[chosen, firsts, seconds].mean((1, 2, 3))


def main_table(lines: list[dict[str, Any]]) -> str:
    found = scores_by_arm(lines)
    complete = {k: v for k, v in found.items() if all(arm in v for arm in MAIN)}
    rows = [
        "| | mean win rate against the other four | against SFT | DITTO against it | paper |",
        "| --- | --- | --- | --- | --- |",
    ]
    for arm in MAIN:
        others = [rival for rival in MAIN if rival != arm]
        against_sft = compared(complete, arm, ["SFT"]) if arm != "SFT" else "-"
        ditto = compared(complete, "DITTO", [arm]) if arm != "DITTO" else "-"
        mean = compared(complete, arm, others)
        rows.append(f"| {arm} | {mean} | {against_sft} | {ditto} | {PAPER[arm]:.1f}% |")
    facts = figures(lines, MAIN)
    return "\n".join([*rows, "", *facts])


def figures(lines: list[dict[str, Any]], arms: tuple[str, ...]) -> list[str]:
    rows = [
        "| | nats per token | ends by itself | tokens | distinct pairs | repetition | copied |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arm in arms:
        own = [line for line in lines if line["arm"] == arm]
        if not own:
            continue

        def mean(key: str, own: list[dict[str, Any]] = own) -> float:
            return float(np.mean([line[key] for line in own]))

        nats = "-" if own[0]["nats"] is None else f"{mean('nats'):.3f}"
        rows.append(
            f"| {arm} | {nats} | {mean('stops'):.0%} | {mean('mean_tokens'):.0f} "
            f"| {mean('distinct_2'):.0%} | {mean('repetition'):.1%} | {mean('copied'):.1%} |"
        )
    return rows


def author_table(lines: list[dict[str, Any]]) -> str:
    found = scores_by_arm(lines)
    rows = [
        "| author | DITTO against SFT | few-shot | zero-shot | SPIN | the person's texts against "
        "DITTO |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for key, arms in sorted(found.items()):
        if not all(arm in arms for arm in MAIN):
            continue
        cells = []
        for rival in ("SFT", "few-shot", "zero-shot", "SPIN"):
            shares = {("DITTO", rival): shares_by_score(arms["DITTO"], arms[rival])}
            (win,), _ = win_rates(shares)
            cells.append(f"{win.rate:.0%} ({win.low:.0%} to {win.high:.0%})")
        real = shares_by_score(arms["person"], arms["DITTO"]).mean()
        rows.append(f"| {key} | {' | '.join(cells)} | {real:.0%} |")
    return "\n".join(rows)


def ablation_table(lines: list[dict[str, Any]]) -> str:
    found = scores_by_arm(lines)
    arms = [arm for arm in (*ARMS, *DEMONSTRATIONS) if any(arm in own for own in found.values())]
    authors = {key: own for key, own in found.items() if any(arm in own for arm in arms[2:])}
    rows = [
        "| | authors | against DITTO | against SFT | paper (mean win rate) |",
        "| --- | --- | --- | --- | --- |",
    ]
    for arm in arms:
        count = sum(arm in own for own in authors.values())
        against = compared(authors, arm, ["DITTO"]) if arm != "DITTO" else "-"
        paper = f"{PAPER_ABLATIONS[arm]:.1f}%" if arm in PAPER_ABLATIONS else "-"
        rows.append(
            f"| {arm} | {count} | {against} | {compared(authors, arm, ['SFT'])} | {paper} |"
        )
    return "\n".join(rows)


def write_page(lines: list[dict[str, Any]]) -> None:
    parts = [main_table(lines), author_table(lines)]
    if any(line["arm"] not in (*MAIN, "person") for line in lines):
        parts.append("Ablations:\n\n" + ablation_table(lines))
    write_measured(PAGE, "# DITTO", "\n\n".join(parts))
    print("\n\n".join(parts))


def write_measured(page: Path, title: str, measured: str) -> None:
    """What follows the marker is replaced; the prose before it stays."""
    head = page.read_text().split(MARKER)[0] if page.exists() else f"{title}\n\n"
    page.write_text(f"{head}{MARKER}\n\n{measured}\n")


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
    write_page(lines) if options.results == RESULTS else print(main_table(lines))


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
