"""What --anchors buys: a voice that is learned with less forgetting.

    python benchmarks/anchors.py --data DIR --authors 4,9
    python benchmarks/anchors.py --report

The authors, texts and style judge of reproduce_ditto.py. Drift is the divergence from the base
model, KL(base || policy) in nats per token, along the base model's own answers to general prompts,
none of which anchors the model in training. Results go to benchmarks/results/anchors.jsonl, a line
for each author and arm, the table to benchmarks/anchors.md.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import reproduce_ditto as ditto
from ditto_tables import compared, read_results, scores_by_arm, write_measured

HERE = Path(__file__).parent
PAGE, RESULTS = HERE / "anchors.md", HERE / "results" / "anchors.jsonl"
ARMS = ("SFT", "DITTO", "anchors 0.5", "anchors 1")


def table(lines: list[dict[str, Any]]) -> str:
    """An arm a row: its style against DITTO's and SFT's, and how far it moved."""
    found = scores_by_arm(lines)
    usual = mean(lines, "DITTO", "drift")
    rows = [
        "| | style, against DITTO | style, against SFT | nats per token, unseen texts | drift "
        "| of DITTO's drift |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for arm in ARMS:
        against = [compared(found, arm, [rival]) for rival in ("DITTO", "SFT")]
        if None in against:
            continue
        moved = mean(lines, arm, "drift")
        rates = " | ".join(
            "-" if arm == rival else str(rate)
            for rival, rate in zip(("DITTO", "SFT"), against, strict=True)
        )
        nats = mean(lines, arm, "nats")
        rows.append(f"| {arm} | {rates} | {nats:.3f} | {moved:.3f} | {moved / usual:.0%} |")
    return "\n".join(rows)


def mean(lines: list[dict[str, Any]], arm: str, key: str) -> float:
    return float(np.mean([line[key] for line in lines if line["arm"] == arm]))


def main() -> None:
    options = ditto.parse_options(__doc__, RESULTS)
    if not options.report:
        options.arms = options.arms or ",".join(ARMS)
        ditto.measure(options)
    lines = read_results(options.results)
    if not lines:
        sys.exit("nothing measured yet: --data DIR")
    if options.results == RESULTS:
        write_measured(PAGE, "# Anchors", table(lines))
    print(table(lines))


if __name__ == "__main__":
    main()
