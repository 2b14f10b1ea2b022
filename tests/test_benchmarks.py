"""The pages under benchmarks/ say what the result files say, and the peers get the same work."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from helpers.feedback_runs import write_data
from helpers.processes import ROOT

from minialign.data.records import FEEDBACK
from minialign.methods.cards import method_names

BENCHMARKS = ROOT / "benchmarks"
SECOND = {"kind": "ends_with", "text": "Ann"}
RESULTS = sorted(f for f in (BENCHMARKS / "results").glob("*.json") if "sections" in f.read_text())


def load(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert specification and specification.loader
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # where dataclasses look for their annotations
    specification.loader.exec_module(module)
    return module


def contestants(module: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of the package benchmarks/contestants/, imported anew."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    for name in [n for n in sys.modules if n.partition(".")[0] == "contestants"]:
        monkeypatch.delitem(sys.modules, name)
    return importlib.import_module(f"contestants.{module}")


def row(contestant: str, *flags: str, values: list[float], **rest: Any) -> dict[str, Any]:
    found = {"title": contestant, "contestant": contestant, "flags": list(flags)}
    standing = {"peak_bytes": 10**9, "error": 0.0, "computed_tokens": 100}
    return found | {"values": values} | standing | rest


MACHINE = {
    "processor": "A Processor, 2 cores",
    "threads": 2,
    "torch": "2.13.0",
    "matmul_flops": 1e11,
    "product_flops": 2e11,
    "read_bytes": 1e10,
}


def page(unit: str, *rows: dict[str, Any]) -> list[str]:
    section = {"key": "dpo", "heading": "Work", "unit": unit, "rows": list(rows)}
    section["machine"] = MACHINE
    return load("speed").table({"sections": [section]}).splitlines()[-len(rows) :]


@pytest.mark.parametrize("file", RESULTS, ids=lambda f: f.stem)
def test_the_page_shows_the_committed_results(file: Path) -> None:
    assert (
        load("speed").table(json.loads(file.read_text())) in (BENCHMARKS / "speed.md").read_text()
    )


@pytest.mark.parametrize("file", RESULTS, ids=lambda f: f.stem)
def test_every_committed_row_computed_the_same_thing(file: Path) -> None:
    speed = load("speed")
    rows = [r for s in json.loads(file.read_text())["sections"] for r in s["rows"]]
    assert rows
    assert speed.worst_of(rows) <= speed.TOLERANCE


def test_only_what_is_in_float32_must_agree() -> None:
    rows = [
        row("minialign", values=[1.0]),
        row("trl", values=[1.0], error=0.5),
        row("minialign", "--dtype", "bfloat16", values=[1.0], error=0.9),
    ]
    assert load("speed").worst_of(rows) == 0.5


def test_a_step_that_takes_longer_is_slower_and_a_higher_rate_is_faster() -> None:
    ours, theirs = row("minialign", values=[2.0, 1.0, 4.0]), row("trl", values=[8.0])
    assert "| 4.0 x slower |" in page("s", ours, theirs)[1]
    assert "| 4.0 x faster |" in page("tokens/s", ours, theirs)[1]
    assert "2.00 (1.00 to 4.00) |  |" in page("s", ours, theirs)[0]


def test_like_is_compared_with_like() -> None:
    rows = [
        row("minialign", values=[2.0]),
        row("minialign", "--precomputed", values=[1.0]),
        row("trl", "--precomputed", values=[8.0]),
        row("minialign", "--micro-batch-tokens", "1", values=[4.0], peak_bytes=10**8),
        row("trl", "--gradient-checkpointing", values=[8.0], peak_bytes=10**9),
    ]
    lines = page("s", *rows)
    assert "8.0 x slower" in lines[2]
    assert "2.0 x slower" in lines[4] and "1.00 GB, 10.0 x" in lines[4]


def test_a_gap_between_gradients_is_relative_and_a_text_is_compared_token_by_token(
    tmp_path: Path,
) -> None:
    speed = load("speed")
    ours, theirs = speed.Row("a", "minialign", "dpo"), speed.Row("b", "trl", "dpo")
    torch.save({"w": torch.tensor([3.0, 4.0])}, tmp_path / f"{ours.name}.pt")
    torch.save({"w": torch.tensor([3.0, 4.5])}, tmp_path / f"{theirs.name}.pt")
    gap = speed.disagreement(theirs, ours, [{}], {}, tmp_path)
    assert gap == pytest.approx(0.1)
    seen = {ours.name: [{"greedy": [[1, 2, 3]]}]}
    assert speed.disagreement(theirs, ours, [{"greedy": [[1, 5, 6]]}], seen, tmp_path) == 2
    assert speed.disagreement(theirs, ours, [{"greedy": [[1]]}], seen, tmp_path) == 2


def test_writing_one_row_is_held_against_memory_and_many_rows_against_the_product() -> None:
    speed = load("speed")
    section = {"key": "decode", "unit": "tokens/s", "machine": MACHINE}
    rate = 1e10 / (4 * speed.PARAMETERS)  # reads every weight at the speed of memory
    for rows, expected in ((1, 1.0), (1000, 2 * 1e10 / 4 * 1000 / 2e11)):
        many = row("minialign", "--rows", str(rows), values=[])
        found = speed.share_of_limit(many, section, rate * rows)
        assert found == pytest.approx(expected)
    half = row("llama.cpp", "--rows", "1", values=[rate], title="llama.cpp, 16 bits")
    assert speed.share_of_limit(half, section, rate) == pytest.approx(0.5)


def test_rows_of_a_section_have_names_of_their_own() -> None:
    for section in load("speed").sections():
        names = [row.name for row in section.rows]
        assert len(set(names)) == len(names)
        assert section.rows[0].contestant == "minialign"


def test_two_heads_run_from_any_folder_compute_the_same_thing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    speed = load("speed")
    flags = ("-n", "7", "-d", "5", "-v", "11", "--runs", "2")
    ours, theirs = (speed.Row(name, name, "head", flags) for name in ("minialign", "plain"))
    results = [speed.run(row, "no model is read", tmp_path) for row in (ours, theirs)]
    assert [len(result["seconds"]) for result in results] == [2, 2]
    assert speed.disagreement(theirs, ours, results[1:], {}, tmp_path) < speed.TOLERANCE


def test_every_row_has_a_contestant_and_a_missing_peer_stops_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for peer in ("trl", "peft", "datasets", "transformers", "llama_cpp", "gguf"):
        monkeypatch.setitem(sys.modules, peer, None)  # an import of it fails
    tasks = contestants("tasks", monkeypatch).TASKS
    speed = load("speed")
    rows = [row for section in speed.sections() for row in section.rows]
    for row in (*rows, speed.MACHINE):
        assert callable(tasks[row.task][row.contestant])


def test_the_paper_step_has_24_comparisons_and_shares_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    workloads = contestants("workloads", monkeypatch)
    pairs = workloads.ditto_comparisons(8, 30)
    kinds = [pair.kind for pair in pairs]
    assert [kinds.count(k) for k in ("expert", "replay", "inter_model")] == [17, 5, 2]
    assert len({s for pair in pairs for s in (pair.chosen, pair.rejected)}) < 2 * len(pairs)
    plain = workloads.plain_pairs()
    assert len({s for pair in plain for s in pair}) == 2 * len(plain)


# ---- C3PO's table ----


def test_c3po_page_shows_the_committed_results() -> None:
    c3po = load("c3po")
    assert c3po.tables(c3po.read_results()) in (BENCHMARKS / "c3po.md").read_text()


def test_the_rows_of_c3po_are_methods_with_knobs_of_theirs() -> None:
    c3po = load("c3po")
    assert set(c3po.TRAINED) < set(c3po.ORDER) and set(c3po.PAPER) < set(c3po.ORDER)
    for row in c3po.TRAINED.values():
        assert row.method in method_names(FEEDBACK)
        for knob in row.knobs:
            assert c3po.knob_flag(knob, row.method)


def test_a_knob_goes_to_the_methods_that_read_it() -> None:
    flag = load("c3po").knob_flag
    assert flag("lambda_out=0.3", "c3po") == ("--lambda-out", "0.3")
    assert flag("lambda_out=0.3", "dpo") == flag("beta=0.2", "sft") == ()


def test_a_method_that_a_run_lacks_is_left_out_of_its_mean() -> None:
    c3po = load("c3po")

    def line(seed: int, **s_in: float) -> dict[str, Any]:
        entry = {"s_out": {"value": 0}, "s_near": {"value": 0}, "s_far": {"value": 0}}
        methods = {
            name: {**entry, "s_in": {"value": value}, "overall": value, "drift": None}
            for name, value in s_in.items()
        }
        words = {name: 10 for name in s_in}
        return {"feedback": "brief", "seed": seed, "methods": methods, "words": words}

    table = c3po.tables([line(0, c3po=0.2, dpo=0.5), line(1, c3po=0.6)])
    rows = [text for text in table.splitlines() if text.startswith("| C3PO")]
    assert rows and all(text.startswith("| C3PO | 0.40 ± 0.20 | 0.00") for text in rows)
    assert "| DPO alone | 0.50 |" in table and "SCD" not in table
    assert "**brief** (2 runs a method, 2 seeds)" in table


def test_own_folders_of_feedback_come_to_one_table_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training and evaluation are made up here; the second check is scored for real."""
    c3po, asked = load("c3po"), []

    def command(script: str, *arguments: Any) -> None:
        asked.append(script)
        if script == "train.py":
            run = Path(arguments[arguments.index("--out") + 1])
            (run / "adapter").mkdir(parents=True)
            (run / "adapter" / "adapter_config.json").write_text("{}")
            (run / "metrics.jsonl").write_text('{"seconds": {"train": 1}}\n')
            return
        number = {"value": 0.5, "error": 0.1}
        scores = {name: number for name in ("s_in", "s_out", "s_near", "s_far")}
        entry = {"overall": 0.5, "drift": None, **scores}
        line = {"baseline": "x", "answers": {"c3po": ["so Ann", "x"]}}
        found = {"methods": {"c3po": entry}, "scored": "", "scopes": {"in_scope": [line]}}
        (arguments[0] / "evaluation.json").write_text(json.dumps(found))

    monkeypatch.setattr(c3po, "command", command)
    folders = [write_data(tmp_path / name) for name in ("a", "b", "c")]
    for folder, changes in zip(
        folders, ({}, {"second_check": SECOND}, {"check": None}), strict=True
    ):
        file = folder / "feedback.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    argv = ["c3po.py", *map(str, folders), "--methods", "c3po", "--work", str(tmp_path / "w")]
    monkeypatch.setattr(sys, "argv", argv)
    page = (BENCHMARKS / "c3po.md").read_text()
    c3po.main()
    said = capsys.readouterr().out
    assert "c: has no check that a program can verify: left out" in said
    assert "**All feedbacks** (4 runs a method, 2 seeds)" in said
    assert "S_in, second check" in said and "| C3PO | 0.50 ± 0.00 |" in said
    (own,) = [line for line in said.split("**b**")[1].splitlines() if line.startswith("| C3PO")]
    assert own.split(" | ")[-2] == "0.50 ± 0.00"  # one of two answers ends with Ann
    assert (BENCHMARKS / "c3po.md").read_text() == page
    count = len(asked)
    c3po.main()
    assert len(asked) == count
    with (folders[0] / "near_scope.jsonl").open("a") as file:
        file.write('{"prompt": "new", "baseline": "b", "split": "train"}\n')
    c3po.main()
    assert asked[count:] == ["train.py", "evaluate.py"] * 2


