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

from minialign.data.files import read_jsonl
from minialign.data.general import general_prompts
from minialign.data.records import (
    Demonstration,
    Sequence,
    check_held_out,
    held_out_split,
    load_demonstrations,
    training_split,
)
from minialign.errors import InputError
from minialign.evaluation.contestants import (
    RIVALS,
    Answers,
    Contestant,
    Entry,
    answers_from_file,
    entries_of,
    held_out_sequences,
    prompt_limit,
    write_answers,
)
from minialign.evaluation.judges.model import ModelJudge
from minialign.evaluation.judges.style import StyleJudge
from minialign.evaluation.judges.verdicts import (
    Judgement,
    comparisons_of,
    judge_by_model,
    judge_by_style,
)
from minialign.evaluation.knobs import EvaluateOptions
from minialign.evaluation.texts import text_figures
from minialign.feedback.endpoint import EndpointTeacher
from minialign.feedback.local_teacher import LocalTeacher
from minialign.feedback.teacher import Cached, Teacher
from minialign.model.transformer import CausalLM
from minialign.policy.encode import encode_demonstration
from minialign.policy.knobs import SamplingConfig
from minialign.policy.measure import drift, nats_per_token, reward_margins
from minialign.policy.peft import load_adapter
from minialign.policy.reference import reference_policy
from minialign.policy.sample import sample
from minialign.training.folder import adapter_folder, read_run_record
from minialign.weights.find import find_checkpoint
from minialign.weights.load import load
from minialign.weights.tokenizer import Tokenizer

STYLE_ANSWERS = 4  # of the base model to each demonstration's prompt, which the style judge learns
GENERAL_TOKENS = 96  # of an answer on which drift is measured


@dataclass(frozen=True)
class Contest:
    """Everything that is known, and checked, before the model loads."""

    record: dict[str, Any]  # of the first run: its model and its demonstrations count
    learned: list[Demonstration]
    held_out: list[Demonstration]
    entries: list[Entry]
    others: list[str]
    answers: dict[str, tuple[tuple[str, ...], ...]]  # of those that come with a file

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
    _check_options(options)
    records = [read_run_record(folder) for folder in folders]
    for folder, record in zip(folders, records, strict=True):
        adapter_folder(str(folder))  # refuses an unfinished run
        if _base_of(record) != _base_of(records[0]):
            raise InputError(
                f"{folder}: was trained on {_base_of(record)}, {folders[0]} on "
                f"{_base_of(records[0])}: evaluate them one by one"
            )
    learned = load_demonstrations(records[0]["options"]["demos"])
    held_out = _held_out(learned, records[0]["options"]["test"], options)
    rivals = [Path(rival) for rival in options.against if rival not in RIVALS]
    others = [read_run_record(rival) for rival in rivals if (rival / "config.json").exists()]
    for record in (*records[1:], *others):
        if demos := record["options"]["demos"]:  # else it learned from feedback
            check_held_out(training_split(load_demonstrations(demos)), held_out)
    entries = entries_of(folders, records, options.against)
    prompts = [d.prompt for d in held_out]
    return Contest(
        records[0],
        training_split(learned),
        held_out,
        entries,
        _other_texts(options.others),
        {e.name: answers_from_file(e.file, prompts) for e in entries if e.file},
    )


def _check_options(options: EvaluateOptions) -> None:
    """What would otherwise be refused only after everybody has answered."""
    general_prompts(options.general, options.seed, "drift")
    if options.judge_model and not options.judge_url:
        find_checkpoint(options.judge_model)


def _base_of(record: dict[str, Any]) -> str:
    model, revision = record["options"]["model"], record["options"]["revision"]
    return f"{model} at {revision}" if revision else str(model)


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


def _other_texts(file: str) -> list[str]:
    """Other people's texts: the given file's, else a few that come with minialign."""
    if not file:
        source = resources.files("minialign.evaluation.judges").joinpath("other_voices.jsonl")
        with resources.as_file(source) as path:
            return [record["text"] for _, record in read_jsonl(path)]
    texts = [record.get("text") for _, record in read_jsonl(file)]
    found = [text for text in texts if isinstance(text, str) and text.strip()]
    return found if len(found) == len(texts) else [d.completion for d in load_demonstrations(file)]


# ---- with the model ----


