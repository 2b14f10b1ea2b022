"""Matrix products with the weights of linear layers, nearly all of the work there is.

PyTorch hands float32 products on a processor to MKL, which uses AVX-512 on Intel's processors only,
and one thread for a single row. oneDNN, which every x86 build of PyTorch has as well, does the same
product in full float32 twice as fast on AMD's, and several times for the few rows that a sampler
has. `product` takes the faster one; everywhere else it is the ordinary product.

Mixed precision: where the weight is of a half type and what flows is float32, a product rounds its
input to the half type, adds up in float32, and rounds once more on the way out; everything between
the products stays float32.

Shape letters: N tokens, I inputs, O outputs.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from minialign.errors import InputError
from minialign.model.quantised import Quantised
from minialign.model.stored import Stored

# the type in which weights are packed; "model": as they are
Precision = Literal["model", "float32", "bfloat16", "int8"]
# a layer's own weight, and whatever multiplies
Held = Tensor | Stored
Weight = Held | Quantised
# the largest of each input of a linear layer, (I,)
Ranges = dict[nn.Module, Tensor]


# oneDNN, and what PyTorch puts around it, keep what they prepared for the last 1,024 shapes, half a
# megabyte each: texts of ever new lengths would fill it up. A step needs some thirty. Read at the
# first product.
for cache in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(cache, "128")


def _onednn() -> Any:
    """oneDNN's linear layer for plain float32 tensors, or None where this build lacks it."""
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")
    if not (on_x86 and torch.backends.mkldnn.is_available()):
        return None
    try:
        return torch.ops.mkldnn._linear_pointwise.default
    except AttributeError:
        return None


ONEDNN = _onednn()
WIDENED = 8192  # outputs whose weights are widened at a time
# a model of a half type that is larger is there to save memory: it is not held twice
PACKED_NUMBERS = 1_000_000_000
PACKED_ROWS = 64  # the number of rows that packed weights are laid out for; fewer are fine


def product(x: Tensor, weight: Weight) -> Tensor:
    """x @ weight.T without a gradient: (N, I), (O, I) -> (N, O).

    `weight` may be the transpose of a contiguous tensor, or packed. x may be wider than `weight`,
    and the result has x's type.
    """
    if isinstance(weight, Quantised):
        return weight.product(x)
    if x.dtype != weight.dtype:
        return product(x.to(weight.dtype), weight).to(x.dtype)
    if isinstance(weight, Stored):
        return torch.cat([product(x, block) for block in weight.blocks()], dim=1)
    if weight.is_mkldnn or _suits_onednn(x, weight):
        return ONEDNN(x, weight, None, "none", [], "")
    return F.linear(x, weight)


def across(x: Tensor, weight: Held) -> Tensor:
    """x @ weight without a gradient, (N, O), (O, I) -> (N, I): the way back through `product`."""
    if not isinstance(weight, Stored):
        return product(x, weight.t())
    wide = torch.promote_types(x.dtype, torch.float32)
    total = torch.zeros(len(x), weight.shape[1], dtype=wide, device=x.device)
    for part, block in zip(x.split(weight.rows, dim=1), weight.blocks(), strict=True):
        total += product(part, block.t())
    return total.to(x.dtype)


def linear(x: Tensor, weight: Held, packed: Weight | None = None) -> Tensor:
    """`product` with the gradients of F.linear; `packed` serves where none are wanted."""
    if not torch.is_grad_enabled():
        return product(x, weight if packed is None else packed)
    if isinstance(weight, Stored):
        return _StoredLinear.apply(x, weight)
    own = x.dtype != weight.dtype or _suits_onednn(x, weight)
    return _Linear.apply(x, weight) if own else F.linear(x, weight)


