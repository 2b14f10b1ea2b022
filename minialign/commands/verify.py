"""Is what was written the model that was trained? It answers ten prompts, and every weight is read.

What a reader gets back is compared number by number with what should have been written; then the
two models answer, so that a wrong setting shows as well.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minialign.data.general import general_prompts
from minialign.errors import InputError
from minialign.evaluation.measure import progress_bar
from minialign.model.transformer import CausalLM
from minialign.policy.knobs import SamplingConfig
from minialign.policy.merge import base_parameters
from minialign.policy.reference import reference_policy
from minialign.policy.sample import sample
from minialign.weights.load import load
from minialign.weights.tokenizer import Tokenizer

PROMPTS, TOKENS = 10, 64
BROKEN = 0.5  # of the logits' spread: rounding never comes near, a wrong weight always does
LOST = 0.5  # of what the adapter changes: from here on, little of it is left
PROBE = "I've 12345 reasons, naïve ones:\n\n\t* 日本 👍  don't!"


@dataclass
class Answers:
    """What a model says to ten prompts without chance, and how sure it is of every token."""

    prompts: list[list[int]]
    answers: list[tuple[int, ...]]
    logits: list[Tensor]
    effect: float  # how far the base alone is from them
    probe: list[int]

    @classmethod
    def of(cls, model: CausalLM, tokenizer: Tokenizer) -> Answers:
        prompts = prompts_of(model, tokenizer)
        answers = greedy(model, prompts)
        found = cls(prompts, answers, [], 0.0, tokenizer.encode_prompt(PROBE))
        found.logits = list(logits_of(model, found))
        with reference_policy(model, None):
            found.effect = distance(zip(logits_of(model, found), found.logits, strict=True))
        return found


def prompts_of(model: CausalLM, tokenizer: Tokenizer) -> list[list[int]]:
    """Cut to what leaves room for an answer: here a prompt need not make sense."""
    room = model.config.max_position_embeddings - TOKENS
    return [tokenizer.encode_prompt(text)[-room:] for text in general_prompts(PROMPTS, 0)]


def greedy(model: CausalLM, prompts: list[list[int]]) -> list[tuple[int, ...]]:
    with progress_bar("checking", PROMPTS * TOKENS, "token") as bar:
        config = SamplingConfig(TOKENS, temperature=0.0)
        groups = sample(model, prompts, 1, config, seed=0, on_token=lambda *_: bar.update())
    return [tuple(group[0].ids) for group in groups]


@torch.no_grad()
def logits_of(model: CausalLM, said: Answers) -> Iterator[Tensor]:
    """For every prompt those by which its answer was chosen, (T, V)."""
    for prompt, answer in zip(said.prompts, said.answers, strict=True):
        ids = torch.tensor([[*prompt, *answer]], device=model.device)
        yield model.logits(ids)[0, len(prompt) - 1 :].cpu()


def distance(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The root of the mean square over all numbers."""
    sums = [((a - b).square().sum().item(), a.numel()) for a, b in pairs]
    return float((sum(total for total, _ in sums) / sum(count for _, count in sums)) ** 0.5)


@dataclass
class Rounding:
    """What becomes of the weights when they are stored: counted as they pass by."""

    stored: Callable[[Tensor], Any]  # the float32 array that a reader gets back
    changed: int = 0
    reached: int = 0
    sums: dict[str, int] = field(default_factory=dict)

    def watch(self, tensors: Iterator[tuple[str, Tensor, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        with progress_bar("writing", None, "tensor") as bar:
            for name, merged, base in tensors:
                stored = self.stored(merged)
                self.sums[name] = zlib.crc32(stored.tobytes())
                if merged is not base:
                    self.changed += int((stored != self.stored(base)).sum())
                    self.reached += stored.size
                yield name, merged
                bar.update()


def verify(written: Path, before: Answers, rounding: Rounding, device: str) -> list[str]:
    """Opens what was written; returns what was found, in lines.

    Raises InputError where it is not the model that was trained.
    """
    try:
        model, tokenizer = load(str(written), dtype="float32", base_dtype="model", device=device)
    except InputError as error:
        raise _broken(written, f"it does not open ({error})") from None
    for name, parameter in base_parameters(model):
        if zlib.crc32(parameter.cpu().numpy().tobytes()) != rounding.sums.get(name):
            raise _broken(written, f"{name} holds other numbers than were written")
    if tokenizer.encode_prompt(PROBE) != before.probe:
        raise _broken(written, "its tokenizer reads a text as other tokens")
    logits = list(logits_of(model, before))
    pairs = list(zip(logits, before.logits, strict=True))
    off, spread = distance(pairs), float(torch.cat(before.logits).std())
    if not off < BROKEN * spread:
        raise _broken(written, f"its logits are off by {off:.2g}, of a spread of {spread:.2g}")
    largest = max(float((a - b).abs().max()) for a, b in pairs)
    answers = greedy(model, prompts_of(model, tokenizer))
    same = sum(a == b for a, b in zip(answers, before.answers, strict=True))
    share = rounding.changed / max(1, rounding.reached)
    lines = [
        f"checked: opened again; {same} of {PROMPTS} greedy answers ({TOKENS} tokens) are the same,"
        f" logits differ by {largest:.2g} at most (they spread by {spread:.2g});"
        f" {share:.1%} of the weights that the adapter reaches changed",
    ]
    if off > LOST * before.effect:
        lines.append(
            f"warning: rounding moves the logits by {off:.2g}, what was learned moves them by"
            f" {before.effect:.2g}: little of it is left; export with a wider --dtype, or --to peft"
        )
    return lines


def _broken(written: Path, reason: str) -> InputError:
    return InputError(f"{written.name}: {reason}, so nothing was kept; please report this")
