"""What a large product and a pass over memory reach on this machine."""

from __future__ import annotations

import platform
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .measuring import Result, timed


def limits(options: Namespace, folder: Path) -> Result:
    from minialign.model.matmul import product

    def best(work: Callable[[], Any]) -> float:
        work()
        return min(timed(work, 7))

    size = 2048
    a, b = torch.randn(size, size), torch.randn(size, size)
    table = torch.randn(2**27)
    with torch.no_grad():
        flops = 2 * size**3
        return {
            "seconds": [0.0],
            "matmul_flops": flops / best(lambda: a @ b),
            "product_flops": flops / best(lambda: product(a, b)),
            "read_bytes": 4 * len(table) / best(table.sum),
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }


def processor() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return platform.processor()
    names = [
        line.split(":")[1].strip()
        for line in info.read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{names[0]}, {len(names)} cores" if names else "unknown"
