"""The cheap parts of a layer, with backward passes that keep little.

Autograd keeps every intermediate of RMSNorm, rotary embedding and gated MLP for the backward pass.
They are cheap to compute and dear to keep, so each has a backward pass of its own that keeps its
inputs only and makes the rest again. The equations stand above the code. The plain versions, which
autograd differentiates, are the reference of the tests and what `--activation-checkpointing none`
runs.

This file imports torch and nothing else. Shape letters: N tokens, D hidden, I the MLP's width, Hd
head size.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Activation = Literal["silu", "gelu_tanh"]


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """y = weight * x / sqrt(mean(x^2) + eps), the mean in float32 or better (arXiv 1910.07467)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * normed.to(x.dtype)


def plain_gated(gate: Tensor, up: Tensor, activation: Activation = "silu") -> Tensor:
    """f(gate) * up (arXiv 2002.05202).

    f is the activation: silu(z) = z sigmoid(z), or GELU by its tanh approximation (1606.08415).
    """
    return _activate(gate, activation) * up


def plain_rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, rotate-half layout (arXiv 2104.09864).

        y = x cos + (-x2, x1) sin,   (x1, x2) the halves of x

    x is (N, heads, Hd), cos and sin are (N, 1, Hd), both halves alike.
    """
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`plain_rms_norm`, keeping x and one number a token."""
    return _RMSNorm.apply(x, weight, eps) if torch.is_grad_enabled() else _norm(x, weight, eps)[0]


def gated(gate: Tensor, up: Tensor, activation: Activation = "silu") -> Tensor:
    """`plain_gated`, keeping gate and up."""
    if torch.is_grad_enabled():
        return _Gated.apply(gate, up, activation)
    return _activate(gate, activation).mul_(up)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`plain_rotate`, keeping nothing of x: the gradient is turned back by the same angle."""
    return _Rotate.apply(x, cos, sin) if torch.is_grad_enabled() else _turn(x, cos, sin)


def _norm(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The normed tokens, and what each was scaled by, (N, 1)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    normed = wide * scale
    return (normed.mul_(weight) if normed.dtype == x.dtype else weight * normed.to(x.dtype)), scale


class _RMSNorm(torch.autograd.Function):
    """With r = 1 / sqrt(mean(x^2) + eps) and g = dy weight, per token:

    dx = r g - x r^3 mean(g x),   dweight = sum over tokens of dy x r
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        normed, scale = _norm(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        wide, grad = x.to(scale.dtype), grad.to(scale.dtype)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * wide * scale).flatten(0, -2).sum(0).to(weight.dtype)
        if ctx.needs_input_grad[0]:
            grad_x = grad * weight
            shared = torch.linalg.vecdot(grad_x, wide).unsqueeze(-1)
            shared.mul_(scale**3).div_(x.shape[-1])
            grad_x = grad_x.mul_(scale).addcmul_(wide, shared, value=-1).to(x.dtype)
        return grad_x, grad_weight, None


def _activate(gate: Tensor, activation: Activation) -> Tensor:
    return F.silu(gate) if activation == "silu" else F.gelu(gate, approximate="tanh")


class _Gated(torch.autograd.Function):
    """dup = dy f(gate),   dgate = dy up f'(gate)"""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
        ctx.save_for_backward(gate, up)
        ctx.activation = activation
        return _activate(gate, activation).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        gate, up = ctx.saved_tensors
        if ctx.activation == "silu":
            grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        else:
            grad_gate = torch.ops.aten.gelu_backward(grad * up, gate, approximate="tanh")
        return grad_gate, _activate(gate, ctx.activation).mul_(grad), None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turn(x, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turn(grad, cos, -sin), None, None


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    turned = x * cos
    low, high = turned.chunk(2, dim=-1)
    sine = sin[..., : first.shape[-1]]
    low.addcmul_(second, sine, value=-1)
    high.addcmul_(first, sine)
    return turned
