"""How fast and how lean is minialign, next to the tools that people use?

    make bench                                   # everything, two hours on two cores
    python benchmarks/speed.py --only head,decode --rounds 1    # these sections anew
    python benchmarks/speed.py --report          # the table and plots again, from the results

Every figure is the median of several processes (contestants/), in which the contestants take
turns, with their smallest and largest value. A section counts only if its contestants computed the
same thing: gradients and log-probabilities agree to a relative error of 1e-4 in float32, greedy
texts token by token. Our own rows in other types are told by how much they differ. The limits of
the machine are measured in the same run. Results go to benchmarks/results/MACHINE.json, the table
and the plots to benchmarks/speed.md and benchmarks/results/. A contestant that is not installed is
left out, and the table says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minialign.weights.find import find_checkpoint
from minialign.weights.wheel import DEFAULT_ALIAS

HERE = Path(__file__).parent
RESULTS = HERE / "results"
NEEDS = {"trl": "trl", "transformers": "transformers", "llama.cpp": "llama_cpp"}
TOLERANCE = 1e-4  # of gradients, in float32


@dataclass(frozen=True)
class Row:
    """One contestant at one piece of work."""

    title: str
    contestant: str
    task: str
    flags: tuple[str, ...] = ()
    tuned: bool = False  # its C library keeps freed memory

    @property
    def name(self) -> str:
        text = "-".join((self.task, self.contestant, *self.flags, "tuned" * self.tuned))
        return re.sub(r"[^a-z0-9.]+", "-", text.lower())


@dataclass
class Section:
    """Rows that do the same work; the first is ours."""

    key: str
    heading: str
    unit: str  # "s" a step, or "tokens/s"
    rows: list[Row] = field(default_factory=list)


MACHINE = Row("machine", "this", "machine")


def sections() -> list[Section]:
    known, one = ("--precomputed",), ("--batch", "1")
    again = ("--checkpointing",)
    lean = ("--micro-batch-tokens", "512", "--checkpointing", "full")
    trl_lean = (*one, "--gradient-checkpointing")
    mixed, in_int8 = ("--dtype", "bfloat16"), ("--rollout-dtype", "int8")
    found = []
    for task, heading in (
        ("dpo", "A DPO step on 4 pairs, no text twice"),
        ("ditto", "A DITTO step: 24 pairs (17 + 5 + 2) from 8 demonstrations"),
    ):
        # Padded fours are slower for TRL where texts differ in length: seen in the first section.
        slower = [Row("TRL + PEFT, 4 pairs at a time", "trl", task)] if task == "dpo" else []
        rows = [
            Row("minialign", "minialign", task),
            Row("minialign, mixed precision", "minialign", task, mixed),
            *slower,
            Row("TRL + PEFT, one pair at a time, tuned", "trl", task, one, tuned=True),
            Row("the same, bf16", "trl", task, (*one, *mixed), tuned=True),
            Row("minialign, references known", "minialign", task, known),
            Row("TRL + PEFT, known, one pair, tuned", "trl", task, (*one, *known), tuned=True),
            Row("minialign, nothing computed again", "minialign", task, (*again, "none")),
            Row("minialign, layers computed again", "minialign", task, (*again, "full")),
            Row("minialign, leanest", "minialign", task, lean),
            Row("TRL + PEFT, leanest, tuned", "trl", task, trl_lean, tuned=True),
        ]
        found.append(Section(task, heading, "s", rows))
    rollouts = [
        Row("minialign", "minialign", "rollouts"),
        Row("minialign, int8", "minialign", "rollouts", (*mixed, *in_int8)),
        Row("minialign, mixed precision", "minialign", "rollouts", mixed),
        Row("transformers", "transformers", "rollouts"),
        Row("transformers, bfloat16", "transformers", "rollouts", mixed),
    ]
    heading = "Rollouts: 8 prompts, 10 samples each, up to 200 tokens"
    found.append(Section("rollouts", heading, "tokens/s", rollouts))
    for count in (1, 8, 16, 40, 80):
        flags = ("--rows", str(count))
        rows = [
            Row("minialign", "minialign", "decode", flags),
            Row("minialign, mixed precision", "minialign", "decode", (*flags, *mixed)),
            Row("minialign, int8", "minialign", "decode", (*flags, *mixed, *in_int8)),
            Row("transformers", "transformers", "decode", flags),
            Row("transformers, bfloat16", "transformers", "decode", (*flags, *mixed)),
            Row("llama.cpp, 8 bits", "llama.cpp", "decode", (*flags, "--bits", "8")),
            Row("llama.cpp, 16 bits", "llama.cpp", "decode", (*flags, "--bits", "16")),
            Row("llama.cpp, 32 bits", "llama.cpp", "decode", (*flags, "--bits", "32")),
        ]
        heading = f"Writing, {count} row{'s' * (count > 1)}, 64 tokens each"
        found.append(Section("decode", heading, "tokens/s", rows))
    for n, d, v in ((1000, 576, 49152), (2000, 4096, 32000)):
        flags = ("-n", str(n), "-d", str(d), "-v", str(v))
        names = ("minialign", "plain", "recomputing", "trl")
        rows = [Row("TRL, chunked" if c == "trl" else c, c, "head", flags) for c in names]
        heading = f"linear_logps, N = {n:,}, D = {d:,}, V = {v:,}, both ways"
        found.append(Section("head", heading, "s", rows))
    return found


# What PyTorch's tuning guide recommends another allocator for: freed memory is kept for reuse.
TUNED = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}

GROWTH = {
    "demonstrations": ("--demonstrations", (1, 5, 20, 50)),
    "tokens a completion": ("--length", (64, 256, 1024, 2048)),
    "samples a prompt": ("--samples", (1, 8, 64)),
}


def run(row: Row, model: str, scratch: Path) -> dict[str, Any]:
    """One process. What it says goes to a log beside the result."""
    target = scratch / f"{row.name}.json"
    target.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "contestants"), row.task, row.contestant, str(target)]
    command += ["--model", model, *row.flags]
    environment = os.environ | (TUNED if row.tuned else {})
    with open(scratch / f"{row.name}.log", "w") as log:
        subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
    if not target.exists():
        tail = Path(log.name).read_text().strip().splitlines()[-3:]
        raise SystemExit(f"{row.title}, {row.task}: failed:\n" + "\n".join(tail))
    return json.loads(target.read_text())


def measure(section: Section, model: str, rounds: int, scratch: Path) -> dict[str, Any]:
    """Every row in turn, `rounds` times over."""
    there = [row for row in section.rows if installed(row.contestant)]
    seen: dict[str, list[dict[str, Any]]] = {row.name: [] for row in there}
    for number in range(rounds):
        for row in there:
            print(f"  {number + 1}/{rounds}  {row.title}", file=sys.stderr, flush=True)
            seen[row.name].append(run(row, model, scratch))
    rows = []
    for row in there:
        results = seen[row.name]
        entry = {"title": row.title, "contestant": row.contestant, "flags": list(row.flags)}
        entry |= {"values": values(results, section.unit)}
        peaks = [r["peak_bytes"] for r in results if r.get("peak_bytes")]
        entry |= {"peak_bytes": statistics.median(peaks) if peaks else None}
        entry |= {"error": disagreement(row, section.rows[0], results, seen, scratch)}
        entry |= {"computed_tokens": results[0].get("computed_tokens")}
        rows.append(entry)
    whole = {"key": section.key, "heading": section.heading, "unit": section.unit}
    return whole | {"rows": rows, "machine": run(MACHINE, model, scratch)}


def installed(contestant: str) -> bool:
    return contestant not in NEEDS or importlib.util.find_spec(NEEDS[contestant]) is not None


def values(results: list[dict[str, Any]], unit: str) -> list[float]:
    if unit == "s":
        return [seconds for result in results for seconds in result["seconds"]]
    return [
        written / seconds
        for result in results
        for written, seconds in zip(result["written"], result["seconds"], strict=True)
    ]


def disagreement(
    row: Row,
    ours: Row,
    results: list[dict[str, Any]],
    seen: dict[str, list[dict[str, Any]]],
    scratch: Path,
) -> float:
    """How far a row's result is from ours: gradients relatively, texts by differing tokens."""
    if "greedy" in results[0]:
        own = seen[ours.name][0]["greedy"]
        return sum(
            abs(len(x) - len(y)) + sum(a != b for a, b in zip(x, y, strict=False))
            for result in results
            for x, y in zip(own, result["greedy"], strict=True)
        )
    import torch

    mine = torch.load(scratch / f"{ours.name}.pt")
    theirs = torch.load(scratch / f"{row.name}.pt")
    assert mine.keys() == theirs.keys(), (mine.keys() ^ theirs.keys(), row)
    gap = sum(float((mine[k].double() - theirs[k].double()).square().sum()) for k in mine)
    whole = sum(float(mine[k].double().square().sum()) for k in mine)
    return (gap / whole) ** 0.5


