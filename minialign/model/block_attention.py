"""Attention on a processor, in blocks of queries that only meet keys they may see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minialign.model.segments import Segment, causal_mask, heads_first, seen

BLOCK = 64  # queries that meet their keys at a time on a processor; measured

# what scaled_dot_product_attention runs on a processor; grouped queries need torch 2.9
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _Block(NamedTuple):
    """Some queries of a segment, and the keys (of prefix and segment) that any of them may see."""

    first: int
    last: int
    low: int
    high: int
    bias: Tensor  # (last - first, high - low): 0 where a query sees a key, else -inf


def blocks_of(segment: Segment, window: int | None, device: torch.device) -> list[_Block]:
    before, length = segment.prefix_length, segment.stop - segment.start
    blocks = []
    for first in range(0, length, BLOCK):
        last = min(first + BLOCK, length)
        low, high = 0 if window is None else max(0, before + first + 1 - window), before + last
        positions = torch.arange(low, high, device=device)
        allowed = causal_mask(positions[before + first - low :], positions, window)
        bias = torch.zeros(allowed.shape, device=device).masked_fill_(~allowed, -torch.inf)
        blocks.append(_Block(first, last, low, high, bias))
    return blocks


class BlockAttention(torch.autograd.Function):
    """Attention on a processor: `simple`, in blocks of queries that only meet keys they may see.

    That halves the work for long segments. Kept are q, k, v, the output and a number a query and
    head; the keys of a shared prompt are not kept again with every completion.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        segments: Sequence[Segment],
        blocks: list[list[_Block]],
    ) -> Tensor:
        out = torch.empty_like(q)
        sums = []
        for segment, own_blocks in zip(segments, blocks, strict=True):
            queries = heads_first(q[segment.start : segment.stop])
            keys, values = heads_first(seen(k, segment)), heads_first(seen(v, segment))
            own = heads_first(out[segment.start : segment.stop])
            for first, last, low, high, bias in own_blocks:
                own[:, :, first:last], total = FLASH(
                    queries[:, :, first:last],
                    keys[:, :, low:high],
                    values[:, :, low:high],
                    attn_mask=bias.to(q.dtype),
                )
                sums.append(total)
        ctx.save_for_backward(q, k, v, out, *sums)
        ctx.segments, ctx.blocks = segments, blocks
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, *sums = ctx.saved_tensors
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        totals = iter(sums)
        for segment, own_blocks in zip(ctx.segments, ctx.blocks, strict=True):
            own = slice(segment.start, segment.stop)
            grads, queries, outs = (heads_first(x[own]) for x in (grad, q, out))
            keys, values = heads_first(seen(k, segment)), heads_first(seen(v, segment))
            grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)
            own_grad_q = heads_first(grad_q[own])
            for first, last, low, high, bias in own_blocks:
                own_grad_q[:, :, first:last], part_keys, part_values = FLASH_BACKWARD(
                    grads[:, :, first:last],
                    queries[:, :, first:last],
                    keys[:, :, low:high],
                    values[:, :, low:high],
                    outs[:, :, first:last],
                    next(totals),
                    0.0,
                    False,
                    attn_mask=bias.to(q.dtype),
                )
                grad_keys[:, :, low:high] += part_keys
                grad_values[:, :, low:high] += part_values
            for whole, part in ((grad_k, grad_keys), (grad_v, grad_values)):
                gathered = part[0].transpose(0, 1)
                whole[own] += gathered[segment.prefix_length :]
                if segment.prefix is not None:
                    whole[slice(*segment.prefix)] += gathered[: segment.prefix_length]
        return grad_q, grad_k, grad_v, None, None
