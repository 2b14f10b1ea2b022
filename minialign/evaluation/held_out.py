"""What a run learned, on texts that it never saw: the base model, SFT and DITTO side by side.

* nats per token: how surprised a policy is by the person's real texts. Lower is better.
* reward margin: beta [log pi/pi_base (real text) - log pi/pi_base (an own answer)], the mean over
  answers that the base (or the SFT) model wrote to the same prompts. Above 0, the policy has moved
  towards the person and away from itself. The base model is everybody's reference here, so the
  columns stand on one scale and the base model's own is 0.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceABC
from dataclasses import dataclass

import torch
from torch import Tensor

from minialign.config import SamplingConfig
from minialign.data import Sequence
from minialign.lora import reference_policy
from minialign.model import CausalLM
from minialign.sampler import Completion, sample
from minialign.scoring import micro_batches, score

Contestants = dict[str, str | None]  # shown name -> adapter, None for the base model


@dataclass(frozen=True)
class HeldOut:
    """One contestant's results."""

    nats_per_token: float
    margins: dict[str, float]  # against the answers of: the mean margin
    wins: dict[str, float]  # the share of comparisons with a positive margin
    answers: list[list[Completion]]  # prompt -> answers
    stops: float  # the share of answers that ended by themselves
    mean_tokens: float


def evaluate_held_out(
    model: CausalLM,
    contestants: Contestants,
    held_out: SequenceABC[Sequence],
    *,
    beta: float,
    n: int,
    sampling: SamplingConfig,
    seed: int,
    max_tokens: int,
) -> dict[str, HeldOut]:
    """Every contestant on every held-out text; answers are written with the same random streams."""
    prompts = [sequence.prompt_ids for sequence in held_out]
    answers, own, others = {}, {}, {}
    for name, adapter in contestants.items():
        with reference_policy(model, adapter):
            answers[name] = sample(model, prompts, n, sampling, seed=seed)
    rivals = {
        name: [
            [Sequence(prompt, c.ids) for c in group]
            for prompt, group in zip(prompts, answers[name], strict=True)
        ]
        for name in list(contestants)[:-1] or list(contestants)
    }
    for name, adapter in contestants.items():
        with reference_policy(model, adapter):
            own[name] = scores(model, held_out, max_tokens)  # (P,)
            others[name] = {
                rival: scores(model, [s for group in groups for s in group], max_tokens).view(
                    len(prompts), n
                )
                for rival, groups in rivals.items()
            }
    base = next(iter(contestants))
    tokens = sum(len(sequence.completion_ids) for sequence in held_out)
    results = {}
    for name in contestants:
        margins = {
            rival: beta
            * ((own[name] - own[base])[:, None] - (others[name][rival] - others[base][rival]))
            for rival in rivals
        }
        flat = [completion for group in answers[name] for completion in group]
        results[name] = HeldOut(
            nats_per_token=-float(own[name].sum()) / tokens,
            margins={rival: float(margin.mean()) for rival, margin in margins.items()},
            wins={rival: float((margin > 0).float().mean()) for rival, margin in margins.items()},
            answers=answers[name],
            stops=sum(c.finish_reason == "stop" for c in flat) / len(flat),
            mean_tokens=sum(len(c.ids) for c in flat) / len(flat),
        )
    return results


@torch.no_grad()
def scores(model: CausalLM, sequences: SequenceABC[Sequence], max_tokens: int) -> Tensor:
    """`score`, in parts that fit into memory, on the host."""
    known: dict[Sequence, float] = {}
    for part in micro_batches(
        list(dict.fromkeys(sequences)), lambda sequence: (sequence,), max_tokens
    ):
        known.update(zip(part, score(model, part).tolist(), strict=True))
    return torch.tensor([known[sequence] for sequence in sequences])
