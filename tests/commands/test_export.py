"""`minialign export`: what is written is the model that was trained, and other programs open it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.adapters import CONFIG, fill
from helpers.commands import Outcome, call
from helpers.models import (
    SPECIAL_TOKENS,
    TOY_CONFIG,
    make_model,
    numbers,
    write_checkpoint,
    write_folder,
)
from safetensors.torch import save_file

from minialign.commands import export, verify
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import apply_lora, combine_adapters
from minialign.policy.merge import base_parameters, merge_adapter
from minialign.policy.peft import load_adapter, save_adapter
from minialign.weights import gguf_write
from minialign.weights.gguf import halves_of_pairs
from minialign.weights.gguf_tokenizer import tokenizer_settings
from minialign.weights.load import load
from minialign.weights.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf")

IDS = torch.arange(3, 40)[None]
CHECKED = re.compile(r"(\d+) of 10 greedy answers .* ([\d.]+)% of the weights")


@pytest.fixture(autouse=True)
def short_answers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One test has answers of full length."""
    if "transformers" not in request.node.name:
        monkeypatch.setattr(verify, "TOKENS", 8)


def adapter(place: Path, checkpoint: Path, seed: int = 0, std: float = 0.1) -> CausalLM:
    model, _ = load(str(checkpoint), dtype="float32", device="cpu")
    apply_lora(model, CONFIG)
    fill(model, "default", seed, std)
    save_adapter(model, place)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with toy/ and two adapters."""
    folder = tmp_path_factory.mktemp("export")
    write_checkpoint(folder / "toy")
    adapter(folder / "voice", folder / "toy")
    adapter(folder / "other", folder / "toy", seed=1)
    return folder


def exported(made: Path, *arguments: str | Path) -> Outcome:
    outcome = call(export, *arguments, "--device", "cpu", cwd=made)
    assert outcome.code == 0, outcome.err
    return outcome


def merged(made: Path, **weights: float) -> CausalLM:
    model, _ = load(str(made / "toy"), dtype="float32", device="cpu")
    for name in weights:
        load_adapter(model, made / name, name)
    combine_adapters(model, weights)
    merge_adapter(model)
    return model


def logits(model: CausalLM) -> torch.Tensor:
    with torch.no_grad():
        return model.logits(IDS)


def test_a_folder_opens_in_transformers_and_says_the_same(made: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    outcome = exported(made, "voice", "--to", "hf", "--out", tmp_path / "hf")
    assert CHECKED.search(outcome.out), outcome.out
    assert CHECKED.search(outcome.out)[1] == "10" and "vllm serve" in outcome.out
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    assert theirs.dtype == torch.float32
    ours = merged(made, voice=1.0)
    with torch.no_grad():
        assert (theirs(IDS).logits - logits(ours)).abs().max() < 1e-4
    tokenizer = Tokenizer.from_folder(made / "toy")
    prompts = [tokenizer.encode_prompt(f"Write to number {i}.") for i in range(10)]
    answers = verify.greedy(ours, prompts)
    for prompt, answer in zip(prompts, answers, strict=True):
        found = theirs.generate(
            torch.tensor([prompt]), max_new_tokens=64, do_sample=False, eos_token_id=2
        )
        assert tuple(found[0, len(prompt) :].tolist()) == answer
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = [{"role": "user", "content": "Hi 123"}]
    ids = again.apply_chat_template(text, add_generation_prompt=True, return_dict=False)
    assert ids == tokenizer.encode_prompt("Hi 123")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "q8_0"])
def test_a_gguf_file_is_the_merged_model_rounded_once(
    made: Path, tmp_path: Path, dtype: str
) -> None:
    file = tmp_path / "voice.gguf"
    outcome = exported(made, "voice", "--to", "gguf", "--dtype", dtype, "--out", file)
    assert "llama-cli" in outcome.out and CHECKED.search(outcome.out)
    model, _ = load(str(file), dtype="float32", device="cpu")
    expected = merged(made, voice=1.0)
    near = {"float32": 0.0, "float16": 2**-11, "bfloat16": 2**-8, "q8_0": 2**-6}[dtype]
    found = dict(model.named_parameters())
    for name, ours in base_parameters(expected):
        assert (ours - found[name]).abs().max() <= near * ours.abs().max(), name
    if dtype == "float32":
        assert torch.equal(logits(model), logits(expected))
    assert [path.name for path in tmp_path.iterdir()] == ["voice.gguf"]


def test_adapters_are_added_up_with_weights(made: Path, tmp_path: Path) -> None:
    exported(made, "voice", "other=0.5", "--to", "hf", "--out", tmp_path / "both")
    model, _ = load(str(tmp_path / "both"), dtype="float32", device="cpu")
    assert (logits(model) - logits(merged(made, voice=1.0, other=0.5))).abs().max() < 1e-4
    assert (logits(model) - logits(merged(made, voice=1.0))).abs().max() > 0.1


def test_a_tied_head_and_a_padded_vocabulary(made: Path, tmp_path: Path) -> None:
    changes = {"vocab_size": 352, "tie_word_embeddings": True, "num_hidden_layers": 1}
    model = make_model(dataclasses.replace(TOY_CONFIG, **changes))
    plain = {"model_type": "llama", "eos_token_id": 2, **numbers(model.config)}
    write_folder(tmp_path / "tied", model, plain)
    adapter(tmp_path / "adapter", tmp_path / "tied")
    for to in ("hf", "gguf"):
        outcome = exported(tmp_path, "adapter", "--to", to, "--dtype", "float32")
        assert CHECKED.search(outcome.out)[1] == "10"
    for place in ("adapter-hf", "adapter.gguf"):
        found, tokenizer = load(str(tmp_path / place), dtype="float32", device="cpu")
        assert found.lm_head.weight is found.model.embed_tokens.weight
        assert found.config.vocab_size == 352 and tokenizer.backend.get_vocab_size() >= 320


def test_ollama_gets_a_file_and_how_to_talk_to_it(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "Voice"
    outcome = exported(made, "voice", "--to", "ollama", "--temperature", "0.2", "--out", out)
    assert sorted(path.name for path in out.iterdir()) == ["Modelfile", "model.gguf"]
    text = (out / "Modelfile").read_text()
    assert "PARAMETER temperature 0.2" in text and f'stop "{SPECIAL_TOKENS[2]}"' in text
    assert "ollama create voice -f" in outcome.out and "warning" not in outcome.out


def test_a_light_training_that_rounding_undoes_is_told(made: Path, tmp_path: Path) -> None:
    """A base in bfloat16 moves in steps of 1/256 of a weight; the adapter by far less."""
    model, _ = load(str(made / "toy"), dtype="bfloat16", device="cpu")
    write_checkpoint(tmp_path / "half")
    state = {name: p.data.bfloat16() for name, p in model.named_parameters()}
    save_file(state, tmp_path / "half" / "model.safetensors", metadata={"format": "pt"})
    adapter(tmp_path / "light", tmp_path / "half", std=0.004)
    outcome = exported(tmp_path, "light", "--to", "hf")
    assert "warning: rounding" in outcome.out and "--dtype" in outcome.out
    assert float(CHECKED.search(outcome.out)[2]) < 10
    config = json.loads((tmp_path / "light-hf" / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    outcome = exported(tmp_path, "light", "--to", "hf", "--dtype", "float32", "--overwrite")
    assert "warning" not in outcome.out


@pytest.mark.parametrize("fault", ["weights", "tokenizer", "settings"])
def test_what_is_not_the_trained_model_is_not_kept(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if fault == "weights":
        monkeypatch.setattr(gguf_write, "pairs_of_halves", lambda array, heads: array)
    elif fault == "tokenizer":
        monkeypatch.setattr(gguf_write, "tokenizer_settings", wrong_tokens)
    else:
        monkeypatch.setattr(gguf_write, "SETTINGS", {**gguf_write.SETTINGS})
        add = gguf_write._add_settings
        monkeypatch.setattr(
            gguf_write,
            "_add_settings",
            lambda w, row, config, dtype: add(w, row, {**config, "rope_theta": 3.0}, dtype),
        )
    outcome = call(export, "voice", "--to", "gguf", "--out", tmp_path / "x.gguf", cwd=made)
    assert outcome.code == 2 and "nothing was kept" in outcome.err, outcome.err
    assert list(tmp_path.iterdir()) == []


def wrong_tokens(backend: Any, rows: int) -> dict[str, Any]:
    return {**tokenizer_settings(backend, rows), "merges": ["a b"]}


def test_the_adapter_alone_as_gguf(made: Path, tmp_path: Path) -> None:
    """What llama.cpp adds is alpha / rank B A, to the rows in its own order."""
    file = tmp_path / "lora.gguf"
    outcome = exported(made, "voice", "--to", "gguf", "--adapter-only", "--out", file)
    assert "--lora" in outcome.out
    reader = gguf.GGUFReader(file)
    assert reader.fields["adapter.lora.alpha"].contents() == CONFIG.alpha
    assert reader.fields["general.type"].contents() == "adapter"
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    model, _ = load(str(made / "toy"), dtype="float32", device="cpu")
    load_adapter(model, made / "voice")
    layer = model.model.layers[1].self_attn.q_proj
    b, a = tensors["blk.1.attn_q.weight.lora_b"], tensors["blk.1.attn_q.weight.lora_a"]
    delta = halves_of_pairs(b @ a * (CONFIG.alpha / len(a)), 4)
    assert torch.allclose(torch.from_numpy(delta), layer.delta("default"), atol=1e-6)
    assert len(tensors) == 2 * 2 * 4


def test_the_adapter_alone_opens_in_peft_by_what_its_card_says(made: Path, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    exported(made, "voice", "--to", "peft", "--out", tmp_path / "peft")
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "peft").eval()
    with torch.no_grad():
        assert (theirs(IDS).logits - logits(merged(made, voice=1.0))).abs().max() < 1e-4


REFUSED = {
    "no adapter": (("toy",), "not finished"),
    "nothing there": (("nowhere",), "no adapter here"),
    "q8_0 elsewhere": (("voice", "--dtype", "q8_0"), "GGUF's"),
    "a part of a folder": (("voice", "--adapter-only"), "--to gguf"),
    "texts elsewhere": (("voice", "--texts"), "--to peft"),
    "cold": (("voice", "--temperature", "-1"), "temperature"),
    "a folder of others": (("voice", "--out", "toy", "--overwrite"), "another"),
    "a file for a folder": (("voice", "--out", "toy/config.json", "--overwrite"), "kind"),
    "in place": (("voice", "--out", "voice"), "exists already"),
    "no such base": (("voice", "--model", "nowhere.gguf"), "no such file"),
}


@pytest.mark.parametrize(("arguments", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_is_refused_before_the_model_loads(
    made: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], named: str
) -> None:
    monkeypatch.setattr("minialign.weights.load.load", lambda *_, **__: pytest.fail("loaded"))
    (made / "toy" / "mine.txt").touch()
    outcome = call(export, *arguments, cwd=made)
    assert outcome.code == 2 and named in outcome.err, outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_a_family_that_stores_projections_as_one_opens_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Phi3Config(
        vocab_size=TOY_CONFIG.vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        eos_token_id=2,
        bos_token_id=1,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    write_checkpoint(tmp_path / "phi")
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "phi")
    ours = adapter(tmp_path / "voice", tmp_path / "phi", std=0.3)
    exported(tmp_path, "voice", "--to", "hf")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "voice-hf")
    with torch.no_grad():
        assert (theirs(IDS).logits - logits(ours)).abs().max() < 1e-4
