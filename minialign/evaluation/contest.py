"""A contest: contestants answer prompts that none of them was trained on, and are judged.

From run folders to the results that evaluate.py prints and writes, and that report.html shows.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from collections.abc import Sequence as SequenceABC
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from tqdm import tqdm

from minialign.config import EvaluateOptions, SamplingConfig
from minialign.data import (
    Demonstration,
    Sequence,
    encode_demonstration,
    held_out_split,
    load_demonstrations,
    read_jsonl,
    training_split,
)
from minialign.errors import InputError
from minialign.evaluation.contestants import (
    Answers,
    Contestant,
    answers_from_file,
    held_out_sequences,
    write_answers,
)
from minialign.evaluation.held_out import drift, nats_per_token, reward_margins
from minialign.evaluation.judge import ModelJudge
from minialign.evaluation.judgement import (
    Judgement,
    comparisons_of,
    judge_by_model,
    judge_by_style,
)
from minialign.evaluation.style import StyleJudge
from minialign.evaluation.texts import text_figures
from minialign.feedback import general_prompts
from minialign.job import check_held_out
from minialign.lora import load_adapter, reference_policy
from minialign.model import CausalLM
from minialign.runs import adapter_folder, read_run_record
from minialign.sampler import sample
from minialign.teacher import Cached, EndpointTeacher, LocalTeacher, Teacher
from minialign.tokenizer import Tokenizer
from minialign.weights import load

STYLE_ANSWERS = 4  # of the base model to each demonstration's prompt, which the style judge learns
GENERAL_TOKENS = 96  # of an answer on which drift is measured
RESERVED = ("base", "few-shot", "sft", "spin")


@dataclass(frozen=True)
class Entry:
    """What a contestant needs before a model is loaded."""

    name: str
    adapter: Path | None = None  # a folder in PEFT's format
    few_shot: bool = False
    file: Path | None = None


@dataclass(frozen=True)
class Contest:
    """Everything that is known, and checked, before the model loads."""

    record: dict[str, Any]  # of the first run: its model and its demonstrations count
    learned: list[Demonstration]
    held_out: list[Demonstration]
    entries: list[Entry]
    others: list[str]

    @property
    def prompts(self) -> list[str]:
        return [d.prompt for d in self.held_out]


@dataclass(frozen=True)
class Results:
    figures: dict[str, dict[str, Any]]  # contestant -> name of a figure -> value
    answers: dict[str, Answers]
    judgements: list[Judgement]
    tokens: int  # of the person's held-out texts


# ---- before the model loads ----


def prepare_contest(folders: SequenceABC[Path], options: EvaluateOptions) -> Contest:
    """Raises InputError for whatever a person can put right; writes nothing."""
    records = [read_run_record(folder) for folder in folders]
    for folder, record in zip(folders, records, strict=True):
        adapter_folder(str(folder))  # refuses an unfinished run
        if record["options"]["model"] != records[0]["options"]["model"]:
            raise InputError(
                f"{folder}: was trained on {record['options']['model']}, {folders[0]} on "
                f"{records[0]['options']['model']}: evaluate them one by one"
            )
    learned = load_demonstrations(records[0]["options"]["demos"])
    held_out = _held_out(learned, records[0]["options"]["test"], options)
    return Contest(
        records[0],
        training_split(learned),
        held_out,
        _entries(folders, records, options),
        _other_texts(options.others),
    )


def _held_out(
    learned: list[Demonstration], usual: str, options: EvaluateOptions
) -> list[Demonstration]:
    test = options.test or usual
    held_out = load_demonstrations(test) if test else held_out_split(learned)
    if not held_out:
        raise InputError(
            "no demonstrations are held out: give some that were not trained on: --test FILE.jsonl"
        )
    check_held_out(training_split(learned), held_out)
    return held_out


def _entries(
    folders: SequenceABC[Path], records: list[dict[str, Any]], options: EvaluateOptions
) -> list[Entry]:
    """The rivals in the order of --against, then the runs themselves, each once."""
    first = folders[0]
    entries = [_rival(text, first) for text in options.against]
    for folder, record in zip(folders, records, strict=True):
        name = record["options"]["method"] if len(folders) == 1 else folder.name
        entries.append(Entry(name, folder / "adapter"))
    known: dict[str, Entry] = {}
    for entry in entries:
        known.setdefault(entry.name, entry)
    if not known:
        raise InputError("nobody to evaluate: give a run folder")
    return list(known.values())


def _rival(text: str, run: Path) -> Entry:
    if text == "base":
        return Entry("base")
    if text == "few-shot":
        return Entry("few-shot", few_shot=True)
    if text == "sft":
        warm = run / "adapter-sft"
        return Entry("sft", warm if warm.exists() else run / "adapter")
    if text == "spin":
        return Entry("spin", _spin_of(run))
    path = Path(text)
    if path.is_dir():
        return Entry(path.name, adapter_folder(text))
    if path.is_file():
        return Entry(path.stem, file=path)
    raise InputError(
        f"--against {text}: not one of {', '.join(RESERVED)}, nor a run folder or a file of answers"
    )


def _spin_of(run: Path) -> Path:
    folder = run.with_name(run.name + "-spin")
    if not (folder / "adapter").exists():
        raise InputError(
            f"--against spin: {folder} is not there: train it with the run's command and "
            f"--method spin --out {folder}"
        )
    return folder / "adapter"


def _other_texts(file: str) -> list[str]:
    """Other people's texts: the given file's, else a few that come with minialign."""
    if not file:
        source = resources.files("minialign.evaluation").joinpath("other_voices.jsonl")
        with resources.as_file(source) as path:
            return [record["text"] for _, record in read_jsonl(path)]
    if all("text" in record for _, record in read_jsonl(file)):
        return [str(record["text"]) for _, record in read_jsonl(file)]
    return [d.completion for d in load_demonstrations(file)]


# ---- with the model ----


def hold_contest(contest: Contest, options: EvaluateOptions, cache: Path) -> Results:
    """Loads the model, lets everybody answer, and judges; `cache` keeps a model judge's answers."""
    teacher = _endpoint(options)
    model, tokenizer, contestants = _load(contest, options)
    limit = min(contest.record["knobs"]["max_length"], model.config.max_position_embeddings)
    held_out = [encode_demonstration(d, tokenizer, limit)[0] for d in contest.held_out]
    longest = max(len(sequence.completion_ids) for sequence in held_out)
    new = options.max_new_tokens or longest + longest // 4
    sampling = SamplingConfig(new, options.temperature)
    answers = write_answers(
        model,
        tokenizer,
        contestants,
        [d.messages for d in contest.held_out],
        options.n,
        sampling,
        seed=options.seed,
        progress=_writing,
    )
    figures = _figures(model, tokenizer, contest, contestants, held_out, answers, sampling, options)
    judgements = _judge(model, tokenizer, contest, answers, sampling, options, teacher, cache)
    tokens = sum(len(sequence.completion_ids) for sequence in held_out)
    return Results(figures, answers, judgements, tokens)


