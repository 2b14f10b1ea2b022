"""Pages of run folders made up for the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_helpers import (
    Page,
    make_feedback_run,
    make_run,
)

from minialign.evaluation.report.page import write_report


@pytest.fixture
def feedback_page(tmp_path: Path) -> Callable[..., Page]:
    """`feedback_page(evaluation=None)`: the page of a run that learned from feedback."""

    def make(**files: Any) -> Page:
        folder = make_feedback_run(tmp_path / "mine", **files)
        return Page(write_report(folder).read_text(encoding="utf-8"))

    return make


@pytest.fixture
def run_page(tmp_path: Path) -> Callable[..., Page]:
    """`run_page(metrics=..., evaluation=None)`: the page of a run folder made up so."""

    def make(**files: Any) -> Page:
        return Page(write_report(make_run(tmp_path / "mine", **files)).read_text(encoding="utf-8"))

    return make