def wide_product(x: Tensor, weight: Held) -> Tensor:
    """x @ weight.T in float32 or better.

    From half types a GPU accumulates and returns float32; a processor rounds to the half type once.
    A narrower weight is widened, block by block.
    """
    if isinstance(weight, Stored):
        return torch.cat([wide_product(x, b.to(x.dtype)) for b in weight.blocks()], dim=1)
    if x.dtype != weight.dtype:
        return torch.cat([product(x, part.to(x.dtype)) for part in weight.split(WIDENED)], dim=1)
    if x.dtype in (torch.float32, torch.float64):
        return product(x, weight)
    if x.is_cuda:
        return torch.mm(x, weight.T, out_dtype=torch.float32)
    return (x @ weight.T).float()


@contextmanager
def packed_weights(
    model: nn.Module, precision: Precision = "model", ranges: Ranges | None = None
) -> Iterator[None]:
    """Within the context the linear layers hold a copy of their weight in a layout of `precision`.
    `ranges` are what int8 has to know of their inputs.

    `product` likes it best for few rows. Weights must stay as they are meanwhile. An inner context
    leaves to the outer one what that has packed. Off a processor, or where this build lacks
    oneDNN, a layer computes as ever; so does a large model of a half type, which is not held twice,
    and one in 8 or 4 bits, unless another precision is asked for.
    """
    groups = [m for m in model.modules() if isinstance(m, SharedInput) and m.packed is None]
    layers = [m for m in model.modules() if isinstance(m, Linear) and m.packed is None]
    halves = [layer.weight.numel() for layer in layers if layer.weight.dtype != torch.float32]
    if precision == "model" and (is_stored(model) or sum(halves) > PACKED_NUMBERS):
        groups, layers = [], []
    try:
        for group in groups:
            group.packed = _pack(group.readers(), precision, ranges)
            layers = [layer for layer in layers if layer not in group.readers()]
        for layer in layers:
            layer.packed = _pack([layer], precision, ranges)
        yield
    finally:
        for group in groups:
            group.packed = None
        for layer in layers:
            layer.packed = None


def _pack(layers: list[Linear], precision: Precision, ranges: Ranges | None) -> Weight | None:
    """The weights of layers that share an input, one below the other."""
    weights = [layer.as_packed(precision) for layer in layers]
    if weights[0].device.type != "cpu":
        return None
    weight = (torch.cat(weights) if len(weights) > 1 else weights[0]).detach()
    if precision == "int8":
        return Quantised.of(weight, ranges.get(layers[0]) if ranges else None)
    if ONEDNN is None or weight.dtype not in (torch.float32, torch.bfloat16):
        return None
    try:
        return torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_ROWS)
    except RuntimeError:  # bfloat16 on a processor that has no product of it
        return None


@contextmanager
def input_ranges(model: nn.Module) -> Iterator[Ranges]:
    """Filled, within the context, with what the model's linear layers read."""
    ranges: Ranges = {}

    def note(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        largest = inputs[0].detach().abs().amax(0)
        ranges[layer] = torch.maximum(ranges.get(layer, largest), largest)

    layers = [module for module in model.modules() if isinstance(module, Linear)]
    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    try:
        yield ranges
    finally:
        for hook in hooks:
            hook.remove()


def _holds_adapter(packed: Weight | None) -> bool:
    """bfloat16 would round most of a small update away: there it stays beside the weight."""
    return isinstance(packed, Quantised) or (packed is not None and packed.dtype == torch.float32)


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        ONEDNN is not None
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.dim() == 2
        and x.numel() > 0
    )


