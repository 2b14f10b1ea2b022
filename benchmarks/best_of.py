"""Does --best-of help? The best of several answers against one, by judges that did not choose it.

    python benchmarks/best_of.py --data DIR --answers DIR    # those of reproduce_ditto.py
    python benchmarks/best_of.py --report

reproduce_ditto.py keeps each arm's answers, and its judges' scores of them stand beside its
results. Here each of an unseen prompt's eight answers in turn stands for the one that a person
would get otherwise, and the best of the other seven competes with it. What `sample.py --best-of`
chooses by is fitted as there: on the demonstrations. The judges that compare are the study's. Those
fitted on unseen texts share no text of the author with it; where they cannot judge, the others do,
which learned from the same demonstrations and may favour what it favours.

The kept answers are texts. One that has as many tokens as an answer may have was cut off.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from ditto_authors import UNSEEN, Author, read_authors
from ditto_results import answers_file, append, judged_beside, key_of, read_lines
from ditto_tables import (
    UNSEEN_FIT,
    USUAL,
    Judged,
    Lines,
    Rate,
    joined,
    judges_of,
    of_kind,
    table,
)
from reproduce_ditto import RESULTS as STUDY
from reproduce_ditto import numbers_of

from minialign.data.knobs import config_from_dict
from minialign.evaluation.best import Measured, fit_judge, measure
from minialign.evaluation.judges.intervals import rate_interval
from minialign.evaluation.judges.winrates import shares_by_score
from minialign.methods.knobs import DittoConfig
from minialign.model.transformer import CausalLM
from minialign.policy.encode import encode_demonstration
from minialign.policy.knobs import SamplingConfig
from minialign.policy.sample import Completion
from minialign.weights.load import load
from minialign.weights.tokenizer import Tokenizer

RESULTS = Path(__file__).parent / "results" / "best_of.jsonl"
ARMS = ("SFT",)


# ---- one author ----


def choices(
    model: CausalLM, tokenizer: Tokenizer, author: Author, line: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """By arm and split: what each answer's place loses to, and how surprising each answer is."""
    config = config_from_dict(DittoConfig, line["config"])
    learned = author.cut("train")
    encoded = [encode_demonstration(d, tokenizer, config.max_length)[0] for d in learned]
    limit = config.fitted(max(len(e.completion_ids) for e in encoded)).sampling.max_new_tokens
    judge = fit_judge(model, tokenizer, learned, SamplingConfig(limit), line["seed"])
    found: dict[str, Any] = {"can_judge": judge.can_judge, "auc": round(judge.auc, 4), "arms": {}}
    for arm in ARMS:
        texts = json.loads(answers_file(folder, line, arm).read_text(encoding="utf-8"))
        found["arms"][arm] = {}
        for split in UNSEEN:
            measured = [
                measure(
                    model,
                    judge,
                    learned,
                    tokenizer.encode_prompt(d.messages),
                    [completion(text, tokenizer, limit) for text in texts[d.prompt]],
                )
                for d in author.cut(split)
            ]
            found["arms"][arm][split] = {
                "picks": [each_left_out(one) for one in measured],
                "surprise": [np.round(one.surprise, 4).tolist() for one in measured],
            }
    return found


def completion(text: str, tokenizer: Tokenizer, limit: int) -> Completion:
    """An answer of `limit` tokens at most, as it was before only its text was kept."""
    ids = tuple(tokenizer.encode_completion(text))
    cut = len(ids) > limit
    return Completion(text, ids[:limit], 0.0, "length" if cut else "stop")


def each_left_out(measured: Measured) -> list[int]:
    """For each answer the best of the others."""
    places = range(len(measured.style))
    return [measured.best([other for other in places if other != one]).place for one in places]


# ---- the table ----


def wins(judged: Judged, chosen: dict[str, Any], arm: str) -> np.ndarray:
    """(prompts,): how often the best of the others beats an answer."""
    rates = []
    for split, found in chosen["arms"][arm].items():
        for scores, picks in zip(judged.scores(arm, split), found["picks"], strict=True):
            shares = shares_by_score(scores[picks][None], scores[None])[0]
            rates.append(shares.diagonal().mean())
    return np.array(rates)


def win_rate(judged: list[Judged], chosen: dict[str, Any], arm: str) -> Rate:
    """One judge's, over the authors that it can judge."""
    able = [one for one in judged if one.line["can_judge"]]
    if not able:
        return Rate(np.nan, np.nan, np.nan, 0, len(judged))
    found = [wins(one, chosen[one.line["key"]], arm) for one in able]
    means = np.array([rates.mean() for rates in found])
    low, high = rate_interval(means, float(np.mean([len(rates) for rates in found])))
    return Rate(float(means.mean()), low, high, len(able), len(judged))


def surprise(chosen: dict[str, Any], arm: str) -> tuple[float, float]:
    """The base model's nats per token on one answer and on the best of seven, over authors."""
    one, best = [], []
    for line in chosen.values():
        for found in line["arms"][arm].values():
            for values, picks in zip(found["surprise"], found["picks"], strict=True):
                one.append(np.mean(values))
                best.append(np.mean([values[place] for place in picks]))
    return float(np.mean(one)), float(np.mean(best))


def report(lines: Lines, study: Lines, verdicts: Lines) -> str:
    chosen = {line["key"]: line for line in lines}
    judged = [one for one in joined(study, verdicts) if one.line["key"] in chosen]
    rows = []
    for arm, fitted in itertools.product(ARMS, (UNSEEN_FIT, USUAL)):
        kinds = [of_kind(judged, judge, fitted) for judge in judges_of(judged)]
        cells = [str(win_rate(kind, chosen, arm)) for kind in kinds]
        one, best = surprise(chosen, arm)
        rows.append([arm, fitted, *cells, f"{one:.2f}", f"{best:.2f}"])
    head = ["answers of", "judges by", *judges_of(judged), "nats, one answer", "nats, the best"]
    return table(head, rows)


# ---- the command ----


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="a folder of authorNN.jsonl")
    parser.add_argument("--answers", type=Path, help="the answers that reproduce_ditto.py kept")
    parser.add_argument("--authors", default="0-5")
    parser.add_argument("--report", action="store_true", help="the table again")
    options = parser.parse_args()
    study = read_lines(STUDY)
    if not options.report:
        if not (options.data and options.answers):
            parser.error("give --data and --answers")
        measure_all(study, options)
    print(report(read_lines(RESULTS), study, read_lines(judged_beside(STUDY))))


def measure_all(study: Lines, options: argparse.Namespace) -> None:
    """A line an author, written as it comes; what is there is not measured again."""
    known = {line["key"] for line in read_lines(RESULTS)}
    opened = cache(load)
    for number in numbers_of(options.authors):
        name = f"{options.data.name}/author{number:02}"
        todo = {key_of(line): line for line in study if line["author"] == name}
        for key, line in todo.items():
            if key in known:
                continue
            everyone = read_authors(options.data, line["words"])
            (author,) = [a for a in everyone if (a.name, a.hash) == (name, line["texts"])]
            found = choices(*opened(line["model"]), author, line, options.answers)
            append(RESULTS, {"key": key, "author": name, **found})
            print(name, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
