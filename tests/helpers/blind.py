"""Runs whose answers a person can vote on, and the votes of a script."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from report_helpers import BETTER, evaluation, make_run

from helpers.files import write_jsonl

PROMPTS = 10
NAMES = ("base", "few-shot", "sft", "ditto")
HOSTILE = "</script><script>document.title = 'broken'</script><img src=x onerror=alert(1)>{{ 7*7 }}"


def blind_run(folder: Path, prompts: int = PROMPTS, text: str = "", **changes: Any) -> Path:
    """A run with four answers of four contestants to each prompt; `text` stands in all of them."""
    contestants = {
        name: {
            "answers": [
                [f"{text}{'abcd'[NAMES.index(name)]} {p}.{i}" for i in range(4)]
                for p in range(prompts)
            ],
            "finish_reasons": [["stop", "length", "stop", "stop"]] * prompts,
        }
        for name in NAMES
    }
    asked = [f"{text}Prompt {p}?" for p in range(prompts)]
    texts = [f"{text}My own {p}." for p in range(prompts)]
    record = evaluation(BETTER, contestants=contestants, prompts=asked, texts=texts)
    return make_run(folder, evaluation=record | changes)


def content_of(page: str) -> dict[str, Any]:
    """What the page hands its script."""
    start = page.index('id="content">') + len('id="content">')
    return json.loads(page[start : page.index("</script>", start)])


def votes_file(file: Path, blind: Any, choose: Callable[[str, str], str]) -> Path:
    """Votes on every pair, as the page saves them; `choose(left, right)` by who wrote them."""

    def side(side: Any) -> dict[str, str]:
        answer = side.answer
        return {"by": side.by, "text": answer.text, "finish_reason": answer.finish_reason}

    records = [
        {
            **{"page": blind.page, "pair": number, "messages": pair.messages},
            **{"left": side(pair.left), "right": side(pair.right)},
            "vote": choose(pair.left.by, pair.right.by),
        }
        for number, pair in enumerate(blind.pairs)
    ]
    return write_jsonl(file, records)