class _Linear(torch.autograd.Function):
    """y = x W^T;  dx = dy W,  dW = dy^T x. What a frozen weight does not need is not kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return product(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad_x = product(grad, weight.t()) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_x, None
        return grad_x, product(grad.t(), x.t()).to(weight.dtype)


class _StoredLinear(torch.autograd.Function):
    """y = x W^T;  dx = dy W. On the way back W is widened anew: no floats of it are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Stored) -> Tensor:
        ctx.weight = weight
        return product(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return across(grad, ctx.weight), None


def hold(module: nn.Module, name: str, weight: Held) -> None:
    """Puts a frozen weight in a module's place for one."""
    delattr(module, name)
    if isinstance(weight, Tensor) and not isinstance(weight, nn.Parameter):
        weight = nn.Parameter(weight, requires_grad=False)
    setattr(module, name, weight)


def frozen_weights(model: nn.Module) -> list[Held]:
    """All that is not trained, each once, as it is held; a model's embedding comes first."""
    found: dict[int, Held] = {}
    for module in model.modules():
        own = (*vars(module).values(), *module.parameters(recurse=False))
        found |= {id(held): held for held in own if isinstance(held, Stored | nn.Parameter)}
    return [held for held in found.values() if not held.requires_grad]


def is_stored(model: nn.Module) -> bool:
    """Whether any of its weights are in 8 or 4 bits."""
    return any(isinstance(held, Stored) for held in frozen_weights(model))


class Embedding(nn.Embedding):
    """Rows of a weight, however it is held."""

    weight: Held  # type: ignore[assignment]

    def forward(self, ids: Tensor) -> Tensor:
        return self.weight[ids] if isinstance(self.weight, Stored) else super().forward(ids)


class Linear(nn.Linear):
    """A linear layer without bias, over `linear`."""

    weight: Held  # type: ignore[assignment]

    def __init__(self, in_features: int, out_features: int, device: str | None = None) -> None:
        super().__init__(in_features, out_features, bias=False, device=device)
        self.packed: Weight | None = None

    @property
    def is_product(self) -> bool:
        """Whether the layer is the product with its weight and nothing else."""
        return True

    @property
    def is_packed(self) -> bool:
        """Whether the packed weight is all that the layer does."""
        return _holds_adapter(self.packed) and not torch.is_grad_enabled()

    def as_packed(self, precision: Precision) -> Tensor:
        """The weight that is packed, (O, I); not of half types, with what an adapter adds to it."""
        if precision == "bfloat16":
            return self.weight.to(torch.bfloat16)
        narrow = precision == "model" and self.weight.dtype != torch.float32
        return self.weight if narrow and isinstance(self.weight, Tensor) else self.effective()

    def updated(self, y: Tensor, x: Tensor) -> Tensor:
        """y, the product of x and the weight, with what an adapter adds to it; y may be reused."""
        return y

    def effective(self) -> Tensor:
        """What multiplies, (O, I), in float32 or better."""
        return self.weight.to(torch.promote_types(self.weight.dtype, torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.packed)

    def wide(self, x: Tensor) -> Tensor:
        """The product in float32 or better, without a gradient."""
        return wide_product(x, self.weight) if self.packed is None else product(x, self.packed)

    def through(self, kernel: Callable[..., Tensor], x: Tensor, *rest: Any) -> Tensor:
        """kernel(x, weight, *rest): how the fused losses reach the weight of the head.

        Raises InputError where the layer is more than its weight.
        """
        if not self.is_product:
            raise InputError("the head carries an adapter, which the fused losses would not see")
        return kernel(x, self.weight, *rest)


class SharedInput(nn.Module):
    """A module with linear layers, named by `shared`, that read the same input.

    Packed, they are one product: fewer and larger ones, for the few rows that a sampler has.
    """

    shared: tuple[str, ...] = ()
    packed: Weight | None = None

    def readers(self) -> list[Linear]:
        return [getattr(self, name) for name in self.shared]

    def project(self, x: Tensor) -> Sequence[Tensor]:
        """Every shared layer's output."""
        layers = self.readers()
        if self.packed is None or torch.is_grad_enabled():
            return [layer(x) for layer in layers]
        parts = product(x, self.packed).split([layer.out_features for layer in layers], dim=1)
        if _holds_adapter(self.packed):
            return parts
        return [layer.updated(part, x) for layer, part in zip(layers, parts, strict=True)]
