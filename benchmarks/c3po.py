"""C3PO's Table 2 (arXiv 2402.10893) on the feedbacks that come with minialign.

    python benchmarks/c3po.py                 # three feedbacks, two seeds: three hours on 2 cores
    python benchmarks/c3po.py examples/c3po/cheers --seeds 1 --methods c3po,sft
    python benchmarks/c3po.py --report        # the tables again, from the results
    python benchmarks/c3po.py data/a data/b   # your own: one table over all of them

Every method is trained by train.py and all are evaluated together by evaluate.py, as a person would
do it, with the same knobs but for a row's own; in-context prompting and chain of thought stand in
the data. A run that is there already is not trained again. Results go to
benchmarks/results/c3po.jsonl, a line for each feedback and seed, the tables to benchmarks/c3po.md;
those of your own folders to results.jsonl in --work. No knob is tuned on the test prompts.

Where feedback.json holds a second check, of which whatever made the revisions knew nothing, S_in is
scored by that as well.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minialign.data.checks import score_response
from minialign.data.feedback import hash_of, load_feedback_data
from minialign.data.files import replace_whole
from minialign.data.records import FEEDBACK
from minialign.methods.cards import card_of

HERE = Path(__file__).parent
ROOT = HERE.parent
EXAMPLES = ROOT / "examples" / "c3po"
PAGE, RESULTS = HERE / "c3po.md", HERE / "results" / "c3po.jsonl"


@dataclass(frozen=True)
class Trained:
    """A row of the table that train.py makes; `knobs` are KNOB=VALUE besides the common ones."""

    title: str
    method: str
    knobs: tuple[str, ...] = ()


TRAINED = {
    "c3po": Trained("C3PO", "c3po"),
    "dpo": Trained("DPO alone", "dpo", ("learning_rate=1e-3",)),
    "dpo-gentle": Trained("DPO alone, lower rate", "dpo", ("learning_rate=1e-4",)),
    "sft": Trained("SCD", "sft"),
    "sft-weighted": Trained("SCD + negatives", "sft-weighted"),
}
ORDER = (
    *("base, again", "in-context", "in-context + CoT"),
    *("sft", "sft-weighted", "dpo", "dpo-gentle", "c3po"),
)
PAPER = {  # S_in, S_out, S_overall of Table 2
    "in-context": (0.677, 0.503, 0.587),
    "in-context + CoT": (0.402, 0.246, 0.578),
    "sft": (0.470, 0.269, 0.6005),
    "sft-weighted": (0.367, 0.133, 0.617),
    "dpo": (0.326, 0.517, 0.4045),
    "dpo-gentle": (0.326, 0.517, 0.4045),
    "c3po": (0.563, 0.150, 0.7065),
}


def command(script: str, *arguments: str | Path) -> None:
    subprocess.run([sys.executable, ROOT / script, *map(str, arguments)], check=True, cwd=ROOT)


def measure(data: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Trains what is missing and evaluates everything together."""
    name = f"{data.resolve().name}-{hash_of(str(data))[:8]}"
    folder = options.work / "-".join([name, str(seed), *sorted(options.set)])
    runs = []
    for name in options.methods:
        row = TRAINED[name]
        run = folder / name
        if not (run / "adapter" / "adapter_config.json").exists():
            command(
                "train.py",
                *("--method", row.method, "--data", data.resolve(), "--out", run),
                *("--seed", str(seed), "--model", options.model, "--recipe", "laptop"),
                *(["--overwrite"] if run.exists() else []),
                *(part for k in (*options.set, *row.knobs) for part in knob_flag(k, row.method)),
            )
        runs.append(run)
    command("evaluate.py", *runs, "--seed", str(seed), "--n", str(options.n))
    found = json.loads((runs[0] / "evaluation.json").read_text(encoding="utf-8"))
    for name, values in second_scores(data, found).items():
        found["methods"][name]["s_in_second"] = {"value": sum(values) / len(values)}
    return {
        "methods": found["methods"],
        "scored": found["scored"],
        "words": {method: words_in_scope(found, method) for method in found["methods"]},
        "seconds": {name: train_seconds(folder / name) for name in options.methods},
    }


def second_scores(data: Path, found: dict[str, Any]) -> dict[str, list[float]]:
    """Of each method's answers in scope, by the second check; empty where there is none."""
    checks = load_feedback_data(data).second_checks
    lines = found["scopes"]["in_scope"] if checks else []
    scores: dict[str, list[float]] = {}
    for line in lines:
        for method, answers in line["answers"].items():
            new = [score_response(checks, answer, line["baseline"]) for answer in answers]
            scores.setdefault(method, []).extend(new)
    return scores


def words_in_scope(found: dict[str, Any], method: str) -> float:
    """Of an answer; what follows the feedback and says nothing else shows here."""
    answers = [text for line in found["scopes"]["in_scope"] for text in line["answers"][method]]
    return sum(len(text.split()) for text in answers) / len(answers)


def knob_flag(knob: str, method: str) -> tuple[str, ...]:
    """For train.py; none for a knob that the method fixes or never reads."""
    name, _, value = knob.partition("=")
    card = card_of(method, FEEDBACK)
    if name in card.fixed or name in card.unread:
        return ()
    return "--" + name.replace("_", "-"), value


