"""Do the next answers move as a person's edits did? Twenty edits of a kind, made by a program.

    python benchmarks/edits.py
    python benchmarks/edits.py --set learning_rate=1e-3 --set learning_rate=1e-3,epochs=5
    python benchmarks/edits.py --report

The model drafts e-mails. Of each kind of edit the first twenty drafts that it changes are edited,
and `--method edits` learns from them, as `train.py --edits` does. The trained model then answers
prompts that were not edited, and a program checks how many answers are as the edit would have them;
so it does the base model's. Words are an answer's, of 64 tokens at most; surprise is the base
model's nats a token on what was written, drift its divergence, in nats a token, on its own answers
to other prompts. A line for each kind and setting goes to benchmarks/results/edits.jsonl; no text
is in it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from ditto_authors import cut_text
from ditto_results import append, read_lines
from ditto_tables import table

from minialign.data.feedback import load_preference_pairs
from minialign.data.general import general_prompts
from minialign.data.knobs import config_from_flags
from minialign.data.records import PAIRS, Example
from minialign.evaluation.judges.intervals import rate_interval
from minialign.methods import edits
from minialign.methods.cards import card_of
from minialign.methods.knobs import C3POConfig
from minialign.methods.lessons import Lessons
from minialign.policy.adapters import apply_lora, remove_adapter, set_adapter
from minialign.policy.encode import encode_feedback
from minialign.policy.measure import drift, nats_per_token
from minialign.policy.reference import reference_policy
from minialign.policy.sample import Completion, generate
from minialign.training.run import Run
from minialign.weights.load import load
from minialign.weights.tokenizer import Tokenizer

RESULTS = Path(__file__).parent / "results" / "edits.jsonl"
EDITS, UNSEEN, ANSWERS, TOKENS, BATCH = 20, 10, 3, 64, 1024
SHORT, GREETING, BANNED = 25, "Ahoy,", "hope"  # words; the new greeting; the word that goes

READERS = ("my boss", "my team", "a neighbour", "my landlord", "a customer", "an old friend")
MATTERS = (
    *("a meeting on Friday", "a broken printer", "the summer party", "a late delivery"),
    *("the new office hours", "a lost key", "a birthday", "the train strike"),
)
PROMPTS = [f"Write an email to {who} about {what}." for what in MATTERS for who in READERS]


# ---- the edits ----


def greeted(text: str) -> str:
    """Begins with GREETING instead of its own."""
    lines = text.strip().split("\n")
    greeting = re.compile(r"\W*(dear|hi|hello|hey|ahoy)\b", re.IGNORECASE)
    own = [number for number, line in enumerate(lines[:5]) if greeting.match(line)]
    rest = lines[own[0] + 1 :] if own else lines
    return f"{GREETING}\n\n" + "\n".join(rest).strip()


def without_word(text: str) -> str:
    """Without the sentences that hold BANNED."""
    lines = [
        " ".join(s for s in re.split(r"(?<=[.!?])\s+", line) if BANNED not in s.lower())
        for line in text.split("\n")
    ]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def shortened(text: str) -> str:
    """Its first SHORT words, to the end of a sentence."""
    return cut_text(text, SHORT).strip()


# Kind -> the edit, and whether an answer is as the edit would have it.
KINDS: dict[str, tuple[Callable[[str], str], Callable[[str], bool]]] = {
    "greeting": (greeted, lambda text: text.startswith(GREETING)),
    "banned word": (without_word, lambda text: BANNED not in text.lower()),
    "shorter": (shortened, lambda text: len(text.split()) <= SHORT),
}


def edited(kind: str, drafts: dict[str, Completion]) -> list[dict[str, str]]:
    """The first EDITS drafts that the edit changes and leaves something of, as /edit keeps them."""
    found = []
    for prompt, draft in drafts.items():
        text, final = draft.text.strip(), KINDS[kind][0](draft.text)
        ends = "stop" if kind == "shorter" else draft.finish_reason
        if final and final != text:
            line = {"prompt": prompt, "draft": text, "final": final}
            reasons = {"draft_finish_reason": draft.finish_reason, "final_finish_reason": ends}
            found.append(line | reasons)
    return found[:EDITS]


# ---- a setting ----


class Bench:
    """A model, its drafts, and what it answered before it learned anything."""

    def __init__(self, name: str, seed: int) -> None:
        self.name, self.seed = name, seed
        self.model, self.tokenizer = load(name)
        written = self.answers(PROMPTS[UNSEEN:], 1, seed + 1)
        self.drafts = {p: group[0] for p, group in zip(PROMPTS[UNSEEN:], written, strict=True)}
        self.before = self.answers(PROMPTS[:UNSEEN], ANSWERS, seed)
        self.ordinary = self.examples(
            asked := general_prompts(6, seed, "drift"), self.answers(asked, 1, seed)
        )

    def answers(self, prompts: list[str], count: int, seed: int) -> list[list[Completion]]:
        how: dict[str, Any] = {"max_new_tokens": TOKENS, "temperature": 0.7, "seed": seed}
        return generate(self.model, self.tokenizer, prompts, n=count, **how)

    def examples(self, prompts: list[str], groups: list[list[Completion]]) -> list[Example]:
        ids = [tuple(self.tokenizer.encode_prompt(prompt)) for prompt in prompts]
        return [Example(p, c.ids) for p, group in zip(ids, groups, strict=True) for c in group]

    def train(self, kind: str, knobs: C3POConfig) -> int:
        """Trains a fresh adapter, which is then active; returns how many edits there were."""
        lines = edited(kind, self.drafts)
        for name in (edits.ADAPTER, edits.DRAFTER):
            remove_adapter(self.model, name)
        apply_lora(self.model, knobs.lora, edits.ADAPTER, torch.Generator().manual_seed(self.seed))
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "edits.jsonl"
            file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            lessons = lessons_of(file, self.tokenizer, knobs)
            run = Run.create(Path(scratch) / "run", {}, seed=self.seed)
            edits.train(self.model, lessons, knobs, run)
        return len(lines)

    def figures(self, kind: str, groups: list[list[Completion]]) -> dict[str, Any]:
        holds = [[KINDS[kind][1](c.text.strip()) for c in group] for group in groups]
        texts = self.examples(PROMPTS[:UNSEEN], groups)
        with reference_policy(self.model, None):
            surprise = nats_per_token(self.model, texts, BATCH)
        words = fmean(len(c.text.split()) for group in groups for c in group)
        rates = [fmean(group) for group in holds]
        return {"holds": np.round(rates, 4).tolist(), "words": words, "surprise": surprise}

    def measure(self, kind: str, setting: str, knobs: C3POConfig) -> dict[str, Any]:
        set_adapter(self.model, None)
        before = self.figures(kind, self.before)
        count = self.train(kind, knobs)
        after = self.figures(kind, self.answers(PROMPTS[:UNSEEN], ANSWERS, self.seed))
        moved = drift(self.model, edits.ADAPTER, self.ordinary, BATCH)
        return {
            **{"kind": kind, "set": setting, "model": self.name, "seed": self.seed},
            **{"edits": count, "knobs": dataclasses.asdict(knobs)},
            **{"before": before, "after": after, "drift": moved},
        }


def lessons_of(file: Path, tokenizer: Tokenizer, knobs: C3POConfig) -> edits.Scoped:
    data = load_preference_pairs(file)
    train, test = (
        encode_feedback(data, split, tokenizer, knobs.max_length)[0] for split in ("train", "test")
    )
    return Lessons(train, test)


# ---- the command ----


def report(lines: list[dict[str, Any]]) -> str:
    head = ["setting", "edits", "base: as edited", "after: as edited", "words", "surprise", "drift"]
    rows = [
        [
            line["set"] or "the recipe",
            f"{line['edits']}, {line['kind']}",
            share(line["before"]),
            share(line["after"]),
            *(f"{line['before'][k]:.1f} to {line['after'][k]:.1f}" for k in ("words", "surprise")),
            f"{line['drift']:.2f}",
        ]
        for line in lines
    ]
    return table(head, rows)


def share(found: dict[str, Any]) -> str:
    rates = np.array(found["holds"])
    low, high = rate_interval(rates, ANSWERS)
    return f"{100 * rates.mean():.0f} % ({100 * low:.0f} to {100 * high:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--set", action="append", metavar="KNOB=VALUE,...")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--report", action="store_true", help="train nothing, show the table")
    options = parser.parse_args()
    if not options.report:
        bench = Bench(options.model, options.seed)
        for setting in options.set or [""]:
            given = dict(part.split("=", 1) for part in setting.split(",") if part)
            knobs = config_from_flags(edits_recipe(), given)
            for kind in options.kinds.split(","):
                append(options.results, found := bench.measure(kind, setting, knobs))
                print(report([found]).splitlines()[-1], file=sys.stderr, flush=True)
    print(report(read_lines(options.results)))


def edits_recipe() -> C3POConfig:
    """The laptop recipe with what the method fixes."""
    recipe = card_of("edits", PAIRS).recipe("laptop")
    assert isinstance(recipe, C3POConfig)
    return recipe


if __name__ == "__main__":
    main()
