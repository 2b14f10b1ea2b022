"""What the tests of the report share: run folders made up for them, and how a page is read."""

from __future__ import annotations

import dataclasses
import html
import itertools
import json
import math
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from minialign.methods.knobs import C3PO_LAPTOP

SECTIONS = [
    *("before-after", "win-rates", "contestants", "answers", "curves", "rounds", "pairs"),
    *("costs", "commands"),
]
FEEDBACK_SECTIONS = ["before-after", "scores", "scopes", "curves", "costs", "commands"]
VOID = {"meta", "br", "hr", "img", "input", "link", "col", "base", "wbr", "source"}
UNSEEN = "eval/nats_per_token"
SAMPLES = [
    {
        **{"round": r, "demonstration": d, "text": f"answer {n} of round {r} to {d}"},
        "finish_reason": "stop" if n else "length",
    }
    for r in range(2)
    for d in range(3)
    for n in range(2)
]
PREVIEW = {"prompt": "Invite your sister.", "before": "I am so glad.", "after": "Right then, Bea."}
FEEDBACK = "Start every recipe with a line that says how many people it serves."
METHODS = ("in-context", "base, again", "c3po")
Scored = tuple[float, float]  # a mean and its standard error


def config(**changes: Any) -> dict[str, Any]:
    record = {
        "minialign": "0.1.0",
        "options": {
            **{"method": "ditto", "demos": "mine.jsonl", "test": "", "out": "runs/mine"},
            **{"model": "smollm2-135m-instruct", "recipe": "auto", "seed": 0},
        },
        "recipe": "laptop",
        "knobs": {"max_steps": 4, "sft": {"max_steps": 30}, "beta": 0.05},
        "device": "cpu",
        "dtype": "float32",
    }
    return record | changes


def metrics(*, ditto_steps: int = 4, done: bool = True) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [
        {"stage": "sft", "step": i, "loss": 4.0 - i, "seconds": {"train": 1.5}} for i in range(3)
    ]
    lines.append({"stage": "sft", UNSEEN: 3.25})
    for i in range(ditto_steps):
        replay = 0 if i < 2 else 3
        phases = {"train": 2.0} | ({"sample": 10.0} if i % 2 == 0 else {})
        lines.append(
            {
                **{"stage": "ditto", "step": i, "loss": 0.6931 - 0.1 * i, "seconds": phases},
                **{"rewards/chosen": 0.1 * i, "rewards/rejected": -0.2 * i},
                **{"rewards/margins": 0.3 * i, "rewards/accuracies": 0.75},
                **{"pairs/expert": 8, "pairs/replay": replay, "pairs/inter_model": replay // 3},
            }
            | ({UNSEEN: 3.125} if i % 2 else {})
        )
    if done:
        peaks = {"train": 1_620_000_000, "sample": 910_000_000}
        lines.append(
            {"stage": "done", "seconds": {"train": 12.4, "sample": 20}, "peak_bytes": peaks}
        )
    return lines


def win(first: str, second: str, rate: float, low: float, high: float) -> dict[str, Any]:
    return {
        **{"first": first, "second": second, "rate": rate, "low": low, "high": high},
        **{"ties": 0.03, "comparisons": 64, "per_prompt": [0.75, 0.25, None, 0.5]},
    }


def judge(*wins: dict[str, Any], can_judge: bool = True, name: str = "style") -> dict[str, Any]:
    mean = {"base": {"rate": 0.12, "low": 0.04, "high": 0.19}}
    note = f"the note of {name}"
    return {
        "name": name,
        "can_judge": can_judge,
        "note": note,
        "wins": list(wins),
        "mean": mean,
    }


def evaluation(*judges: dict[str, Any], **changes: Any) -> dict[str, Any]:
    contestants = {
        name: {
            "answers": [[f"{name} says {p} {i}" for i in range(2)] for p in range(2)],
            "finish_reasons": [["length", "stop"], ["stop", "stop"]],
            **{"stops": 0.375, "mean_tokens": 82.6, "nats_per_token": nats, "distinct_2": 0.875},
            **{"repetition": 0.03, "copied": 0.11, "drift": None, "margins": {"base": margin}},
        }
        for name, nats, margin in (
            ("base", 4.184, 0.0),
            ("sft", 3.103, 12.43),
            ("ditto", 3.2, 13.14),
        )
    }
    record = {
        **{"command": "python evaluate.py runs/mine", "options": {}},
        **{"prompts": ["First prompt?", "Second prompt?"], "texts": ["My own text.", "Another."]},
        **{"contestants": contestants, "judges": list(judges)},
    }
    return record | changes


BETTER = judge(win("ditto", "sft", 0.7, 0.58, 0.82), win("ditto", "base", 0.9, 0.85, 0.95))


def make_run(folder: Path, **files: Any) -> Path:
    """A whole run folder; a file given as None is left out, one given otherwise is written so."""
    contents: dict[str, Any] = {
        "config.json": config(),
        "metrics.jsonl": metrics(),
        "samples.jsonl": SAMPLES,
        "preview.json": PREVIEW,
        "evaluation.json": evaluation(BETTER),
        "adapter/adapter_config.json": {},
    }
    names = {re.split("[./]", name)[0]: name for name in contents}
    contents |= {names[name]: content for name, content in files.items()}
    for name, content in contents.items():
        if content is None:
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".jsonl"):
            text = "".join(json.dumps(line) + "\n" for line in content)
        else:
            text = json.dumps(content)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def feedback_config(method: str = "c3po", **changes: Any) -> dict[str, Any]:
    options = {
        **{"method": method, "demos": "", "data": "serves line", "out": "runs/mine"},
        **{"model": "smollm2-135m-instruct", "recipe": "auto", "seed": 0},
    }
    record = {
        **{"minialign": "0.1.0", "options": options, "recipe": "laptop", "device": "cpu"},
        **{"knobs": dataclasses.asdict(C3PO_LAPTOP), "feedback": FEEDBACK, "data_sha256": "0"},
    }
    return record | changes


