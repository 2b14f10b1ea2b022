"""A grid of runs: every combination of the knobs' values, each in a folder of its own.

    python train.py --demos emails.jsonl --out runs/grid --sweep lr=1e-4,3e-4 --sweep beta=0.05,0.1
    python train.py --demos emails.jsonl --out runs/pairs --sweep lr:beta=1e-4:0.05,3e-4:0.1

Knobs with colons between go together: the second line makes two runs, the first one four.
The folders lie in --out and are named after their values, `beta=0.05 learning_rate=0.0001`, so that
a sweep that was interrupted goes on: the same command resumes the run that was cut short, and what
is finished is not trained again. A folder that holds another run than the one wanted is refused.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import operator
import shlex
import shutil
import sys
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

from minialign.commands import session
from minialign.commands.job import Job, check_method
from minialign.data.knobs import config_from_dict, flags_of, require
from minialign.errors import InputError
from minialign.evaluation.report.page import write_comparison
from minialign.training import ranks
from minialign.training.collapse import KEPT_UNSEEN, UNSEEN
from minialign.training.folder import read_run_record
from minialign.training.knobs import TrainOptions

SHORT = {"lr": "learning_rate"}
# The name of a metric, and its column.
SHOWN = (
    ("loss", "loss"),
    ("rewards/margins", "margin"),
    (UNSEEN, "unseen nats"),
    ("eval/rewards/margins", "unseen margin"),
    ("eval/nll/out", "nll out"),
    ("eval/nll/near", "nll near"),
    ("eval/kl/out", "kl out"),
    ("eval/kl/near", "kl near"),
    ("seconds", "seconds"),
)

# Options that may differ between two calls of one sweep: where and how it runs. The recipe is told
# by the knobs that it comes to, the precision by the record's own entry.
FREE = {
    *("out", "sweep", "resume", "overwrite", "inspect", "recipe", "device", "dtype"),
    *("base_dtype", "save_every"),
}
# Entries of config.json beside options and knobs, and what they are called.
RECORDED = {
    "demos_sha256": "the text of --demos",
    "data_sha256": "the text of --data",
    "dtype": "dtype",
    "base_dtype": "base_dtype",
}


def run_sweep(options: TrainOptions, given: dict[str, Any]) -> None:
    """All runs are checked before the first one is trained; one page compares them in the end."""
    require(ranks.count() == 1, "--sweep is done by one process: call it with python")
    require(bool(options.out), "--sweep needs --out: the folder that its runs lie in")
    require(not options.inspect, "--inspect shows a single run's tokens: leave out --sweep")
    points = grid(options.sweep)
    for name in points[0]:
        require(name not in given, f"--sweep {name}: leave out --{name.replace('_', '-')}")
    check_method(options, given | points[0])
    if options.feedback:
        options = session.with_data(options, given | points[0])
    folders = [Path(options.out) / folder_name(point) for point in points]
    wanted = zip(points, folders, strict=True)
    run_all([planned(options, given | point, folder) for point, folder in wanted])
    print(f"\n{summary(folders)}\n")
    print(f"on one page: {write_comparison(folders, Path(options.out) / 'comparison.html')}")


def run_all(runs: Sequence[Job | None]) -> None:
    """Those that are not finished, one after the other over one loaded model."""
    # A person who asks for many runs is not asked before each.
    jobs = [dataclasses.replace(job, asks=False) for job in runs if job]
    for job in jobs:
        # Read from the same files: one is enough.
        job.tokenizer.backend = jobs[0].tokenizer.backend
        # Checked: nothing but a run is in there.
        if job.options.overwrite and job.out.exists():
            shutil.rmtree(job.out)
    # After an interruption what is finished stays, also where they began with --overwrite.
    same = shlex.join(part for part in sys.argv if part != "--overwrite")
    base = session.Base()
    for number, job in enumerate(jobs):
        print(f"=== run {number + 1} of {len(jobs)}: {job.out.name} ===", flush=True)
        session.run_job(job, f"python {same}", base)


def planned(options: TrainOptions, given: dict[str, Any], folder: Path) -> Job | None:
    """A run in a folder of its own: a new one, one that goes on, or None where it is finished."""
    own = dataclasses.replace(options, sweep=(), out=str(folder))
    if (folder / "config.json").exists() and not options.overwrite:
        # With inspect it is prepared beside what is there.
        check_same(folder, session.prepare(dataclasses.replace(own, inspect=True), given))
        if is_finished(folder):
            return None
        if can_go_on(folder):
            return session.prepare(TrainOptions(resume=str(folder)), {})
        # It was stopped before it saved anything.
        own = dataclasses.replace(own, overwrite=True)
    return session.prepare(own, given)


def grid(sweep: Sequence[str]) -> list[dict[str, str]]:
    """`beta=0.05`, `0.1` (the same knob's next value), `lr=1e-4` -> every combination, as flags.

    `lr:beta=1e-4:0.05` has a value for each of two knobs, which go together. Raises InputError for
    a value without a knob, or a knob or a value that is given twice.
    """
    axes: list[list[dict[str, str]]] = []
    names: list[str] = []
    for part in sweep:
        key, equals, value = part.partition("=")
        if equals:
            names = _new_names(key, [name for axis in axes for name in axis[0]])
            axes.append([])
        own = [text.strip() for text in (value if equals else part).split(":")]
        if not names or not all(names + own) or len(own) != len(names):
            form = ":".join(["KNOB"] * len(names or [0])), ":".join(["VALUE"] * len(names or [0]))
            raise InputError(f"--sweep {part}: write {form[0]}={form[1]},{form[1]}")
        if [*map(_number, own)] in [[*map(_number, point.values())] for point in axes[-1]]:
            raise InputError(
                f"--sweep {':'.join(names)}: {':'.join(own)} is given twice: leave it in once"
            )
        axes[-1].append(dict(zip(names, own, strict=True)))
    # The order in which knobs are given does not matter.
    ordered = sorted(axes, key=lambda axis: sorted(axis[0]))
    joined = (reduce(operator.or_, points) for points in itertools.product(*ordered))
    return [dict(sorted(point.items())) for point in joined]


def _new_names(key: str, swept: list[str]) -> list[str]:
    """`lr:beta` -> its knobs. Raises InputError for one that is swept already."""
    names: list[str] = []
    for text in key.split(":"):
        name = SHORT.get(text.strip(), text.strip().replace("-", "_"))
        if name in (*swept, *names):
            raise InputError(f"--sweep {key}: {name} is swept already: give all values at once")
        names.append(name)
    return names


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


def check_same(folder: Path, job: Job) -> None:
    """Raises InputError, naming what differs, where `folder` holds another run than `job` is."""
    differing = _differing(read_run_record(folder), job)
    if differing:
        raise InputError(
            f"{folder}: holds another run, which differs in {', '.join(differing)}: "
            "choose another --out, or add --overwrite"
        )


def _differing(record: dict[str, Any], job: Job) -> list[str]:
    """The options, else the knobs and texts, that are not the same: a method brings its knobs."""
    options = config_from_dict(TrainOptions, record["options"])
    if names := [name for name in _changed(options, job.options) if name not in FREE]:
        return names
    planned = job.record()
    texts = [said for key, said in RECORDED.items() if record.get(key) != planned.get(key)]
    return [*texts, *_changed(config_from_dict(type(job.knobs), record["knobs"]), job.knobs)]


def _changed(before: Any, now: Any) -> list[str]:
    """The flags by which two configs of one class differ."""
    return [
        flag.name
        for flag in flags_of(type(now))
        if reduce(getattr, flag.path, before) != reduce(getattr, flag.path, now)
    ]


def summary(folders: Sequence[Path]) -> str:
    """A line a run: what it ended with."""
    rows: list[tuple[str, dict[str, Any]]] = []
    for folder in folders:
        last: dict[str, Any] = {}
        for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
            last |= {k: v for k, v in json.loads(line).items() if v is not None}
        if KEPT_UNSEEN in last:
            last[UNSEEN] = last[KEPT_UNSEEN]
        last |= {"seconds": sum(last["seconds"].values())} if "seconds" in last else {}
        rows.append((folder.name, last))
    shown = [(key, title) for key, title in SHOWN if any(key in last for _, last in rows)]
    width = max(len(name) for name, _ in rows) + 2
    lines = [" " * width + "".join(f"{title:>15}" for _, title in shown)]
    for name, last in rows:
        cells = (f"{last[key]:>15.3f}" if key in last else f"{'-':>15}" for key, _ in shown)
        lines.append(f"{name:{width}}" + "".join(cells))
    return "\n".join(lines)
