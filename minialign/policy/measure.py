"""How likely is what the person really wrote?  And how far has the model moved from the base?

* nats per token: how surprised a contestant is by the person's real texts. Lower is better.
* reward margin: beta [log pi/pi_base (real text) - log pi/pi_base (an own answer)], the mean over
  answers that the base (or another) model wrote to the same prompts. Above 0, the policy has moved
  towards the person and away from that model. The base model is everybody's reference here, so the
  contestants stand on one scale and the base model's own is 0.
* drift: KL(base || policy) in nats per token, on the base model's own answers to general prompts:
  what a voice cost everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Sequence

import torch
from torch import Tensor

from minialign.data.records import Example
from minialign.model.transformer import CausalLM
from minialign.policy.packing import micro_batches
from minialign.policy.reference import reference_policy
from minialign.policy.sample import Completion
from minialign.policy.score import divergence, score


def nats_per_token(model: CausalLM, held_out: Sequence[Example], max_tokens: int) -> float | None:
    """The loss per token of texts that were not trained on; None if there are none."""
    if not held_out:
        return None
    total = float(scores(model, held_out, max_tokens).sum())
    return -total / sum(len(sequence.completion_ids) for sequence in held_out)


def reward_margins(
    model: CausalLM,
    adapters: dict[str, str | None],
    held_out: Sequence[Example],
    answers: dict[str, list[list[Example]]],
    *,
    beta: float,
    max_tokens: int,
) -> dict[str, dict[str, Tensor]]:
    """Contestant -> whose answers -> margins (P, n), of P real texts over n answers to each prompt.

    `adapters` begins with the base model's None, and `answers` are those of some of its names.
    """
    own, others = {}, {}
    for name, adapter in adapters.items():
        with reference_policy(model, adapter):
            own[name] = scores(model, held_out, max_tokens)  # (P,)
            others[name] = {
                rival: scores(model, [s for group in groups for s in group], max_tokens).view(
                    len(groups), -1
                )
                for rival, groups in answers.items()
            }
    base = next(iter(adapters))
    return {
        name: {
            rival: beta
            * ((own[name] - own[base])[:, None] - (others[name][rival] - others[base][rival]))
            for rival in answers
        }
        for name in adapters
    }


def drift(
    model: CausalLM, adapter: str | None, ordinary: Sequence[Example], max_tokens: int
) -> float:
    """KL(base || adapter), nats per token of the base model's `ordinary` answers."""
    if adapter is None:
        return 0.0
    with reference_policy(model, adapter):
        total = _in_parts(lambda part: divergence(model, part, None), ordinary, max_tokens).sum()
    return float(total) / sum(len(sequence.completion_ids) for sequence in ordinary)


def rollout_gap(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[Completion]],
    max_tokens: int,
) -> float:
    """How far what wrote the answers lies from the policy: KL(rollouts || policy), nats per token.

    Estimated by log q(text) - log pi(text) of answers to each prompt in turn, of some `max_tokens`
    tokens together.
    """
    chosen: dict[Example, float] = {}
    turns = (
        pair for turn in zip(*answers, strict=True) for pair in zip(prompts, turn, strict=True)
    )
    for prompt, answer in turns:
        if sum(map(len, chosen)) >= max_tokens:
            break
        chosen[Example(tuple(prompt), answer.ids)] = answer.logprob
    tokens = sum(len(example.completion_ids) for example in chosen)
    own = float(scores(model, list(chosen), max_tokens).sum())
    return (sum(chosen.values()) - own) / max(1, tokens)


@torch.no_grad()
def scores(model: CausalLM, sequences: Sequence[Example], max_tokens: int) -> Tensor:
    """`score`, in parts that fit into memory, on the host."""
    return _in_parts(lambda part: score(model, part), sequences, max_tokens)


@torch.no_grad()
def _in_parts(
    measure: Callable[[list[Example]], Tensor], sequences: Sequence[Example], max_tokens: int
) -> Tensor:
    known: dict[Example, float] = {}
    distinct = list(dict.fromkeys(sequences))
    for part in micro_batches(distinct, lambda sequence: (sequence,), max_tokens):
        known.update(zip(part, measure(part).tolist(), strict=True))
    return torch.tensor([known[sequence] for sequence in sequences])
