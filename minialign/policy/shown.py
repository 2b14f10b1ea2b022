"""How far a policy is from the same model that is shown more in its prompt.

Shape letters: N tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from minialign.data.records import Example
from minialign.losses import top_divergence
from minialign.model.transformer import CausalLM
from minialign.policy.packing import Packed
from minialign.policy.reference import reference_policy
from minialign.policy.score import predictors

# Tokens whose logits are held at a time.
CHUNK = 64


def shown_divergence(
    model: CausalLM,
    answers: Sequence[Example],
    shown: tuple[int, ...],
    teacher: str | None,
    top: int,
) -> Tensor:
    """KL(policy || teacher) of each next token of answers to one prompt, by its `top` tokens.

    The teacher, an adapter or the base model for None, reads the same answers behind the prompt
    `shown`. Returns the sum over all tokens, a differentiable scalar.
    """
    distinct = list(dict.fromkeys(answers))
    behind = [Example(shown, answer.completion_ids) for answer in distinct]
    with reference_policy(model, teacher):
        theirs = predictors(model, Packed.of(behind))
    packed = Packed.of(distinct)
    divergences = model.lm_head.through(_by_chunks, predictors(model, packed), theirs, top)
    sums = torch.stack([part.sum() for part in divergences.split(packed.lengths)])
    times = torch.tensor([answers.count(answer) for answer in distinct], device=sums.device)
    return (sums * times).sum()


def _by_chunks(hidden: Tensor, weight: Tensor, theirs: Tensor, top: int) -> Tensor:
    """(N,), of which the backward pass computes each chunk's logits again."""
    chunks = zip(hidden.split(CHUNK), theirs.split(CHUNK), strict=True)
    found = [checkpoint(_chunk, *pair, weight, top, use_reentrant=False) for pair in chunks]
    return torch.cat(found)


def _chunk(hidden: Tensor, theirs: Tensor, weight: Tensor, top: int) -> Tensor:
    return top_divergence((hidden @ weight.T).float(), (theirs @ weight.T).float(), top)
