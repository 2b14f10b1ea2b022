"""The tables of reproduce_ditto.py, from its results: win rates by the scores of a style judge.

A result is one author's and arm's: `scores`, a style judge's of every answer, by prompt. Every
answer meets every answer of the rival to the same prompt; ties count half.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from minialign.evaluation.judges.winrates import shares_by_score, win_rates

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


def ablation_table(lines: list[dict[str, Any]], arms: list[str]) -> str:
    """DITTO and SPIN first, then those of `arms` that were run, on the authors that have any."""
    found = scores_by_arm(lines)
    arms = [arm for arm in arms if any(arm in own for own in found.values())]
    authors = {
        key: own for key, own in found.items() if any(arm in own for arm in arms if arm not in MAIN)
    }
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


def all_tables(lines: list[dict[str, Any]], arms: list[str]) -> str:
    parts = [main_table(lines), author_table(lines)]
    if any(line["arm"] not in (*MAIN, "person") for line in lines):
        parts.append("Ablations:\n\n" + ablation_table(lines, arms))
    return "\n\n".join(parts)


def write_measured(page: Path, title: str, measured: str) -> None:
    """What follows the marker is replaced; the prose before it stays."""
    head = page.read_text().split(MARKER)[0] if page.exists() else f"{title}\n\n"
    page.write_text(f"{head}{MARKER}\n\n{measured}\n")
