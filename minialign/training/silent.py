"""A run in a process that only computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from minialign.training.folder import state_file
from minialign.training.run import Run
from minialign.training.state import SavedState


class Silent(Run):
    """The same run in a process that only computes: another one writes the folder."""

    @classmethod
    def resume(cls, folder: str | Path, **options: Any) -> Silent:
        run = cls(folder, **options)
        if state_file(run.folder).exists():
            run._resumed = SavedState(state_file(run.folder))
        return run

    def _write_metrics(self, line: dict[str, Any]) -> None:
        pass

    def write_lines(self, name: str, records: list[dict[str, Any]]) -> None:
        pass

    def save(self) -> None:
        pass
