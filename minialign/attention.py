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
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor


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
    """Attention over sequences laid end to end; a shared prompt gets all completions' gradients.

    With `record=True` the keys and values of every layer are kept in `self.recorded` for a cache.
    """

    def __init__(
        self,
        segments: SequenceABC[Segment],
        window: int | None,
        device: torch.device,
        record: bool = False,
    ) -> None:
        self.segments = segments
        self.masks = [self._mask(segment, window, device) for segment in segments]
        self.recorded: list[tuple[Tensor, Tensor]] = []
        self._record = record

    @staticmethod
    def _mask(segment: Segment, window: int | None, device: torch.device) -> Tensor | None:
        """None where `is_causal` says the same: it is top-left aligned, so not behind a prefix."""
        total = segment.prefix_length + segment.stop - segment.start
        if segment.prefix is None and (window is None or total <= window):
            return None
        positions = torch.arange(total, device=device)
        return causal_mask(positions[segment.prefix_length :], positions, window)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self._record:
            self.recorded.append((k, v))
        parts = [
            self._attend(segment, mask, q, k, v)
            for segment, mask in zip(self.segments, self.masks, strict=True)
        ]
        return torch.cat(parts)  # (N, H, Hd)

    @staticmethod
    def _attend(segment: Segment, mask: Tensor | None, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        own = slice(segment.start, segment.stop)
        keys, values = k[own], v[own]
        if segment.prefix is not None:
            shared = slice(*segment.prefix)
            keys, values = torch.cat((k[shared], keys)), torch.cat((v[shared], values))
        out = F.scaled_dot_product_attention(
            q[own].transpose(0, 1).unsqueeze(0),  # (1, H, T, Hd)
            keys.transpose(0, 1).unsqueeze(0),  # (1, K, P + T, Hd)
            values.transpose(0, 1).unsqueeze(0),
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=True,
        )
        return out[0].transpose(0, 1)  # (T, H, Hd)


class KVCache:
    """Keys and values of up to `rows` sequences that are being written, of unequal lengths.

    Live rows are always `0 .. len(self)-1`. A finished row is overwritten by the last live one, so
    it costs neither a copy of the rest nor another step. The bookkeeping (`lengths`) is plain
    Python: it never waits for the device.
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
        shape = (layers, rows, key_value_heads, length, head_dim)
        # zeros, not empty: a masked position weighs 0, and 0 times a stray NaN would still be NaN
        self.keys = torch.zeros(shape, dtype=dtype, device=device)  # (L, B, K, S, Hd)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths: list[int] = []
        self.capacity = rows
        self.window = window
        self._positions = torch.arange(length, device=device)

    def __len__(self) -> int:
        return len(self.lengths)

    def add(
        self, recorded: SequenceABC[tuple[Tensor, Tensor]], segment: Segment, copies: int
    ) -> None:
        """Appends `copies` rows that all start from one prompt's recorded keys and values."""
        length, first = segment.stop - segment.start, len(self)
        for layer, (k, v) in enumerate(recorded):
            own = slice(segment.start, segment.stop)
            rows = slice(first, first + copies)
            self.keys[layer, rows, :, :length] = k[own].transpose(0, 1)
            self.values[layer, rows, :, :length] = v[own].transpose(0, 1)
        self.lengths += [length] * copies

    def remove(self, row: int) -> None:
        """Drops a live row; the last live row takes its place."""
        last = len(self) - 1
        if row != last:
            length = self.lengths[last]
            self.keys[:, row, :, :length] = self.keys[:, last, :, :length]
            self.values[:, row, :, :length] = self.values[:, last, :, :length]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def step(self) -> tuple[Tensor, Attend]:
        """Makes room for one more token in every live row.

        Returns the tokens' positions (B,) and the layout to attend with.
        """
        positions = torch.tensor(self.lengths, device=self._positions.device)
        self.lengths = [length + 1 for length in self.lengths]
        rows = torch.arange(len(self), device=positions.device)
        longest = max(self.lengths)
        mask = causal_mask(positions[:, None], self._positions[:longest], self.window)[
            :, None
        ]  # (B, 1, 1, S)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            count, heads, size = q.shape
            keys, values = self.keys[layer, :count], self.values[layer, :count]
            keys[rows, :, positions] = k
            values[rows, :, positions] = v
            # The G query heads that share a key-value head stand as G queries: no key is ever
            # repeated.
            grouped = q.view(count, k.shape[1], heads // k.shape[1], size)  # (B, K, G, Hd)
            out = F.scaled_dot_product_attention(
                grouped, keys[:, :, :longest], values[:, :, :longest], attn_mask=mask
            )
            return out.reshape(count, heads, size)

        return positions, attend
