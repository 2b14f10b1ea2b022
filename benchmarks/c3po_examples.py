"""Fills the examples of feedback with a model's responses, where they have none yet.

    python benchmarks/c3po_examples.py
    python benchmarks/c3po_examples.py examples/c3po/cheers --model smollm2-135m-instruct

The folders hold hand-written prompts and a check that a program can verify. The model writes every
baseline, in_context and cot. A small model cannot be trusted to revise its own answers, so
`revised` is its baseline, edited by a program with as little change as satisfies the check:

* ends_with: the sign-off makes room for the ending that is asked for;
* not_regex, contains_none: stock phrases are put plainly, other sentences with a forbidden phrase
  and blanks are left out;
* regex, starts_with: the first line that `effect` gives as an example, in quotation marks, is put
  before it.

A prompt to train on is answered again with another seed, a few times, if its baseline holds emoji
or links, did not end by itself, or, in scope, satisfies the check already or has too few words once
it is edited; the best that came is kept. The test prompts keep their first answer that can be
edited. Where the feedback asks for an ending, every baseline in scope is drawn until it ends by
itself, test prompts' too: else a revision would differ by ending at all, whatever the feedback.
Answers are kept in student.jsonl until the folder is complete, so that an interrupted run goes on
where it was.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from minialign.data.checks import Check, parse_checks
from minialign.data.feedback import DESCRIPTION, load_feedback_data
from minialign.data.files import read_json, read_jsonl
from minialign.errors import InputError
from minialign.feedback.knobs import PipelineConfig
from minialign.feedback.local_teacher import LocalTeacher
from minialign.feedback.pipeline import FILES, STUDENT, complete_responses, write_lines
from minialign.feedback.teacher import Answer, Ask, Cached, Reply, Teacher

EXAMPLES = Path(__file__).parents[1] / "examples" / "c3po"
CONFIG = PipelineConfig(max_new_tokens=200, temperature=0.7, top_p=1.0, tries=6)
# Of answers that must end: SmolLM2 ends about four in ten within 400 tokens.
TO_THE_END = PipelineConfig(max_new_tokens=400, temperature=0.7, top_p=1.0, tries=40)
MIN_WORDS = 10  # of what the edit leaves of a baseline

CLOSING = (
    r"(?i:(?:with\s+)?(?:(?:my|many|kind|kindest|best|warm|warmest|sincere)\s+)*"
    r"(?:regards|wishes|thanks)|best|all the best|sincerely(?: yours)?|yours(?: \w+)?|cheers|"
    r"thanks(?: again| so much| a lot)?|thank you(?: again| so much| very much)?|cordially|warmly|"
    r"respectfully(?: yours)?|love|take care|see you(?: \w+){0,2})"
)
NAME = r"(?:\[[^\]\n]*\]|[A-Z][\w.'’-]*(?: [A-Z][\w.'’-]*){0,3})"
CLOSING_LINE = re.compile(rf"[*_ ]*{CLOSING}\s*(?:[,.!]+\s*{NAME}?[\s,.!*_]*)?$")
CLOSING_IN_LINE = re.compile(rf"(?<=[.!?])\s+{CLOSING},\s*{NAME}?[\s,.]*$")
SIGNATURE = re.compile(
    r"\s*(?:(?:\[[^\]\n]*\][\s,.]*)+|P\.? ?S\.?:?|[A-Z][\w'’-]*(?: [A-Z][\w.'’-]*){0,2},?)\s*$"
)

BUSINESS = (
    r"\[[^\]\n]*\b(?:company|business|store|shop|restaurant|organi[sz]ation|brand)\b[^\]\n]*\]"
)
PLAINER: tuple[tuple[str, str], ...] = (
    (r"^([*_\s]*(?:dear|hi|hello)\s+)(?:(?:mr|ms|mrs|dr)\b[./\w]*\s*)*\[[^\]\n]+\]", r"\1customer"),
    (rf"\b(at|from|with|by|for|of|to|about|regarding|choosing) {BUSINESS}", r"\1 our company"),
    (r"\bI(?: a|['’])m writing to\b", "I want to"),
    (r"\bI(?: a|['’])m writing\b", "This is"),
    (r"\b(?:thrilled|excited)\b", "happy"),
)
SYMBOLS = re.compile(r"[\u2600-\u27bf\U0001f000-\U0001faff]|http|(?:/\d+){4}")  # and links
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"“\[(])")
SERVINGS = re.compile(
    r"\b(?:serv(?:es|ings?)|yields?|makes)\W{1,4}(?:about\s)?(\d{1,2})\b"
    r"|\b(\d{1,2})\s+(?:servings|people|persons|portions)\b",
    re.IGNORECASE,
)
SERVINGS_LINE = re.compile(r"\W*serv(?:es|ings?)\W+\d+(?:\s+\w+)?\W*$", re.IGNORECASE)


# ---- edits ----


def edit(baseline: Reply, check: Check, effect: str) -> Reply | None:
    """The baseline with as little change as satisfies the check, or None if too little is left.

    One that satisfies it already stays as it is.
    """
    cut_off = baseline.finish_reason != "stop"
    text = baseline.text.strip()
    if check.holds(text):
        revised = Reply(text, baseline.finish_reason)
    elif check.kind == "ends_with":
        revised = Reply(
            end_with(whole_sentences(text) if cut_off else text, check.texts[0]), "stop"
        )
    elif check.kind in ("not_regex", "contains_none"):
        revised = Reply(without_phrases(text, check), baseline.finish_reason)
    elif check.kind in ("regex", "starts_with"):
        revised = Reply(begin_with(text, first_line(check, effect)), baseline.finish_reason)
    else:
        raise InputError(
            f"{check.source}: no edit is known for {check.kind}: write revisions by hand"
        )
    sensible = len(text.split()) >= MIN_WORDS and len(revised.text.split()) >= MIN_WORDS
    return revised if sensible and check.holds(revised.text) else None


def whole_sentences(text: str) -> str:
    """Without the half sentence at the end, unless there is no other."""
    ends = [found.end() for found in re.finditer(r"[.!?][\"”')]*(?=\s|$)", text)]
    return text[: ends[-1]] if ends else text


def end_with(text: str, ending: str) -> str:
    """The sign-off and all that follows it make room for the ending."""
    lines = text.rstrip().splitlines()
    for place, line in enumerate(lines):
        if CLOSING_LINE.match(line) and len(" ".join(lines[:place]).split()) >= MIN_WORDS:
            lines = lines[:place]
            break
    while len(lines) > 1 and (not lines[-1].strip() or SIGNATURE.match(lines[-1])):
        lines.pop()
    lines[-1:] = [CLOSING_IN_LINE.sub("", line) for line in lines[-1:]]
    return "\n".join(lines).rstrip() + "\n\n" + ending


def without_phrases(text: str, check: Check) -> str:
    """Stock phrases put plainly; then every sentence that still holds a forbidden one is left out.

    A line without sentences (a signature, an entry of a list) goes as a whole.
    """
    lines = []
    for line in re.sub(r"\[[^\]\n]*\Z", "", text).splitlines():  # half a blank may be at the end
        for pattern, plain in PLAINER:
            if not check.holds(line):
                line = re.sub(pattern, _in_case(plain), line, flags=re.IGNORECASE)
        if not check.holds(line):
            line = " ".join(s for s in SENTENCE_END.split(line) if check.holds(s))
            if not line.strip():
                continue
        lines.append(line)
    left = re.sub(r"\n\s*\n\s*\n+", "\n\n", "\n".join(lines)).strip()
    return left.removesuffix(",")  # behind a closing whose name was a blank


def _in_case(plain: str) -> Callable[[re.Match[str]], str]:
    def replace(found: re.Match[str]) -> str:
        text = found.expand(plain)
        return text[:1].upper() + text[1:] if found[0][:1].isupper() else text

    return replace


def first_line(check: Check, effect: str) -> str:
    """The example in `effect` that satisfies the check."""
    examples = [check.texts[0]] if check.texts else re.findall(r"['\"]([^'\"]+)['\"]", effect)
    for example in examples:
        if check.holds(example):
            return str(example)
    raise InputError(f"{check.source}: name a first line in quotation marks in the effect")


def begin_with(text: str, line: str) -> str:
    """The line, then the text. A number of servings that the text names goes into the line."""
    if named := SERVINGS.search(text):
        line = re.sub(r"\d+", named[1] or named[2], line, count=1)
    others = [other for other in text.splitlines() if not SERVINGS_LINE.match(other)]
    return line + "\n\n" + "\n".join(others).strip()


# ---- folders ----


def fill_folder(folder: Path, student: Teacher, config: PipelineConfig = CONFIG) -> None:
    """Writes the folder's files in place. Raises InputError where a prompt gets no revision."""
    source = str(folder / DESCRIPTION)
    described = read_json(source)
    (check,) = parse_checks(described.get("check", []), source)
    cached = Cached(student, folder / STUDENT)
    fill_baselines(folder / FILES["in_scope"], cached, config, check, described["effect"])
    for scope in ("near_scope", "out_of_scope"):
        fill_baselines(folder / FILES[scope], cached, config)
    complete_responses(folder, config, student=student, progress=shown)
    data = load_feedback_data(folder)
    for example in data.in_scope:
        if example.revised is None or not check.holds(example.revised.text):
            raise InputError(f"{example.source}: the revision does not satisfy the check")
    (folder / STUDENT).unlink(missing_ok=True)


