"""`python tests/crash.py` at reduced size: whatever is killed ends the same after `--resume`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from helpers.processes import ROOT, environment


@pytest.mark.skipif(not hasattr(os, "fork"), reason="its children are forked")
def test_killed_runs_end_with_the_bytes_of_runs_that_were_not() -> None:
    counts = ["--random", "3", "--named", "6", "--seed", "3"]
    process = subprocess.run(
        [sys.executable, ROOT / "tests" / "crash.py", *counts],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert "9 of 9 ended the same" in process.stdout
