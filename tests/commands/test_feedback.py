"""From feedback at the command line: train.py, evaluate.py and sample.py --feedback, toy-sized."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import call, evaluate, sample, train
from helpers.feedback_runs import KNOBS, answers, metrics, record, train_toy, write_data
from helpers.files import tree
from helpers.loopback import Loopback, says_by
from helpers.models import write_checkpoint
from safetensors.torch import load_file

from minialign.data.feedback import SCOPES, load_feedback_data
from minialign.data.records import FEEDBACK
from minialign.methods.cards import CARDS
from minialign.methods.knobs import C3PO_LAPTOP, C3POConfig
from minialign.policy.knobs import EVERY_LINEAR
from minialign.training.run import Run

GOING_ON = ("--data", "data/sam", "--model", "toy", "--epochs", "2", "--pairs-per-step", "2")
# Those of C3PO's loop.
METHODS = {
    card.name: card
    for card in CARDS
    if FEEDBACK in card.learns_from and card.knobs_class is C3POConfig
}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """toy/, data/sam/ and a run of each method."""
    folder = tmp_path_factory.mktemp("feedback")
    write_checkpoint(folder / "toy")
    write_data(folder / "data" / "sam")
    for method in METHODS:
        outcome = train_toy(folder, "--method", method, "--out", f"runs/{method}")
        assert outcome.code == 0, outcome.err
    return folder


def stop_after_two_steps(patch: pytest.MonkeyPatch) -> None:
    """As if the person pressed Ctrl-C."""
    log = Run.log

    def stop(self: Run, stage: str, step: int, found: dict[str, Any]) -> None:
        log(self, stage, step, found)
        self.interrupted = step == 1

    patch.setattr(Run, "log", stop)


# ---- train.py ----


def test_a_run_leaves_its_adapter_its_record_a_preview_and_a_page(workplace: Path) -> None:
    run = workplace / "runs" / "c3po"
    files = {path.name for path in run.iterdir()}
    assert {"config.json", "metrics.jsonl", "adapter", "preview.json", "report.html"} <= files
    assert "state" not in files
    found = record(run)
    assert found["feedback"] == "Sign as Sam" and found["options"]["method"] == "c3po"
    assert found["knobs"]["lora"]["rank"] == 4 and found["knobs"]["loss"] == "dpo"
    assert json.loads((run / "preview.json").read_text())["prompt"] == "in_scope 4"


def test_each_method_is_its_setting_of_the_loop(workplace: Path) -> None:
    for method, card in METHODS.items():
        run = workplace / "runs" / method
        knobs = record(run)["knobs"]
        assert {name: knobs[name] for name in card.fixed} == card.fixed
        names = set(metrics(run)[0])
        assert ("dpo" in names) == (method in ("c3po", "dpo"))
        kept = {f"{C3PO_LAPTOP.constraint}/{scope}" for scope in ("out", "near")}
        assert (kept <= names) == (method in ("c3po", "sft-weighted"))
    adapters = [
        (workplace / "runs" / method / "adapter" / "adapter_model.safetensors").read_bytes()
        for method in METHODS
    ]
    assert len(set(adapters)) == len(METHODS)


def test_data_alone_means_c3po(workplace: Path) -> None:
    outcome = train_toy(workplace, "--out", "runs/plain")
    assert outcome.code == 0, outcome.err
    assert record(workplace / "runs" / "plain")["options"]["method"] == "c3po"
    assert metrics(workplace / "runs" / "plain") == metrics(workplace / "runs" / "c3po")


def test_the_first_lines_say_what_is_learned_and_what_is_kept(workplace: Path) -> None:
    outcome = train_toy(workplace, "--out", "runs/said")
    assert "feedback  Sign as Sam" in outcome.out
    assert "dpo on 4 revised answers" in outcome.out
    weights = (
        f"x {C3PO_LAPTOP.lambda_out:g} out of scope (4 answers), x {C3PO_LAPTOP.lambda_near:g} near"
    )
    assert f"{C3PO_LAPTOP.constraint} {weights} scope (4)" in outcome.out
    assert "python evaluate.py runs/said" in outcome.out


def test_inspect_shows_the_first_pair_in_scope(workplace: Path) -> None:
    before = tree(workplace)
    outcome = train_toy(workplace, "--inspect", "--out", "runs/c3po")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("data/sam/in_scope.jsonl, line 1: ")
    assert tree(workplace) == before


def test_an_adapter_can_be_gone_on_from(workplace: Path) -> None:
    """With a learning rate of next to nothing the result is the adapter that it began with."""
    arguments = ("--init-adapter", "runs/sft", "--out", "runs/on", "--learning-rate", "1e-12")
    outcome = call(train, *GOING_ON, *arguments, cwd=workplace)
    assert outcome.code == 0, outcome.err
    before, after = (
        load_file(workplace / "runs" / name / "adapter" / "adapter_model.safetensors")
        for name in ("sft", "on")
    )
    assert all((after[key] - before[key]).abs().max() < 1e-6 for key in before)
    lora = record(workplace / "runs" / "on")["knobs"]["lora"]
    assert lora["rank"] == 4 and set(lora["target_modules"]) == set(EVERY_LINEAR)


def test_a_run_that_goes_on_from_an_adapter_is_resumed_without_it(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = workplace / "runs" / "first"
    shutil.copytree(workplace / "runs" / "sft", first)
    begin = (*GOING_ON, "--init-adapter", "runs/first", "--learning-rate", "0.01")
    assert call(train, *begin, "--out", "runs/whole", cwd=workplace).code == 0
    with monkeypatch.context() as patch:
        stop_after_two_steps(patch)
        assert call(train, *begin, "--out", "runs/halved", cwd=workplace).code == 130
    shutil.rmtree(first)
    again = call(train, "--resume", "runs/halved", cwd=workplace)
    assert again.code == 0, again.err
    whole, halved = (workplace / "runs" / name for name in ("whole", "halved"))
    assert metrics(halved) == metrics(whole)
    file = Path("adapter", "adapter_model.safetensors")
    assert (halved / file).read_bytes() == (whole / file).read_bytes()


def test_an_interrupted_run_goes_on_to_the_same_result(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        stop_after_two_steps(patch)
        stopped = train_toy(workplace, "--out", "runs/stopped")
    assert stopped.code == 130 and "--resume runs/stopped" in stopped.err
    again = call(train, "--resume", "runs/stopped", cwd=workplace)
    assert again.code == 0, again.err
    assert metrics(workplace / "runs" / "stopped") == metrics(workplace / "runs" / "c3po")
    assert (workplace / "runs" / "stopped" / "report.html").exists()


BAD = {
    "no folder": (("--data", "nowhere"), "nowhere"),
    "a method of demonstrations": (("--data", "data/sam", "--method", "spin"), "--demos"),
    "both": (("--data", "data/sam", "--demos", "x.jsonl"), "not both"),
    "no data": (("--method", "dpo"), "give --data FOLDER"),
    "a knob that the method fixes": (
        ("--data", "data/sam", "--method", "dpo", "--lambda-out", "1"),
        "--method dpo fixes --lambda-out",
    ),
    "an adapter that overwriting would delete": (
        ("--data", "data/sam", "--init-adapter", "runs/sft", "--out", "runs/sft", "--overwrite"),
        "--init-adapter runs/sft: lies in --out",
    ),
    "an adapter folder that overwriting would delete": (
        ("--data", "data/sam", "--init-adapter", "runs/sft/adapter", "--out", "runs/dpo/../sft"),
        "--init-adapter runs/sft/adapter: lies in --out",
    ),
    "a prompt longer than the context": (
        ("--data", "data/sam", "--prompt", "note " * 3000, "--out", "runs/none"),
        "--prompt has ",
    ),
    "a rank besides an adapter's own": (
        ("--data", "data/sam", "--init-adapter", "runs/sft", "--lora-rank", "2"),
        "--init-adapter brings its own --lora-rank",
    ),
    "a wrong knob": (("--data", "data/sam", "--lambda-near", "-1"), "lambda_near"),
    "a wrong knob besides a sentence": (
        ("--feedback", "Sign as Sam", "--lambda-near", "-1"),
        "lambda_near",
    ),
    "an adapter that overwriting would delete besides a sentence": (
        ("--feedback", "Sign", "--init-adapter", "runs/sft", "--out", "runs/sft", "--overwrite"),
        "--init-adapter runs/sft: lies in --out",
    ),
    "a knob that the method fixes besides a sentence": (
        ("--feedback", "Sign as Sam", "--method", "dpo", "--lambda-out", "1"),
        "--method dpo fixes --lambda-out",
    ),
    "a method of demonstrations besides a sentence": (
        ("--feedback", "Sign as Sam", "--method", "spin"),
        "--method spin learns from demonstrations (--demos)",
    ),
    "a sentence and a folder": (("--feedback", "Sign", "--data", "data/sam"), "not both"),
    "an empty sentence": (("--feedback", " ", "--out", "runs/none"), "--feedback is empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_before_anything_is_written(name: str, workplace: Path) -> None:
    arguments, said = BAD[name]
    before = tree(workplace)
    outcome = call(train, *arguments, "--model", "toy", cwd=workplace)
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome.err
    assert said in outcome.err
    assert tree(workplace) == before


@pytest.mark.parametrize(
    ("method", "knob"), [(name, knob) for name, card in METHODS.items() for knob in card.unread]
)
def test_a_knob_that_the_method_never_reads_is_refused(
    method: str, knob: str, workplace: Path
) -> None:
    flag = "--" + knob.replace("_", "-")
    value = {"constraint": "kl", "constraint_reduction": "sum"}.get(knob, "3")
    outcome = train_toy(workplace, "--method", method, flag, value, "--out", "runs/unread")
    assert outcome.code == 2
    assert outcome.err == f"train.py: --method {method} makes no use of {flag}: leave it out\n"
    assert not (workplace / "runs" / "unread").exists()


@pytest.mark.parametrize("flag", [("--data", "data/sam"), ("--feedback", "Sign as Sam")])
def test_resume_names_the_flag_that_was_given(flag: tuple[str, str], workplace: Path) -> None:
    outcome = call(train, "--resume", "runs/c3po", *flag, cwd=workplace)
    assert outcome.code == 2
    assert outcome.err == f"train.py: --resume keeps the knobs of the run: leave out {flag[0]}\n"


def test_the_page_says_of_what_part_of_an_answer_the_rewards_are(workplace: Path) -> None:
    page = (workplace / "runs" / "c3po" / "report.html").read_text(encoding="utf-8")
    assert "against the base model, from where the two differ" in page


def test_changed_data_is_not_gone_on_with(
    workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(workplace / "toy", tmp_path / "toy")
    shutil.copytree(workplace / "data", tmp_path / "data")
    log = Run.log
    monkeypatch.setattr(
        Run, "log", lambda self, *a: (log(self, *a), setattr(self, "interrupted", True))[0]
    )
    assert train_toy(tmp_path, "--out", "runs/x").code == 130
    with (tmp_path / "data" / "sam" / "near_scope.jsonl").open("a") as file:
        file.write('{"prompt": "new", "baseline": "b", "split": "train"}\n')
    outcome = call(train, "--resume", "runs/x", cwd=tmp_path)
    assert outcome.code == 2 and "data/sam: has changed" in outcome.err


# ---- evaluate.py ----


def test_every_method_is_scored_by_scope_as_counted_by_hand(workplace: Path) -> None:
    runs = [f"runs/{method}" for method in METHODS]
    outcome = call(evaluate, *runs, "--n", "2", "--max-new-tokens", "12", cwd=workplace)
    assert outcome.code == 0, outcome.err
    assert "Sign as Sam" in outcome.out and "own check: ends_with" in outcome.out
    found = json.loads((workplace / "runs" / next(iter(METHODS)) / "evaluation.json").read_text())
    names = {"in-context", "in-context + CoT", "revision", "base, again", *METHODS}
    assert set(found["methods"]) == names
    for name in names:
        scores: dict[str, list[float]] = {}
        for scope in SCOPES:
            scores[scope] = []
            for entry in found["scopes"][scope]:
                by_hand = [float(a.rstrip().endswith("Sam")) for a in entry["answers"][name]]
                assert entry["scores"][name] == by_hand  # no baseline ends so
                scores[scope] += by_hand
        outside = scores["near_scope"] + scores["out_of_scope"]
        s_in, s_out = (sum(x) / len(x) for x in (scores["in_scope"], outside))
        method = found["methods"][name]
        assert method["s_in"]["value"] == pytest.approx(s_in)
        assert method["s_out"]["value"] == pytest.approx(s_out)
        assert method["overall"] == pytest.approx((s_in + 1 - s_out) / 2)
    assert found["methods"]["in-context"]["s_in"]["value"] == 1
    revision = found["methods"]["revision"]
    assert (revision["s_in"]["value"], revision["s_out"]["value"]) == (1, 0)
    assert found["methods"]["in-context"]["overall"] == pytest.approx(0.5)
    assert found["methods"]["base, again"]["drift"] == 0
    assert all(found["methods"][method]["drift"] > 0 for method in METHODS)
    for run in runs:  # each folder is told what came of it
        assert json.loads((workplace / run / "evaluation.json").read_text()) == found
        page = (workplace / run / "report.html").read_text(encoding="utf-8")
        assert "Sign as Sam" in page and 'id="scores"' in page
        assert f"{run}/evaluation.json" in outcome.out and f"{run}/report.html" in outcome.out


def test_no_run_is_evaluated_whose_folder_cannot_be_written_to(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda folder, mode: Path(folder).name != "dpo")
    outcome = call(evaluate, "runs/c3po", "runs/dpo", cwd=workplace)
    assert outcome.code == 2 and outcome.err.startswith("evaluate.py: runs/dpo: cannot be written")


def test_a_page_is_about_its_own_run_though_another_be_called_as_its_method(
    workplace: Path,
) -> None:
    """Two runs of c3po, one in a folder of that name."""
    shutil.copytree(workplace / "runs" / "c3po", workplace / "runs" / "other")
    runs = ("runs/c3po", "runs/other")
    outcome = call(evaluate, *runs, "--max-new-tokens", "4", cwd=workplace)
    assert outcome.code == 0, outcome.err
    page = (workplace / "runs" / "other" / "report.html").read_text(encoding="utf-8")
    assert '<div class="letter k2"><b>C3PO</b>' not in page.split('id="scopes"')[1]
    assert "<b>other</b>" in page.split('id="scopes"')[1]


BAD_EVALUATION = {
    "a folder that is no run": (("data/sam",), "not a run folder"),
    "two runs of one name": (("runs/sft", "runs/../runs/sft"), "another contestant called sft"),
    "no such data": (("runs/c3po", "--test", "nowhere"), "nowhere"),
    "rivals of demonstrations": (("runs/c3po", "--against", "base"), "--against: of no use"),
    "even their usual value": (("runs/c3po", "--show", "2"), "--show: of no use"),
    "two flags of demonstrations": (
        ("runs/c3po", "--general", "0", "--others", "x.jsonl"),
        "--others, --general: of no use",
    ),
}


@pytest.mark.parametrize("name", BAD_EVALUATION)
def test_what_cannot_be_evaluated_is_one_line(name: str, workplace: Path) -> None:
    arguments, said = BAD_EVALUATION[name]
    outcome = call(evaluate, *arguments, cwd=workplace)
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome.err
    assert said in outcome.err


def test_without_a_check_a_model_must_judge(workplace: Path, tmp_path: Path) -> None:
    shutil.copytree(workplace, tmp_path / "w")
    file = tmp_path / "w" / "data" / "sam" / "feedback.json"
    description = json.loads(file.read_text())
    del description["check"]
    file.write_text(json.dumps(description))
    outcome = call(evaluate, "runs/c3po", cwd=tmp_path / "w")
    assert outcome.code == 2 and "has no check, so a model must judge" in outcome.err
    judged = call(
        evaluate,
        *("runs/c3po", "--judges", "model", "--judge-model", "toy", "--max-new-tokens", "5"),
        cwd=tmp_path / "w",
    )
    assert judged.code == 0, judged.err
    assert "answers without a score" in judged.out  # a toy cannot answer a judge's question


# ---- sample.py --feedback ----


def test_the_help_of_feedback_is_its_own(workplace: Path) -> None:
    outcome = call(sample, "--feedback", "x", "--help", cwd=workplace)
    assert outcome.code == 0
    assert "--prompts-per-category" in outcome.out and "--teacher-url" in outcome.out


BAD_FEEDBACK = {
    "an empty sentence": (("--feedback", " "), "--feedback is empty"),
    "a check that is no JSON": (("--feedback", "x", "--check", "{"), "--check is not JSON"),
    "an unknown check": (("--feedback", "x", "--check", '{"kind": "zz"}'), "zz"),
    "an endpoint that is not there": (
        ("--feedback", "x", "--teacher-url", "http://127.0.0.1:9/v1", "--teacher-model", "m"),
        "127.0.0.1:9",
    ),
    "an endpoint without a model": (("--feedback", "x", "--teacher-url", "http://a"), "need each"),
    "a general file that is not there": (("--feedback", "x", "--general", "zz.jsonl"), "zz.jsonl"),
}


@pytest.mark.parametrize("name", BAD_FEEDBACK)
def test_what_no_data_can_be_made_of_is_one_line(
    name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("minialign.feedback.endpoint.FIRST_WAIT", 0.001)
    arguments, said = BAD_FEEDBACK[name]
    before = tree(workplace)
    outcome = call(sample, *arguments, "--model", "toy", cwd=workplace)
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome.err
    assert said in outcome.err
    assert tree(workplace) == before


def test_a_sentence_becomes_a_folder_that_can_be_trained_on(
    workplace: Path,
    server: Loopback,
) -> None:
    server.default = says_by(answers)
    outcome = call(
        sample,
        *("--feedback", "Sign as Sam", "--out", "data/made", "--responses", "teacher"),
        *("--teacher-url", server.url, "--teacher-model", "m", "--categories", "2"),
        *("--prompts-per-category", "4", "--out-of-scope", "6", "--test-fraction", "0"),
        cwd=workplace,
    )
    assert outcome.code == 0, outcome.err
    assert "next: python train.py --data data/made" in outcome.out
    data = load_feedback_data(workplace / "data" / "made")
    assert data.feedback == "Sign as Sam" and data.domain == "notes"
    for scope in SCOPES:
        assert data.examples(scope, "train")
    before = len(server.requests)
    again = call(
        train,
        *("--data", "data/made", "--model", "toy", *KNOBS, "--out", "runs/made"),
        *("--prompt", "note"),
        cwd=workplace,
    )
    assert again.code == 0, again.err
    assert len(server.requests) == before