def fill_baselines(
    file: Path,
    student: Cached,
    config: PipelineConfig,
    check: Check | None = None,
    effect: str = "",
) -> None:
    """Baselines, and with a check their revisions, for the lines that have no useful ones."""
    lines = [line for _, line in read_jsonl(file)]
    must_end = check is not None and check.kind == "ends_with"
    if must_end:
        config = TO_THE_END
    for attempt in range(config.tries):
        waiting = [line for line in lines if worth(line, must_end) < BEST]
        asks = [ask(line["prompt"], config, attempt) for line in waiting]
        answers = student.answer(asks, shown(f"{file.parent.name}, {file.stem}", len(asks)))
        for line, answer in zip(waiting, answers, strict=True):
            if not isinstance(answer, Reply):
                continue
            found = {**line, **entry("baseline", answer)}
            if check is not None:
                revised = edit(answer, check, effect)
                found |= entry("revised", revised) if revised else {"baseline": ""}
            if worth(found, must_end) > worth(line, must_end):
                line.update(found)
    if left := [line["prompt"] for line in lines if not line.get("baseline")]:
        raise InputError(f"{file}: no baseline will do for {left[0]!r}: ask with more tries")
    write_lines(file, lines)


def ask(prompt: str, config: PipelineConfig, attempt: int) -> Ask:
    seed = config.seed + attempt
    return Ask((("user", prompt),), config.max_new_tokens, config.temperature, seed)


