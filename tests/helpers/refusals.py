"""The one line that a person reads when something is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from minialign.errors import InputError


def refusal(action: Callable[[], object]) -> str:
    """The message of the InputError that `action` must raise: one line."""
    with pytest.raises(InputError) as caught:
        action()
    message = str(caught.value)
    assert message and "\n" not in message
    return message
