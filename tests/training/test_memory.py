"""Freed memory goes back to the system."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.toys import small_config, small_training

from minialign.training import run as run_module


def held_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="needs glibc"
)
def test_freed_memory_between_pieces_in_use_goes_back_to_the_system() -> None:
    pieces = [bytearray(8000) for _ in range(20_000)]
    in_use = pieces[::100]
    del pieces
    before = held_bytes()
    run_module.release_memory()
    assert before - held_bytes() > 80_000_000 and len(in_use) == 200


def test_memory_is_released_at_the_start_of_a_stage_and_every_few_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    monkeypatch.setattr(run_module, "release_memory", lambda: calls.append(1))
    monkeypatch.setattr(run_module, "RELEASE_EVERY", 2)
    small_training(tmp_path / "r", small_config(**{"max_steps": 3, "sft.max_steps": 0}))
    assert len(calls) == 2


SHAPES = """
import ctypes, os
from pathlib import Path
import torch
from minialign.model.matmul import product
torch.set_num_threads(1)
def held():
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
weight = torch.randn(256, 256)
for rows in range(1, 201):
    product(torch.ones(rows, 256), weight)
before = held()
for rows in range(201, 501):
    product(torch.ones(rows, 256), weight)
print((held() - before) // 10**6)
"""


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="needs glibc"
)
def test_texts_of_ever_new_lengths_do_not_add_up() -> None:
    """What a product of a new length needs is kept for the latest of them alone."""
    grown = subprocess.run([sys.executable, "-c", SHAPES], capture_output=True, text=True)
    assert int(grown.stdout) < 20, grown
