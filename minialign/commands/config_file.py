"""`--config FILE`: flags from a file, by their names. A run's own config.json is such a file."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minialign.data.files import read_text, require_fields
from minialign.data.knobs import config_from_dict, flag_values
from minialign.errors import InputError
from minialign.methods.cards import card_of
from minialign.training.folder import source_of

# What a run's record says of the run alone, and not of how it was made.
NOT_AGAIN = ("resume", "overwrite", "inspect", "sweep")


def flags_in(file: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The file's values by their flags' names, as they stand there.

    JSON, or TOML where the name ends so; `max-steps` is `max_steps`, and a table `sft` holds the
    flags that begin with `sft_`. `given` are the flags of the command line, of which a run's
    record needs the method. Raises InputError for a file that cannot be read.
    """
    content = _read(file)
    if isinstance(content.get("options"), dict) and isinstance(content.get("knobs"), dict):
        return _of_run(content, given)
    return dict(_flat(content))


def _read(file: Path) -> dict[str, Any]:
    try:
        text = read_text(file)
        content = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    except InputError as error:
        raise InputError(f"--config {error}") from None
    except (ValueError, RecursionError) as error:
        kind = "TOML" if file.suffix == ".toml" else "JSON (a file in TOML must be called .toml)"
        raise InputError(f"--config {file}: is not {kind}: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"--config {file}: holds no names and values: write FLAG = VALUE lines")
    return content


def _flat(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        name = prefix + name.replace("-", "_")
        if isinstance(value, dict):
            yield from _flat(value, f"{name}_")
        else:
            yield name, value


def _of_run(record: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """What makes the same run again: without the knobs that its method fixes or never reads."""
    require_fields({"method": "", **record["options"]}, {"method": str}, "--config: a run's record")
    chosen = {name: value for name, value in record["options"].items() if value != ""}
    options = {name: value for name, value in chosen.items() if name not in NOT_AGAIN}
    options["recipe"] = record.get("recipe", "auto")
    card = card_of(given.get("method") or options.get("method", ""), source_of(record))
    brought = ("lora_",) if options.get("init_adapter") else ()
    knobs: Any = config_from_dict(card.knobs_class, record["knobs"])
    useless = {*card.fixed, *card.unread, *knobs.unread}
    return options | {
        name: value
        for name, value in flag_values(card.knobs_class, record["knobs"]).items()
        if name not in useless and not name.startswith(brought)
    }
