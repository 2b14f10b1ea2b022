"""From a template to a file that needs nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from minialign.data.files import replace_whole
from minialign.data.records import DEMONSTRATIONS
from minialign.evaluation.report.axes import number, percent
from minialign.evaluation.report.duels import INTERVAL
from minialign.evaluation.report.labels import shown
from minialign.evaluation.report.scores import hundredths

FORMS: dict[str, Callable[[float], str]] = {
    "nats": lambda value: f"{value:.3f}",
    "fraction": hundredths,
    "score": lambda value: f"{round(value, 2) + 0.0:g}".replace("-", "−"),
    "whole": lambda value: f"{value:,.0f}",
    "number": number,
    "percent": percent,
}


def write_page(
    target: Path, template: str, helpers: Sequence[Callable[..., Any]], **content: Any
) -> Path:
    """Writes `target` whole or not at all, and returns it. The template may call the `helpers`."""
    page = page_of(template, helpers, **content)
    replace_whole(target, lambda path: path.write_text(page, encoding="utf-8"))
    return target


def page_of(template: str, helpers: Sequence[Callable[..., Any]], **content: Any) -> str:
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.globals.update({helper.__name__: helper for helper in helpers})
    pages.globals.update(INTERVAL=INTERVAL, DEMONSTRATIONS=DEMONSTRATIONS)
    pages.filters.update(shown=shown, **FORMS)
    return pages.get_template(template).render(**content)
