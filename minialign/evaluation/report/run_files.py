"""Reading a run folder for its page: what is there, checked, in characters that a page can hold."""

from __future__ import annotations

import dataclasses
import math
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minialign.data.feedback import SCOPES, flag_for_test
from minialign.data.files import read_bytes, read_json, read_jsonl
from minialign.data.knobs import flags_of
from minialign.data.records import DEMONSTRATIONS, PAIRS
from minialign.errors import InputError
from minialign.methods.cards import UNSEEN, Card, Stage, card_of, default_card
from minialign.training.folder import read_run_record, source_of
from minialign.training.knobs import TrainOptions

Json = dict[str, Any]
SCORES = ("s_in", "s_near", "s_far", "s_out")
NOT_KNOBS = ("out", "resume", "overwrite", "inspect")  # options that say nothing about the result
LONGEST_PROMPT = 200  # characters of a prompt that stands in a command

# What a page cannot hold is made visible: control characters as their pictures, the rest as U+FFFD.
UNPRINTABLE = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
UNPRINTABLE |= dict.fromkeys([*range(0x7F, 0xA0), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF], 0xFFFD)


@dataclass(frozen=True)
class RunFiles:
    """What a run folder holds; what is missing is empty."""

    folder: Path
    config: Json
    metrics: list[Json]
    samples: list[Json]
    preview: Json
    evaluation: Json

    @property
    def name(self) -> str:
        return readable(self.folder.resolve().name)

    @property
    def place(self) -> str:
        """The folder as a command names it."""
        return shlex.quote(readable(str(self.folder)))

    @property
    def source(self) -> str:
        """What it learned from: DEMONSTRATIONS, FEEDBACK or PAIRS."""
        return source_of(self.config)

    @property
    def method(self) -> str:
        return str(self.config["options"].get("method") or default_card(self.source).name)

    @property
    def card(self) -> Card | None:
        """The method's; None where the record names one that is not there, or not for this."""
        try:
            return card_of(self.method, self.source)
        except InputError:
            return None

    def stage(self, name: str) -> Stage | None:
        """What the method's card says of a stage, if it knows it."""
        return self.card.stage(name) if self.card else None

    @property
    def feedback(self) -> str:
        """The sentence; empty where it is not known."""
        return str(self.config.get("feedback") or self.evaluation.get("feedback") or "")

    @property
    def summary(self) -> Json:
        """The line that a finished run ends with."""
        return next((line for line in reversed(self.metrics) if line.get("stage") == "done"), {})

    @property
    def trained(self) -> bool:
        return (self.folder / "adapter" / "adapter_config.json").exists()

    @property
    def blind(self) -> str:
        """The blind page beside the report; empty where none was made."""
        return "blind.html" if (self.folder / "blind.html").exists() else ""

    @property
    def stages(self) -> list[str]:
        """The stages that took a step, in order."""
        return list(dict.fromkeys(line["stage"] for line in self.metrics if "step" in line))

    def points(self, stage: str, metric: str) -> list[tuple[float, float]]:
        """(step, value), steps from 1; what a stage says as a whole stands at its last step.

        A value that is not a finite number is NaN, which is drawn as a gap. The held-out loss of a
        stage begins, at step 0, with what the stage before it came to.
        """
        found, last = [], 0
        if metric == UNSEEN and stage in self.stages[1:]:
            before = self.points(self.stages[self.stages.index(stage) - 1], metric)
            found = [(0.0, value) for _, value in before[-1:]]
        for line in self.metrics:
            if line.get("stage") == stage:
                last = line["step"] + 1 if "step" in line else last
                if line.get(metric) is not None:
                    value = figure(line[metric])
                    found.append((float(last), math.nan if value is None else value))
        return found

    def seconds(self) -> dict[str, float]:
        """By phase: the whole run's, or the sum of its steps' while it is not finished."""
        if self.summary:
            return figures(self.summary.get("seconds"))
        total: dict[str, float] = {}
        for line in self.metrics:
            for phase, seconds in figures(line.get("seconds")).items():
                total[phase] = total.get(phase, 0.0) + seconds
        return total


def read_run(folder: Path) -> RunFiles:
    """Raises InputError, naming the file, for what is not JSON or not a run's."""
    config = _checked(
        readable(read_run_record(folder)),
        f"{folder / 'config.json'}",
        {"options": dict, "knobs": dict},
    )
    file = folder / "evaluation.json"
    return RunFiles(
        folder,
        config,
        _lines(folder / "metrics.jsonl", stage=str),
        _lines(folder / "samples.jsonl", round=int, demonstration=int, text=str),
        _object(folder / "preview.json", prompt=str, before=str, after=str),
        _voice_evaluation(file)
        if source_of(config) == DEMONSTRATIONS
        else _feedback_evaluation(file),
    )


def _voice_evaluation(file: Path) -> Json:
    evaluation = _object(file, prompts=list, contestants=dict)
    _checked(evaluation.get("person") or {}, str(file), {})
    for part in (*evaluation.get("contestants", {}).values(), *(evaluation.get("judges") or [])):
        _checked(part, str(file), {})
    return evaluation


