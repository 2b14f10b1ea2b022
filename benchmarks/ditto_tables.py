"""The tables of reproduce_ditto.py, from its lines of results and its judges' lines.

A win rate is the mean over authors of an author's rate: every answer against every answer of the
rival to the same prompt, ties by half, over all seeds and prompts. An author counts under a judge
that can judge that author, and is counted as not judged otherwise. Intervals go by authors
(minialign/evaluation/judges/intervals.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ditto_results import MAIN, key_of

from minialign.evaluation.judges import APART
from minialign.evaluation.judges.agreement import MIN_JUDGES, Scale
from minialign.evaluation.judges.intervals import rate_interval
from minialign.evaluation.judges.winrates import shares_by_score

UNSEEN_FIT, TRAINING_FIT = "unseen texts", "training texts"
USUAL = "either"  # fitted on unseen texts where such a judge can judge, as evaluate.py does it
PAPER = {"zero-shot": 27.33, "few-shot": 46.89, "SPIN": 51.56, "SFT": 56.78, "DITTO": 71.67}
PAPER_ABLATIONS = {"no inter-model": 68.1, "no replay": 63.6, "sample once": 57.3}
PAPER_ABLATIONS["update the reference"] = 45.8
MARKER = "<!-- measured -->"
PERSON = "the person"

Lines = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Judged:
    """One judge's line on one author and seed."""

    author: str
    seed: int
    line: dict[str, Any]

    @property
    def judge(self) -> str:
        return str(self.line["judge"])

    def scores(self, arm: str, split: str) -> np.ndarray:
        """(prompts, answers)"""
        by_split = (
            self.line["person"]
            if arm == PERSON
            else self.line["scores"].get(arm.replace(" ", "-"), {split: []})
        )
        return np.array(by_split[split], np.float64)

    def compared(self, arm: str, rival: str, split: str) -> np.ndarray | None:
        """(prompts,): how often the arm's answers beat the rival's; None if one is missing."""
        first, second = self.scores(arm, split), self.scores(rival, split)
        if not (first.size and second.size):
            return None
        return shares_by_score(first, second).mean((1, 2))


@dataclass(frozen=True)
class Rate:
    rate: float
    low: float
    high: float
    authors: int  # that count
    all: int  # that were asked about

    def __str__(self) -> str:
        if not self.authors:
            return f"not judged (0 of {self.all})"
        interval = (
            "too few authors"
            if math.isnan(self.low)
            else f"{100 * self.low:.0f} to {100 * self.high:.0f}"
        )
        return f"{100 * self.rate:.1f} % ({interval}; {self.authors} of {self.all})"


def joined(lines: Lines, judged: Lines) -> list[Judged]:
    """The judges' lines with the author and seed that they are of."""
    who = {key_of(line): line for line in lines}
    return [
        Judged(who[line["key"]]["author"], who[line["key"]]["seed"], line)
        for line in judged
        if line["key"] in who
    ]


def of_kind(judged: Sequence[Judged], judge: str, fitted_on: str) -> list[Judged]:
    own = [j for j in judged if j.judge == judge]
    if fitted_on != USUAL:
        return [j for j in own if j.line["fitted_on"] == fitted_on]
    able = {j.line["key"] for j in of_kind(own, judge, UNSEEN_FIT) if j.line["can_judge"]}
    return [j for j in own if (j.line["fitted_on"] == UNSEEN_FIT) == (j.line["key"] in able)]


def win_rate(judged: Sequence[Judged], arm: str, rival: str, split: str = "test") -> Rate:
    """One judge's lines, over authors."""
    rates: dict[str, list[np.ndarray]] = {}
    asked: set[str] = set()
    for one in judged:
        found = one.compared(arm, rival, split)
        if found is None:
            continue
        asked.add(one.author)
        if one.line["can_judge"]:
            rates.setdefault(one.author, []).append(found)
    if not rates:
        return Rate(math.nan, math.nan, math.nan, 0, len(asked))
    means = np.array([np.concatenate(found).mean() for found in rates.values()])
    each = float(np.mean([sum(map(len, found)) for found in rates.values()]))
    return Rate(float(means.mean()), *rate_interval(means, each), len(means), len(asked))


