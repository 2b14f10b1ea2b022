"""Who takes part in a contest, who judges it, and what is said about it: everything that can be
wrong is one line, before a model is loaded, and leaves the disk as it was.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Outcome, call, evaluate, train_toy
from helpers.files import tree, write_jsonl
from helpers.loopback import Loopback, fails, says, says_by, serve
from helpers.models import write_checkpoint
from helpers.workplaces import DEMOS, HELD_OUT, write_workplace

from minialign.data.records import Demonstration
from minialign.evaluation.contestants import Entry, entries_of
from minialign.evaluation.judges import OFFLINE
from minialign.evaluation.judges.verdicts import Judgement
from minialign.evaluation.judges.winrates import Interval, WinRate
from minialign.evaluation.knobs import EvaluateOptions
from minialign.evaluation.tables import side_by_side
from minialign.evaluation.voice import VoiceResults
from minialign.feedback.endpoint import EndpointTeacher
from minialign.policy.sample import Completion

FAST = ("--n", "1", "--max-new-tokens", "4", "--general", "0", "--show", "0", "--seed", "3")
JUDGED = ("--judges", "model", "--judge-model", "wise", "--against", "base,sft", "--n", "2")
QUESTIONS = 2 * 2 * 2 * 3  # orders, prompts, answers each, pairs of contestants


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workplace with a DITTO run in runs/demos and an SFT run in runs/sft."""
    folder = write_workplace(tmp_path_factory.mktemp("contest") / "template")
    train_toy(folder)
    train_toy(folder, "--method", "sft", "--out", "runs/sft")
    return folder