def worst_of(rows: list[dict[str, Any]]) -> float:
    """The largest difference in float32."""
    return max(row["error"] for row in rows if precision(row) == "float32")


def precision(row: dict[str, Any]) -> str:
    """What a row computes in: the narrowest of its types."""
    text = " ".join([row["title"], *row["flags"]])
    if re.search(r"int8|\b8 bits", text):
        return "int8"
    return "bfloat16" if re.search(r"bfloat16|bf16|mixed|16 bits", text) else "float32"


# ---- the report ----


def table(found: dict[str, Any]) -> str:
    some = found["sections"][0]["machine"]
    limits = {
        key: [section["machine"][key] for section in found["sections"]]
        for key in ("matmul_flops", "product_flops", "read_bytes")
    }
    low = {key: f"{min(x) / 1e9:,.0f} to {max(x) / 1e9:,.0f}" for key, x in limits.items()}
    lines = [
        f"Measured on {some['processor']}, {some['threads']} threads, torch {some['torch']}, in "
        f"float32. The machine's own limits, measured with every section: a product of two 2048 x "
        f"2048 matrices, {low['matmul_flops']} GFLOP/s as PyTorch does it and "
        f"{low['product_flops']} as minialign does it; reading memory, {low['read_bytes']} GB/s. "
        "The share of the limit is of the faster product, or of reading every weight once a token "
        "where that share is larger.",
        "",
        "| | median (least to most) | against minialign | GFLOP/s | of the limit "
        "| peak above the loaded model | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for section in found["sections"]:
        lines.append(f"| **{section['heading']}** | {section['unit']} | | | | | |")
        lines += [_line(row, section) for row in section["rows"]]
    return "\n".join(lines)


def _line(row: dict[str, Any], section: dict[str, Any]) -> str:
    median = statistics.median(row["values"])
    rival = _ours_like(row, section)
    ratio = median / statistics.median(rival["values"])
    if section["unit"] == "tokens/s":
        ratio = 1 / ratio
    against = f"{ratio:.1f} x slower" if ratio >= 1 else f"{1 / ratio:.1f} x faster"
    digits = 2 if median < 10 else 1 if median < 100 else 0
    low, middle, high = (
        f"{x:.{digits}f}" for x in (min(row["values"]), median, max(row["values"]))
    )
    flops = flops_of(row, section, median)
    peak = "" if not row["peak_bytes"] else f"{row['peak_bytes'] / 1e9:.2f} GB"
    if peak and row is not rival and rival["peak_bytes"]:
        peak += f", {row['peak_bytes'] / rival['peak_bytes']:.1f} x"
    cells = (
        row["title"],
        f"{middle} ({low} to {high})",
        "" if row is rival else against,
        f"{flops / 1e9:,.0f}",
        f"{share_of_limit(row, section, median):.0%}",
        peak,
        "" if row is section["rows"][0] else f"{row['error']:.0e}" if row["error"] else "none",
    )
    return f"| {' | '.join(cells)} |"


def share_of_limit(row: dict[str, Any], section: dict[str, Any], median: float) -> float:
    """Of the fastest product, or of reading all weights for each step of writing."""
    machine = section["machine"]
    computing = flops_of(row, section, median) / machine["product_flops"]
    if "--rows" not in row["flags"]:
        return computing
    rows = int(row["flags"][row["flags"].index("--rows") + 1])
    bytes_each = {"int8": 1, "bfloat16": 2, "float32": 4}[precision(row)]
    return max(computing, bytes_each * PARAMETERS * median / rows / machine["read_bytes"])


def _ours_like(row: dict[str, Any], section: dict[str, Any]) -> dict[str, Any]:
    """Our row to compare with: of the same precomputation or precision, or the leanest."""
    ours = [r for r in section["rows"] if r["contestant"] == "minialign"]
    for mark in ("--precomputed", "--gradient-checkpointing"):
        if mark in row["flags"]:
            wanted = "--micro-batch-tokens" if mark == "--gradient-checkpointing" else mark
            return next(r for r in ours if wanted in r["flags"])
    if row["contestant"] == "minialign":
        return ours[0]
    return next((r for r in ours if precision(r) == precision(row)), ours[0])


PARAMETERS = 134_515_008  # SmolLM2-135M: the weights that a written token is multiplied with


def flops_of(row: dict[str, Any], section: dict[str, Any], median: float) -> float:
    """Work a second, of the matrices alone: without attention, and without what is made twice."""
    if section["unit"] == "tokens/s":
        return 2 * PARAMETERS * median
    if row["computed_tokens"]:  # forward, back through frozen weights, and the reference's forward
        passes = 2 + ("--precomputed" not in row["flags"])
        return 2 * passes * PARAMETERS * row["computed_tokens"] / median
    if section["key"] == "head":
        n, d, v = (int(row["flags"][i]) for i in (1, 3, 5))
        return 4 * n * d * v / median
    raise ValueError(section["key"])


def plots(found: dict[str, Any], target: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "minialign"  # the same figures give the same file
    figure, axes = plt.subplots(2, len(GROWTH), figsize=(11, 5.2))
    for column, name in enumerate(GROWTH):
        points = found["growth"][name]
        where = [int(value) for value in points]
        for axis, key, label in (
            (axes[0][column], "seconds", "seconds a step"),
            (axes[1][column], "gigabytes", "GB above the model"),
        ):
            axis.plot(where, [points[v][key] for v in points], marker="o", color="#2b6cb0")
            axis.set_xscale("log", base=2)
            axis.set_xticks(where, [str(v) for v in where])
            axis.set_ylim(bottom=0)
            axis.grid(alpha=0.3)
            if column == 0:
                axis.set_ylabel(label)
        axes[1][column].set_xlabel(name)
    figure.suptitle(
        "A DITTO step of 24 comparisons as the work grows (else 8 demonstrations of 250 tokens)"
    )
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})


