"""AdamW over the trainable adapter with a learning-rate schedule, and a state that can be saved
without pickle.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from minialign.errors import InputError
from minialign.training import ranks

# (step, total steps, warm-up steps) -> share of the peak learning rate
Schedule = Callable[[int, int, int], float]


def constant_with_warmup(step: int, total: int, warmup: int) -> float:
    """Linear up to 1, then constant. Step 0 already moves: (step + 1) / warmup."""
    return min(1.0, (step + 1) / max(1, warmup))


def cosine_with_warmup(step: int, total: int, warmup: int) -> float:
    """Linear up to 1, then half a cosine towards 0, which is reached one step after the last."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


class Optimizer:
    """Clip, step, zero: one call a step. Moments are float32, like the adapter they belong to."""

    def __init__(
        self,
        parameters: list[torch.nn.Parameter],
        learning_rate: float,
        schedule: Schedule,
        *,
        total_steps: int,
        warmup_ratio: float,
        weight_decay: float,
        max_grad_norm: float,
    ) -> None:
        self.parameters = parameters
        self.peak, self.schedule = learning_rate, schedule
        self.total, self.warmup = total_steps, round(total_steps * warmup_ratio)
        self.max_grad_norm = max_grad_norm
        # One kernel for all tensors; it keeps its step counts on the GPU.
        self.fused = is_fused(parameters)
        self.adamw = torch.optim.AdamW(
            parameters, lr=learning_rate, weight_decay=weight_decay, fused=self.fused or None
        )

    def step(self, index: int) -> dict[str, float]:
        """Takes step `index` with all processes' gradients together, and clears them.

        Returns lr and grad_norm.
        """
        rate = self.peak * self.schedule(index, self.total, self.warmup)
        for group in self.adamw.param_groups:
            group["lr"] = rate
        ranks.add_up(self.parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm))
        if not math.isfinite(norm):
            raise InputError(
                f"the gradient is {norm} at step {index}: lower the learning rate or use float32"
            )
        self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return {"lr": rate, "grad_norm": norm}

    def state(self) -> dict[str, Tensor]:
        """Moments and step counts, by the parameter's place; empty before the first step."""
        return {
            f"{index}.{key}": value.detach().cpu()
            for index, parameter in enumerate(self.parameters)
            for key, value in self.adamw.state.get(parameter, {}).items()
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Raises ValueError for moments that are missing, or of other parameters."""
        shapes: dict[str, tuple[int, ...]] = {}
        for place, parameter in enumerate(self.parameters):
            own = tuple(parameter.shape)
            shapes |= {f"{place}.step": (), f"{place}.exp_avg": own, f"{place}.exp_avg_sq": own}
        if state and {name: tuple(value.shape) for name, value in state.items()} != shapes:
            raise ValueError("the moments are not the adapter's")
        for name, value in state.items():
            index, key = name.split(".", 1)
            parameter = self.parameters[int(index)]
            on_host = key == "step" and not self.fused
            device = torch.device("cpu") if on_host else parameter.device
            self.adamw.state[parameter][key] = value.to(device, copy=True)


def is_fused(parameters: list[torch.nn.Parameter]) -> bool:
    return all(parameter.is_cuda for parameter in parameters)
