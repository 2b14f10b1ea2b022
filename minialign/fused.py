"""The kernels that every loss shares: the log-probability of a token and the divergence of its
distribution from a reference's, straight from hidden states.

The plain computation, `log_softmax(hidden @ weight.T)[targets]`, holds N x V logits, their softmax
and their gradient: for 1,000 tokens and a vocabulary of 49,152 that is 600 MB in float32.
`linear_logps` walks over the tokens in chunks and never holds more than one chunk of logits.
Mathematics only: torch and matmul.py.

Shape letters: N selected tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minialign.model.matmul import Held, across, product, wide_product

CHUNK_BYTES = 32 * 2**20  # of float32 logits; measured: larger chunks are not faster


def linear_logps(
    hidden: Tensor, weight: Held, targets: Tensor, chunk_size: int | None = None
) -> Tensor:
    """log softmax(hidden @ weight.T)[targets], differentiable in `hidden` and `weight`.

        logp_n = z_n[t_n] - logsumexp(z_n),   z_n = weight h_n

    Args:
        hidden: (N, D), float32, float64 or a half type.
        weight: (V, D), the head, not transposed, of the same type, or narrower and frozen, or
            stored in 8 or 4 bits.
        targets: (N,) token ids.
        chunk_size: tokens whose logits are held at a time; by default as many as fit into 32 MB.
    Returns: (N,) in float32 (float64 for float64 input); logits and softmax are float32 too,
    whatever the input.
    """
    chunk = chunk_size or max(1, CHUNK_BYTES // (4 * weight.shape[0]))
    return _LinearLogps.apply(hidden, weight, targets, chunk)


class _LinearLogps(torch.autograd.Function):
    """A token's gradient does not depend on the loss, except for one factor per token:

        d logp_n / d h_n = weight[t_n] - softmax(z_n) weight

    so with a frozen head (LoRA's case) it is made in the forward pass from the logits that are
    there anyway: two matrix products a chunk instead of three, (N, D) kept, and a backward pass
    that is one multiplication. With a trainable head the backward pass computes each chunk's logits
    again.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Held, targets: Tensor, chunk: int) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logps = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        train_hidden, train_weight = ctx.needs_input_grad[:2]
        slopes = torch.empty_like(hidden) if train_hidden and not train_weight else None
        logits_of = _Logits(hidden, weight, targets, chunk)
        for rows in _chunks(len(hidden), chunk):
            logits = logits_of(rows)
            picked = logits.gather(1, targets[rows, None])
            total = logits.exp_().sum(1, keepdim=True)
            logps[rows] = (picked - total.log()).squeeze(1)
            if slopes is not None:
                slope = _logit_slope(logits, total, targets[rows])
                slopes[rows] = across(logits_of.narrowed(slope), weight)
        ctx.chunk = chunk
        if train_weight:
            ctx.save_for_backward(hidden, weight, targets)
        elif slopes is not None:
            ctx.save_for_backward(slopes)
        return logps

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        if not ctx.needs_input_grad[1]:
            (slopes,) = ctx.saved_tensors
            return (grad[:, None] * slopes).to(slopes.dtype), None, None, None
        hidden, weight, targets = ctx.saved_tensors
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        logits_of = _Logits(hidden, weight, targets, ctx.chunk)
        for rows in _chunks(len(hidden), ctx.chunk):
            exps = logits_of(rows).exp_()
            slope = _logit_slope(exps, exps.sum(1, keepdim=True), targets[rows])
            slope = logits_of.narrowed(slope.mul_(grad[rows, None]))
            grad_hidden[rows] = across(slope, weight)
            grad_weight += product(slope.t(), hidden[rows].t())
        return grad_hidden if ctx.needs_input_grad[0] else None, grad_weight, None, None


