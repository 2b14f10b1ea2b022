"""The answers on a page: round by round, by contestant, and by scope with changed words marked."""

from __future__ import annotations

import difflib
import hashlib
import re
from pathlib import Path

from markupsafe import Markup

from minialign.data.feedback import SCOPES
from minialign.data.files import read_bytes
from minialign.data.records import Demonstration, load_demonstrations, training_split
from minialign.errors import InputError
from minialign.evaluation.judges.words import copied_spans, known_runs
from minialign.evaluation.report.run_files import Json, RunFiles, figure
from minialign.evaluation.report.scores import method_of

SCOPE_NAMES = dict(zip(SCOPES, ("In scope", "Near its scope", "Far from its scope"), strict=True))
# answers that are not folded; elsewhere one
OPEN = {"in_scope": 2}
# of a scope's answers: the page holds three
SHOWN_BYTES = 400_000
# of a text whose changes are marked: finding them takes the square of it
MOST_WORDS = 400


def rounds(run: RunFiles) -> Json:
    """The first demonstration's samples, round by round; with what it says, if that is known."""
    if not run.samples:
        return {}
    place = min(sample["demonstration"] for sample in run.samples)
    found = []
    for number_of_round in sorted({sample["round"] for sample in run.samples}):
        everything = [sample for sample in run.samples if sample["round"] == number_of_round]
        own = [sample for sample in everything if sample["demonstration"] == place]
        found.append(
            {
                "name": number_of_round + 1,
                "answers": [{"text": s["text"], "reason": s.get("finish_reason")} for s in own],
                "total": len(everything),
                "ended": sum(sample.get("finish_reason") == "stop" for sample in everything),
            }
        )
    known = demonstrations(run)
    demonstration = known[place] if place < len(known) else None
    return {"place": place + 1, "demonstration": demonstration, "rounds": found}


def demonstrations(run: RunFiles) -> list[Demonstration]:
    """What the run was trained on, if the file is still there and still the same."""
    file = Path(str(run.config["options"].get("demos", "")))
    try:
        same = hashlib.sha256(read_bytes(file)).hexdigest() == run.config.get("demos_sha256")
        return training_split(load_demonstrations(file)) if same else []
    except InputError:
        return []


def copies_of(run: RunFiles) -> set[tuple[str, ...]]:
    """What counts as copied in its answers; nothing where the demonstrations are not known."""
    return known_runs([d.completion for d in demonstrations(run)])


def mark_copied(text: str, known: set[tuple[str, ...]]) -> Markup:
    """The text, with the words marked that stand so in a demonstration."""
    made, last = [], 0
    for start, end in copied_spans(text, known):
        made += [Markup.escape(text[last:start]), Markup("<mark>{}</mark>").format(text[start:end])]
        last = end
    return Markup("").join([*made, Markup.escape(text[last:])])


def answers(entry: Json, place: int) -> list[Json]:
    """A contestant's answers to one prompt, each with the reason that it ended for."""
    texts, reasons = (entry.get(key) or [] for key in ("answers", "finish_reasons"))
    own = texts[place] if place < len(texts) else []
    why = [*(reasons[place] if place < len(reasons) else []), *[""] * len(own)]
    return [{"text": text, "reason": why[i]} for i, text in enumerate(own)]


def in_scopes(run: RunFiles) -> list[Json]:
    """The trained method's first answer to each test prompt beside the base model's, by scope.

    As many as the page has room for; `left_out` counts the others.
    """
    own = method_of(run)
    found = []
    for scope, title in SCOPE_NAMES.items():
        entries = (run.evaluation.get("scopes") or {}).get(scope) or []
        pairs, room = [], SHOWN_BYTES
        for entry in entries:
            answer = (entry["answers"].get(own) or [None])[0]
            if answer is None:
                continue
            before, after, marked = word_diff(entry["baseline"], answer)
            room -= len((before + after + entry["prompt"]).encode())
            if room < 0:
                break
            scores = {name: figure(values[0]) for name, values in entry["scores"].items() if values}
            pairs.append(
                {
                    **{"prompt": entry["prompt"], "before": before, "after": after},
                    **{"marked": marked, "score": scores.pop(own, None), "others": scores},
                }
            )
        if entries:
            record = {"title": title, "pairs": pairs, "left_out": len(entries) - len(pairs)}
            found.append(record | {"open": OPEN.get(scope, 1), "inside": scope == "in_scope"})
    return found


def word_diff(before: str, after: str) -> tuple[Markup, Markup, bool]:
    """Both texts with the words that only one of them has marked, and whether they are.

    A text of more than MOST_WORDS words is left as it is.
    """
    sides = [re.findall(r"\S+\s*|\s+", text) for text in (before, after)]
    if max(map(len, sides)) > MOST_WORDS:
        return Markup.escape(before), Markup.escape(after), False
    words = [[word.strip() for word in side] for side in sides]
    made: list[list[Markup]] = [[], []]
    for kind, *span in difflib.SequenceMatcher(a=words[0], b=words[1]).get_opcodes():
        for place, tag in enumerate(("del", "ins")):
            text = "".join(sides[place][span[2 * place] : span[2 * place + 1]])
            made[place].append(Markup.escape(text) if kind == "equal" else _marked(tag, text))
    return Markup("").join(made[0]), Markup("").join(made[1]), True


def _marked(tag: str, text: str) -> Markup:
    """Without the white space around it, which would be marked too."""
    inner = text.strip()
    if not inner:
        return Markup.escape(text)
    start = text.index(inner)
    return Markup("{0}<{1}>{2}</{1}>{3}").format(
        text[:start], tag, inner, text[start + len(inner) :]
    )
