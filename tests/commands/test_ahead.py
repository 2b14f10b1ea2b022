"""`--plan`: the arithmetic of Mistral-7B, by hand; no weights, no GPU, no tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from helpers.commands import call, train
from helpers.workplaces import write_workplace

from minialign.commands.ahead import job_ahead
from minialign.commands.bounds import outline
from minialign.commands.job import prepare_job
from minialign.commands.needs import memory_of
from minialign.commands.train import parse
from minialign.weights import hub
from minialign.weights.find import find_config

MISTRAL = {
    **{"model_type": "mistral", "vocab_size": 32_000, "hidden_size": 4096},
    **{"intermediate_size": 14_336, "num_hidden_layers": 32, "num_attention_heads": 32},
    **{"num_key_value_heads": 8, "max_position_embeddings": 32_768, "rope_theta": 1e6},
}

# Numbers of a layer: q and o, k and v, the MLP's three, two norms.
LAYER = 2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14_336 + 2 * 4096
# Two bytes each, with the embedding, the head and the last norm.
WEIGHTS = 2 * (32 * LAYER + 2 * 32_000 * 4096 + 4096)
# Rank 16 on q and o (4,096 to 4,096), k and v (4,096 to 1,024), in float32.
ADAPTER = 4 * 32 * 16 * (2 * (4096 + 4096) + 2 * (4096 + 1024))
# A token in a layer: both norms' inputs; q, k, v and attention's output; gate and up; what a GPU
# copies of keys, values and output; the adapters' input; all in two bytes. Then, in four: both
# norms' scales, a sum a head, and four products of rank 16.
KEPT = 2 * (2 * 4096 + (2 * 4096 + 2 * 1024) + 2 * 14_336 + (4096 + 2 * 1024) + 4096)
KEPT += 4 * (2 + 32 + 4 * 16)
# Outside the layers: the last norm's, and the gradients with which the backward pass begins.
TOKEN = 32 * KEPT + 2 * (5 * 4096 + 4 * 14_336)
# A prompt of 90 tokens with two answers of 1,024, which a comparison of two answers has.
IN_FLIGHT = 90 + 2 * 1024
HEAD, DRIVER = 2 * 32 * 2**20, 600_000_000
FIXED = WEIGHTS + 2 * ADAPTER + 3 * ADAPTER + HEAD + DRIVER
# A row: keys and values of 32 layers, 8 heads of 128, two bytes; 8 GB hold 54 of them.
ROW = 2 * 32 * 8 * 128 * 2 * (90 + 1024)
CACHE = 54 * (ROW + 4 * 4 * 32_000)


@pytest.fixture
def mistral(tmp_path: Path) -> Path:
    """A folder with nothing but config.json."""
    folder = tmp_path / "mistral"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MISTRAL))
    return folder


def plan(cwd: Path, *flags: str) -> dict[str, str]:
    """The lines of a plan, by what they begin with."""
    outcome = call(train, "--plan", *flags, cwd=cwd)
    assert outcome.code == 0, outcome.err
    lines = [line.strip().split("  ", 1) for line in outcome.out.strip().split("\n")]
    return {name: text.strip() for name, text in lines}


def paper(folder: Path, device: str, *flags: str) -> dict[str, str]:
    return plan(
        folder.parent, "--model", "mistral", "--recipe", "paper", "--device", device, *flags
    )


def gigabytes(number: float) -> str:
    return f"{number / 1e9:.2f} GB"


def test_a_base_in_4_bits_is_planned_as_such(mistral: Path) -> None:
    # v, down, embedding and head have 8 bits; 4 bits have a scale a block of 64, itself in 8 bits.
    wide = 32 * (4096 * 1024 + 14_336 * 4096) + 2 * 32_000 * 4096
    narrow = 32 * LAYER + 2 * 32_000 * 4096 - wide
    weights = wide + narrow * (4 + 8 / 64 + 32 / (64 * 256)) / 8
    said = paper(mistral, "cuda:24GB", "--base-dtype", "nf4")["weights"]
    assert said == f"{gigabytes(weights)}  of the base model, in nf4, multiplied in bfloat16"


def test_seven_billion_parameters_on_24_gb(mistral: Path) -> None:
    said = paper(mistral, "cuda:24GB")
    assert said["model"] == "mistral: 7,242 M parameters, on cuda:24GB"
    assert said["weights"].startswith(gigabytes(WEIGHTS)) and gigabytes(WEIGHTS) == "14.48 GB"
    assert said["adapters"].startswith(gigabytes(2 * ADAPTER))
    assert said["moments"].startswith(gigabytes(3 * ADAPTER))
    assert said["head"].startswith(gigabytes(HEAD))
    assert said["cache"].startswith(gigabytes(CACHE)) and gigabytes(CACHE) == "7.91 GB"
    step = IN_FLIGHT * TOKEN
    assert said["activations"].startswith(gigabytes(step)) and gigabytes(step) == "8.21 GB"
    assert said["at most"].startswith(f"{gigabytes(FIXED + step)} of 24.00")
    # A second answer beside the first doubles its budget: 590 + 2 x 1,024 tokens are too many.
    most = (24e9 - FIXED) / TOKEN
    assert IN_FLIGHT < most < 590 + 2 * 1024
    assert said["fits"] == "with --micro-batch-tokens up to 1,318"


def test_seven_billion_parameters_on_80_gb(mistral: Path) -> None:
    said = paper(mistral, "cuda:80GB")
    # 17, 5 and 2 comparisons for 7 texts: beside them stand at most 6, 6, 4, 3, 3, 2 and 2 answers.
    sizes = [590 + answers * 1024 for answers in (6, 6, 4, 3, 3, 2, 2)]
    most = (80e9 - FIXED) / TOKEN
    # The first two fit into a part, and of the others all but one.
    assert sum(sizes[:2]) < sum(sizes[2:6]) < most < sum(sizes[2:]) < sum(sizes[:3])
    assert said["fits"] == f"with --micro-batch-tokens up to {sum(sizes[2:]) - 1:,}"


def test_what_does_not_fit_is_told_what_to_change(mistral: Path) -> None:
    said = paper(mistral, "cuda:20GB")
    flags, _, made = said["too much"].rpartition(": ")
    assert "--activation-checkpointing full" in flags and float(made.split()[0]) <= 20
    again = paper(mistral, "cuda:20GB", *flags.split())
    assert again["fits"].startswith("with")
    assert again["at most"].startswith(made)
    least = paper(mistral, "cuda:12GB")["too much"]
    assert least.endswith("GB at least; choose a smaller model")


def test_texts_are_counted_by_the_tokenizer_or_by_their_letters(tmp_path: Path) -> None:
    write_workplace(tmp_path)
    flags = ("--demos", "demos.jsonl", "--model", "toy", "--device", "cpu:1GB")
    known = plan(tmp_path, *flags)
    assert "3 demonstrations" in known["learns from"] and "tokens" not in known
    (tmp_path / "toy" / "tokenizer.json").unlink()
    (tmp_path / "toy" / "model.safetensors").unlink()
    assert "4 characters" in plan(tmp_path, *flags)["tokens"]
    assert list(tmp_path.glob("runs")) == []


def test_the_plan_is_that_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    asked = parse("--demos demos.jsonl --model toy --device cpu --lora-rank 4".split())
    ahead, run = job_ahead(*asked)[0], prepare_job(*asked)
    assert memory_of(outline(ahead), ahead) == memory_of(outline(run), run)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--method", "c3po"), "learns from feedback: give --data"),
        (("--feedback", "Be brief"), "leave out --feedback"),
        (("--model", "nowhere"), "no such folder"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_a_line(
    mistral: Path, flags: tuple[str, ...], said: str
) -> None:
    outcome = call(train, "--plan", "--model", "mistral", *flags, cwd=mistral.parent)
    assert outcome.code == 2 and said in outcome.err and outcome.err.count("\n") == 1


# ---- the hub ----


def test_of_a_model_on_the_hub_the_config_alone_is_fetched(
    mistral: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def download(hub_id: str, file: str, **how: Any) -> str:
        asked.append((hub_id, file, how))
        return str(mistral / file)

    monkeypatch.setenv("MINIALIGN_CHECKPOINTS", str(mistral.parent / "none"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(hub, "_hub_info", lambda *_: SimpleNamespace(sha="abc"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert find_config("mistral-7b-instruct") == mistral
    name = "mistralai/Mistral-7B-Instruct-v0.2"
    assert asked == [(name, "config.json", {"revision": "abc"})]
    monkeypatch.setattr(
        huggingface_hub, "try_to_load_from_cache", lambda *_, **__: str(mistral / "config.json")
    )
    assert find_config(name) == mistral and len(asked) == 1


def test_a_hub_that_does_not_answer_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any) -> Any:
        raise hub.HubError("it cannot be reached")

    monkeypatch.setenv("MINIALIGN_CHECKPOINTS", str(tmp_path / "none"))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(hub, "_hub_info", unreachable)
    flags = ("--model", "mistralai/Mistral-7B-Instruct-v0.2", "--device", "cuda:24GB")
    outcome = call(train, "--plan", *flags, cwd=tmp_path)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "it cannot be reached" in outcome.err
