"""Who may look at whom: the two ways in which a flat list of tokens attends.

The model never sees a batch dimension. It is handed N tokens in a row, with their positions, and an
*attention layout* that knows which of them belong together. So the linear layers, nearly all of the
work, see real tokens only and no padding, and training, prompt reading and generation share one
forward pass.

* `PackedAttention`: sequences laid end to end; a completion also sees the prompt of its group
  (scoring, prefill).
* `KVCache.step`: one new token per row against that row's cached keys and values (generation).

Shape letters: N tokens in the flat list, H query heads, K key-value heads, Hd head size, L layers,
B rows, S cache length. A window of W means that a token sees itself and the W - 1 tokens before it,
counted by position.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceABC
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 64  # queries that meet their keys at a time on a processor; measured
# what scaled_dot_product_attention runs on a processor; grouped queries need torch 2.9
FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Attend(Protocol):
    """An attention layout: called once a layer with the rotated queries and keys."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(N, H, Hd), (N, K, Hd), (N, K, Hd) -> (N, H, Hd)."""
        ...


@dataclass(frozen=True)
class Segment:
    """A run of tokens, `start:stop` of the flat list, that sees itself causally behind `prefix`.

    Worked example: a prompt of 3 tokens with completions of 2 and 4 is
    `Segment(0, 3)`, `Segment(3, 5, prefix=(0, 3))`, `Segment(5, 9, prefix=(0, 3))`, at positions
    `0 1 2  3 4  3 4 5 6`: both completions follow the one prompt, and neither sees the other.
    """

    start: int
    stop: int
    prefix: tuple[int, int] | None = None

    @property
    def prefix_length(self) -> int:
        return self.prefix[1] - self.prefix[0] if self.prefix else 0

    @property
    def positions(self) -> range:
        return range(self.prefix_length, self.prefix_length + self.stop - self.start)


def causal_mask(queries: Tensor, keys: Tensor, window: int | None) -> Tensor:
    """May the query at position i see the key at j?  j <= i, and i - j < window.

    Positions (.., Tq) and (.., Tk) -> bool (.., Tq, Tk).
    """
    distance = queries.unsqueeze(-1) - keys.unsqueeze(-2)
    allowed = distance >= 0
    return allowed if window is None else allowed & (distance < window)


