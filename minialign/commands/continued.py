"""`train.py --continue RUN --demos MORE`: a finished run learns from more demonstrations.

The new run has a folder of its own and RUN is only read, so that nothing finished can be lost. It
begins with RUN's knobs, adapters, samples and reference scores; from then on it is a run like any
other, which `--resume` goes on with. All demonstrations together are kept in a file under data/.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from minialign.commands.import_mail import MADE, imported, is_to_import
from minialign.commands.job import check_unchanged, kept_record, recorded
from minialign.commands.sources import distinct, read_source
from minialign.data.files import read_text, replace_text
from minialign.data.knobs import require
from minialign.data.records import load_demonstrations, plural, training_split
from minialign.errors import InputError
from minialign.methods.cards import CARDS, card_of
from minialign.training.folder import (
    STAGE_ADAPTER,
    adapter_folder,
    check_free,
    is_finished,
    source_of,
)
from minialign.training.knobs import TrainOptions

OWN = ("demos", "out", "overwrite", "prompt")


def with_more(options: TrainOptions, given: dict[str, Any]) -> TrainOptions:
    """RUN's options, with a file of its demonstrations and the new ones, which is written here.

    Raises InputError for whatever a person can put right.
    """
    require(bool(options.demos), "--continue needs --demos: the file of the new demonstrations")
    record = kept_record(options, given, "continue_", OWN)
    folder, kept = Path(options.continue_), _kept(options, record)
    check_unchanged(read_source(kept).record(), record, kept.demos, kept)
    more = options.demos
    if is_to_import(Path(more)):
        more, _ = imported(more, kept.out)
    out = Path(options.out or f"runs/{folder.resolve().name}-{Path(more).stem}")
    require(
        not folder.resolve().is_relative_to(out.resolve()),
        f"--out {out}: holds the run that is continued: choose another --out",
    )
    check_free(out, options.overwrite)
    demos = Path(MADE) / f"{out.name}.jsonl"
    text = _joined(kept.demos, more)
    # It may be what an interrupted run learns from.
    free = options.overwrite or not demos.exists() or read_text(demos) == text
    require(free, f"{demos}: holds other demonstrations: choose another --out")
    demos.parent.mkdir(exist_ok=True)
    replace_text(demos, text)
    own = {name: getattr(options, name) for name in ("continue_", "overwrite")}
    prompt = options.prompt or kept.prompt
    return dataclasses.replace(kept, **own, prompt=prompt, demos=str(demos), out=str(out))


def _kept(options: TrainOptions, record: dict[str, Any]) -> TrainOptions:
    """The options of a finished run whose method can continue it. Raises InputError elsewhere."""
    name = options.continue_
    card = card_of(record["options"].get("method", ""), source_of(record))
    able = ", ".join(card.name for card in CARDS if card.continues)
    require(
        card.continues,
        f"{name}: a run of {card.title} cannot be continued, those of {able} can: train anew on "
        "all demonstrations",
    )
    require(
        is_finished(Path(name)),
        f"{name}: the run is not finished: first python train.py --resume {name}",
    )
    for stage in card.stages[:-1]:
        adapter_folder(f"{name}/{STAGE_ADAPTER}{stage.name}")
    kept = recorded(TrainOptions, record["options"], name)
    # as they came out, where "auto" had been asked for
    held = {part: record[part] for part in ("device", "dtype", "base_dtype")}
    return dataclasses.replace(kept, out=name, **held, resume="", sweep=())


def _joined(known: str, more: str) -> str:
    """The known demonstrations, as they stand, and behind them the new ones.

    Raises InputError where nothing is new. What repeats a known one is left out in training.
    """
    before = distinct(training_split(load_demonstrations(known)))[0]
    added = training_split(load_demonstrations(more))
    new = len(distinct([*before, *added])[0]) - len(before)
    if not new:
        raise InputError(f"{more}: holds no demonstration that the run did not learn from")
    print(f"continues with {plural(new, 'new demonstration')} beside {len(before)}", flush=True)
    return "\n".join(read_text(file).strip("\n") for file in (known, more)) + "\n"