def _feedback_evaluation(file: Path) -> Json:
    evaluation = _object(file, methods=dict, scopes=dict)
    where = str(file)
    for method in evaluation.get("methods", {}).values():
        _checked(method, where, dict.fromkeys(SCORES, dict))
    for scope in SCOPES:
        for entry in evaluation.get("scopes", {}).get(scope) or []:
            _checked(entry, where, {"prompt": str, "baseline": str, "answers": dict})
            for answers in entry["answers"].values():
                for answer in answers if isinstance(answers, list) else [None]:
                    _checked({"answer": answer}, where, {"answer": str})
            scores = _checked(entry, where, {"scores": dict})["scores"]
            _checked(scores, where, dict.fromkeys(scores, list))
    return evaluation


def _object(file: Path, **fields: type) -> Json:
    return _checked(readable(read_json(file)), str(file), fields) if file.exists() else {}


def _lines(file: Path, **fields: type) -> list[Json]:
    """The objects of a JSON Lines file; none where it is missing or still empty."""
    if not file.exists() or not read_bytes(file).strip():
        return []
    return [
        _checked(readable(record), f"{file}, line {line}", fields)
        for line, record in read_jsonl(file)
    ]


def _checked(record: Any, where: str, fields: dict[str, type]) -> Json:
    if not isinstance(record, dict):
        raise InputError(f"{where}: holds {type(record).__name__} for an object: write it again")
    for name, kind in fields.items():
        if not isinstance(record.get(name), kind):
            raise InputError(f'{where}: "{name}" is missing or broken: write the file again')
    return record


def readable(value: Any) -> Any:
    """JSON with every text, names included, in characters that a page can hold."""
    if isinstance(value, str):
        return value.replace("\r\n", "\n").translate(UNPRINTABLE)
    if isinstance(value, dict):
        return {readable(name): readable(inner) for name, inner in value.items()}
    return [readable(inner) for inner in value] if isinstance(value, list) else value


def figure(value: Any) -> float | None:
    """A number that can be shown, or None."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # A whole number may be larger than any float.
    return float(value) if is_number and abs(value) < sys.float_info.max else None


def figures(value: Any) -> dict[str, float]:
    pairs = value.items() if isinstance(value, dict) else ()
    return {name: number for name, raw in pairs if (number := figure(raw)) is not None}


# ---- how the run was made ----


def knobs(run: RunFiles) -> dict[str, Any]:
    """Every option and knob by its flag's name; lists as their text."""
    options = {k: v for k, v in run.config["options"].items() if k not in NOT_KNOBS}
    return _by_flag(options, {}) | _by_flag(run.config["knobs"], _flag_names(run))


def _flag_names(run: RunFiles) -> dict[tuple[str, ...], str]:
    """Where a knob lives in the record -> its flag."""
    flags = flags_of(run.card.knobs_class) if run.card else ()
    return {flag.path: flag.name for flag in flags}


def _by_flag(nested: Json, names: dict[tuple[str, ...], str], *path: str) -> dict[str, Any]:
    """The values in `nested` by their flags; one that is no flag's is called by its path."""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        place = (*path, name)
        if isinstance(value, dict):
            found |= _by_flag(value, names, *place)
        else:
            text = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
            found[names.get(place, "_".join(place).rstrip("_"))] = text
    return found


def train_command(run: RunFiles) -> str:
    """The command that was given; where it was not kept, one that does the same."""
    if isinstance(run.config.get("command"), str):
        return run.config["command"]
    usual = _usual(run)
    given = {name: value for name, value in knobs(run).items() if value != usual.get(name)}
    given = {"method": run.method} | given
    given = {name: value for name, value in given.items() if value is not None}
    given["out"] = run.config["options"].get("out") or str(run.folder)
    words = ["python", "train.py"]
    for name, value in given.items():
        flag = name.replace("_", "-")
        words += (
            [f"--{'' if value else 'no-'}{flag}"]
            if isinstance(value, bool)
            else [f"--{flag}", str(value)]
        )
    return shlex.join(words)


def _usual(run: RunFiles) -> Json:
    """What the options and knobs are where no flag is given."""
    usual = _by_flag(dataclasses.asdict(TrainOptions()), {})
    card, recipe = run.card, run.config.get("recipe")
    if card is None:
        return usual
    if recipe not in card.recipes:
        return usual | card.fixed
    recipe_knobs: Any = card.recipe(recipe)
    return usual | _by_flag(dataclasses.asdict(recipe_knobs), _flag_names(run))


def sample_command(run: RunFiles) -> str:
    """Nothing while there is no adapter to sample from."""
    entries = (run.evaluation.get("scopes") or {}).get("in_scope") or []
    prompts = [run.preview.get("prompt"), *(entry["prompt"] for entry in entries)]
    prompts += run.evaluation.get("prompts", [])
    usable = [p for p in prompts if isinstance(p, str) and len(p) <= LONGEST_PROMPT]
    asked = shlex.quote((usable or ["Write an email to my team."])[0])
    return f"python sample.py --adapter {run.place} --prompt {asked} -n 3" if run.trained else ""


def evaluate_command(run: RunFiles) -> str:
    """The one that was given, or the usual one; nothing while there is no adapter."""
    given = run.evaluation.get("command")
    if isinstance(given, str):
        return given
    return usual_evaluation(run) if run.trained and run.source != PAIRS else ""


def usual_evaluation(run: RunFiles) -> str:
    """The command without any choice."""
    data = run.config["options"].get("data")
    return f"python evaluate.py {run.place}{flag_for_test(str(data)) if data else ''}"