def judges_of(judged: Sequence[Judged]) -> list[str]:
    return list(dict.fromkeys(one.judge for one in judged))


# ---- tables ----


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in lines)


def judges_table(judged: Sequence[Judged]) -> str:
    """Author by author, each judge's area, and whether it counts."""
    kinds = [
        (judge, fitted) for fitted in (UNSEEN_FIT, TRAINING_FIT) for judge in judges_of(judged)
    ]
    rows = []
    for author in sorted({one.author for one in judged}):
        cells = []
        for kind in kinds:
            own = [one.line for one in of_kind(judged, *kind) if one.author == author]
            area = f"{np.mean([line['auc'] for line in own]):.3f}" if own else "-"
            able = sum(bool(line["can_judge"]) for line in own)
            cells.append(area if able == len(own) else f"{area} ({able} of {len(own)} count)")
        rows.append([author, *cells])
    means: list[str] = []
    for kind in kinds:
        areas = [one.line["auc"] for one in of_kind(judged, *kind) if one.line["can_judge"]]
        means.append(f"{np.mean(areas):.3f} (n = {len(areas)})" if areas else "-")
    rows.append(["mean of those that count", *means])
    return table(["author", *(f"{judge}, {fitted}" for judge, fitted in kinds)], rows)


def main_table(judged: Sequence[Judged], arms: Sequence[str], fitted_on: str, split: str) -> str:
    """DITTO against each arm, and each arm against SFT, by every judge."""
    judges = judges_of(judged)
    head = ["DITTO against", *judges, "paper (mean win rate of the arm)"]
    rows = [
        [
            rival,
            *(win_rate(of_kind(judged, j, fitted_on), "DITTO", rival, split) for j in judges),
            f"{PAPER[rival]:.1f} %" if rival in PAPER else "-",
        ]
        for rival in [*(arm for arm in arms if arm != "DITTO"), PERSON]
    ]
    return table(head, rows)


def against_sft(judged: Sequence[Judged], arms: Sequence[str], fitted_on: str, split: str) -> str:
    judges = judges_of(judged)
    rows = [
        [arm, *(win_rate(of_kind(judged, j, fitted_on), arm, "SFT", split) for j in judges)]
        for arm in [*(arm for arm in arms if arm != "SFT"), PERSON]
    ]
    return table(["against SFT", *judges], rows)


def author_table(judged: Sequence[Judged], split: str) -> str:
    """DITTO against SFT by author; what is not judged is said.

    A verdict needs two judges that agree and none that does not; a judge made of others is none.
    """
    judges, rows = judges_of(judged), []
    for author in sorted({one.author for one in judged}):
        cells, signs = [], []
        for judge in judges:
            own = [one for one in of_kind(judged, judge, USUAL) if one.author == author]
            rate = win_rate(own, "DITTO", "SFT", split)
            cells.append(f"{100 * rate.rate:.0f} %" if rate.authors else "not judged")
            if rate.authors and judge not in APART:
                signs.append(np.sign(rate.rate - 0.5))
        winner = {1.0: "DITTO", -1.0: "SFT"}.get(signs[0]) if len(set(signs)) == 1 else None
        verdict = winner if winner and len(signs) >= MIN_JUDGES else "no verdict"
        rows.append([author, *cells, verdict])
    return table(["author", *judges, "agreed"], rows)


def place_table(judged: Sequence[Judged], arms: Sequence[str], split: str) -> str:
    """Where each arm's answers lie between other people's texts (0) and the person's own (1)."""
    judges = judges_of(judged)

    def place(arm: str, judge: str) -> str:
        found = []
        for one in of_kind(judged, judge, USUAL):
            scores = one.scores(arm, split)
            if one.line["can_judge"] and scores.size:
                own = np.concatenate([one.scores(PERSON, s).ravel() for s in one.line["person"]])
                found.append(float(np.mean(Scale.of(own, one.line["others"])(scores))))
        return f"{np.nanmean(found):.2f}" if found else "-"

    return table(["place", *judges], [[arm, *(place(arm, j) for j in judges)] for arm in arms])