def hold_contest(contest: Contest, options: EvaluateOptions, cache: Path) -> Results:
    """Loads the model, lets everybody answer, and judges; `cache` keeps a model judge's answers."""
    teacher = endpoint(options, cache)
    model, tokenizer, contestants = _load(contest, options)
    limit = min(contest.record["knobs"]["max_length"], model.config.max_position_embeddings)
    held_out = [encode_demonstration(d, tokenizer, limit)[0] for d in contest.held_out]
    longest = max(len(sequence.completion_ids) for sequence in held_out)
    new = options.max_new_tokens or longest + longest // 4
    sampling = SamplingConfig(new, options.temperature)
    limit = prompt_limit(model, sampling, longest)
    answers = write_answers(
        model,
        tokenizer,
        contestants,
        [d.messages for d in contest.held_out],
        options.n,
        sampling,
        seed=options.seed,
        progress=writing,
        longest=longest,
    )
    figures = _figures(model, tokenizer, contest, contestants, held_out, answers, limit, options)
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
    for place, entry in enumerate(contest.entries):
        # A folder may have a name that no adapter can have, such as one with a dot.
        adapter = f"contestant_{place}" if entry.adapter else None
        if entry.adapter and adapter:
            load_adapter(model, entry.adapter, adapter)
        contestants.append(
            Contestant(
                entry.name,
                adapter,
                tuple(contest.learned) if entry.few_shot else (),
                contest.answers.get(entry.name, ()),
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
    limit: int,
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
    prompts = [d.messages for d in contest.held_out]
    found = {}
    for contestant in contestants:
        name = contestant.name
        nats = drifted = None
        if not contestant.answers:
            texts = held_out_sequences(contestant, held_out, prompts, tokenizer, limit)
            with reference_policy(model, contestant.adapter):
                nats = nats_per_token(model, texts, options.micro_batch_tokens)
        if contestant.is_policy and ordinary:
            drifted = drift(model, contestant.adapter, ordinary, options.micro_batch_tokens)
        # The base's own are 0 by definition, and a text from elsewhere has no known end.
        own = margins[name] if contestant.adapter else {}
        shown = dataclasses.asdict(text_figures(answers[name], learned))
        found[name] = {
            "nats_per_token": nats,
            "margins": {rival: float(margin.mean()) for rival, margin in own.items()},
            "positive": {rival: float((m > 0).float().mean()) for rival, m in own.items()},
            **(shown | {"stops": None} if contestant.answers else shown),
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
    """The base model's answers to those of the general prompts that its context has room for."""
    asked = general_prompts(options.general, options.seed, "drift")
    room = model.config.max_position_embeddings - GENERAL_TOKENS
    encoded = [tuple(tokenizer.encode_prompt(prompt)) for prompt in asked]
    prompts = [prompt for prompt in encoded if len(prompt) <= room]
    on_token = writing("base, in general", len(prompts))
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
        asked = teacher or Cached(local_teacher(options), cache)
        total = 2 * comparisons_of(texts)
        with progress_bar("asking the judge", total, "question") as bar:
            found.append(
                judge_by_model(
                    ModelJudge(asked),
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
    on_token = writing("base, for the style judge", len(prompts) * STYLE_ANSWERS)
    with reference_policy(model, None):
        groups = sample(
            model, prompts, STYLE_ANSWERS, sampling, seed=options.seed + 1, on_token=on_token
        )
    base = [tokenizer.decode(c.ids) for group in groups for c in group]
    own = [d.completion for d in contest.learned]
    return StyleJudge.fit(own, [base, contest.others], seed=options.seed)


def endpoint(options: EvaluateOptions, cache: Path) -> Teacher | None:
    """Checked before anything long, its kept answers too; None without an address."""
    if not options.judge_url:
        return None
    teacher = EndpointTeacher(options.judge_url, options.judge_model)
    cached = Cached(teacher, cache)
    teacher.check()
    return cached


def local_teacher(options: EvaluateOptions) -> Teacher:
    model, tokenizer = load(options.judge_model, dtype=options.dtype, device=options.device)
    return LocalTeacher(model, tokenizer, options.judge_model)


# ---- progress ----


def writing(name: str, texts: int) -> Callable[[int, int, int], None]:
    bar = progress_bar(f"{name}: writing {texts} texts", None, "token")

    def on_token(prompt: int, sample: int, token: int) -> None:
        bar.update()

    return on_token


def progress_bar(title: str, total: int | None, unit: str) -> tqdm:
    return tqdm(
        desc=title, total=total, unit=unit, dynamic_ncols=True, disable=not sys.stderr.isatty()
    )
