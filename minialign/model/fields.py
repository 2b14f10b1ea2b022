"""Typed reading of a config.json: a value of another type or out of range is one line."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from minialign.errors import InputError

LARGEST_SIZE = 2**24  # no model's vocabulary, width or context is larger
SHOWN = 60  # characters of a wrong value that a message repeats


class Fields:
    """The fields of a JSON object. `where` opens every message. A null counts as left out."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def get(self, name: str) -> Any:
        return self.values.get(name)

    def size(self, name: str, default: int | None = None, most: int = LARGEST_SIZE) -> int:
        """A whole number from 1 to `most`."""
        found = self._value(name, default)
        if isinstance(found, bool) or not isinstance(found, int) or not 1 <= found <= most:
            raise self.wrong(name, f"a whole number from 1 to {most:,}")
        return found

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number above 0."""
        found = self._value(name, default)
        is_number = isinstance(found, int | float) and not isinstance(found, bool)
        if not (is_number and 0 < found < 1e30 and math.isfinite(found)):
            raise self.wrong(name, "a number above 0")
        return float(found)

    def flag(self, name: str, default: bool = False) -> bool:
        found = self._value(name, default)
        if not isinstance(found, bool):
            raise self.wrong(name, "true or false")
        return found

    def nested(self, name: str) -> dict[str, Any]:
        """An object, empty where it is left out."""
        found = self._value(name, {})
        if not isinstance(found, dict):
            raise self.wrong(name, "an object")
        return dict(found)

    def listed(self, name: str, length: int, allowed: tuple[Any, ...]) -> list[Any] | None:
        """A list of at least `length` of the allowed values, cut to it; None if it is left out."""
        found = self.get(name)
        if found is None:
            return None
        if not (
            isinstance(found, list)
            and len(found) >= length
            and all(type(item) in map(type, allowed) and item in allowed for item in found)
        ):
            raise self.wrong(name, f"a list of {length} of {', '.join(map(str, allowed))}")
        return found[:length]

    def numbers(self, name: str, length: int) -> tuple[float, ...]:
        found = self._value(name, None)
        if not isinstance(found, list) or len(found) != length:
            raise self.wrong(name, f"a list of {length} numbers")
        return tuple(Fields({name: item}, self.where).number(name) for item in found)

    def wrong(self, name: str, wanted: str) -> InputError:
        shown = repr(self.get(name))
        shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]}..."
        return InputError(f"{self.where}: {name} = {shown} must be {wanted}")

    def _value(self, name: str, default: Any) -> Any:
        found = self.get(name)
        found = default if found is None else found
        if found is None:
            raise InputError(f"{self.where}: {name} is missing")
        return found
