"""A grid of runs: every combination of the knobs' values, each in a folder of its own.

    python train.py --demos emails.jsonl --out runs/grid --sweep lr=1e-4,3e-4 --sweep beta=0.05,0.1

The folders lie in --out and are named after their values, `beta=0.05 learning_rate=0.0001`, so that
a sweep that was interrupted goes on: the same command resumes the run that was cut short, and what
is finished is not trained again. A folder that holds another run than the one wanted is refused.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence as SequenceABC
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minialign.data.knobs import config_from_dict, flags_of
from minialign.errors import InputError
from minialign.training.folder import read_run_record
from minialign.training.knobs import TrainOptions

if TYPE_CHECKING:
    from minialign.commands.job import AnyJob


SHORT = {"lr": "learning_rate"}
SHOWN = (  # name of a metric, its column
    ("loss", "loss"),
    ("rewards/margins", "margin"),
    ("eval/nats_per_token", "unseen nats"),
    ("eval/rewards/margins", "unseen margin"),
    ("eval/nll/out", "nll out"),
    ("eval/nll/near", "nll near"),
    ("eval/kl/out", "kl out"),
    ("eval/kl/near", "kl near"),
)

# Options that may differ between two calls of one sweep: where and how it runs. The recipe is told
# by the knobs that it comes to, the precision by the record's own entry.
FREE = {"out", "sweep", "resume", "overwrite", "inspect", "recipe", "device", "dtype"}
RECORDED = {  # entries of config.json beside options and knobs, and what they are called
    "demos_sha256": "the text of --demos",
    "data_sha256": "the text of --data",
    "dtype": "dtype",
}


def grid(sweep: SequenceABC[str]) -> list[dict[str, str]]:
    """`beta=0.05`, `0.1` (the same knob's next value), `lr=1e-4` -> every combination, as flags.

    Raises InputError for a value without a knob, or a knob or a value that is given twice.
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
        own = (value if equals else part).strip()
        if _number(own) in map(_number, values[name]):
            raise InputError(f"--sweep {name}: {own} is given twice: leave it in once")
        values[name].append(own)
    names = sorted(values)
    return [
        dict(zip(names, combination, strict=True))
        for combination in itertools.product(*(values[name] for name in names))
    ]


def _number(text: str) -> float | str:
    """What makes two values one: 1e-4 is 0.0001."""
    try:
        return float(text)
    except ValueError:
        return text


def folder_name(point: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in point.items()).replace("/", "_")


def is_finished(folder: Path) -> bool:
    """Whether a run has its adapter and no state to go on from: that is removed at the very end."""
    return (folder / "adapter" / "adapter_config.json").exists() and not can_go_on(folder)


def can_go_on(folder: Path) -> bool:
    return (folder / "state" / "state.safetensors").exists()


def check_same(folder: Path, job: AnyJob) -> None:
    """Raises InputError, naming what differs, where `folder` holds another run than `job` is."""
    differing = _differing(read_run_record(folder), job)
    if differing:
        raise InputError(
            f"{folder}: holds another run, which differs in {', '.join(differing)}: "
            "choose another --out, or add --overwrite"
        )


def _differing(record: dict[str, Any], job: AnyJob) -> list[str]:
    """The options, else the knobs and texts, that are not the same: a method brings its knobs."""
    options = config_from_dict(TrainOptions, record["options"])
    if names := [name for name in _changed(options, job.options) if name not in FREE]:
        return names
    planned = job.record()
    texts = [said for key, said in RECORDED.items() if record.get(key) != planned.get(key)]
    return [*texts, *_changed(config_from_dict(type(job.config), record["knobs"]), job.config)]


def _changed(before: Any, now: Any) -> list[str]:
    """The flags by which two configs of one class differ."""
    return [
        flag.name
        for flag in flags_of(type(now))
        if reduce(getattr, flag.path, before) != reduce(getattr, flag.path, now)
    ]


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