def entry(name: str, reply: Reply) -> dict[str, str]:
    return {name: reply.text.strip(), f"{name}_finish_reason": reply.finish_reason}


BEST = 4


def worth(line: dict[str, Any], must_end: bool) -> int:
    """Of a baseline and its revision, 0 for none. Test prompts are not picked by what they say.

    To train on, two equal responses teach nothing, and answers that were cut off do not teach how
    the model ends; `must_end` asks that of test prompts too.
    """
    if not line.get("baseline"):
        return 0
    ended = line["baseline_finish_reason"] == "stop"
    if line["split"] == "test":
        return BEST if ended or not must_end else 1
    if line.get("revised") == line["baseline"]:
        return 1
    if not ended:
        return 2
    return 3 if SYMBOLS.search(line["baseline"]) else BEST


def shown(title: str, count: int) -> Callable[[int, Answer], None]:
    """A progress bar for so many answers."""
    from tqdm import tqdm

    bar = tqdm(total=count, desc=title, disable=None)
    return lambda index, answer: bar.update() and None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folders", nargs="*", type=Path, help="by default all of examples/c3po")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="alias, hub id or folder")
    options = parser.parse_args()
    import minialign

    try:
        model, tokenizer = minialign.load(options.model)
        student = LocalTeacher(model, tokenizer, options.model)
        for folder in options.folders or sorted(EXAMPLES.glob("*/")):
            fill_folder(folder, student)
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
