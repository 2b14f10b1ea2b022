"""DITTO's measure: do the answers to unseen prompts read like the person's own?

Besides the runs, the base model, few-shot prompting, other methods and files of texts take part.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence as Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

from minialign.data.files import read_jsonl
from minialign.data.general import general_prompts
from minialign.data.records import (
    Demonstration,
    Example,
    Messages,
    check_held_out,
    held_out_split,
    load_demonstrations,
    training_split,
)
from minialign.data.votes import Vote, read_votes
from minialign.errors import InputError
from minialign.evaluation.contestants import (
    Answers,
    Contestant,
    Entry,
    answers_from_file,
    entries_of,
    held_out_sequences,
    parts_of,
    prompt_limit,
)
from minialign.evaluation.fluency import fluency
from minialign.evaluation.judges import JUDGES, VOTES, module_of
from minialign.evaluation.judges.verdicts import Judgement, Trial, judgement_of
from minialign.evaluation.knobs import EvaluateOptions
from minialign.evaluation.measure import Hall, progress_bar, writing
from minialign.evaluation.names import BASE
from minialign.evaluation.tables import contest_table, side_by_side
from minialign.evaluation.texts import new_names, repetition, text_figures
from minialign.methods.cards import warm_starts
from minialign.methods.knobs import DittoConfig
from minialign.model.transformer import CausalLM
from minialign.policy.encode import encode_demonstration
from minialign.policy.knobs import SamplingConfig
from minialign.policy.measure import drift, nats_per_token, reward_margins
from minialign.policy.reference import reference_policy
from minialign.policy.sample import sample
from minialign.training.folder import read_run_record
from minialign.weights.tokenizer import Tokenizer

# of an answer on which drift is measured
GENERAL_TOKENS = 96


@dataclass(frozen=True)
class VoiceResults:
    """What was found, by contestant."""

    held_out: list[Demonstration]
    # contestant -> name of a figure -> value
    figures: dict[str, dict[str, Any]]
    answers: dict[str, Answers]
    judgements: list[Judgement]
    # of the person's held-out texts
    tokens: int
    # tokens an answer at most
    limit: int = 0
    # the same of their own texts
    person: dict[str, float | None] = field(default_factory=dict)

    def table(self, show: int) -> str:
        title = f"{len(self.held_out)} held-out demonstrations, {self.tokens} tokens"
        figures = contest_table(title, self.figures, self.judgements, self.limit, self.person)
        return f"{figures}\n{side_by_side(self.held_out, self.answers, show)}"

    def content(self) -> dict[str, Any]:
        """The prompts, everybody's figures and answers, the judges."""
        return {
            "prompts": [d.prompt for d in self.held_out],
            "messages": [d.messages for d in self.held_out],
            "texts": [d.completion for d in self.held_out],
            "max_new_tokens": self.limit,
            "person": self.person,
            "contestants": {
                name: {
                    **figures,
                    "answers": [[c.text for c in group] for group in self.answers[name]],
                    "finish_reasons": [
                        [c.finish_reason for c in group] for group in self.answers[name]
                    ],
                }
                for name, figures in self.figures.items()
            },
            "judges": [dataclasses.asdict(judgement) for judgement in self.judgements],
        }


