"""The repository's scripts in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_python(
    arguments: list[str], cwd: Path, stdin: str | None = None
) -> subprocess.CompletedProcess[str]:
    """A process of its own, its output in pipes, decoded without touching line ends."""
    result = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(),
        input=None if stdin is None else stdin.encode(),
        capture_output=True,
        timeout=120,
        check=False,
    )
    out, err = (text.decode("utf-8") for text in (result.stdout, result.stderr))
    return subprocess.CompletedProcess(result.args, result.returncode, out, err)


def environment() -> dict[str, str]:
    """One thread: a toy model is slower on several, and results could differ in their last bit."""
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    return {**os.environ, **threads, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}


def run_script(script: str, arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_python([str(ROOT / script), *arguments], cwd)
