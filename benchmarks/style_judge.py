"""How well does the style judge know a writer?  Authors that answered the same prompts, one JSON
Lines file each (`prompt`, `completion`, `split`).

    python benchmarks/style_judge.py --data AUTHORS --model smollm2-135m-instruct
    python benchmarks/style_judge.py --data AUTHORS --answers ANSWERS.json

For every author a judge is fitted on the `train` texts and asked about texts that it has not seen,
those of the other splits. `vs others` ranks the author's texts against the other authors', `vs
base` against the base model's answers to the same prompts; both are areas under the curve, and 0.5
is chance. The rows differ in what the judge may learn from and in what it is asked:

* all: the base model's answers, and every other author's `train` texts;
* strangers: likewise, but the authors that it is asked about are not those that it learned from;
* new topics: likewise, and nothing about the topic of the question, by anybody;
* first 100 words, first 50 words: the texts in question are cut there;
* one line: all texts without line breaks, where an author's files have none to begin with;
* base only: the base model's answers alone, which is what a person has; as they are and in a line.

`--answers` is {author: {prompt: [answer, ...]}}, with the files' names as authors. Without it the
model writes 4 answers to every prompt. No text goes into the results.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minialign.data.files import read_json
from minialign.data.records import Demonstration, load_demonstrations
from minialign.errors import InputError
from minialign.evaluation.judges.style import StyleJudge, area_under_curve

OUT = Path(__file__).parent / "results" / "style_judge.json"
ANSWERS_PER_PROMPT, MAX_NEW_TOKENS, TEMPERATURE = 4, 256, 1.0
STRANGERS = 2  # the authors that are asked about are every second one, in turn

Answers = dict[str, dict[str, list[str]]]  # author -> prompt -> answers
Edit = Callable[[str], str]


@dataclass(frozen=True)
class Text:
    author: str  # BASE for an answer of the base model
    prompt: str
    text: str
    seen: bool  # the judge may learn from it


BASE = ""


def topic_of(prompt: str) -> str:
    """What follows "an essay on the following prompt: ", if anything."""
    return prompt.split(": ", 1)[-1].strip()


def first_words(count: int) -> Edit:
    return lambda text: "".join(re.findall(r"\S+\s*", text)[:count])


def one_line(text: str) -> str:
    return " ".join(text.split())


def collect(authors: dict[str, list[Demonstration]], answers: Answers) -> dict[str, list[Text]]:
    """Author -> everybody's texts, with the base model's answers to the author's prompts."""
    written = [
        Text(author, d.prompt, d.completion, d.split in (None, "train"))
        for author, demonstrations in authors.items()
        for d in demonstrations
    ]
    return {
        author: written
        + [
            Text(BASE, d.prompt, answer, d.split in (None, "train"))
            for d in demonstrations
            for answer in answers[author][d.prompt]
        ]
        for author, demonstrations in authors.items()
    }


def fit(author: str, texts: list[Text], sources: list[str]) -> StyleJudge:
    seen = {name: [t.text for t in texts if t.author == name and t.seen] for name in sources}
    own = [t.text for t in texts if t.author == author and t.seen]
    return StyleJudge.fit(own, [group for group in seen.values() if group])


def ask(judge: StyleJudge, texts: list[Text], edit: Edit = str) -> list[tuple[Text, float]]:
    """The unseen texts with their scores."""
    unseen = [t for t in texts if not t.seen]
    return list(zip(unseen, judge.scores([edit(t.text) for t in unseen]).tolist(), strict=True))


def areas(author: str, scored: list[tuple[Text, float]]) -> dict[str, float]:
    own = [score for text, score in scored if text.author == author]
    base = [score for text, score in scored if text.author == BASE]
    others = [score for text, score in scored if text.author not in (author, BASE)]
    return {"vs others": area_under_curve(own, others), "vs base": area_under_curve(own, base)}


def strangers(author: str, texts: list[Text], others: list[str]) -> dict[str, float]:
    """The mean over two halves of the other authors, of which one is learned from."""
    halves = [others[i::STRANGERS] for i in range(STRANGERS)]
    found = []
    for known in halves:
        judge = fit(author, texts, [BASE, *known])
        found.append(areas(author, ask(judge, [t for t in texts if t.author not in known])))
    return {key: float(np.mean([area[key] for area in found])) for key in found[0]}


def new_topics(author: str, texts: list[Text], others: list[str]) -> dict[str, float]:
    """Every topic in turn is kept out of everything that the judge learns from."""
    scored = []
    for topic in sorted({topic_of(t.prompt) for t in texts if not t.seen}):
        judge = fit(author, [t for t in texts if topic_of(t.prompt) != topic], [BASE, *others])
        scored += ask(judge, [t for t in texts if topic_of(t.prompt) == topic])
    return areas(author, scored)


