"""The fixtures of the methods' tests."""

from __future__ import annotations

import pytest
from helpers.toys import HELD_OUT, Outcome, small_training

from minialign.data.records import Example
from minialign.policy.packing import Packed


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[Example]:
    """Every sequence that the model reads from now on, in any pass."""
    read: list[Example] = []
    real = Packed.of

    def spy(sequences: list[Example]) -> Packed:
        read.extend(dict.fromkeys(sequences))
        return real(sequences)

    monkeypatch.setattr(Packed, "of", spy)
    return read


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    return small_training(tmp_path_factory.mktemp("runs") / "baseline", held_out=HELD_OUT)
