"""Checkpoints held in 8 and 4 bits: what becomes what, how many bytes it takes, and what stays."""

from __future__ import annotations

import dataclasses
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.commands import call
from helpers.models import TOY_CONFIG, make_model, numbers, write_folder
from helpers.refusals import refusal
from helpers.toys import with_adapter
from safetensors.torch import load_file, save_file
from torch import Tensor

from minialign.commands import export
from minialign.model.config import ModelConfig
from minialign.model.matmul import Embedding, Linear, frozen_weights
from minialign.model.stored import NF4, STORED, Int8, Stored
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import lora_layers
from minialign.policy.knobs import SamplingConfig
from minialign.policy.merge import base_parameters, merge_adapter, merged_adapter
from minialign.policy.peft import base_fingerprint, save_adapter
from minialign.policy.sample import sample
from minialign.weights import holding
from minialign.weights.holding import IN_8_BITS, outline, pick_base_dtype, weight_bytes
from minialign.weights.load import load, load_model

CPU, FLOATS = torch.device("cpu"), torch.float32
IDS = torch.arange(3, 40)[None]
SMOLLM2_135M = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
}


def held_in(folder: Path, base_dtype: str, dtype: torch.dtype = FLOATS) -> CausalLM:
    return load_model(folder, dtype, CPU, base_dtype)


def logits(model: CausalLM) -> Tensor:
    with torch.no_grad():
        return model.logits(IDS)


def test_nf4_leaves_8_bits_where_4_cost_most_and_norms_as_they_were(toy_checkpoint: Path) -> None:
    model, plain = held_in(toy_checkpoint, "nf4"), held_in(toy_checkpoint, "model")
    kinds = {
        name: type(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, Linear | Embedding)
    }
    eight = {name for name in kinds if name.split(".")[-1] in IN_8_BITS}
    assert len(eight) == 2 + 2 * model.config.num_hidden_layers
    assert {name for name, kind in kinds.items() if kind is Int8} == eight
    assert {name for name, kind in kinds.items() if kind is NF4} == kinds.keys() - eight
    norms = dict(plain.named_parameters())
    assert all("norm" in name and p.equal(norms[name]) for name, p in model.named_parameters())
    assert not model.training and model.dtype == model.stream_dtype == FLOATS
    int8 = held_in(toy_checkpoint, "int8")
    assert {type(w) for w in frozen_weights(int8) if isinstance(w, Stored)} == {Int8}


def test_every_value_changes_the_model_and_8_bits_less_than_4(toy_checkpoint: Path) -> None:
    truth = logits(held_in(toy_checkpoint, "model"))
    off = {n: float((logits(held_in(toy_checkpoint, n)) - truth).norm()) for n in STORED}
    assert 0 < off["int8"] < off["nf4"] < 0.6 * truth.norm()


def test_a_tied_head_is_stored_once(tmp_path: Path) -> None:
    tied = make_model(dataclasses.replace(TOY_CONFIG, tie_word_embeddings=True))
    plain = {"model_type": "llama", "eos_token_id": 2, **numbers(tied.config)}
    model = held_in(write_folder(tmp_path / "tied", tied, plain), "nf4")
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert isinstance(model.lm_head.weight, Int8)


@pytest.mark.parametrize(("base_dtype", "share"), [("int8", 0.45), ("nf4", 0.25)])
def test_memory_is_what_was_promised(base_dtype: str, share: float, toy_checkpoint: Path) -> None:
    config = ModelConfig.from_dict(SMOLLM2_135M)
    floats = weight_bytes(outline(config, FLOATS, "model"))
    assert floats == 4 * 134_515_008
    assert weight_bytes(outline(config, FLOATS, base_dtype)) < share * floats
    # An outline has the bytes that the model really takes.
    model = held_in(toy_checkpoint, base_dtype)
    assert weight_bytes(model) == weight_bytes(outline(model.config, FLOATS, base_dtype))