def _load(
    contest: Contest, options: EvaluateOptions
) -> tuple[CausalLM, Tokenizer, list[Contestant]]:
    trained = contest.record["options"]
    model, tokenizer = load(
        trained["model"],
        revision=trained["revision"] or None,
        dtype=options.dtype,
        device=options.device,
    )
    contestants = []
    for entry in contest.entries:
        if entry.adapter is not None:
            load_adapter(model, entry.adapter, entry.name)
        contestants.append(
            Contestant(
                entry.name,
                entry.name if entry.adapter else None,
                tuple(contest.learned) if entry.few_shot else (),
                answers_from_file(entry.file, contest.prompts) if entry.file else (),
            )
        )
    return model, tokenizer, contestants


def _figures(
    model: CausalLM,
    tokenizer: Tokenizer,
    contest: Contest,
    contestants: list[Contestant],
    held_out: list[Sequence],
    answers: dict[str, Answers],
    sampling: SamplingConfig,
    options: EvaluateOptions,
) -> dict[str, dict[str, Any]]:
    """All that is measured without a judge; None where a figure does not apply."""
    learned = [d.completion for d in contest.learned]
    policies = {"base": None, **{c.name: c.adapter for c in contestants if c.is_policy}}
    margins = reward_margins(
        model,
        policies,
        held_out,
        _own_answers(policies, held_out, answers),
        beta=contest.record["knobs"]["beta"],
        max_tokens=options.micro_batch_tokens,
    )
    ordinary = _ordinary_answers(model, tokenizer, options) if options.general else []
    limit = model.config.max_position_embeddings - sampling.max_new_tokens
    prompts = [d.messages for d in contest.held_out]
    found = {}
    for contestant in contestants:
        name = contestant.name
        nats = drifted = None
        if not contestant.answers:
            texts = held_out_sequences(contestant, held_out, prompts, tokenizer, limit)
            nats = nats_per_token(model, contestant.adapter, texts, options.micro_batch_tokens)
        if contestant.is_policy and ordinary:
            drifted = drift(model, contestant.adapter, ordinary, options.micro_batch_tokens)
        own = margins.get(name, {})
        found[name] = {
            "nats_per_token": nats,
            "margins": {rival: float(margin.mean()) for rival, margin in own.items()},
            "positive": {rival: float((m > 0).float().mean()) for rival, m in own.items()},
            **dataclasses.asdict(text_figures(answers[name], learned)),
            "drift": drifted,
        }
    return found


