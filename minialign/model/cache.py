"""Keys and values of sequences that are being written."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minialign.model.segments import Attend


class KVCache:
    """Keys and values of up to `rows` sequences that are being written, of unequal lengths.

    Live rows are always `0 .. len(self)-1`. A finished row is overwritten by the last live one, so
    it costs neither a copy of the rest nor another step. Each row is a ring of as many places as
    the widest of the layers' `windows`, position p at place p % places: what no layer sees any more
    is overwritten. The bookkeeping (`lengths`) is plain Python: it never waits for the device.
    """

    def __init__(
        self,
        windows: Sequence[int | None],
        rows: int,
        length: int,
        key_value_heads: int,
        head_dim: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.windows = windows
        self.places = places_of(windows, length)
        shape = (len(windows), rows, self.places, key_value_heads, head_dim)
        # zeros, not empty: a masked position weighs 0, and 0 times a stray NaN would still be NaN
        self.keys = torch.zeros(shape, dtype=dtype, device=device)  # (L, B, S, K, Hd)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.lengths: list[int] = []
        self.capacity = rows
        self._places = torch.arange(self.places, device=device)

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, recorded: Sequence[tuple[Tensor, Tensor]], length: int, copies: int) -> None:
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
        biases = {window: self._bias(positions, used, window) for window in set(self.windows)}

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
                attn_mask=biases[self.windows[layer]],
            )
            return out.reshape(count, heads, size)

        return positions, attend

    def _bias(self, positions: Tensor, used: int, window: int | None) -> Tensor:
        """What is added to the scores, (B, 1, 1, S): a row sees the places that it has written, all
        of them once it is a full ring, but none further back than the window.
        """
        places = self._places[:used]
        unseen = places > positions[:, None]
        if window is not None and window < used:
            unseen |= (positions[:, None] - places) % self.places >= window
        bias = torch.zeros(unseen.shape, dtype=self.keys.dtype, device=positions.device)
        return bias.masked_fill_(unseen, -torch.inf)[:, None, None]


def places_of(windows: Sequence[int | None], length: int) -> int:
    """How many places a row of up to `length` tokens needs."""
    return max(min(length, window or length) for window in windows)