@dataclass(frozen=True)
class Voice:
    """The measure of runs that learned from demonstrations."""

    usual: ClassVar[EvaluateOptions] = EvaluateOptions()
    useless: ClassVar[tuple[str, ...]] = ()
    everywhere: ClassVar[bool] = False

    # of the first run
    knobs: dict[str, Any]
    learned: list[Demonstration]
    held_out: list[Demonstration]
    entries: list[Entry]
    others: list[str]
    # the answers of those that come with a file
    written: dict[str, tuple[tuple[str, ...], ...]]
    votes: list[Vote]

    @classmethod
    def of(
        cls,
        folders: Sequence[Path],
        records: Sequence[dict[str, Any]],
        options: EvaluateOptions,
    ) -> Voice:
        # refuses more than there are
        general_prompts(options.general, options.seed, "drift")
        learned = load_demonstrations(records[0]["options"]["demos"])
        held_out = _held_out(learned, records[0]["options"]["test"], options)
        parts = [part for rival in options.against for part in parts_of(rival)]
        rivals = [Path(folder) for folder, _ in parts if (Path(folder) / "config.json").exists()]
        others = list(map(read_run_record, rivals))
        for record in (*records[1:], *others):
            # else it learned from feedback
            if demos := record["options"]["demos"]:
                check_held_out(training_split(load_demonstrations(demos)), held_out)
            if file := record["options"].get("votes"):
                _check_unvoted(file, held_out)
        entries = entries_of(folders, records, options.against)
        prompts = [d.prompt for d in held_out]
        return cls(
            records[0]["knobs"],
            training_split(learned),
            held_out,
            entries,
            other_texts(options.others),
            {e.name: answers_from_file(e.file, prompts) for e in entries if e.file},
            read_votes(options.votes) if options.votes else [],
        )

    @property
    def asked(self) -> list[Messages]:
        return [d.messages for d in self.held_out]

    def contestant(self, entry: Entry, adapter: str | None) -> Contestant:
        shown = tuple(self.learned) if entry.few_shot else ()
        return Contestant(entry.name, adapter, shown, self.written.get(entry.name, ()))

    def lengths(self, model: CausalLM, tokenizer: Tokenizer) -> tuple[int, int]:
        longest = max(len(s.completion_ids) for s in self._sequences(model, tokenizer))
        return longest, longest

    def _sequences(self, model: CausalLM, tokenizer: Tokenizer) -> list[Example]:
        limit = min(self.knobs["max_length"], model.config.max_position_embeddings)
        return [encode_demonstration(d, tokenizer, limit)[0] for d in self.held_out]

    def measured(self, hall: Hall) -> VoiceResults:
        held_out = self._sequences(hall.model, hall.tokenizer)
        figures = _figures(self, hall, held_out)
        tokens = sum(len(sequence.completion_ids) for sequence in held_out)
        return VoiceResults(
            self.held_out,
            figures,
            hall.answers,
            _judged(self, hall),
            tokens,
            hall.sampling.max_new_tokens,
            _persons_figures(self, hall, held_out),
        )


# ---- before the model loads ----


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


def _check_unvoted(file: str, held_out: list[Demonstration]) -> None:
    """Raises InputError where a run learned from votes on a prompt that is to be judged by."""
    voted = {vote.prompt for vote in read_votes(file)}
    for demonstration in held_out:
        if demonstration.prompt in voted:
            raise InputError(
                f"{demonstration.source}: a run learned from votes on this prompt ({file}): judge "
                "it by new ones: --test FILE.jsonl"
            )


def other_texts(file: str) -> list[str]:
    """Other people's texts: the given file's, else a few that come with minialign."""
    if not file:
        source = resources.files("minialign.evaluation.judges").joinpath("other_voices.jsonl")
        with resources.as_file(source) as path:
            return [record["text"] for _, record in read_jsonl(path)]
    texts = [record.get("text") for _, record in read_jsonl(file)]
    found = [text for text in texts if isinstance(text, str) and text.strip()]
    return found if len(found) == len(texts) else [d.completion for d in load_demonstrations(file)]


# ---- with the model ----


