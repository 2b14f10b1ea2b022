"""The verb that reads: the summed log-probability of completions, differentiable and fused.

Sequences are packed end to end without padding. Within a call each distinct prompt is computed once
and seen by all its completions, each distinct sequence is scored once, and only positions that
predict a completion token reach the head.

Shape letters: N packed tokens, S distinct sequences, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequence
from itertools import chain

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minialign.data.records import Example
from minialign.fused import linear_kl, linear_logps
from minialign.model.attention import PackedAttention
from minialign.model.matmul import Held
from minialign.model.transformer import CausalLM
from minialign.policy.packing import Packed, distinct_tokens, micro_batches
from minialign.policy.reference import reference_policy

# What one call holds for its backward pass: some 2 GB for a model of 135 M parameters.
MAX_TOKENS = 4096


def score(
    model: CausalLM, sequences: Sequence[Example], max_tokens: int | None = MAX_TOKENS
) -> Tensor:
    """log pi(completion | prompt), summed over the completion's tokens.

    A differentiable (len(sequences),) in float32.

    Equal to gathering `log_softmax(model.logits(...))` sequence by sequence. An empty completion
    scores 0.

    Where there are more than `max_tokens` distinct tokens, parts of about so many are scored in
    turn, and the backward pass computes each part again: memory is that of one part, the values
    and gradients are the same, and learning takes a third longer. None: all at once.
    """
    distinct = list(dict.fromkeys(sequences))
    if max_tokens is None or distinct_tokens(distinct) <= max_tokens:
        return _score(model, sequences)
    parts = list(micro_batches(distinct, lambda sequence: (sequence,), max_tokens))
    scores = torch.cat([_again(model, part) for part in parts])
    place = {sequence: number for number, sequence in enumerate(chain.from_iterable(parts))}
    return scores[torch.tensor([place[s] for s in sequences], device=model.device)]


def _again(model: CausalLM, sequences: Sequence[Example]) -> Tensor:
    """`_score`, of which nothing is kept: the backward pass computes it again."""
    if not torch.is_grad_enabled():
        return _score(model, sequences)
    scores = checkpoint(_score, model, sequences, use_reentrant=False)
    assert isinstance(scores, Tensor)
    return scores


def _score(model: CausalLM, sequences: Sequence[Example]) -> Tensor:
    packed = Packed.of(sequences)
    if not packed.targets:
        return torch.zeros(len(sequences), device=model.device)
    targets = torch.tensor(packed.targets, device=model.device)
    logps = model.lm_head.through(linear_logps, predictors(model, packed), targets)
    return packed.sums(logps)


def divergence(
    model: CausalLM,
    sequences: Sequence[Example],
    reference: str | None,
    temperature: float = 1.0,
) -> Tensor:
    """KL(reference || policy) of each next token, summed over a completion's tokens.

    Exact: over the whole vocabulary, at the completion's own positions. The reference is an
    adapter, or the base model for None. Both distributions are softened by `temperature`. A
    differentiable (len(sequences),) in float32.
    """
    packed = Packed.of(sequences)
    if not packed.targets:
        return torch.zeros(len(sequences), device=model.device)
    with reference_policy(model, reference):
        theirs = predictors(model, packed)
    ours = predictors(model, packed)
    return packed.sums(model.lm_head.through(_head_kl, ours, theirs, temperature))


def predictors(model: CausalLM, packed: Packed) -> Tensor:
    """The hidden states that predict `packed.targets`, (N, D)."""
    device = model.device
    attend = PackedAttention(packed.segments, model.config.windows, device)
    ids, positions = (
        torch.tensor(packed.ids, device=device),
        torch.tensor(packed.positions, device=device),
    )
    hidden = model(ids, positions, attend)
    # A shared prompt's last state predicts the first token of each of its completions. The gradient
    # of plain indexing adds those up in whatever order the threads come; this one's order is fixed.
    return hidden.index_select(0, torch.tensor(packed.predictors, device=device))


def _head_kl(hidden: Tensor, weight: Held, reference_hidden: Tensor, temperature: float) -> Tensor:
    return linear_kl(hidden, reference_hidden, weight, temperature)