# ---- memory, and a GPU ----


def test_the_page_on_memory_shows_the_committed_results() -> None:
    memory = load("memory")
    found = json.loads(memory.RESULTS.read_text())
    assert memory.table(found) in memory.PAGE.read_text()
    assert {*found} <= {asked.name for asked in memory.CONFIGURATIONS}


def test_what_was_planned_lies_within_a_tenth_of_what_was_measured() -> None:
    memory = load("memory")
    for name, one in json.loads(memory.RESULTS.read_text()).items():
        assert one["planned"] == pytest.approx(one["measured"], rel=0.1), name


@pytest.mark.parametrize("index", [0, 6, 9])
def test_the_plan_is_still_the_one_that_was_measured(index: int, tmp_path: Path) -> None:
    """A formula that is changed asks for new measurements."""
    memory = load("memory")
    asked = memory.CONFIGURATIONS[index]
    job, parts = memory.planned(memory.write_texts(asked, tmp_path))
    assert vars(parts) == json.loads(memory.RESULTS.read_text())[asked.name]["parts"]
    assert job.work.largest == json.loads(memory.RESULTS.read_text())[asked.name]["tokens"]


def test_without_a_gpu_its_benchmark_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert load("gpu").main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "no GPU" in err


def test_the_gpu_s_benchmark_runs_as_a_toy_on_a_processor(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu = load("gpu")
    monkeypatch.setattr(gpu, "RESULTS", tmp_path)
    assert gpu.main(["--device", "cpu", "--tiny"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parity"]["holds"] and found["parity"]["resumed_adapter_differs_by"] == 0
    assert (
        found["speed"]["share_of_rate_dpo"] > 0 and found["speed"]["share_of_bandwidth_1_row"] > 0
    )
    assert found["paper"]["paper_seconds"] > 0 and found["paper"]["planned"] > 0
    assert list(tmp_path.iterdir()) == []


def test_parity_that_does_not_hold_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = load("gpu")
    monkeypatch.setattr(gpu, "measure", lambda *_: {"parity": {"holds": False}})
    assert gpu.main(["--device", "cpu", "--tiny"]) == 1