def _figures(voice: Voice, hall: Hall, held_out: list[Example]) -> dict[str, dict[str, Any]]:
    """All that is measured without a judge; None where a figure does not apply."""
    learned = [d.completion for d in voice.learned]
    model, tokenizer, options = hall.model, hall.tokenizer, hall.options
    contestants, answers = hall.contestants, hall.answers
    limit = prompt_limit(model, hall.sampling, hall.longest)
    policies = {BASE: None, **{c.name: c.adapter for c in contestants if c.is_policy}}
    margins = reward_margins(
        model,
        policies,
        held_out,
        _own_answers(policies, held_out, answers),
        beta=voice.knobs.get("beta", DittoConfig.beta),
        max_tokens=options.micro_batch_tokens,
    )
    ordinary = _ordinary_answers(model, tokenizer, options) if options.general else []
    found = {}
    for contestant in contestants:
        name = contestant.name
        nats = drifted = None
        if not contestant.answers:
            texts = held_out_sequences(contestant, held_out, voice.asked, tokenizer, limit)
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
            "fluency": fluency(
                model,
                [text.prompt_ids for text in held_out],
                answers[name],
                options.micro_batch_tokens,
            ),
            "names": _names(voice, [[c.text for c in group] for group in answers[name]]),
            "drift": drifted,
        }
    return found


def _persons_figures(voice: Voice, hall: Hall, held_out: list[Example]) -> dict[str, float | None]:
    """What is said of the answers, of the person's own texts to the same prompts."""
    own = [d.completion for d in voice.held_out]
    with reference_policy(hall.model, None):
        nats = nats_per_token(hall.model, held_out, hall.options.micro_batch_tokens)
    return {
        "fluency": nats,
        "repetition": sum(map(repetition, own)) / len(own),
        "names": _names(voice, [[text] for text in own]),
    }


def _names(voice: Voice, texts: Sequence[Sequence[str]]) -> float:
    """Names an answer that neither its prompt nor a demonstration holds."""
    learned = [text for d in voice.learned for text in (d.prompt, d.completion)]
    counts = [
        new_names(text, [*learned, d.prompt])
        for d, group in zip(voice.held_out, texts, strict=True)
        for text in group
    ]
    return sum(counts) / len(counts)


def _own_answers(
    policies: dict[str, str | None], held_out: list[Example], answers: dict[str, Answers]
) -> dict[str, list[list[Example]]]:
    """What the base and the warm starts wrote, to measure margins against."""
    return {
        name: [
            [Example(text.prompt_ids, c.ids) for c in group]
            for text, group in zip(held_out, answers[name], strict=True)
        ]
        for name in (BASE, *warm_starts())
        if name in policies and name in answers
    }


def _ordinary_answers(
    model: CausalLM, tokenizer: Tokenizer, options: EvaluateOptions
) -> list[Example]:
    """The base model's answers to those of the general prompts that its context has room for."""
    asked = general_prompts(options.general, options.seed, "drift")
    room = model.config.max_position_embeddings - GENERAL_TOKENS
    encoded = [tuple(tokenizer.encode_prompt(prompt)) for prompt in asked]
    prompts = [prompt for prompt in encoded if len(prompt) <= room]
    on_token = writing(f"{BASE}, in general", len(prompts))
    with reference_policy(model, None):
        sampling = SamplingConfig(GENERAL_TOKENS)
        groups = sample(model, prompts, 1, sampling, seed=options.seed, on_token=on_token)
    return [Example(prompt, group[0].ids) for prompt, group in zip(prompts, groups, strict=True)]


# ---- judges ----


def _judged(voice: Voice, hall: Hall) -> list[Judgement]:
    texts = {name: [[c.text for c in group] for group in a] for name, a in hall.answers.items()}
    if len(texts) < 2:
        return []
    trial = Trial(
        hall.model,
        hall.tokenizer,
        voice.learned,
        voice.held_out,
        voice.others,
        hall.sampling,
        hall.options.seed,
        hall.teacher,
        writing,
        _asking,
        voice.votes,
    )
    asked = {*hall.options.judges, *([VOTES] if hall.options.votes else [])}
    judges = (module_of(name).build(trial) for name in JUDGES if name in asked)
    return [judgement_of(judge, texts) for judge in judges]


def _asking(questions: int) -> Callable[[], None]:
    bar = progress_bar("asking the judge", questions, "question")

    def done() -> None:
        bar.update()

    return done
