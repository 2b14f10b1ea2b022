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

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from minialign.model.block_attention import BlockAttention, blocks_of
from minialign.model.segments import Segment, causal_mask, heads_first, seen


class PackedAttention:
    """Attention over segments laid end to end; a shared prompt gets all completions' gradients.

    A prefix must be one of the segments; `windows` has one entry a layer. With `record=True` the
    keys and values of every layer are kept in `self.recorded` for a cache.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        windows: Sequence[int | None],
        device: torch.device,
        record: bool = False,
    ) -> None:
        self.segments, self.windows = segments, windows
        self.recorded: list[tuple[Tensor, Tensor]] = []
        self._record = record
        self._on_cpu = device.type == "cpu"
        prepare: Callable[..., Any] = blocks_of if self._on_cpu else _mask
        self._prepared = {w: [prepare(s, w, device) for s in segments] for w in set(windows)}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self._record:
            self.recorded.append((k, v))
        if self._on_cpu:
            blocks = self._prepared[self.windows[layer]]
            return BlockAttention.apply(q, k, v, self.segments, blocks)
        return self.simple(layer, q, k, v)

    def simple(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Segment by segment, differentiated by autograd: what a GPU runs, and the reference."""
        parts = []
        window = self.windows[layer]
        masks = [] if self._on_cpu else self._prepared[window]
        for i, segment in enumerate(self.segments):
            mask = masks[i] if masks else _mask(segment, window, q.device)
            own = slice(segment.start, segment.stop)
            out = F.scaled_dot_product_attention(
                heads_first(q[own]),
                heads_first(seen(k, segment)),
                heads_first(seen(v, segment)),
                attn_mask=mask,
                is_causal=mask is None,
                enable_gqa=True,
            )
            parts.append(out[0].transpose(0, 1))
        return torch.cat(parts)  # (N, H, Hd)


def _mask(segment: Segment, window: int | None, device: torch.device) -> Tensor | None:
    """Which of prefix and segment a segment's tokens see, (T, P + T).

    None where `is_causal` says the same: it is top-left aligned, so not behind a prefix.
    """
    total = segment.prefix_length + segment.stop - segment.start
    if window is None or total <= window:
        # PyTorch has a fused kernel for this one, and none for a table.
        behind = causal_lower_right(total - segment.prefix_length, total)
        return None if segment.prefix is None else behind
    positions = torch.arange(total, device=device)
    return causal_mask(positions[segment.prefix_length :], positions, window)