def write_report(found: dict[str, Any], target: Path) -> None:
    page = HERE / "speed.md"
    image = target.with_suffix(".svg")
    picture = f"\n![As the work grows]({image.relative_to(HERE)})\n" if found["growth"] else ""
    if found["growth"]:
        plots(found, image)
    head = (
        page.read_text().split("<!-- measured -->")[0]
        if page.exists()
        else "# Speed and memory\n\n"
    )
    body = f"<!-- measured -->\n\n{table(found)}\n{picture}"
    page.write_text(head + body)
    print(table(found))


def machine_name() -> str:
    sys.path.insert(0, str(HERE))
    from contestants.machine import processor

    return re.sub(r"[^a-z0-9]+", "-", processor().lower()).strip("-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=DEFAULT_ALIAS)
    parser.add_argument(
        "--only", default="", help="sections: dpo, ditto, rollouts, decode, head, growth"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--report", action="store_true", help="measure nothing, write the report")
    options = parser.parse_args()
    wanted = set(filter(None, options.only.split(",")))
    target = RESULTS / f"{machine_name()}.json"
    found = json.loads(target.read_text()) if target.exists() else {"sections": [], "growth": {}}
    if not options.report:
        options.model = str(find_checkpoint(options.model))
        with tempfile.TemporaryDirectory() as scratch:
            collect(found, wanted, options, Path(scratch), target)
    if not found["sections"]:
        raise SystemExit(f"{target}: nothing measured yet")
    write_report(found, target)


def collect(
    found: dict[str, Any],
    wanted: set[str],
    options: argparse.Namespace,
    scratch: Path,
    target: Path,
) -> None:
    """Results are kept as they come: an interrupted run loses one section."""
    known = {section["heading"]: section for section in found["sections"]}
    run(Row("prepare", "this", "prepare"), options.model, scratch)
    for section in sections():
        if wanted and section.key not in wanted:
            continue
        print(section.heading, file=sys.stderr, flush=True)
        known[section.heading] = measure(section, options.model, options.rounds, scratch)
        worst = worst_of(known[section.heading]["rows"])
        if worst > TOLERANCE:
            raise SystemExit(f"{section.heading}: results differ by {worst:.1e}: not comparable")
        order = [s.heading for s in sections()]
        found["sections"] = sorted(known.values(), key=lambda s: order.index(s["heading"]))
        target.write_text(json.dumps(found, indent=1) + "\n")
    if not wanted or "growth" in wanted:
        for name, (flag, amounts) in GROWTH.items():
            found["growth"][name] = {}
            for amount in amounts:
                print(f"{amount} {name}", file=sys.stderr, flush=True)
                row = Row(f"{amount}", "minialign", "ditto", (flag, str(amount)))
                results = [run(row, options.model, scratch) for _ in range(options.rounds)]
                peaks = [r["peak_bytes"] for r in results if r["peak_bytes"]]
                found["growth"][name][str(amount)] = {
                    "seconds": statistics.median(t for r in results for t in r["seconds"]),
                    "gigabytes": statistics.median(peaks) / 1e9 if peaks else None,
                    "tokens": results[0]["computed_tokens"],
                }
                target.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