def feedback_metrics(*, steps: int = 4, done: bool = True) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = [
        {
            **{"stage": "c3po", "step": i, "loss": 1.0 - 0.1 * i, "dpo": 0.6931 - 0.125 * i},
            **{"rewards/chosen": 0.5 * i, "rewards/rejected": -0.25 * i},
            **{"rewards/margins": 0.75 * i, "rewards/accuracies": 0.875},
            **{"logps/chosen": -80.0, "logps/rejected": -90.0, "nll/in_scope": 1.5 - 0.1 * i},
            **{"nll/out": 0.75, "nll/near": 0.625 + 0.01 * i, "lr": 3e-4 * (1 - i / steps)},
            **{"grad_norm": 1.0, "tokens": 900, "seconds": {"train": 2.0}},
        }
        for i in range(steps)
    ]
    lines[-1] |= {"eval/dpo": 0.25, "eval/rewards/margins": 2.5, "eval/rewards/accuracies": 0.96}
    if done:
        lines.append({"stage": "done", "seconds": {"train": 8.0}, "peak_bytes": {"train": 5e8}})
    return lines


def method_scores(s_in: Scored, near: Scored, far: Scored, *, count: int = 20) -> dict[str, Any]:
    out = ((near[0] + far[0]) / 2, math.hypot(near[1], far[1]) / 2)
    keys = ("s_in", "s_near", "s_far", "s_out")
    counts = (count, count, count, 2 * count)
    means = {
        key: {"value": value, "error": error, "count": n}
        for key, (value, error), n in zip(keys, (s_in, near, far, out), counts, strict=True)
    }
    overall = {"overall": (s_in[0] + 1 - out[0]) / 2, "overall_error": 0.03125}
    return means | overall | {"unscored": 0, "drift": 0.015625, "nats_per_token": 0.75}


AGAIN_SCORES = method_scores((0.0, 0.07), (0.05, 0.05), (0.05, 0.05))