class PackedAttention:
    """Attention over segments laid end to end; a shared prompt gets all completions' gradients.

    A prefix must be one of the segments. With `record=True` the keys and values of every layer are
    kept in `self.recorded` for a cache.
    """

    def __init__(
        self,
        segments: SequenceABC[Segment],
        window: int | None,
        device: torch.device,
        record: bool = False,
    ) -> None:
        self.segments, self.window = segments, window
        self.recorded: list[tuple[Tensor, Tensor]] = []
        self._record = record
        on_cpu = device.type == "cpu"
        self._blocks = [_blocks(s, window, device) for s in segments] if on_cpu else []
        self._masks = [] if on_cpu else [_mask(s, window, device) for s in segments]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self._record:
            self.recorded.append((k, v))
        if self._blocks:
            return _BlockAttention.apply(q, k, v, self.segments, self._blocks)
        return self.simple(q, k, v)

    def simple(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Segment by segment, differentiated by autograd: what a GPU runs, and the reference."""
        parts = []
        for i, segment in enumerate(self.segments):
            mask = self._masks[i] if self._masks else _mask(segment, self.window, q.device)
            own = slice(segment.start, segment.stop)
            out = F.scaled_dot_product_attention(
                _heads_first(q[own]),
                _heads_first(_seen(k, segment)),
                _heads_first(_seen(v, segment)),
                attn_mask=mask,
                is_causal=mask is None,
                enable_gqa=True,
            )
            parts.append(out[0].transpose(0, 1))
        return torch.cat(parts)  # (N, H, Hd)


def _heads_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1).unsqueeze(0)  # (T, H, Hd) -> (1, H, T, Hd)


def _seen(x: Tensor, segment: Segment) -> Tensor:
    """Keys or values of prefix and segment, (P + T, K, Hd)."""
    own = x[segment.start : segment.stop]
    return own if segment.prefix is None else torch.cat((x[slice(*segment.prefix)], own))


def _mask(segment: Segment, window: int | None, device: torch.device) -> Tensor | None:
    """Which of prefix and segment a segment's tokens see, (T, P + T).

    None where `is_causal` says the same: it is top-left aligned, so not behind a prefix.
    """
    total = segment.prefix_length + segment.stop - segment.start
    if segment.prefix is None and (window is None or total <= window):
        return None
    positions = torch.arange(total, device=device)
    return causal_mask(positions[segment.prefix_length :], positions, window)


class _Block(NamedTuple):
    """Some queries of a segment, and the keys (of prefix and segment) that any of them may see."""

    first: int
    last: int
    low: int
    high: int
    bias: Tensor  # (last - first, high - low): 0 where a query sees a key, else -inf


def _blocks(segment: Segment, window: int | None, device: torch.device) -> list[_Block]:
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


class _BlockAttention(torch.autograd.Function):
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
        segments: SequenceABC[Segment],
        blocks: list[list[_Block]],
    ) -> Tensor:
        out = torch.empty_like(q)
        sums = []
        for segment, own_blocks in zip(segments, blocks, strict=True):
            queries = _heads_first(q[segment.start : segment.stop])
            keys, values = _heads_first(_seen(k, segment)), _heads_first(_seen(v, segment))
            own = _heads_first(out[segment.start : segment.stop])
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
            grads, queries, outs = (_heads_first(x[own]) for x in (grad, q, out))
            keys, values = _heads_first(_seen(k, segment)), _heads_first(_seen(v, segment))
            grad_keys, grad_values = torch.zeros_like(keys), torch.zeros_like(values)
            own_grad_q = _heads_first(grad_q[own])
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
                seen = part[0].transpose(0, 1)
                whole[own] += seen[segment.prefix_length :]
                if segment.prefix is not None:
                    whole[slice(*segment.prefix)] += seen[: segment.prefix_length]
        return grad_q, grad_k, grad_v, None, None


class KVCache:
    """Keys and values of up to `rows` sequences that are being written, of unequal lengths.

    Live rows are always `0 .. len(self)-1`. A finished row is overwritten by the last live one, so
    it costs neither a copy of the rest nor another step. With a window of W each row is a ring of
    at most W places, position p at place p % W: what has left the window is overwritten. The
    bookkeeping (`lengths`) is plain Python: it never waits for the device.
    """

    def __init__(
        self,
        layers: int,
        rows: int,
        length: int,
        key_value_heads: int,
        head_dim: int,
        *,
        window: int | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.places = min(length, window or length)
        shape = (layers, rows, self.places, key_value_heads, head_dim)
        # zeros, not empty: a masked position weighs 0, and 0 times a stray NaN would still be NaN
        self.keys = torch.zeros(shape, dtype=dtype, device=device)  # (L, B, S, K, Hd)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths: list[int] = []
        self.capacity = rows
        self._places = torch.arange(self.places, device=device)

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, recorded: SequenceABC[tuple[Tensor, Tensor]], length: int, copies: int) -> None:
        """Appends `copies` rows that all start from one prompt's keys and values, layer by layer,
        each (length, K, Hd).
        """
        rows = slice(len(self), len(self) + copies)
        kept = slice(max(0, length - self.places), length)
        places = torch.arange(length, device=self._places.device)[kept] % self.places
        for layer, (k, v) in enumerate(recorded):
            self.keys[layer, rows, places] = k[kept]
            self.values[layer, rows, places] = v[kept]
        self.lengths += [length] * copies

    def remove(self, row: int) -> None:
        """Drops a live row; the last live row takes its place."""
        last = len(self) - 1
        if row != last:
            used = min(self.lengths[last], self.places)
            self.keys[:, row, :used] = self.keys[:, last, :used]
            self.values[:, row, :used] = self.values[:, last, :used]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def step(self) -> tuple[Tensor, Attend]:
        """Makes room for one more token in every live row.

        Returns the tokens' positions (B,) and the layout to attend with.
        """
        positions = torch.tensor(self.lengths, device=self._places.device)
        self.lengths = [length + 1 for length in self.lengths]
        rows = torch.arange(len(self), device=positions.device)
        written = positions % self.places
        used = min(max(self.lengths), self.places)
        # added to the scores: a row sees the places that it has written, all of them once it is
        # a full ring
        unseen = self._places[:used] > positions[:, None]
        bias = torch.zeros(unseen.shape, dtype=self.keys.dtype, device=positions.device)
        bias = bias.masked_fill_(unseen, -torch.inf)[:, None, None]  # (B, 1, 1, S)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            count, heads, size = q.shape
            keys, values = self.keys[layer, :count], self.values[layer, :count]
            keys[rows, written] = k
            values[rows, written] = v
            # The G query heads that share a key-value head stand as G queries: no key is ever
            # repeated.
            grouped = q.view(count, k.shape[1], heads // k.shape[1], size)  # (B, K, G, Hd)
            out = F.scaled_dot_product_attention(
                grouped,
                keys[:, :used].transpose(1, 2),
                values[:, :used].transpose(1, 2),
                attn_mask=bias,
            )
            return out.reshape(count, heads, size)

        return positions, attend