def _own_answers(
    policies: dict[str, str | None], held_out: list[Sequence], answers: dict[str, Answers]
) -> dict[str, list[list[Sequence]]]:
    """What the base and the SFT model wrote, to measure margins against."""
    return {
        name: [
            [Sequence(text.prompt_ids, c.ids) for c in group]
            for text, group in zip(held_out, answers[name], strict=True)
        ]
        for name in ("base", "sft")
        if name in policies and name in answers
    }


def _ordinary_answers(
    model: CausalLM, tokenizer: Tokenizer, options: EvaluateOptions
) -> list[Sequence]:
    """The base model's answers to general prompts."""
    asked = general_prompts(options.general, options.seed)
    prompts = [tuple(tokenizer.encode_prompt(prompt)) for prompt in asked]
    on_token = _writing("base, in general", len(prompts))
    with reference_policy(model, None):
        sampling = SamplingConfig(GENERAL_TOKENS)
        groups = sample(model, prompts, 1, sampling, seed=options.seed, on_token=on_token)
    return [Sequence(prompt, group[0].ids) for prompt, group in zip(prompts, groups, strict=True)]


# ---- judges ----


def _judge(
    model: CausalLM,
    tokenizer: Tokenizer,
    contest: Contest,
    answers: dict[str, Answers],
    sampling: SamplingConfig,
    options: EvaluateOptions,
    teacher: Teacher | None,
    cache: Path,
) -> list[Judgement]:
    texts = {name: [[c.text for c in group] for group in a] for name, a in answers.items()}
    if len(texts) < 2:
        return []
    found = []
    if "style" in options.judges:
        judge = _style_judge(model, tokenizer, contest, sampling, options)
        found.append(judge_by_style(judge, texts, options.seed))
    if "model" in options.judges:
        cached = Cached(teacher or _local(options), cache)
        total = 2 * comparisons_of(texts)
        with _bar("asking the judge", total, "question") as bar:
            found.append(
                judge_by_model(
                    ModelJudge(cached),
                    texts,
                    [d.completion for d in contest.held_out],
                    options.seed,
                    lambda *_: bar.update(),
                )
            )
    return found


def _style_judge(
    model: CausalLM,
    tokenizer: Tokenizer,
    contest: Contest,
    sampling: SamplingConfig,
    options: EvaluateOptions,
) -> StyleJudge:
    """Against the base model's answers to the prompts that the person answered too."""
    prompts = [tuple(tokenizer.encode_prompt(d.messages)) for d in contest.learned]
    on_token = _writing("base, for the style judge", len(prompts) * STYLE_ANSWERS)
    with reference_policy(model, None):
        groups = sample(
            model, prompts, STYLE_ANSWERS, sampling, seed=options.seed + 1, on_token=on_token
        )
    base = [tokenizer.decode(c.ids) for group in groups for c in group]
    own = [d.completion for d in contest.learned]
    return StyleJudge.fit(own, [base, contest.others], seed=options.seed)


def _endpoint(options: EvaluateOptions) -> Teacher | None:
    """Checked before anything long; None without an address."""
    if not options.judge_url:
        return None
    teacher = EndpointTeacher(options.judge_url, options.judge_model)
    teacher.check()
    return teacher


def _local(options: EvaluateOptions) -> Teacher:
    model, tokenizer = load(options.judge_model, dtype=options.dtype, device=options.device)
    return LocalTeacher(model, tokenizer, options.judge_model)


# ---- progress ----


def _writing(name: str, texts: int) -> Callable[[int, int, int], None]:
    bar = _bar(f"{name}: writing {texts} texts", None, "token")

    def on_token(prompt: int, sample: int, token: int) -> None:
        bar.update()

    return on_token


def _bar(title: str, total: int | None, unit: str) -> tqdm:
    return tqdm(
        desc=title, total=total, unit=unit, dynamic_ncols=True, disable=not sys.stderr.isatty()
    )
