"""Log-probabilities of N targets from hidden states, forward and backward, in four ways.

Every head takes hidden (N, D), weight (V, D) and targets (N,), and returns (N,).
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import torch

from .measuring import Memory, Result, timed


def plain_logps(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None]).squeeze(1)


def recomputed_logps(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """In chunks, each made again in the backward pass."""
    from torch.utils.checkpoint import checkpoint

    parts = zip(hidden.split(341), targets.split(341), strict=True)
    return torch.cat([checkpoint(plain_logps, h, weight, t, use_reentrant=False) for h, t in parts])


def trl_logps(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """At its best: no statistics besides the log-probabilities; the trainer's own chunk size."""
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as CHUNK

    return ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, CHUNK, None, 1.0, ())[0]


def head(options: Namespace, folder: Path) -> Result:
    from minialign.fused import linear_logps

    function = {
        "minialign": linear_logps,
        "plain": plain_logps,
        "recomputing": recomputed_logps,
        "trl": trl_logps,
    }[options.contestant]
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(options.n, options.d, generator=generator).requires_grad_()
    weight = torch.randn(options.v, options.d, generator=generator).mul_(options.d**-0.5)
    targets = torch.randint(options.v, (options.n,), generator=generator)
    memory = Memory()
    values = None

    def work() -> None:
        nonlocal values
        hidden.grad = None
        values = function(hidden, weight, targets)
        values.sum().backward()

    work()
    seconds = timed(work, options.runs)
    assert values is not None
    return {
        "seconds": seconds,
        "peak_bytes": memory.peak(),
        "gradients": {"values": values.detach(), "hidden": hidden.grad},
    }