def measure(author: str, texts: list[Text]) -> dict[str, Any]:
    """Every row of the table for one author, and the judge's own estimate."""
    others = sorted({t.author for t in texts} - {author, BASE})
    start = time.process_time()
    judge = fit(author, texts, [BASE, *others])
    seconds = time.process_time() - start
    flat = [Text(t.author, t.prompt, one_line(t.text), t.seen) for t in texts]
    alone = fit(author, texts, [BASE])
    rows = {
        "all": areas(author, ask(judge, texts)),
        "strangers": strangers(author, texts, others),
        "new topics": new_topics(author, texts, others),
        "first 100 words": areas(author, ask(judge, texts, first_words(100))),
        "first 50 words": areas(author, ask(judge, texts, first_words(50))),
        "one line": areas(author, ask(fit(author, flat, [BASE, *others]), flat)),
        "base only": areas(author, ask(alone, texts)),
        "base only, one line": areas(author, ask(fit(author, flat, [BASE]), flat)),
    }
    return {
        "areas": rows,
        "own_texts": judge.own_texts,
        "other_texts": judge.other_texts,
        "cross_validated": judge.auc,
        "cross_validated_base_only": alone.auc,
        "can_judge": judge.can_judge,
        "can_judge_base_only": alone.can_judge,
        "seconds_to_fit": seconds,
    }


def table(results: dict[str, Any]) -> str:
    """Markdown: a line per row of the comparison, the mean over the authors and the lowest."""
    authors = results["authors"]
    lines = [
        "| | vs others: mean | lowest | vs base: mean | lowest |",
        "|---|---|---|---|---|",
    ]
    for row in next(iter(authors.values()))["areas"]:
        cells = [
            f"{choose([a['areas'][row][key] for a in authors.values()]):.3f}"
            for key in ("vs others", "vs base")
            for choose in (np.mean, np.min)
        ]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lines += [
        "",
        "| author | vs others | vs base | the judge's own estimate |",
        "|---|---|---|---|",
    ]
    for name, author in authors.items():
        area = author["areas"]["all"]
        lines.append(
            f"| {name} | {area['vs others']:.3f} | {area['vs base']:.3f} "
            f"| {author['cross_validated']:.3f} |"
        )
    return "\n".join(lines)


def rounded(found: Any) -> Any:
    """The same with numbers that a person can read."""
    if isinstance(found, dict):
        return {key: rounded(value) for key, value in found.items()}
    return round(found, 4) if isinstance(found, float) else found


def write_answers(authors: dict[str, list[Demonstration]], name: str) -> Answers:
    """The base model's answers, prompt by prompt; the same prompt gets the same answers."""
    import minialign

    model, tokenizer = minialign.load(name)
    prompts = sorted({d.prompt for demonstrations in authors.values() for d in demonstrations})
    completions = minialign.generate(
        model,
        tokenizer,
        prompts,
        n=ANSWERS_PER_PROMPT,
        max_new_tokens=MAX_NEW_TOKENS,
        temperature=TEMPERATURE,
    )
    texts = {p: [c.text for c in group] for p, group in zip(prompts, completions, strict=True)}
    return {a: {d.prompt: texts[d.prompt] for d in written} for a, written in authors.items()}


def check(authors: dict[str, list[Demonstration]], answers: Answers, source: str) -> None:
    """Raises InputError unless every author has texts of both kinds and every prompt an answer."""
    for author, written in authors.items():
        if len({d.split in (None, "train") for d in written}) < 2:
            raise InputError(f"{author}: no text to learn from, or none to ask about: set `split`")
        for d in written:
            if not answers.get(author, {}).get(d.prompt):
                raise InputError(f"{source}: no answer to the prompt of {d.source}: add one")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="a folder of *.jsonl, an author each"
    )
    parser.add_argument("--answers", type=Path, help="the base model's answers, as JSON")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="writes them otherwise")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    files = sorted(options.data.glob("*.jsonl"))
    if len(files) < 3:
        raise InputError(f"{options.data}: fewer than three *.jsonl files: one for each author")
    authors = {file.stem: load_demonstrations(file) for file in files}
    if options.answers:
        answers = read_json(options.answers)
    else:
        answers = write_answers(authors, options.model)
    check(authors, answers, str(options.answers or options.model))
    results = {
        "answers": options.answers.name if options.answers else options.model,
        "authors": {a: measure(a, texts) for a, texts in collect(authors, answers).items()},
    }
    print(table(results))
    options.out.write_text(json.dumps(rounded(results), indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
