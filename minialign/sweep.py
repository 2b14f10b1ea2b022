"""A grid of runs: every combination of the knobs' values, each in a folder of its own.

    python train.py --demos emails.jsonl --sweep learning_rate=1e-4,3e-4 --sweep beta=0.05,0.1

The folders lie in --out and are named after their values, `beta=0.05 learning_rate=0.0001`, so that
a sweep that was interrupted goes on: what is finished is not trained again.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence as SequenceABC
from pathlib import Path
from typing import Any

from minialign.errors import InputError

SHORT = {"lr": "learning_rate"}
SHOWN = (  # name of a metric, its column
    ("loss", "loss"),
    ("rewards/margins", "margin"),
    ("eval/nats_per_token", "unseen nats"),
    ("eval/rewards/margins", "unseen margin"),
    ("eval/nll/out", "nll out"),
    ("eval/nll/near", "nll near"),
)


def grid(sweep: SequenceABC[str]) -> list[dict[str, str]]:
    """`beta=0.05`, `0.1` (the same knob's next value), `lr=1e-4` -> every combination, as flags.

    Raises InputError for a value without a knob, or a knob that is given twice.
    """
    values: dict[str, list[str]] = {}
    name = ""
    for part in sweep:
        key, equals, value = part.partition("=")
        if equals:
            name = SHORT.get(key.strip(), key.strip().replace("-", "_"))
            if name in values:
                raise InputError(
                    f"--sweep {part}: {name} is swept already: give all values at once"
                )
            values[name] = []
        if not name or not (value if equals else part).strip():
            raise InputError(f"--sweep {part}: write KNOB=VALUE,VALUE")
        values[name].append((value if equals else part).strip())
    names = sorted(values)
    return [
        dict(zip(names, combination, strict=True))
        for combination in itertools.product(*(values[name] for name in names))
    ]


def folder_name(point: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in point.items()).replace("/", "_")


def is_finished(folder: Path) -> bool:
    return (folder / "adapter" / "adapter_config.json").exists()


def summary(folders: SequenceABC[Path]) -> str:
    """A line a run: what it ended with."""
    rows: list[tuple[str, dict[str, Any]]] = []
    for folder in folders:
        last: dict[str, Any] = {}
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            last |= {k: v for k, v in json.loads(line).items() if v is not None}
        rows.append((folder.name, last))
    shown = [(key, title) for key, title in SHOWN if any(key in last for _, last in rows)]
    width = max(len(name) for name, _ in rows) + 2
    lines = [" " * width + "".join(f"{title:>15}" for _, title in shown)]
    for name, last in rows:
        cells = (f"{last[key]:>15.3f}" if key in last else f"{'-':>15}" for key, _ in shown)
        lines.append(f"{name:{width}}" + "".join(cells))
    return "\n".join(lines)
