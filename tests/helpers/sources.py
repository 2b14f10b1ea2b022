"""The package's own source, as syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from typing import Any

from helpers.processes import ROOT

SOURCES = [*sorted((ROOT / "minialign").rglob("*.py")), *sorted(ROOT.glob("*.py"))]


def nodes(kind: type) -> Iterator[tuple[str, Any]]:
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, kind):
                yield file.name, node