def test_no_two_tensors_are_floats_at_a_time(
    toy_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: list[weakref.ref[Tensor]] = []
    own = Stored.__init__

    def noted(self: Stored, weight: Tensor, dtype: torch.dtype) -> None:
        assert all(tensor() is None for tensor in before)
        before.append(weakref.ref(weight))
        own(self, weight, dtype)

    monkeypatch.setattr(Stored, "__init__", noted)
    model = held_in(toy_checkpoint, "int8")
    assert len(before) == 2 + 7 * model.config.num_hidden_layers


def test_auto_is_the_first_that_fits(monkeypatch: pytest.MonkeyPatch, toy_checkpoint: Path) -> None:
    config = dataclasses.replace(TOY_CONFIG, hidden_size=64, intermediate_size=128)
    sizes = [weight_bytes(outline(config, FLOATS, n)) for n in ("model", *STORED)]
    found = []
    for there in (*sizes, 1):
        # Three quarters of the memory are for the weights.
        monkeypatch.setattr(holding, "total_bytes", lambda _, there=there: there / 0.74)
        found.append(pick_base_dtype("auto", config, FLOATS, CPU))
    assert found == ["model", "int8", "nf4", "nf4"]
    for there, kind in ((1e12, Tensor), (1.0, Int8)):
        monkeypatch.setattr(holding, "total_bytes", lambda _, there=there: there)
        model, _ = load(str(toy_checkpoint), dtype="float32", device="cpu")
        assert isinstance(model.lm_head.weight, kind)


def test_an_unknown_value_is_refused(toy_checkpoint: Path) -> None:
    message = refusal(lambda: load(str(toy_checkpoint), base_dtype="int4"))
    assert "'int4'" in message and "auto, model, int8, nf4" in message


def test_a_number_that_is_not_finite_is_named(toy_checkpoint: Path) -> None:
    state = load_file(toy_checkpoint / "model.safetensors")
    state["lm_head.weight"][3, 4] = torch.inf
    save_file(state, toy_checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert "lm_head.weight" in refusal(lambda: held_in(toy_checkpoint, "nf4"))


def test_a_gguf_file_is_stored_too(toy_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    model, _ = load(str(toy_checkpoint), dtype="float32", device="cpu")
    save_adapter(with_adapter(model, scale=0.0), tmp_path / "nothing")
    file = tmp_path / "toy.gguf"
    arguments = ("--to", "gguf", "--dtype", "float32", "--out", file, "--device", "cpu")
    outcome = call(export, tmp_path / "nothing", *arguments, cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    for base_dtype in STORED:
        expected = logits(held_in(toy_checkpoint, base_dtype))
        assert torch.equal(logits(held_in(file, base_dtype)), expected)


# ---- with an adapter ----


@pytest.mark.parametrize("base_dtype", STORED)
def test_adapters_know_the_base_however_it_is_held(base_dtype: str, toy_checkpoint: Path) -> None:
    known = base_fingerprint(held_in(toy_checkpoint, "model"))
    assert base_fingerprint(with_adapter(held_in(toy_checkpoint, base_dtype))) == known


@pytest.mark.parametrize("base_dtype", STORED)
def test_nothing_is_merged_into_a_stored_base(base_dtype: str, toy_checkpoint: Path) -> None:
    model = with_adapter(held_in(toy_checkpoint, base_dtype))
    before = logits(model)
    with merged_adapter(model):
        assert not any(layer.merged for layer in lora_layers(model).values())
    for merge in (lambda: merge_adapter(model), lambda: dict(base_parameters(model))):
        assert "base_dtype=model" in refusal(merge)
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("base_dtype", STORED)
def test_a_gradient_reaches_adapters_and_leaves_the_base(
    base_dtype: str, toy_checkpoint: Path
) -> None:
    model = with_adapter(held_in(toy_checkpoint, base_dtype))
    codes = [w.codes.clone() for w in frozen_weights(model) if isinstance(w, Stored)]
    model.logits(IDS).log_softmax(-1)[0, :, 5].sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    after = [w.codes for w in frozen_weights(model) if isinstance(w, Stored)]
    assert all(map(torch.equal, codes, after))


@pytest.mark.parametrize("rollout_dtype", ["model", "float32", "int8"])
@pytest.mark.parametrize("base_dtype", STORED)
def test_a_sampler_draws_from_the_stored_model(
    base_dtype: str, rollout_dtype: Any, toy_checkpoint: Path
) -> None:
    model = with_adapter(held_in(toy_checkpoint, base_dtype), scale=0.3)
    config = SamplingConfig(6, temperature=0.0, rollout_dtype=rollout_dtype)
    ((completion,),) = sample(model, [(5, 9, 200)], 1, config, seed=0)
    with torch.no_grad():
        ids = torch.tensor([(5, 9, 200, *completion.ids)])
        own = model.logits(ids)[0].log_softmax(-1)
    found = sum(float(own[2 + i, token]) for i, token in enumerate(completion.ids))
    near = 0.05 if rollout_dtype == "int8" else 1e-4
    assert completion.logprob == pytest.approx(found, rel=near, abs=near)
