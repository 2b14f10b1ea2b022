"""Several people, one command: a run each, in a folder of its own, over one loaded model.

    python train.py --method ditto --demos people/*.jsonl --out runs/people

A folder is called as the person's file is. The adapters are those of separate runs with the same
seed. The same command goes on where it was interrupted: who is finished is not trained again.
Several processes share the people out, and each trains its own alone:

    torchrun --nproc-per-node 2 train.py --method ditto --demos people/*.jsonl --out runs/people
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minialign.commands.job import Job, check_method
from minialign.commands.sweep import is_finished, planned, run_all, summary
from minialign.data.knobs import require
from minialign.errors import InputError
from minialign.training.knobs import TrainOptions

# Options that belong to one person, or to another way of asking for many runs.
ALONE = ("test", "sweep", "resume", "inspect")


def run_people(files: Sequence[str], options: TrainOptions, given: dict[str, Any]) -> None:
    """Everybody is checked before the first one is trained."""
    for name in ALONE:
        require(not getattr(options, name), f"--{name} is for one person: give one file to --demos")
    require(bool(options.out), "--demos names several files: give --out, the folder of their runs")
    check_method(options, given)
    folders = {Path(options.out) / name: file for name, file in people(files).items()}
    run_all(_checked(dealt(folders), options, given))
    # The last of several processes shows everybody.
    if all(map(is_finished, folders)):
        print(f"\n{summary([*folders])}")


def dealt(folders: dict[Path, str]) -> dict[Path, str]:
    """Those of this process: under torchrun each trains some of the people, by itself."""
    place, processes = (int(os.environ.get(*said)) for said in (("RANK", "0"), ("WORLD_SIZE", "1")))
    return dict([*folders.items()][place::processes])


def people(files: Sequence[str]) -> dict[str, str]:
    """Name -> file. NAME_test.jsonl, by which NAME.jsonl is judged, is nobody of its own.

    Raises InputError where two have one name.
    """
    paths = list(dict.fromkeys(map(Path, files)))
    tests = {path.with_name(f"{path.stem}_test{path.suffix}") for path in paths}
    found: dict[str, str] = {}
    for path in paths:
        if path not in tests:
            other = found.setdefault(path.stem, str(path))
            require(other == str(path), f"{path}: {other} has the same name: rename one of them")
    return found


def _checked(
    folders: dict[Path, str], options: TrainOptions, given: dict[str, Any]
) -> list[Job | None]:
    """Everybody's run, None for one that is finished.

    Raises InputError that says what is wrong with whom, and who could be trained.
    """
    runs: dict[str, Job | None] = {}
    refused: dict[str, str] = {}
    for folder, file in folders.items():
        try:
            own = dataclasses.replace(options, demos=file)
            runs[folder.name] = planned(own, given, folder)
        except InputError as error:
            refused[folder.name] = str(error)
    if not refused:
        return [*runs.values()]
    reasons = list(dict.fromkeys(refused.values()))
    fine = f"; nothing is wrong with {', '.join(runs)}" if runs else ""
    raise InputError("; ".join(reasons) + fine)
