"""`sample.py --best-of N`: writes several answers to each prompt and shows the best, with why."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from minialign.data.records import Demonstration, Messages, load_demonstrations, training_split
from minialign.errors import InputError
from minialign.training.folder import read_run_record

if TYPE_CHECKING:
    from minialign.model.transformer import CausalLM
    from minialign.weights.tokenizer import Tokenizer


def demonstrations_of(adapters: Sequence[str]) -> list[Demonstration]:
    """What the run learned from, by which its answers are judged. Raises InputError without."""
    if len(adapters) != 1:
        raise InputError("--best-of compares with what a run learned from: give one --adapter RUN")
    file = read_run_record(adapters[0])["options"].get("demos")
    if not file:
        raise InputError(f"{adapters[0]}: did not learn from demonstrations: leave out --best-of")
    return training_split(load_demonstrations(file))


def show_best(
    model: CausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[Messages],
    learned: Sequence[Demonstration],
    count: int,
    how: dict[str, Any],
) -> None:
    """The best of `count` goes to stdout, and why to stderr; `how` is for `generate`."""
    from minialign.evaluation.best import fit_judge, pick
    from minialign.evaluation.measure import writing
    from minialign.policy.knobs import SamplingConfig
    from minialign.policy.sample import generate

    sampling = SamplingConfig(how["max_new_tokens"], how["temperature"])
    judge = fit_judge(model, tokenizer, learned, sampling, how["seed"])
    on_token = writing("answers", len(prompts) * count)
    groups = generate(model, tokenizer, prompts, n=count, on_token=on_token, **how)
    for messages, answers in zip(prompts, groups, strict=True):
        if len(prompts) > 1:
            print(f"=== {messages[-1]['content']} ===\n")
        best = pick(model, judge, learned, tokenizer.encode_prompt(messages), answers)
        print(f"{answers[best.place].text}\n", flush=True)
        print(best.why(), file=sys.stderr)
    print(judge.describe(), file=sys.stderr)
