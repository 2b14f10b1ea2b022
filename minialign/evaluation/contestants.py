"""Who answers the held-out prompts: the base model, few-shot prompting, adapters, a file of texts.

Entries say who takes part, before a model is loaded; contestants are what a model makes of them.
All of them answer the same prompts with the same random streams, through one sampler.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minialign.data.records import (
    DEMONSTRATIONS,
    Demonstration,
    Example,
    Messages,
    load_demonstrations,
)
from minialign.errors import InputError
from minialign.evaluation.names import BASE, FEW_SHOT
from minialign.methods.cards import card_of, method_names
from minialign.model.transformer import CausalLM
from minialign.policy.knobs import SamplingConfig
from minialign.policy.reference import reference_policy
from minialign.policy.sample import Completion, with_text
from minialign.training.folder import adapter_folder, folder_and_weight
from minialign.training.rollouts import rollouts
from minialign.weights.tokenizer import Tokenizer

# prompt -> answers, with their texts
Answers = list[list[Completion]]
Progress = Callable[[str, int], Callable[[int, int, int], None]]


# ---- before the model loads ----


@dataclass(frozen=True)
class Entry:
    """Who takes part, and where the weights or the answers lie."""

    name: str
    # a folder in PEFT's format
    adapter: Path | None = None
    few_shot: bool = False
    # of answers
    file: Path | None = None
    # several such folders, which are added up, each with its weight
    summed: tuple[tuple[Path, float], ...] = ()

    @property
    def source(self) -> Path | None:
        return self.adapter or self.file or (self.summed[0][0] if self.summed else None)

    def is_same(self, other: Entry) -> bool:
        places = [source.resolve() if (source := e.source) else None for e in (self, other)]
        alike = self.few_shot == other.few_shot and self.summed == other.summed
        return places[0] == places[1] and alike


def entries_of(
    folders: Sequence[Path], records: Sequence[dict[str, Any]], against: Sequence[str]
) -> list[Entry]:
    """The rivals in the order of --against, then the runs: the last one is who is asked about.

    A run that is a rival too stands among the runs. Raises InputError for a rival that is unknown
    or not there, and where two different ones would go by one name.
    """
    rivals = [_rival(text, folders[0], records[0]["options"]["method"]) for text in against]
    if len(folders) == 1:
        runs = [Entry(records[0]["options"]["method"], folders[0] / "adapter")]
    else:
        runs = [Entry(folder.resolve().name, folder / "adapter") for folder in folders]
    known: dict[str, Entry] = {}
    for entry in (*rivals, *runs):
        if entry.name == BASE and entry.source:
            raise InputError(
                f"{entry.source}: only the base model itself is called {BASE}: rename this"
            )
        other = known.pop(entry.name, entry)
        if not entry.is_same(other):
            raise InputError(
                f"{other.source or other.name} and {entry.source} would both be called "
                f"{entry.name}: rename one, or leave it out"
            )
        known[entry.name] = entry
    return list(known.values())


def _rival(text: str, run: Path, method: str) -> Entry:
    """`run` and `method` are the first run's, whose stages and siblings are meant."""
    if text == BASE:
        return Entry(BASE)
    if text == FEW_SHOT:
        return Entry(FEW_SHOT, few_shot=True)
    names = method_names(DEMONSTRATIONS)
    if text in names:
        return Entry(text, _adapter_of(text, run, method))
    path = Path(text)
    if path.is_dir():
        return Entry(path.resolve().name, adapter_folder(text))
    if path.is_file():
        return Entry(path.stem, file=path)
    if "+" in text:
        return _sum(text)
    raise InputError(
        f"--against {text}: not one of {', '.join((BASE, FEW_SHOT, *names))}, nor a run folder, "
        "a sum of them (runs/a+runs/b=0.5) or a file of answers"
    )


def parts_of(text: str) -> list[tuple[str, float]]:
    """What a rival is added up of, with weights; a path that exists is one part."""
    parts = [text] if Path(text).exists() else text.split("+")
    return [folder_and_weight(part.strip()) for part in parts]


def _sum(text: str) -> Entry:
    """runs/a+runs/b=0.5: adapters that are added up, as sample.py does."""
    weighed = parts_of(text)
    names = [Path(folder).resolve().name + (f"={w:g}" if w != 1 else "") for folder, w in weighed]
    return Entry("+".join(names), summed=tuple((adapter_folder(f), w) for f, w in weighed))


def _adapter_of(name: str, run: Path, method: str) -> Path:
    """A method's adapter: the run's own, an earlier stage's, or that of the folder RUN-name."""
    if name == method:
        return run / "adapter"
    if name in [stage.name for stage in card_of(method, DEMONSTRATIONS).stages[:-1]]:
        if not (run / f"adapter-{name}").exists():
            raise InputError(
                f"--against {name}: {run / f'adapter-{name}'} is not there: leave {name} out"
            )
        return run / f"adapter-{name}"
    # "." has no name to put -name behind
    run = run if run.name else run.resolve()
    folder = run.with_name(f"{run.name}-{name}")
    if not (folder / "adapter").exists():
        raise InputError(
            f"--against {name}: {folder} is not there: train it with the run's command and "
            f"--method {name} --out {folder}"
        )
    return folder / "adapter"


