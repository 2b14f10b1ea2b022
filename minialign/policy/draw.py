"""Drawing a token from logits.

Shape letters: B live rows, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from minialign.policy.knobs import SamplingConfig

if TYPE_CHECKING:
    pass


BLOCK = 256  # numbers that the draw sums up at a time


def draw_tokens(logits: Tensor, uniforms: Tensor, config: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Inverse transform sampling: the first token whose cumulative probability exceeds u.

    Logits (B, V), up to a constant a row, and uniforms (B,) -> token ids (B,), and their
    log-probabilities (B,) by the logits as they are.

    Temperature first, then top-k, then top-p, as transformers does. Temperature 0 is argmax.
    """
    probabilities = logits.softmax(-1)
    if config.temperature == 0:
        ids = logits.argmax(-1)
    else:
        weights = _narrowed(logits, config) if config.narrows else probabilities
        # A u that rounds to 1 would exceed every cumulative probability, and draw the last token
        # of the vocabulary whether it was kept or not.
        below_one = 1 - torch.finfo(weights.dtype).eps / 2
        ids = _first_exceeding(weights, uniforms.to(weights.dtype).clamp(max=below_one))
    chosen = probabilities.gather(1, ids[:, None]).squeeze(1)
    return ids, chosen.clamp_(min=torch.finfo(chosen.dtype).tiny).log_()


def _narrowed(logits: Tensor, config: SamplingConfig) -> Tensor:
    """What is drawn from, (B, V), which need not add up to 1."""
    scaled = logits / config.temperature
    if config.top_k and config.top_k < logits.shape[-1]:
        kept = scaled.topk(config.top_k).values[:, -1:]
        scaled = scaled.masked_fill(scaled < kept, -torch.inf)
    if config.top_p < 1:
        scaled = _keep_top_p(scaled, config.top_p)
    return scaled.softmax(-1)


def _first_exceeding(weights: Tensor, shares: Tensor) -> Tensor:
    """The first place at which the cumulative weight exceeds this share of the whole.

    Weights (B, V), not negative, and shares (B,) in [0, 1) -> places (B,).

    A cumulative sum over a whole vocabulary runs through it number by number. Blocks are summed
    first, which is fast; only their sums and the one block that matters are accumulated.
    """
    rows, size = weights.shape
    padded = F.pad(weights, (0, -size % BLOCK)) if size % BLOCK else weights
    blocks = padded.view(rows, -1, BLOCK)
    sums = blocks.sum(-1).cumsum(-1)  # (B, V / BLOCK)
    thresholds = shares[:, None] * sums[:, -1:]
    block = torch.searchsorted(sums, thresholds, right=True).clamp_(max=sums.shape[1] - 1)
    before = F.pad(sums, (1, 0)).gather(1, block)  # what the blocks in front of it hold
    own = blocks[torch.arange(rows, device=weights.device), block[:, 0]].cumsum(-1)
    place = torch.searchsorted(own, thresholds - before, right=True)
    # rounding may put the threshold behind a block that it lies in: its last token with any weight
    last = (own < own[:, -1:]).sum(-1, keepdim=True)
    return (block * BLOCK + torch.minimum(place, last)).squeeze(1).clamp_(max=size - 1)


def _keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Keeps the fewest likeliest tokens that reach `top_p` together; the likeliest always stays."""
    ordered, order = logits.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(-1)
    dropped = probabilities.cumsum(-1) - probabilities >= top_p
    return logits.masked_fill(torch.zeros_like(dropped).scatter(1, order, dropped), -torch.inf)