def train_seconds(run: Path) -> float:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    return sum(lines[-1]["seconds"].values())


def read_results(file: Path = RESULTS) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.open()] if file.exists() else []


def write_results(lines: list[dict[str, Any]], file: Path) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    file.parent.mkdir(parents=True, exist_ok=True)
    replace_whole(file, lambda path: path.write_text(text))


SECOND = "s_in_second"


def mean_row(lines: list[dict[str, Any]], method: str, with_second: bool) -> str:
    """The mean over feedbacks and seeds, with its standard error over them."""
    found = [line["methods"][method] for line in lines if method in line["methods"]]
    cells = []
    for key in ("s_in", "s_out", "s_near", "s_far"):
        cells.append(with_error([entry[key]["value"] for entry in found]))
    cells.append(with_error([entry["overall"] for entry in found]))
    drifts = [entry["drift"] for entry in found if entry["drift"] is not None]
    cells.append(f"{sum(drifts) / len(drifts):.3f}" if drifts else "-")
    words = [line["words"][method] for line in lines if method in line["words"]]
    cells.append(f"{sum(words) / len(words):.0f}")
    if with_second:
        second = [entry[SECOND]["value"] for entry in found if SECOND in entry]
        cells.append(with_error(second) if second else "-")
    paper = " / ".join(f"{value:.2f}" for value in PAPER[method]) if method in PAPER else "-"
    title = TRAINED[method].title if method in TRAINED else method
    return f"| {title} | {' | '.join(cells)} | {paper} |"


def with_error(values: list[float]) -> str:
    mean = sum(values) / len(values)
    if len(values) < 2:
        return f"{mean:.2f}"
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return f"{mean:.2f} ± {math.sqrt(variance / len(values)):.2f}"


def tables(lines: list[dict[str, Any]]) -> str:
    with_second = any(SECOND in entry for line in lines for entry in line["methods"].values())
    names = ["", "S_in", "S_out", "near", "out of scope", "S_overall", "drift", "words in scope"]
    names += ["S_in, second check"] * with_second + ["paper: in / out / overall"]
    head = f"| {' | '.join(names)} |\n|{' --- |' * len(names)}".replace("|  |", "| |", 1)
    parts = []
    groups = {"All feedbacks": lines}
    groups |= {name: [x for x in lines if x["feedback"] == name] for name in names_of(lines)}
    for title, own in groups.items():
        seeds = len({line["seed"] for line in own})
        methods = [m for m in ORDER if any(m in line["methods"] for line in own)]
        rows = [mean_row(own, method, with_second) for method in methods]
        counts = f"{plural(len(own), 'run')} a method, {plural(seeds, 'seed')}"
        parts.append(f"**{title}** ({counts})\n\n{head}")
        parts[-1] += "\n" + "\n".join(rows)
    return "\n\n".join(parts)


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def names_of(lines: list[dict[str, Any]]) -> list[str]:
    return sorted({line["feedback"] for line in lines})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    everything = sorted(path for path in EXAMPLES.iterdir() if path.is_dir())
    parser.add_argument("folders", nargs="*", type=Path, help="by default all of examples/c3po")
    parser.add_argument("--methods", type=lambda text: text.split(","), default=list(TRAINED))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--n", type=int, default=2, help="answers a test prompt and method")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--set", action="append", default=[], metavar="KNOB=VALUE")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "c3po-runs")
    parser.add_argument("--report", action="store_true", help="train nothing, write the page")
    options = parser.parse_args()
    folders = options.folders or everything
    is_ours = all(EXAMPLES in folder.resolve().parents for folder in folders)
    results = RESULTS if is_ours else options.work / "results.jsonl"
    for seed in range(0 if options.report else options.seeds):
        for folder in folders:
            measure_once(folder, seed, options, results)
    lines = read_results(results)
    if not lines:
        raise SystemExit("nothing measured yet")
    if is_ours:
        head = PAGE.read_text().split("<!-- measured -->")[0] if PAGE.exists() else "# C3PO\n\n"
        PAGE.write_text(f"{head}<!-- measured -->\n\n{tables(lines)}\n")
    print(tables(lines))


def measure_once(folder: Path, seed: int, options: argparse.Namespace, results: Path) -> None:
    """Unless it was measured with the same data; what was measured with other data goes."""
    if not load_feedback_data(folder).checks:
        print(f"{folder}: has no check that a program can verify: left out")
        return
    fixed = {"feedback": folder.resolve().name, "seed": seed, "n": options.n}
    fixed |= {"model": options.model, "set": sorted(options.set)}
    same = [x for x in read_results(results) if all(x[key] == fixed[key] for key in fixed)]
    data = hash_of(str(folder))
    known = [x for x in same if x.get("data") == data]
    if known and all(name in known[0]["methods"] for name in options.methods):
        return
    line = {**fixed, "data": data, **measure(folder, seed, options)}
    write_results([x for x in read_results(results) if x not in same] + [line], results)


if __name__ == "__main__":
    main()