@pytest.fixture
def workplace(template: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return shutil.copytree(template, tmp_path / "workplace")


def refused(workplace: Path, *arguments: str) -> str:
    """The line that evaluate.py ends with; nothing is printed besides, or written."""
    before = tree(workplace)
    outcome = call(evaluate, *arguments, cwd=workplace)
    assert (outcome.code, outcome.out) == (2, ""), outcome.out + outcome.err
    assert outcome.err.startswith("evaluate.py: ") and outcome.err.count("\n") == 1
    assert tree(workplace) == before
    return outcome.err.removeprefix("evaluate.py: ").rstrip("\n")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever loads a model fails the test."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("minialign.evaluation.contest.load", fail)


# ---- entries ----


def record(method: str = "ditto") -> dict[str, Any]:
    return {"options": {"method": method}}


def test_rivals_come_in_their_order_and_the_run_comes_last(tmp_path: Path) -> None:
    run = tmp_path / "mails"
    (run / "adapter-sft").mkdir(parents=True)
    found = entries_of([run], [record()], ["few-shot", "sft", "base"])
    assert found == [
        Entry("few-shot", few_shot=True),
        Entry("sft", run / "adapter-sft"),
        Entry("base"),
        Entry("ditto", run / "adapter"),
    ]


def test_a_run_that_is_its_own_rival_takes_part_once_and_last(tmp_path: Path) -> None:
    run = tmp_path / "mails"
    for method in ("sft", "spin"):
        found = entries_of([run], [record(method)], [method, "base"])
        assert found == [Entry("base"), Entry(method, run / "adapter")]
    again = tmp_path / "x" / ".." / "mails"
    (tmp_path / "x").mkdir()
    assert len(entries_of([run, again], [record(), record()], [])) == 1


def test_a_method_is_a_stage_of_the_run_or_a_folder_beside_it(tmp_path: Path) -> None:
    run, beside = tmp_path / "mails", tmp_path / "mails-ditto" / "adapter"
    beside.mkdir(parents=True)
    (run / "adapter-sft").mkdir(parents=True)
    found = entries_of([run], [record("spin")], ["sft", "ditto"])
    assert [e.adapter for e in found] == [run / "adapter-sft", beside, run / "adapter"]


@pytest.mark.usefixtures("no_model")
class TestRefusals:
    def test_an_unknown_rival(self, workplace: Path) -> None:
        said = refused(workplace, "runs/demos", "--against", "base,gpt")
        assert said == (
            "--against gpt: not one of base, few-shot, ditto, sft, spin, sdft, "
            "stylevector, nor a run folder, a "
            "sum of them (runs/a+runs/b=0.5) or a file of answers"
        )

    def test_spin_that_was_not_trained(self, workplace: Path) -> None:
        said = refused(workplace, "runs/demos", "--against", "spin")
        assert said.startswith("--against spin: runs/demos-spin is not there: train it")
        assert said.endswith("--method spin --out runs/demos-spin")

    def test_sft_that_is_not_there(self, workplace: Path) -> None:
        shutil.rmtree(workplace / "runs" / "demos" / "adapter-sft")
        said = refused(workplace, "runs/demos", "--against", "sft")
        assert said == "--against sft: runs/demos/adapter-sft is not there: leave sft out"

    def test_a_folder_that_is_no_run(self, workplace: Path) -> None:
        assert "toy: " in refused(workplace, "runs/demos", "--against", "toy")

    def test_a_file_without_an_answer_to_a_prompt(self, workplace: Path) -> None:
        write_jsonl(workplace / "mine.jsonl", [{**HELD_OUT[0], "completion": "yes"}])
        said = refused(workplace, "runs/demos", "--against", "mine.jsonl")
        assert said == "mine.jsonl: has no answer to the held-out prompt 'Ask for the numbers.'"

    def test_a_file_that_is_not_json_lines(self, workplace: Path) -> None:
        said = refused(workplace, "runs/demos", "--against", "toy/config.json")
        assert said.startswith("toy/config.json, line 1")

    @pytest.mark.parametrize("rivals", ["base,few-shot,runs/base", "runs/base"])
    def test_a_run_that_is_called_base(self, workplace: Path, rivals: str) -> None:
        shutil.copytree(workplace / "runs" / "sft", workplace / "runs" / "base")
        said = refused(workplace, "runs/demos", "--against", rivals)
        assert said == ("runs/base/adapter: only the base model itself is called base: rename this")

    def test_two_runs_of_one_name(self, workplace: Path) -> None:
        shutil.copytree(workplace / "runs" / "sft", workplace / "old" / "demos")
        said = refused(workplace, "runs/demos", "old/demos", "--against", "base")
        assert said == (
            "runs/demos/adapter and old/demos/adapter would both be called demos: rename one, or "
            "leave it out"
        )

    def test_a_run_that_is_called_like_another_rival(self, workplace: Path) -> None:
        said = refused(workplace, "runs/demos", "runs/sft")  # and the SFT model of the first
        assert said.startswith("runs/demos/adapter-sft and runs/sft/adapter would both be called")

    def test_runs_of_different_models(self, workplace: Path) -> None:
        write_checkpoint(workplace / "other", seed=1)
        train_toy(workplace, "--model", "other", "--method", "sft", "--out", "runs/other")
        said = refused(workplace, "runs/demos", "runs/other")
        assert said == (
            "runs/other: was trained on other, runs/demos on toy: evaluate them one by one"
        )

    def test_texts_that_any_of_the_runs_was_trained_on(self, workplace: Path) -> None:
        write_jsonl(workplace / "more.jsonl", [*DEMOS, HELD_OUT[1]])
        flags = ("--demos", "more.jsonl", "--method", "sft")
        train_toy(workplace, *flags, "--test", "", "--out", "runs/more")
        for arguments in (["runs/more", "--against", "base"], ["--against", "runs/more"]):
            said = refused(workplace, "runs/demos", *arguments)
            assert said.startswith("demos_test.jsonl, line 2: a held-out text must be new")
            assert "more.jsonl, line 4" in said

    def test_a_model_judge_without_a_name(self, workplace: Path) -> None:
        said = refused(workplace, "runs/demos", "--judges", "style,model")
        assert said == "--judges model and --judge-model NAME need each other"

    def test_a_model_judge_that_nobody_would_ask(self, workplace: Path) -> None:
        said = refused(workplace, "runs/demos", "--judge-url", "http://127.0.0.1:9/v1")
        assert said == "--judge-url needs --judges model --judge-model NAME"
        said = refused(workplace, "runs/demos", "--judge-model", "wise")
        assert said == "--judges model and --judge-model NAME need each other"

    def test_a_local_judge_that_is_not_there(self, workplace: Path) -> None:
        said = refused(workplace, "runs/demos", "--judges", "model", "--judge-model", "wise")
        assert said.startswith("wise: no such folder")

    @pytest.mark.usefixtures("direct")
    def test_an_endpoint_that_cannot_be_reached(self, workplace: Path) -> None:
        with serve(says("yes")) as gone:
            pass  # its port is free again
        said = refused(workplace, "runs/demos", *JUDGED, "--judge-url", gone.url)
        assert said.startswith(f"{gone.url}: cannot be reached")

    @pytest.mark.usefixtures("direct")
    def test_kept_answers_that_are_none(self, workplace: Path) -> None:
        with serve(says("yes")) as here:
            (workplace / "runs" / "demos" / "judge.jsonl").write_text("{}\n")
            said = refused(workplace, "runs/demos", *JUDGED, "--judge-url", here.url)
        assert said == "runs/demos/judge.jsonl, line 1: not a kept answer: give another file"

    def test_an_unknown_judge(self, workplace: Path) -> None:
        said = refused(workplace, "runs/demos", "--judges", "style,jury")
        assert said.startswith(
            "judges: there is no judge called 'jury': choose one of panel, style"
        )

    def test_more_general_prompts_than_there_are(self, workplace: Path) -> None:
        assert "ask for fewer" in refused(workplace, "runs/demos", "--general", "100000")

    def test_other_peoples_texts_that_are_none(self, workplace: Path) -> None:
        write_jsonl(workplace / "others.jsonl", [{"text": "hello"}, {"text": None}])
        said = refused(workplace, "runs/demos", "--others", "others.jsonl")
        assert said.startswith("others.jsonl, line 1")

    @pytest.mark.parametrize(
        ("flag", "said"),
        [("--temperature", "temperature"), ("--max-new-tokens", "max_new_tokens")],
    )
    def test_a_sampling_knob_out_of_range(self, workplace: Path, flag: str, said: str) -> None:
        assert refused(workplace, "runs/demos", flag, "-1").startswith(f"{said} must not be")

    def test_runs_of_different_folders_are_not_compared(self, workplace: Path) -> None:
        shutil.copytree(workplace / "runs" / "sft", workplace / "old" / "sft")
        said = refused(workplace, "--compare", "runs/demos", "old/sft")
        assert said.startswith("--compare: the runs lie in different folders")


def test_an_adapter_of_another_model_is_refused(workplace: Path) -> None:
    write_checkpoint(workplace / "other", seed=1)
    train_toy(workplace, "--model", "other", "--method", "sft", "--out", "runs/other")
    said = refused(workplace, "runs/demos", "--against", "base,runs/other")
    assert said.startswith("runs/other/adapter: this adapter was trained on another model")


def test_where_few_shot_does_not_fit_it_says_so_before_anybody_writes(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minialign.evaluation.contestants.rollouts", None)
    said = refused(workplace, "runs/demos", *FAST, "--max-new-tokens", "230")
    assert said.startswith("few-shot: not one demonstration fits into a prompt of 26 tokens")
    assert said.endswith("leave few-shot out of --against")
    said = refused(workplace, "runs/demos", *FAST, "--max-new-tokens", "999")
    assert said.startswith("few-shot: not one demonstration fits into a prompt of 0 tokens")


# ---- the model judge ----


def judged(workplace: Path, *arguments: str) -> tuple[Outcome, dict[str, Any]]:
    outcome = call(evaluate, "runs/demos", *FAST, *JUDGED, *arguments, cwd=workplace)
    assert outcome.code == 0, outcome.err
    text = (workplace / "runs" / "demos" / "evaluation.json").read_text(encoding="utf-8")
    (judgement,) = json.loads(text)["judges"]
    assert judgement["name"] == "model"
    return outcome, judgement


QUESTION = re.compile(
    r"(<example>\n(?P<example>.*?)\n</example>.*<text A>)(?P<a>.*)(</text A>.*<text B>)(?P<b>.*)"
    r"(</text B>.*)",
    re.DOTALL,
)


def prefers_the_longer(question: str) -> str:
    found = QUESTION.fullmatch(question)
    if found is None:  # evaluate.py's first, short question
        return "yes"
    return json.dumps({"answer": "A" if len(found["a"]) >= len(found["b"]) else "B"})


def test_a_model_judge_is_asked_in_both_orders_and_nothing_twice(
    workplace: Path,
    server: Loopback,
) -> None:
    server.default = says_by(prefers_the_longer)  # the longer text, so the orders agree
    outcome, judgement = judged(workplace, "--judge-url", server.url)
    assert server.questions[0] == "Say yes."
    asked = server.questions[1:]
    assert 0 < len(asked) <= QUESTIONS and len(set(asked)) == len(asked)
    assert {swapped(question) for question in asked} == set(asked)
    assert {record["completion"] for record in HELD_OUT} == set(map(example_of, asked))
    kept = (workplace / "runs" / "demos" / "judge.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(kept) == len(asked)
    assert judgement["can_judge"] and "wise at http://" in judgement["note"]
    written = json.loads((workplace / "runs" / "demos" / "evaluation.json").read_text())
    words = {name: c["answers"] for name, c in written["contestants"].items()}
    for win in judgement["wins"]:
        lengths = [
            [len(words[win[side]][place][i]) for place in range(2) for i in range(2)]
            for side in ("first", "second")
        ]
        shares = [(a > b) + (a == b) / 2 for a, b in zip(*lengths, strict=True)]
        assert win["rate"] == pytest.approx(sum(shares) / 4) and win["comparisons"] == 4
        if win["first"] == "ditto":
            assert f"  ditto against {win['second']:24} {win['rate']:4.0%}" in outcome.out

    again, same = judged(workplace, "--judge-url", server.url)
    assert server.questions[1 + len(asked) :] == ["Say yes."]  # the check alone
    assert same == judgement and again.out == outcome.out


def test_the_judge_of_quality_sees_the_prompt_and_not_the_person(
    workplace: Path,
    server: Loopback,
) -> None:
    asked: list[str] = []

    def prefers_b(question: str) -> str:
        asked.append(question)
        return '{"answer": "B"}' if "<prompt>" in question else "yes"

    server.default = says_by(prefers_b)
    flags = ("--judges", "quality", "--judge-model", "wise", "--judge-url", server.url)
    outcome = call(evaluate, "runs/demos", *FAST, *flags, "--against", "base", cwd=workplace)
    assert outcome.code == 0, outcome.err
    questions = [question for question in asked if "<prompt>" in question]
    assert all("answers the prompt better" in question for question in questions)
    for record in HELD_OUT:
        assert any(f"<prompt>\n{record['prompt']}\n</prompt>" in q for q in questions)
        assert not any(record["completion"] in question for question in questions)
    text = (workplace / "runs" / "demos" / "evaluation.json").read_text(encoding="utf-8")
    (judgement,) = json.loads(text)["judges"]
    # Always the second place: no preference.
    assert (judgement["name"], judgement["wins"][0]["rate"]) == ("quality", 0.5)
    alone = call(evaluate, "runs/demos", "--judges", "quality", cwd=workplace)
    assert "--judges quality and --judge-model NAME need each other" in alone.err


def swapped(question: str) -> str:
    found = QUESTION.fullmatch(question)
    assert found
    before, _, a, between, b, after = found.groups()
    return before + b + between + a + after


def example_of(question: str) -> str:
    found = QUESTION.fullmatch(question)
    assert found
    return found["example"]


def test_answers_that_fail_or_cannot_be_read_are_counted_and_not_guessed(
    workplace: Path,
    server: Loopback,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.default = says('{"answer": "A"}')
    server.script = [says("yes"), fails(400), fails(400), says("Both are fine.")]
    one_at_a_time(monkeypatch)
    _, judgement = judged(workplace, "--judge-url", server.url)
    assert "1 answers could not be read, 2 failed" in judgement["note"]
    assert f"{QUESTIONS} questions on {QUESTIONS // 2} pairs" in judgement["note"]
    assert sum(win["comparisons"] for win in judgement["wins"]) == QUESTIONS // 2 - 2
    assert all(win["rate"] == 0.5 for win in judgement["wins"])  # always A: a place, no preference
    asked = len(server.requests)
    server.script = [says("yes")]
    _, judgement = judged(workplace, "--judge-url", server.url)
    assert len(server.requests) == asked + 1 + 2  # the check, and what failed
    assert "1 answers could not be read, 0 failed" in judgement["note"]


def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a script's moves meet the questions in their order."""
    begin = EndpointTeacher.__init__

    def with_one(teacher: EndpointTeacher, *arguments: Any, **how: Any) -> None:
        begin(teacher, *arguments, **{**how, "concurrency": 1})

    monkeypatch.setattr(EndpointTeacher, "__init__", with_one)


def test_a_judge_that_never_answers_has_no_win_rates_and_the_file_is_json(
    workplace: Path,
    server: Loopback,
) -> None:
    server.script, server.default = [says("yes")], says("I would rather not.")
    outcome, judgement = judged(workplace, "--judge-url", server.url)
    assert not judgement["can_judge"]
    assert all(win["rate"] is None for win in judgement["wins"])
    assert all(win["per_prompt"] == [None, None] for win in judgement["wins"])
    assert "no win rates: this judge could not judge" in outcome.out
    assert "nan" not in outcome.out


def test_a_local_model_can_judge(workplace: Path) -> None:
    flags = ("--judges", "model", "--judge-model", "toy")
    _, judgement = judged(workplace, *flags)
    assert judgement["note"].startswith(f"judge: toy; {QUESTIONS} questions on ")
    assert not judgement["can_judge"]  # random weights name no letter


def test_both_judges_stand_one_below_the_other(
    workplace: Path,
    server: Loopback,
) -> None:
    server.default = says_by(prefers_the_longer)
    both = ("--judges", "style,model", "--judge-url", server.url)
    outcome = call(evaluate, "runs/demos", *FAST, *JUDGED, *both, cwd=workplace)
    assert outcome.code == 0, outcome.err
    titles = [line for line in outcome.out.split("\n") if line.startswith("win rates")]
    assert titles == ["win rates, judged by style", "win rates, judged by model"]


# ---- tables ----


def results(**changes: Any) -> VoiceResults:
    """A contest of the base model against one run, of one prompt."""
    held_out = [Demonstration([{"role": "user", "content": "Ask."}], "Mine.\n\nKim", "line 1")]
    figures = {
        "base": {"nats_per_token": 2.0, "margins": {}, "positive": {}, "stops": None, "drift": 0.0},
        "ditto": {"nats_per_token": 1.5, "margins": {"base": 0.25}, "positive": {"base": 1.0}},
    }
    answers = {name: [[Completion(f"{name} says so", (1, 2), 0.0, "stop")]] for name in figures}
    return VoiceResults(held_out, figures, answers, changes.get("judges", []), 7)


def judgement(rate: float, can_judge: bool = True) -> Judgement:
    win = WinRate("ditto", "base", rate, 0.4, 0.8, 0.0, 9, [rate])
    mean = {"base": Interval(1 - rate, 0.2, 0.6), "ditto": Interval(rate, 0.4, 0.8)}
    return Judgement("style", can_judge, "a note", [win], mean)


def test_rows_stand_in_columns_and_what_nobody_has_is_left_out() -> None:
    lines = results().table(0).rstrip("\n").split("\n")
    assert lines[0] == "1 held-out demonstrations, 7 tokens"
    assert [line.split() for line in lines[2:]] == [
        ["base", "ditto"],
        [*"nats per token (lower is better)".split(), "2.000", "1.500"],
        [*"reward margin over base's answers".split(), "-", "+0.25"],
        ["...", "positive", "in", "-", "100%"],
        [*"drift from base (nats per token)".split(), "0.000", "-"],
    ]
    assert len({len(line) for line in lines[2:]}) == 1


def test_win_rates_are_the_last_contestants_with_everybodys_mean() -> None:
    lines = results(judges=[judgement(0.625)]).table(0).rstrip("\n").split("\n")
    start = lines.index("win rates, judged by style") + 1
    assert lines[start] == "  a note"
    rates = [" ".join(line.split()) for line in lines[start + 1 :]]
    assert rates == [
        "ditto against base 62% (95 % interval 40% to 80%)",
        "base, mean against all others 38% (95 % interval 20% to 60%)",
        "ditto, mean against all others 62% (95 % interval 40% to 80%)",
    ]
    columns = {line.index("(95") for line in lines[start + 1 :]}
    assert len(columns) == 1


def test_a_pair_without_a_verdict_has_no_rate() -> None:
    table = results(judges=[judgement(float("nan"))]).table(0)
    assert "nan" not in table and table.count("(no usable verdict)") == 3


def test_too_few_prompts_have_a_rate_and_no_interval() -> None:
    nan = float("nan")
    win = WinRate("ditto", "base", 1.0, nan, nan, 0.0, 9, [1.0])
    table = results(judges=[Judgement("style", True, "", [win], {})]).table(0)
    assert "100%   (too few prompts for an interval)" in table and "nan" not in table


def test_the_limit_and_the_persons_own_texts_stand_beside_the_figures() -> None:
    found = results()
    found.figures["base"] |= {"stops": 0.0, "fluency": 1.25}
    found = dataclasses.replace(found, limit=4, person={"fluency": 3.2, "names": 0.5})
    lines = [line.split() for line in found.table(0).split("\n")]
    assert [*"answers that end within 4 tokens".split(), "0%", "-"] in lines
    assert [*"base's nats per token on the answers".split(), "1.25", "-"] in lines
    said = "the person's own texts: base's nats per token on them 3.20, new names an answer 0.5"
    assert said.split() in lines


def test_a_judge_that_cannot_judge_says_so_instead() -> None:
    table = results(judges=[judgement(0.9, can_judge=False)]).table(0)
    assert "90%" not in table and "no win rates" in table


def test_answers_stand_side_by_side_with_their_lines() -> None:
    found = results()
    text = side_by_side(found.held_out, found.answers, 5)
    rows = [line.split("  ") for line in text.strip().split("\n")]
    assert rows[0] == ["prompt: Ask."]
    columns = [[cell.strip() for cell in line if cell.strip()] for line in rows[2:]]
    assert columns[0] == ["the person", "base", "ditto"]
    assert columns[2] == ["Mine.", "base says so", "ditto says so"]
    assert columns[3:] == [[], ["Kim"]]
    assert side_by_side(found.held_out, found.answers, 0) == ""
    assert found.table(5).endswith(text)


def test_the_defaults_need_no_network() -> None:
    assert EvaluateOptions().judges == OFFLINE and EvaluateOptions().judge_url == ""
