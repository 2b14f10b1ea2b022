"""`sample.py --feedback "..."`, and train.py's first half: a sentence becomes a data folder.

The flags, who writes what, and the progress bars; the work itself is pipeline.py's. With
--feedbacks a file of sentences becomes a folder each, with --rewrite a folder gets new responses.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from minialign.commands.cli import OneLineParser, add_flags
from minialign.commands.feedback_options import DEFAULT_FOLDER, FeedbackOptions, folder_of
from minialign.data.feedback import DESCRIPTION, SCOPES, load_feedback_data
from minialign.data.feedback_list import Entry, load_entries, select_entries
from minialign.data.files import read_json
from minialign.data.knobs import config_from_flags, require
from minialign.errors import InputError
from minialign.feedback.endpoint import EndpointTeacher
from minialign.feedback.knobs import EndpointConfig, PipelineConfig
from minialign.feedback.local_teacher import LocalTeacher
from minialign.feedback.pipeline import complete_responses, copy_prompts, make_feedback_data
from minialign.feedback.plan import describe_plan, workload
from minialign.feedback.teacher import Answer, Ask, OnDone, Teacher
from minialign.feedback.writer import fingerprint

FIRST = (
    *("feedback", "feedbacks", "rewrite", "out", "model", "teacher_url", "teacher_model"),
    *("check", "categories", "prompts_per_category"),
)
T = TypeVar("T")
TRIAL = 8, 24  # questions and tokens by which a local model's speed is measured


def main(arguments: list[str]) -> None:
    """`sample.py --feedback ...`: makes the folder and says what to do with it."""
    parser = OneLineParser(
        "sample.py", "Make the data folder of one sentence of feedback, or of many.", arguments
    )
    add_flags(parser, FeedbackOptions, "options", FeedbackOptions(), first=FIRST)
    add_flags(parser, PipelineConfig, "how much", PipelineConfig(), first=FIRST)
    add_flags(parser, EndpointConfig, "the endpoint", EndpointConfig())
    parser.add_argument("sentence", nargs="?", default="", help="the sentence, as --feedback")
    # `sample.py --feedback --help` asks for help, and gives no sentence.
    asks = [word for word in arguments if word in ("-h", "--help", "--help-all")]
    given = parser.parse(asks or arguments)
    if sentence := given.pop("sentence"):
        require("feedback" not in given, "the sentence stands there twice: leave out --feedback")
        given["feedback"] = sentence
    config, limits = _chosen(PipelineConfig(), given), _chosen(EndpointConfig(), given)
    options = with_model(_chosen(FeedbackOptions(), given))
    if options.feedbacks:
        make_many(options, config, limits)
        return
    folder = rewrite(options, config) if options.rewrite else make_data(options, config, limits)
    model = "" if options.responses == "teacher" else f" --model {shlex.quote(options.model)}"
    if options.revision:
        model += f" --revision {shlex.quote(options.revision)}"
    print(f"next: python train.py --data {shlex.quote(str(folder))}{model}")


def _chosen(default: T, given: dict[str, Any]) -> T:
    """With those of the given flags that are its own."""
    return config_from_flags(default, {k: v for k, v in given.items() if hasattr(default, k)})


def with_model(options: FeedbackOptions) -> FeedbackOptions:
    """With the model that train.py would take where none is named."""
    from minialign.weights.devices import pick_device
    from minialign.weights.find import DEFAULT_GPU_MODEL, DEFAULT_MODEL

    is_gpu = pick_device(options.device).type == "cuda"
    default = DEFAULT_GPU_MODEL if is_gpu else DEFAULT_MODEL
    return dataclasses.replace(options, model=options.model or default)


# ---- who writes ----


@dataclass(frozen=True)
class Writers:
    """Who writes prompts and who writes responses; `weights` tells the model to be trained."""

    teacher: Teacher
    student: Teacher
    weights: str = ""

    def plan(self, config: PipelineConfig, limits: EndpointConfig, described: bool) -> str:
        """Measures the speed of what runs here."""
        lists, responses = workload(config, described)
        # They may be one, which is timed once.
        both = {id(who): who for who in (self.teacher, self.student)}
        speeds = {key: tokens_per_second(who) for key, who in both.items()}
        teacher, student = (
            (who.name, work, speeds[id(who)])
            for who, work in ((self.teacher, lists), (self.student, responses))
        )
        return describe_plan(teacher, student, limits, config.tries)


def tokens_per_second(who: Teacher) -> float:
    """0 for one behind an address."""
    if not isinstance(who, LocalTeacher):
        return 0.0
    count, length = TRIAL
    begin = time.monotonic()
    who.answer([Ask((("user", f"Count from {n} to 100."),), length, 1.0) for n in range(count)])
    return count * length / (time.monotonic() - begin)


def find_writers(options: FeedbackOptions, limits: EndpointConfig) -> Writers:
    """The endpoint is asked once before a model loads; a model loads once, and only if needed."""
    endpoint = None
    if options.teacher_url:
        how = dataclasses.asdict(limits)
        endpoint = EndpointTeacher(options.teacher_url, options.teacher_model, **how)
        endpoint.check()
        for line in endpoint.learned:
            print(f"{endpoint.name}: {line}", flush=True)
    if options.responses == "teacher":
        teacher = endpoint or _local(options.teacher or options.model, options)
        return Writers(teacher, teacher)
    student = _local(options.model, options)
    teacher = endpoint or (_local(options.teacher, options) if options.teacher else student)
    return Writers(teacher, student, _fingerprint(options))


def _fingerprint(options: FeedbackOptions) -> str:
    from minialign.weights.find import find_checkpoint

    return fingerprint(find_checkpoint(options.model, options.revision or None))


def _local(name: str, options: FeedbackOptions) -> Teacher:
    from minialign.weights.load import load

    revision = options.revision or None
    model, tokenizer = load(
        name,
        revision=revision,
        dtype=options.dtype,
        base_dtype=options.base_dtype,
        device=options.device,
    )
    return LocalTeacher(model, tokenizer, name)


# ---- one sentence, or many ----


def make_data(
    options: FeedbackOptions, config: PipelineConfig, limits: EndpointConfig | None = None
) -> Path:
    """Runs the pipeline for one sentence."""
    check = _parsed(options.check)
    if not options.feedback.strip():
        raise InputError("--feedback is empty: give a sentence")
    limits = limits or EndpointConfig()
    writers = find_writers(options, limits)
    described = options.described | ({} if check is None else {"check": check})
    say(writers.plan(config, limits, bool(options.domain and options.effect)))
    _make(described, options.folder, writers, options, config)
    return options.folder


def _make(
    described: dict[str, Any],
    folder: Path,
    writers: Writers,
    options: FeedbackOptions,
    config: PipelineConfig,
) -> None:
    make_feedback_data(
        described,
        folder,
        config,
        teacher=writers.teacher,
        student=writers.student,
        weights=writers.weights,
        general=options.general or None,
        say=say,
        progress=_progress,
    )


def make_many(options: FeedbackOptions, config: PipelineConfig, limits: EndpointConfig) -> None:
    """A folder for each sentence of a file, then one table. What fails costs its sentence."""
    everything = load_entries(options.feedbacks)
    folders = many_folders(everything, Path(options.out or DEFAULT_FOLDER))
    entries = select_entries(
        everything,
        prefix=options.feedback_prefix,
        category=options.feedback_category,
        scope=options.feedback_scope,
        kind=options.feedback_kind,
    )
    require(bool(entries), f"{options.feedbacks}: no feedback passes the filters")
    writers = find_writers(options, limits)
    known = all({"domain", "effect"} <= entry.described.keys() for entry in entries)
    say(f"{len(entries)} feedbacks, for each: {writers.plan(config, limits, known)}")
    rows, made = [], []
    for entry in entries:
        folder = folders[entry.sentence]
        say(f"--- {entry.sentence}")
        try:
            _make(entry.described, folder, writers, options, config)
            made.append(folder)
            rows.append((folder, entry, ""))
        except InputError as error:
            rows.append((folder, entry, str(error)))
            say(str(error))
    print("\n".join(table(rows)))
    require(bool(made), f"{options.feedbacks}: no feedback became data: the lines above say why")
    listed = shlex.join(str(folder) for folder in made)
    print(f"next: python benchmarks/c3po.py --model {shlex.quote(options.model)} {listed}")


def many_folders(entries: Sequence[Entry], parent: Path) -> dict[str, Path]:
    """By sentence. Named by its first words, and by more where two of the file begin alike."""
    names = [folder_of(entry.sentence).name for entry in entries]
    folders = {}
    for entry, name in zip(entries, names, strict=True):
        digest = hashlib.sha256(entry.sentence.encode()).hexdigest()[:6]
        folders[entry.sentence] = parent / (name if names.count(name) == 1 else f"{name}-{digest}")
    require(len(folders) == len(entries), "a feedback stands in the file twice: delete one")
    return folders


def table(rows: Sequence[tuple[Path, Entry, str]]) -> list[str]:
    """A line a feedback: its prompts by scope and split, its check, or why there are none."""
    lines = ["", "prompts to train on and to test on, by scope:"]
    for folder, entry, failure in rows:
        if failure:
            lines.append(f"{folder}  -  {failure}")
            continue
        data = load_feedback_data(folder)
        counts = "  ".join(
            f"{scope} {len(data.examples(scope, 'train'))}+{len(data.examples(scope, 'test'))}"
            for scope in SCOPES
        )
        kinds = ", ".join(check.kind for check in data.checks) or "no check: a model must judge"
        lines.append(f"{folder}  {counts}  {kinds}" + (f" ({entry.note})" if entry.note else ""))
    return lines


def rewrite(options: FeedbackOptions, config: PipelineConfig) -> Path:
    """A folder with the prompts of another and responses by `options.model`."""
    source, folder = Path(options.rewrite), options.folder
    if not folder.exists():
        copy_prompts(source, folder)
    described = [read_json(place / DESCRIPTION).get("feedback") for place in (source, folder)]
    require(
        described[0] == described[1],
        f"{folder}: holds data for another feedback: choose another --out",
    )
    student, weights = _local(options.model, options), _fingerprint(options)
    complete_responses(
        folder, config, student=student, weights=weights, say=say, progress=_progress
    )
    return folder


def say(line: str) -> None:
    print(line, flush=True)


def _parsed(check: str) -> Any:
    if not check:
        return None
    try:
        return json.loads(check)
    except ValueError as error:
        raise InputError(f"--check is not JSON ({error}): see minialign/data/checks.py") from None


def _progress(title: str, total: int) -> OnDone:
    """A bar of answers."""
    from tqdm import tqdm

    bar = tqdm(
        desc=title,
        total=total,
        unit="answer",
        leave=False,
        dynamic_ncols=True,
        disable=not sys.stderr.isatty(),
    )

    def on_done(index: int, answer: Answer) -> None:
        bar.update()
        if bar.n == total:
            bar.close()

    return on_done
