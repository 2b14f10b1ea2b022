"""--base-dtype: runs over weights in 8 and 4 bits, from the plan to the export."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import feedback_runs
from helpers.commands import call, sample, train, train_toy
from helpers.runs import INPUTS, metrics, without_seconds
from helpers.workplaces import TINY
from safetensors.torch import load_file

from minialign.commands import bounds, export, needs
from minialign.commands.job import prepare_job
from minialign.model.stored import STORED
from minialign.policy.merge import base_parameters
from minialign.weights import holding
from minialign.weights.load import load

pytestmark = pytest.mark.parametrize("base_dtype", STORED)


def weights(run: Path) -> bytes:
    return (run / "adapter" / "adapter_model.safetensors").read_bytes()


def record(run: Path) -> dict[str, str]:
    found = json.loads((run / "config.json").read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def test_ditto_runs_stops_and_goes_on_to_the_same_end(
    workplace: Path, tmp_path: Path, press_at: Callable[..., None], base_dtype: str
) -> None:
    flags = ("--base-dtype", base_dtype, "--dtype", "float32")
    told = train_toy(workplace, *flags, "--out", tmp_path / "whole").out
    assert f"M parameters, {base_dtype}, multiplied in float32 on cpu" in told
    assert record(tmp_path / "whole")["base_dtype"] == base_dtype
    page = (tmp_path / "whole" / "report.html").read_text(encoding="utf-8")
    assert f"weights in {base_dtype}" in page
    press_at("ditto", 1)
    assert call(train, *INPUTS, *TINY, *flags, "--out", tmp_path / "run", cwd=workplace).code == 130
    for value in ("model", *STORED):
        again = ("--resume", tmp_path / "run", "--base-dtype", value)
        refused = call(train, *again, cwd=workplace)
        assert refused.code == 2 and "leave out --base-dtype" in refused.err
    assert call(train, "--resume", tmp_path / "run", cwd=workplace).code == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")
    assert without_seconds(tmp_path / "run") == without_seconds(tmp_path / "whole")
    train_toy(workplace, "--dtype", "float32", "--out", tmp_path / "floats")
    assert record(tmp_path / "floats")["base_dtype"] == "model"
    assert weights(tmp_path / "floats") != weights(tmp_path / "whole")
    losses = [metrics(tmp_path / name)[0]["loss"] for name in ("floats", "whole")]
    assert losses[1] == pytest.approx(losses[0], rel=0.04)
    check_export(workplace, tmp_path / "whole", base_dtype)


def check_export(workplace: Path, run: Path, base_dtype: str) -> None:
    """The adapter is merged into the checkpoint's own numbers."""
    out = run / "hf"
    told = call(export, run, "--to", "hf", "--out", out, "--device", "cpu", cwd=workplace)
    assert told.code == 0, told.err
    merged = dict(base_parameters(load(str(out), dtype="float32", base_dtype="model")[0]))
    lora = json.loads((run / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    scale = lora["lora_alpha"] / lora["r"]
    state = load_file(run / "adapter" / "adapter_model.safetensors")
    for name, tensor in load_file(workplace / "toy" / "model.safetensors").items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{key}.lora_A.weight" in state:
            tensor = tensor + scale * (
                state[f"{key}.lora_B.weight"] @ state[f"{key}.lora_A.weight"]
            )
        torch.testing.assert_close(merged[name], tensor, rtol=1e-6, atol=1e-6)
    asked = ("--adapter", run, "--prompt", "Hi", "--max-new-tokens", "4", "--device", "cpu")
    assert call(sample, *asked, "--base-dtype", base_dtype, cwd=workplace).code == 0


def test_c3po_runs(workplace: Path, tmp_path: Path, base_dtype: str) -> None:
    if not (workplace / "data").exists():
        feedback_runs.write_data(workplace / "data" / "sam")
    outcome = feedback_runs.train_toy(
        workplace, "--base-dtype", base_dtype, "--dtype", "float32", "--out", tmp_path / "run"
    )
    assert outcome.code == 0, outcome.err
    assert record(tmp_path / "run")["base_dtype"] == base_dtype
    losses = [line["loss"] for line in metrics(tmp_path / "run") if "loss" in line]
    assert losses[-1] < losses[0]


def test_the_plan_knows_the_bytes(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, base_dtype: str
) -> None:
    monkeypatch.chdir(workplace)
    found = {}
    for value in ("model", base_dtype):
        job = prepare_job(
            *train.parse([*INPUTS, *TINY, "--dtype", "float32", "--base-dtype", value])
        )
        found[value] = needs.memory_of(bounds.outline(job), job).total
    config = load("toy", dtype="float32")[0].config
    sizes = {
        value: holding.weight_bytes(holding.outline(config, torch.float32, value))
        for value in found
    }
    assert found["model"] - found[base_dtype] >= sizes["model"] - sizes[base_dtype] > 0