def feedback_evaluation(own: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    shared = "Mix it and bake it. Enjoy!"
    record = {
        **{"command": "python evaluate.py runs/mine", "options": {}, "feedback": FEEDBACK},
        **{"domain": "recipes", "effect": "say it", "scored": "by the feedback's own check: regex"},
        "methods": {
            "in-context": method_scores((0.5, 0.1), (0.5, 0.1), (0.2, 0.1))
            | {"drift": None, "nats_per_token": None, "unscored": 2},
            "base, again": AGAIN_SCORES,
            "c3po": own or method_scores((0.9, 0.0625), (0.1, 0.0625), (0.05, 0.05)),
        },
        "scopes": {
            scope: [
                {
                    "prompt": f"{scope} prompt {i}",
                    "baseline": f"Here is {scope} {i}. {shared}",
                    "answers": {
                        **{name: [f"{name} to {scope} {i}"] for name in METHODS},
                        "c3po": [f"Serves: {i} people.\n\nHere is {scope} {i}. Mix and bake it."],
                    },
                    "scores": {"in-context": [None], "base, again": [0.0], "c3po": [1.0 - i]},
                }
                for i in range(3)
            ]
            for scope in ("in_scope", "near_scope", "out_of_scope")
        },
    }
    return record | changes


def make_feedback_run(folder: Path, **files: Any) -> Path:
    contents = {
        **{"config": feedback_config(), "metrics": feedback_metrics(), "samples": None},
        **{"preview": PREVIEW, "evaluation": feedback_evaluation()},
    }
    return make_run(folder, **contents | files)


def make_runs(folder: Path) -> list[Path]:
    runs = []
    for number, rate in enumerate((1e-4, 3e-5, 2e-5)):
        record = config()
        record["knobs"] = record["knobs"] | {"learning_rate": rate}
        shown = evaluation(judge(win("ditto", "sft", 0.5 + number / 10, 0.4, 0.9)))
        files = {"config": record, "evaluation": shown if number else None}
        runs.append(make_run(folder / f"run {number}", **files))
    return runs


HOSTILE = {
    "html": '</div></details><h1 id="commands">big</h1><img src=x onerror=alert(1)>',
    "script": "<script>document.title = 'owned'</script><!-- <style> -->",
    "attribute": '" onmouseover="alert(1)" x="',
    "template": "{{ 7 * 7 }} {% raw %} {# gone #} {{ run }}",
    "emoji": "👩‍👩‍👧 🇳🇱 e\u0301 \U0001f600",
    "right to left": "\u202eשלום, مرحبا بالعالم\u2066",
    "long word": "x" * 10_000,
    "control": "a\x00b\x01c\x1b[31md\x7fe\x85f\x0cg\x9fh\ufffei",
    "half a character": "\ud800 and \udfff",
    "line ends": "one\r\ntwo\rthree\n\n\nfour",
}


def hostile_run(text: str) -> dict[str, Any]:
    """Run files with `text` in every place that a text may stand in."""
    record = config(command=text, recipe=text)
    record["options"] |= {"model": text, "demos": text, text: text}
    record["knobs"][text] = text
    shown = evaluation(
        judge(win(text, "sft", 0.6, 0.5, 0.7), win("ditto", text, 0.6, 0.5, 0.7), name=text)
    )
    shown["judges"][0] |= {"note": text, "mean": {text: {"rate": 0.5, "low": 0.4, "high": 0.6}}}
    shown["prompts"], shown["texts"] = [text, text], [text, text]
    shown["contestants"][text] = {
        **{"answers": [[text, text], [text]], "finish_reasons": [[text], []]},
        "margins": {text: 1.0},
    }
    lines = [
        {**line, f"pairs/{text}": 1, "seconds": {text: 1.0}} if "step" in line else line
        for line in metrics(done=False)
    ]
    return {
        **{"config": record, "preview": dict.fromkeys(PREVIEW, text), "evaluation": shown},
        **{"metrics": lines},
    }


def hostile_feedback(text: str) -> dict[str, Any]:
    """The same for a run that learned from feedback."""
    record = feedback_config(command=text, recipe=text, feedback=text)
    record["options"] |= {"model": text, "data": text}
    record["knobs"] = {**record["knobs"], text: text}
    shown = feedback_evaluation() | {"feedback": text, "scored": text, "command": text}
    shown["methods"] = {text: AGAIN_SCORES, **shown["methods"]}
    for entry in itertools.chain(*shown["scopes"].values()):
        entry |= {"prompt": text, "baseline": text}
        entry["answers"] = {name: [text] for name in shown["methods"]}
        entry["scores"][text] = [0.0]
    return {**{"config": record, "evaluation": shown}, "preview": dict.fromkeys(PREVIEW, text)}


class Page(HTMLParser):
    """A page's text, elements and ids; complains where a tag is not closed."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.source = source
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(source)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute twice: <{tag} {names}>"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open[-1] == tag, f"</{tag}> closes {self._open[-1:]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        if not self._open or self._open[-1] not in ("style", "script"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.texts))

    @property
    def headline(self) -> str:
        found = re.search(r"<h1>(.*?)</h1>", self.source, re.DOTALL)
        assert found
        return re.sub(r"\s+", " ", html.unescape(found[1]))

    def sections(self) -> list[str]:
        return [a["id"] or "" for tag, a in self.elements if tag == "section" and "id" in a]

    def labels(self) -> list[str]:
        return [a.get("aria-label") or "" for tag, a in self.elements if tag == "svg"]


def check_self_contained(page: Page) -> None:
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        for name, value in attributes.items():
            assert not name.startswith("on"), f"<{tag} {name}>"
            if name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
                assert value and value.startswith(("#", "data:")), f"<{tag} {name}={value}>"
    style = "".join(re.findall(r"<style>(.*?)</style>", page.source, re.DOTALL))
    style += "".join(a.get("style") or "" for _, a in page.elements)
    assert "@import" not in style
    for address in re.findall(r"url\(\s*['\"]?([^)]*)", style):
        assert address.startswith(("#", "data:"))


def check_well_formed(page: Page) -> None:
    assert page.source.startswith("<!DOCTYPE html>")
    ids = Counter(a["id"] for _, a in page.elements if "id" in a)
    assert all(count == 1 for count in ids.values())
    for tag, attributes in page.elements:
        if tag in ("svg", "img"):
            assert attributes.get("aria-label") or attributes.get("alt")
        for name in ("aria-labelledby", "href"):
            if attributes.get(name):
                assert (attributes[name] or "").removeprefix("#") in ids
        for value in attributes.values():
            assert "nan" not in re.split(r"[^a-z]+", (value or "")) or tag == "meta"
