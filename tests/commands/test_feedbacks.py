"""Who wrote a folder of feedback, folders written anew, and many feedbacks in one call."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import call, sample, train
from helpers.feedback_runs import KNOBS, answers, train_toy, write_data
from helpers.files import tree, write_jsonl
from helpers.loopback import Loopback, fails, says, says_by
from helpers.models import write_checkpoint

from minialign.data.feedback import SCOPES, load_feedback_data
from minialign.feedback.writer import fingerprint

FEW = (
    *("--categories", "2", "--prompts-per-category", "4", "--out-of-scope", "6"),
    *("--max-new-tokens", "8"),
)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """toy/, other/ (another model) and data/sam/, which toy wrote."""
    folder = tmp_path_factory.mktemp("feedbacks")
    write_checkpoint(folder / "toy", max_position_embeddings=1024)
    write_checkpoint(folder / "other", seed=1)
    write_data(folder / "data" / "sam")
    written_by(folder / "data" / "sam", responses="toy", weights=fingerprint(folder / "toy"))
    return folder


def written_by(folder: Path, **record: str) -> None:
    file = folder / "feedback.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"written_by": record}))


def description(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "feedback.json").read_text())


# ---- who wrote it ----


def test_the_model_that_wrote_the_responses_may_learn_from_them_wherever_it_lies(
    workplace: Path,
) -> None:
    shutil.copytree(workplace / "toy", workplace / "moved")
    arguments = ("--data", "data/sam", *KNOBS, "--inspect")
    assert call(train, *arguments, "--model", "toy", cwd=workplace).code == 0
    assert call(train, *arguments, "--model", "moved", cwd=workplace).code == 0


def test_another_model_is_refused_and_shown_how_to_write_its_own(workplace: Path) -> None:
    before = tree(workplace)
    arguments = ("--data", "data/sam", "--model", "other", *KNOBS, "--out", "runs/other")
    outcome = call(train, *arguments, cwd=workplace)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert outcome.err.startswith("train.py: data/sam: toy wrote its responses")
    again = "python sample.py --rewrite data/sam --model other"
    assert again in outcome.err and '"written_by"' in outcome.err
    assert tree(workplace) == before
    rewritten = call(sample, *again.split()[2:], *FEW, cwd=workplace)
    assert rewritten.code == 0, rewritten.err
    assert "next: python train.py --data data/sam-other --model other" in rewritten.out
    folder = workplace / "data" / "sam-other"
    assert description(folder)["written_by"] == {
        "responses": "other",
        "weights": fingerprint(workplace / "other"),
    }
    for scope in SCOPES:
        old, new = (
            getattr(load_feedback_data(workplace / "data" / name), scope)
            for name in ("sam", "sam-other")
        )
        assert {(e.prompt, e.split) for e in new} <= {(e.prompt, e.split) for e in old}
        assert not {e.baseline.text for e in new} & {e.baseline.text for e in old}
    own = ("--data", "data/sam-other", *arguments[2:], "--inspect")
    assert call(train, *own, cwd=workplace).code == 0


def test_a_folder_that_does_not_say_is_taken_as_it_is(workplace: Path) -> None:
    write_data(workplace / "data" / "hand")
    written_by(workplace / "data" / "hand", prompts="me", responses="me")
    outcome = call(
        train, "--data", "data/hand", "--model", "other", *KNOBS, "--inspect", cwd=workplace
    )
    assert outcome.code == 0, outcome.err


def test_an_alias_and_its_hub_id_are_one_writer(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINIALIGN_CHECKPOINTS", str(workplace / "checkpoints"))
    shutil.copytree(workplace / "toy", workplace / "checkpoints" / "smollm2-135m-instruct")
    write_data(workplace / "data" / "hub")
    for name in ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct"):
        written_by(workplace / "data" / "hub", responses=name, weights="of another copy")
        outcome = call(train, "--data", "data/hub", *KNOBS, "--inspect", cwd=workplace)
        assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("name", ["cheers", "no-boilerplate", "serves-line"])
def test_the_examples_are_the_default_model_s(name: str, workplace: Path) -> None:
    example = Path(__file__).parents[2] / "examples" / "c3po" / name
    outcome = call(train, "--data", example, "--model", "other", *KNOBS, cwd=workplace)
    assert outcome.code == 2 and "smollm2-135m-instruct wrote its responses" in outcome.err


def test_on_a_gpu_the_model_that_is_trained_writes_the_answers(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from minialign.commands import feedback

    monkeypatch.setattr("minialign.weights.devices.pick_device", lambda name: torch.device("cuda"))
    seen: list[str] = []

    def make(options: Any, *others: Any) -> Path:
        seen.append(options.model)
        return workplace / "data" / "sam"

    monkeypatch.setattr(feedback, "make_data", make)
    outcome = call(sample, "--feedback", "x", cwd=workplace)
    assert outcome.out.endswith("--model mistral-7b-instruct\n")
    call(train, "--feedback", "x", "--inspect", cwd=workplace)
    assert seen == ["mistral-7b-instruct"] * 2


# ---- the plan, the endpoint's flags ----


def test_a_local_model_is_timed_and_stopped_before_it_wastes_hours(workplace: Path) -> None:
    few = (*FEW, "--max-list-tokens", "20", "--out", "data/kind")
    outcome = call(sample, "--feedback", "Be kind", "--model", "toy", *few, cwd=workplace)
    assert outcome.out.startswith("plan: 10 lists by toy, ")
    assert "tokens written here, about " in outcome.out
    assert outcome.code == 2 and "domain and effect: 0 of 2 of use" in outcome.err
    assert outcome.err.count("\n") == 1 and "--teacher-url" in outcome.err


def test_the_endpoint_s_flags_reach_it(workplace: Path, server: Loopback) -> None:
    server.default = says_by(answers)
    server.script = [fails(400, "temperature is not supported"), says("yes")]
    where = ("--teacher-url", server.url, "--teacher-model", "m", "--responses", "teacher")
    how = ("--concurrency", "1", "--requests-per-minute", "60000", "--thinking-tokens", "9")
    given = ("--feedback", "Be so", "--out", "data/f", "--domain", "notes", "--effect", "calm")
    outcome = call(sample, *given, *where, *how, "--timeout", "50", *FEW, cwd=workplace)
    assert outcome.code == 0, outcome.err
    assert f"m at {server.url}: temperature is refused: the model's own holds" in outcome.out
    assert not any("temperature" in request.body for request in server.requests[1:])
    assert server.requests[-1].body["top_p"] == 0.7
    assert server.busiest == 1
    assert description(workplace / "data" / "f")["domain"] == "notes"
    assert outcome.out.endswith("next: python train.py --data data/f\n")


# ---- many feedbacks ----

MANY = [
    {
        **{"content": "Sign all notes as Sam", "domain": "notes", "effect": "end with Sam"},
        **{"scope": "regional", "type": "quantitative", "categories": ["sign"]},
        **{"metric": ["ends_with"], "metric_value": ["sam"]},
    },
    {
        **{"content": "Sign all notes as Sam Miller", "domain": "letters", "effect": "end so"},
        **{"scope": "regional", "type": "qualitative", "metric": []},
    },
    {
        **{"content": "Use 'tea' in notes", "domain": "notes", "effect": "use 'tea'"},
        **{"scope": "global", "metric": "contains_any_string"},
    },
]


def many(workplace: Path, server: Loopback, *arguments: str) -> Any:
    server.default = says_by(answers)
    write_jsonl(workplace / "many.jsonl", MANY)
    where = ("--teacher-url", server.url, "--teacher-model", "m", "--responses", "teacher")
    return call(sample, "--feedbacks", "many.jsonl", *where, *FEW, *arguments, cwd=workplace)


def test_a_file_of_feedbacks_becomes_a_folder_each_and_one_table(
    workplace: Path, server: Loopback
) -> None:
    outcome = many(workplace, server, "--out", "data/many")
    assert outcome.code == 0, outcome.err
    folders = sorted(path.name for path in (workplace / "data" / "many").iterdir())
    first, second, third = folders
    assert third == "use-tea-in-notes"
    assert {first[:-6], second[:-6]} == {"sign-all-notes-as-sam-"}  # five words alike
    found = {name: load_feedback_data(workplace / "data" / "many" / name) for name in folders}
    checks = {data.feedback: [c.kind for c in data.checks] for data in found.values()}
    assert checks == {
        MANY[0]["content"]: ["ends_with"],
        MANY[1]["content"]: [],
        MANY[2]["content"]: ["contains_any"],
    }
    table = outcome.out.split("by scope:\n")[1].splitlines()
    assert len(table) == 4
    assert "no check: a model must judge" in outcome.out
    assert "contains_any (check guessed from the effect)" in table[2]
    counts = found[third]
    train_and_test = (len(counts.examples("in_scope", split)) for split in ("train", "test"))
    assert "in_scope {}+{}".format(*train_and_test) in table[2]
    assert table[3].startswith("next: python benchmarks/c3po.py --model ")


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        (("--feedback-prefix", "Sign"), [0, 1]),
        (("--feedback-category", "sign"), [0]),
        (("--feedback-scope", "global"), [2]),
        (("--feedback-kind", "qualitative"), [1]),
        (("--feedback-scope", "regional", "--feedback-kind", "quantitative"), [0]),
    ],
)
def test_filters_choose_from_the_file(
    workplace: Path, server: Loopback, flags: tuple[str, ...], kept: list[int]
) -> None:
    outcome = many(workplace, server, "--out", "data/some", *flags)
    assert outcome.code == 0, outcome.err
    made = [line[4:] for line in outcome.out.splitlines() if line.startswith("--- ")]
    assert made == [MANY[place]["content"] for place in kept]


def test_a_feedback_that_fails_costs_itself(workplace: Path, server: Loopback) -> None:
    write_data(workplace / "data" / "half" / "use-tea-in-notes")
    outcome = many(workplace, server, "--out", "data/half")
    assert outcome.code == 0, outcome.err
    assert "data/half/use-tea-in-notes  -  " in outcome.out
    assert "was written by hand" in outcome.out


BAD = {
    "two ways": (("--feedback", "x", "--feedbacks", "many.jsonl"), "give one of --feedback"),
    "a filter without a file": (("--feedback", "x", "--feedback-prefix", "S"), "--feedbacks FILE"),
    "a check beside a file": (("--feedbacks", "many.jsonl", "--check", "{}"), "--check belongs"),
    "no such file": (("--feedbacks", "zz.jsonl"), "zz.jsonl: no such file"),
    "nothing left": (
        ("--feedbacks", "many.jsonl", "--feedback-prefix", "zz"),
        "passes the filters",
    ),
    "no folder to rewrite": (("--rewrite", "nowhere"), "nowhere: no such folder"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_made_is_one_line(name: str, workplace: Path) -> None:
    write_jsonl(workplace / "many.jsonl", MANY)
    arguments, said = BAD[name]
    before = tree(workplace)
    outcome = call(sample, *arguments, "--model", "toy", cwd=workplace)
    assert outcome.code == 2 and outcome.err.count("\n") == 1, outcome.err
    assert said in outcome.err
    assert tree(workplace) == before


def test_the_loss_while_training_is_of_the_evaluation_s_own_lines(workplace: Path) -> None:
    shutil.copytree(workplace / "data" / "sam", workplace / "data" / "eval")
    for scope in SCOPES:
        file = workplace / "data" / "eval" / f"{scope}.jsonl"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        lines[3]["split"] = "eval"
        write_jsonl(file, lines)
    outcome = train_toy(workplace, "--data", "data/eval", "--out", "runs/eval")
    assert outcome.code == 0, outcome.err
    from minialign.commands.sources import Scopes
    from minialign.data.feedback import load_data
    from minialign.weights.tokenizer import Tokenizer

    source = Scopes("data/eval", load_data(str(workplace / "data" / "eval")))
    lessons, *_ = source.encode(Tokenizer.from_folder(workplace / "toy"), 64)
    assert [len(getattr(lessons.held_out, scope)) for scope in SCOPES] == [1, 1, 1]