def linear_kl(
    hidden: Tensor,
    reference_hidden: Tensor,
    weight: Held,
    temperature: float = 1.0,
    chunk_size: int | None = None,
) -> Tensor:
    """KL(reference || policy) of each token's next-token distribution, differentiable in `hidden`.

        kl_n = sum_v p_v (log p_v - log q_v),
        p = softmax(weight r_n / T),   q = softmax(weight h_n / T)

    Both models' logits of one chunk of tokens are held at a time.

    Args:
        hidden: (N, D), the policy's.
        reference_hidden: (N, D), the reference's, which gets no gradient.
        weight: (V, D), the head of both, frozen.
        temperature: T; no factor T^2 is added.
        chunk_size: tokens whose logits are held at a time; by default as many as fit into 32 MB.
    Returns: (N,) in float32 (float64 for float64 input).
    Raises ValueError for a head that is being trained: it would move the reference as well.
    """
    if weight.requires_grad:
        raise ValueError("linear_kl needs a frozen head: it is the reference's as well")
    chunk = chunk_size or max(1, CHUNK_BYTES // (8 * weight.shape[0]))
    return _LinearKL.apply(hidden, reference_hidden.detach(), weight, temperature, chunk)


class _LinearKL(torch.autograd.Function):
    """d kl_n / d h_n = (q - p) weight / T, whatever the loss: made in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        reference_hidden: Tensor,
        weight: Held,
        temperature: float,
        chunk: int,
    ) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        divergence = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        slopes = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        for rows in _chunks(len(hidden), chunk):
            log_q = (wide_product(hidden[rows], weight) / temperature).log_softmax(1)
            log_p = (wide_product(reference_hidden[rows], weight) / temperature).log_softmax(1)
            p = log_p.exp()
            divergence[rows] = (p * (log_p - log_q)).sum(1)
            if slopes is not None:
                slope = log_q.exp_().sub_(p).div_(temperature)
                slopes[rows] = across(slope, weight)
        if slopes is not None:
            ctx.save_for_backward(slopes)
        return divergence

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (slopes,) = ctx.saved_tensors
        return (grad[:, None] * slopes).to(slopes.dtype), None, None, None, None


def _logit_slope(exps: Tensor, total: Tensor, targets: Tensor) -> Tensor:
    """d logp / d logits = onehot - softmax, (chunk, V), made in place of `exps`.

    Subtracted in float32: where the target is nearly certain, the difference is far smaller than
    the rounding of either part to a half type.
    """
    return exps.div_(-total).scatter_add_(1, targets[:, None], torch.ones_like(total))


class _Logits:
    """Logits (chunk, V) minus their largest, row by row: their exponentials neither overflow nor
    lose the digits that a large logsumexp would take up.

    Where a half type is widened, every chunk is made in the same two tables: a system that takes
    freed memory back gives out new pages more slowly than the products are made.
    """

    def __init__(self, hidden: Tensor, weight: Held, targets: Tensor, chunk: int) -> None:
        self.hidden, self.weight, self.targets = hidden, weight, targets
        self.mixed: Tensor | None = None
        if isinstance(weight, Tensor) and hidden.dtype != weight.dtype:
            self.mixed = weight
            shape = (len(weight), min(chunk, len(hidden)))
            self.half, self.wide = weight.new_empty(shape), hidden.new_empty(shape)

    def __call__(self, rows: slice) -> Tensor:
        if self.mixed is not None:
            logits = self._beside_target(self.mixed, self.hidden[rows], self.targets[rows])
        else:
            logits = wide_product(self.hidden[rows], self.weight)
        return logits.sub_(logits.amax(1, keepdim=True))

    def _beside_target(self, weight: Tensor, hidden: Tensor, targets: Tensor) -> Tensor:
        """Logits minus their target's, from a weight of a half type, in the type of `hidden`.

        A product of half types rounds its result. What it rounds here is how far a token lies from
        the target, a small number where it matters: a log-probability keeps its digits. The product
        is transposed, (V, chunk), so that the targets' logits are its bias and go in before it is
        rounded.
        """
        own = (hidden * weight[targets]).sum(1).to(weight.dtype)
        half = self.half[:, : len(hidden)]
        torch.addmm(-own, weight, hidden.to(weight.dtype).t(), out=half)
        return self.wide[:, : len(hidden)].copy_(half).t()

    def narrowed(self, slope: Tensor) -> Tensor:
        """(chunk, V) in the type of `weight`."""
        if self.mixed is None:
            return slope.to(self.weight.dtype)
        return self.half[:, : len(slope)].t().copy_(slope)


def _chunks(length: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, length, size)]