# ---- with the model ----


@dataclass(frozen=True)
class Contestant:
    """A policy and what it is shown, or texts that were written elsewhere."""

    name: str
    # None: the base model
    adapter: str | None = None
    # few-shot: the demonstrations in its prompt
    shown: tuple[Demonstration, ...] = ()
    # a file's: prompt -> texts
    answers: tuple[tuple[str, ...], ...] = ()

    @property
    def is_policy(self) -> bool:
        """Whether it stands on one scale with the base model: the same prompt, other weights."""
        return not self.shown and not self.answers


def few_shot_messages(
    shown: Sequence[Demonstration], messages: Messages, tokenizer: Tokenizer, limit: int
) -> Messages:
    """The demonstrations as earlier turns of the conversation: as many, in order, as fit.

    `limit` is the most tokens that the prompt may have. Raises InputError where not even one fits.
    """
    for count in range(len(shown), 0, -1):
        turns = [turn for d in shown[:count] for turn in _turns(d)]
        together = [*turns, *messages]
        if len(tokenizer.encode_prompt(together)) <= limit:
            return together
    raise InputError(
        f"few-shot: not one demonstration fits into a prompt of {max(0, limit)} tokens, which is "
        "what the context leaves (--max-new-tokens): leave few-shot out of --against"
    )


def _turns(demonstration: Demonstration) -> Messages:
    return [*demonstration.messages, {"role": "assistant", "content": demonstration.completion}]


def answers_from_file(path: Path, prompts: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Texts by prompt, from a file such as `sample.py --out` writes; equally many for each.

    Raises InputError where a prompt has none.
    """
    found: dict[str, list[str]] = {}
    for answer in load_demonstrations(path):
        found.setdefault(answer.prompt, []).append(answer.completion)
    for prompt in prompts:
        if prompt not in found:
            raise InputError(f"{path}: has no answer to the held-out prompt {prompt[:60]!r}")
    fewest = min(len(found[prompt]) for prompt in prompts)
    return tuple(tuple(found[prompt][:fewest]) for prompt in prompts)


def prompt_ids(
    contestant: Contestant, prompts: Sequence[Messages], tokenizer: Tokenizer, limit: int
) -> list[tuple[int, ...]]:
    """What the contestant reads before it answers."""
    if contestant.shown:
        prompts = [few_shot_messages(contestant.shown, p, tokenizer, limit) for p in prompts]
    return [tuple(tokenizer.encode_prompt(messages)) for messages in prompts]


def write_answers(
    model: CausalLM,
    tokenizer: Tokenizer,
    contestants: Sequence[Contestant],
    prompts: Sequence[Messages],
    n: int,
    sampling: SamplingConfig,
    *,
    seed: int,
    progress: Progress,
    longest: int = 0,
) -> dict[str, Answers]:
    """Every contestant's n answers to every prompt (a file's as many as it has).

    `longest` are the tokens of the longest text that is to be scored behind the same prompts.
    Raises InputError, before anything is written, where few-shot's prompts do not fit.
    """
    limit = prompt_limit(model, sampling, longest)
    asked = {c.name: prompt_ids(c, prompts, tokenizer, limit) for c in contestants}

    def written(contestant: Contestant) -> Answers:
        if contestant.answers:
            return [[_foreign(text, tokenizer) for text in group] for group in contestant.answers]
        ids = asked[contestant.name]
        on_token = progress(contestant.name, len(ids) * n)
        with reference_policy(model, contestant.adapter):
            groups = rollouts(model, ids, n, sampling, seed=seed, on_token=on_token)
        return [[with_text(c, tokenizer) for c in group] for group in groups]

    return {contestant.name: written(contestant) for contestant in contestants}


def prompt_limit(model: CausalLM, sampling: SamplingConfig, longest: int) -> int:
    """The most tokens of a prompt that leaves room for an answer, and for a text of `longest`."""
    return model.config.max_position_embeddings - max(sampling.max_new_tokens, longest)


def _foreign(text: str, tokenizer: Tokenizer) -> Completion:
    """A text from elsewhere: its ids are only counted."""
    return Completion(text, tuple(tokenizer.encode_completion(text)), float("nan"), "stop")


def held_out_sequences(
    contestant: Contestant,
    held_out: Sequence[Example],
    prompts: Sequence[Messages],
    tokenizer: Tokenizer,
    limit: int,
) -> list[Example]:
    """The person's own texts behind what the contestant reads."""
    if not contestant.shown:
        return list(held_out)
    ids = prompt_ids(contestant, prompts, tokenizer, limit)
    return [Example(p, s.completion_ids) for p, s in zip(ids, held_out, strict=True)]
