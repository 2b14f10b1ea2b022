"""The layer that carries adapters: a frozen linear layer plus a trained product of low rank.

    y = W x + (alpha / rank) B (A dropout(x))        (Hu et al. 2021, arXiv 2106.09685, equation 3)

W is frozen; A starts random and B at zero, so a fresh adapter changes nothing. adapters.py puts
such layers into a model. Shape letters: N tokens.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minialign.errors import InputError
from minialign.model.matmul import Linear, hold, linear, product
from minialign.model.stored import Stored
from minialign.policy.knobs import LoRAConfig


class LoRALinear(Linear):
    """A frozen linear layer with named low-rank adapters.

    `weight` keeps its name, so base checkpoints still fit.
    """

    def __init__(self, base: nn.Linear) -> None:
        super().__init__(base.in_features, base.out_features, device="meta")
        hold(self, "weight", base.weight)
        self.bias = base.bias
        self.lora_A = nn.ParameterDict()  # name -> (rank, in)
        self.lora_B = nn.ParameterDict()  # name -> (out, rank)
        self.configs: dict[str, LoRAConfig] = {}
        self.active: str | None = None
        self._unmerged: Tensor | None = None
        self.train(base.training)  # or a model in evaluation would get layers that drop out

    def add(self, name: str, config: LoRAConfig, generator: torch.Generator | None) -> None:
        out_features, in_features = self.weight.shape
        bound = 1 / math.sqrt(in_features)  # PEFT's start for A: kaiming_uniform with a = sqrt(5)
        start = torch.empty(config.rank, in_features).uniform_(-bound, bound, generator=generator)
        self.lora_A[name] = nn.Parameter(start.to(self.weight.device))
        self.lora_B[name] = nn.Parameter(
            torch.zeros(out_features, config.rank, device=self.weight.device)
        )
        self.configs[name] = config

    def delta(self, name: str) -> Tensor:
        """(out, in): what adapter `name` adds to the weight."""
        config = self.configs[name]
        return (self.lora_B[name] @ self.lora_A[name]) * (config.alpha / config.rank)

    @property
    def is_product(self) -> bool:
        return self.active is None or self.merged

    def forward(self, x: Tensor) -> Tensor:  # (N, in) -> (N, out)
        y = linear(x, self.weight, self.packed)
        if self.packed is not None and not torch.is_grad_enabled():
            return y if self.is_packed else self.updated(y, x)
        if self.active is None or self.merged:
            return y
        return AddUpdate.apply(y, *self._update(self.active, x))

    def updated(self, y: Tensor, x: Tensor) -> Tensor:
        """In two small calls: for the few rows of a sampler calls cost more than what they do.

        Scores take the other way, with a gradient or without: theirs have to agree to the last bit.
        """
        if self.active is None or self.merged:
            return y
        x, a, b, scale = self._update(self.active, x)
        low = F.linear(x.to(a.dtype), a)
        if y.dtype != low.dtype:
            return y.add_(F.linear(low, b), alpha=scale)
        return y.addmm_(low, b.t(), alpha=scale)

    def _update(self, name: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        """What of x reaches adapter `name`, its A and B, and its scale."""
        config = self.configs[name]
        kept = F.dropout(x, config.dropout, self.training)
        return kept, self.lora_A[name], self.lora_B[name], config.alpha / config.rank

    def effective(self) -> Tensor:
        weight = super().effective()
        if self.active is None or self.merged:
            return weight
        return weight + self.delta(self.active)

    @torch.no_grad()
    def merge(self) -> int:
        """Adds the active adapter to the weight.

        Returns how many numbers changed after rounding to the base's type. Raises InputError for a
        base in 8 or 4 bits, where the sum would be rounded away.
        """
        if self.active is None or self.merged:
            return 0
        if isinstance(self.weight, Stored):
            raise InputError("a base in 8 or 4 bits takes nothing in: load with base_dtype=model")
        merged = (self.weight.float() + self.delta(self.active)).to(self.weight.dtype)
        self._unmerged = self.weight.data
        self.weight.data = merged
        return int((merged != self._unmerged).sum())

    @property
    def merged(self) -> bool:
        return self._unmerged is not None

    def unmerge(self) -> None:
        """Puts the original weight back: the very tensor, so nothing is rounded twice."""
        if self._unmerged is not None and isinstance(self.weight, Tensor):
            self.weight.data, self._unmerged = self._unmerged, None


class AddUpdate(torch.autograd.Function):
    """y += s (x A^T) B^T, in place: no (N, out) update is ever held, and only x and x A^T are kept;
    x as it is, in a half type too, so that layers with one input keep it once.

    With u = s x A^T, (N, rank):   dB = dy^T u,   du = s dy B,   dA = du^T x,   dx = du A.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        low = product(x.to(a.dtype), a).mul_(scale)
        ctx.save_for_backward(x, low, a, b)
        ctx.scale = scale
        ctx.mark_dirty(y)
        return y.addmm_(low, b.t()) if y.dtype == low.dtype else y.add_(product(low, b))

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, None]:
        x, low, a, b = ctx.saved_tensors
        wide = grad.to(low.dtype)
        _, wants_x, wants_a, wants_b, _ = ctx.needs_input_grad
        grad_low = product(wide, b.t()).mul_(ctx.scale)
        return (
            grad,
            product(grad_low, a.t()).to(x.dtype) if wants_x else None,
            product(grad_low.t(), x.to(low.dtype).t()) if wants_a else None,
            product(low.t(), wide.t()).t() if wants_b else None,
            None,
        )