FIGURES: tuple[tuple[str, str, Callable[[dict[str, Any], str], float | None], str], ...] = (
    ("unseen texts, nats", "nats", lambda x, s: x["nats"][s] if x["nats"] else None, "{:.3f}"),
    ("its answers under the base, nats", "fluency", lambda x, _: x["fluency"], "{:.2f}"),
    ("ends by itself", "stops", lambda x, _: x["stops"], "{:.0%}"),
    ("tokens", "mean_tokens", lambda x, _: x["mean_tokens"], "{:.0f}"),
    ("distinct pairs", "distinct_2", lambda x, _: x["distinct_2"], "{:.0%}"),
    ("repetition", "repetition", lambda x, _: x["repetition"], "{:.1%}"),
    ("copied", "copied", lambda x, _: x["copied"], "{:.1%}"),
    ("drift", "drift", lambda x, _: x["drift"], "{:.3f}"),
)


def figures_table(lines: Lines, arms: Sequence[str], split: str) -> str:
    """What needs no judge: means over authors and seeds."""
    rows = []
    for arm in arms:
        own = [line for line in lines if line["arm"] == arm]
        cells = []
        for _, _, value, form in FIGURES:
            values = [v for line in own if (v := value(line, split)) is not None]
            cells.append(form.format(np.mean(values)) if values else "-")
        rows.append([arm, len(own), *cells])
    return table(["", "runs", *(title for title, *_ in FIGURES)], rows)


def all_tables(lines: Lines, judged_lines: Lines) -> str:
    """One part for each corpus, length and setting."""
    settings = list(dict.fromkeys(_setting(line) for line in lines))
    parts = []
    for setting in settings:
        own = [line for line in lines if _setting(line) == setting]
        keys = {key_of(line) for line in own}
        judged = joined(own, [line for line in judged_lines if line["key"] in keys])
        arms = [*MAIN, *dict.fromkeys(line["arm"] for line in own)]
        arms = [a for a in dict.fromkeys(arms) if any(line["arm"] == a for line in own)]
        parts.append(f"## {setting}\n\n" + setting_tables(own, judged, arms))
    return "\n\n".join(parts)


def setting_tables(lines: Lines, judged: Sequence[Judged], arms: list[str]) -> str:
    authors, seeds = ({line[key] for line in lines} for key in ("author", "seed"))
    parts = [
        f"{len(authors)} authors, seeds {', '.join(map(str, sorted(seeds)))}; win rates on the "
        "test prompts unless said, in brackets the 95 % interval over authors, and of how many "
        "authors the judge can judge how many.",
        "**What the judges can do**: areas under the curve on pieces of 500 characters of texts "
        "that were held out.\n\n" + judges_table(judged),
        "**DITTO against the others**, by judges fitted on texts that nobody was trained on where "
        "these can judge, else on the training texts, as evaluate.py does it.\n\n"
        + main_table(judged, arms, USUAL, "test"),
        "**The same on the validation prompts.**\n\n" + main_table(judged, arms, USUAL, "val"),
        "**The same by judges fitted on unseen texts alone.**\n\n"
        + main_table(judged, arms, UNSEEN_FIT, "test"),
        "**Everybody against SFT.**\n\n" + against_sft(judged, arms, USUAL, "test"),
        "**DITTO against SFT, author by author.**\n\n" + author_table(judged, "test"),
        "**How far towards the person**: mean scores, 0 for other people's texts and 1 for the "
        "person's unseen ones; above 1 is an exaggeration.\n\n"
        + place_table(judged, [*arms, PERSON], "test"),
        "**What needs no judge.**\n\n" + figures_table(lines, arms, "test"),
    ]
    return "\n\n".join(parts)


def _setting(line: dict[str, Any]) -> str:
    corpus = line["author"].split("/")[0]
    length = f"{line['words']} words" if line["words"] else "whole texts"
    return ", ".join(filter(None, [corpus, length, line["model"], line["label"]]))


def write_measured(page: Path, title: str, measured: str) -> None:
    """What follows the marker is replaced; the prose before it stays."""
    head = page.read_text().split(MARKER)[0] if page.exists() else f"{title}\n\n"
    page.write_text(f"{head}{MARKER}\n\n{measured}\n")
