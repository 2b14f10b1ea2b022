"""The files of an adapter: bit for bit, refused when damaged, and PEFT as the judge."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.adapters import CONFIG, EVERY_LAYER, IDS, fill, logits
from helpers.refusals import refusal
from safetensors.torch import load_file, save_file
from torch import Tensor

from minialign.model.config import ModelConfig
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import active_adapter, apply_lora, set_adapter
from minialign.policy.knobs import LoRAConfig
from minialign.policy.peft import (
    adapter_hash,
    base_fingerprint,
    load_adapter,
    lora_of,
    save_adapter,
)
from minialign.weights.load import load_model

# ---- files ----


def test_an_adapter_is_replaced_by_one_with_fewer_targets(
    toy_model: CausalLM, tmp_path: Path
) -> None:
    apply_lora(toy_model, LoRAConfig(rank=2, target_modules=("q_proj",)))
    fill(toy_model, "default")
    save_adapter(toy_model, tmp_path)
    expected = logits(toy_model)
    apply_lora(toy_model, CONFIG)
    load_adapter(toy_model, tmp_path)
    assert torch.equal(logits(toy_model), expected)


def test_an_adapter_comes_back_from_its_folder_bit_for_bit(
    adapted: CausalLM,
    toy_config: ModelConfig,
    make_toy_model: Callable[..., CausalLM],
    tmp_path: Path,
) -> None:
    save_adapter(adapted, tmp_path)
    fresh = make_toy_model(toy_config)
    load_adapter(fresh, tmp_path, "again")
    assert active_adapter(fresh) == "again"
    assert torch.equal(logits(fresh), logits(adapted))
    assert adapter_hash(fresh, "again") == adapter_hash(adapted, "default")
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"]) == (4, 6.0)
    assert saved["base_model_name_or_path"] == "toy"


def test_no_adapter_active_means_nothing_to_save(adapted: CausalLM, tmp_path: Path) -> None:
    set_adapter(adapted, None)
    refusal(lambda: save_adapter(adapted, tmp_path / "adapter"))
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_base_is_recognised_in_whatever_type_it_is_loaded(
    toy_checkpoint: Path, dtype: torch.dtype
) -> None:
    state = load_file(toy_checkpoint / "model.safetensors")
    state["model.embed_tokens.weight"][:4] *= 1e-5  # too small for float16 to hold exactly
    save_file(state, toy_checkpoint / "model.safetensors")
    known = base_fingerprint(load_model(toy_checkpoint, torch.float32, torch.device("cpu")))
    loaded = load_model(toy_checkpoint, dtype, torch.device("cpu"))
    assert base_fingerprint(loaded) == known


def test_another_base_of_the_same_shape_is_refused(
    adapted: CausalLM,
    toy_config: ModelConfig,
    make_toy_model: Callable[..., CausalLM],
    tmp_path: Path,
) -> None:
    save_adapter(adapted, tmp_path)
    other = make_toy_model(toy_config, seed=1)
    assert "another model" in refusal(lambda: load_adapter(other, tmp_path))


def test_the_head_and_unknown_layers_are_refused(toy_model: CausalLM) -> None:
    before = logits(toy_model)
    targets = ("q_proj", "lm_head")
    head = replace(CONFIG, target_modules=targets)
    assert "lm_head" in refusal(lambda: apply_lora(toy_model, head))
    unknown = replace(CONFIG, target_modules=("q_proj", "c_attn"))
    assert "'c_attn'" in refusal(lambda: apply_lora(toy_model, unknown))
    assert torch.equal(logits(toy_model), before)


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    """Without the metadata: as PEFT saves it, so that keys and shapes alone tell."""
    state = load_file(folder / "adapter_model.safetensors")
    edit(state)
    save_file(state, folder / "adapter_model.safetensors")


KEY = "base_model.model.model.layers.1.self_attn.v_proj.lora_A.weight"
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a tensor is missing": (lambda f: edit_tensors(f, lambda s: s.pop(KEY)), KEY),
    "a tensor too many": (
        lambda f: edit_tensors(f, lambda s: s.update({KEY.replace(".1.", ".7."): s[KEY] * 1})),
        "layers.7",
    ),
    "another shape": (lambda f: edit_tensors(f, lambda s: s.update({KEY: s[KEY][:, 1:] * 1})), KEY),
    "no adapter's key": (lambda f: edit_tensors(f, lambda s: s.update({"x": s[KEY] * 1})), "x"),
    "another rank": (lambda f: edit_json(f / "adapter_config.json", r=8), "lora_A"),
    "no tensors": (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model"),
    "half a file": (
        lambda f: (f / "adapter_model.safetensors").write_bytes(b"\x10" * 40),
        "adapter_model",
    ),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "adapter_config.json"),
    "half a config": (
        lambda f: (f / "adapter_config.json").write_text('{"r": 4'),
        "adapter_config.json",
    ),
    "a config without r": (
        lambda f: (f / "adapter_config.json").write_text('{"peft_type": "LORA"}'),
        "adapter_config.json",
    ),
    "a list for a config": (
        lambda f: (f / "adapter_config.json").write_text("[]"),
        "adapter_config.json",
    ),
}


@pytest.mark.parametrize(("damage", "named"), DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_or_foreign_adapter_is_refused_by_name_and_leaves_the_model_as_it_was(
    adapted: CausalLM,
    toy_config: ModelConfig,
    make_toy_model: Callable[..., CausalLM],
    tmp_path: Path,
    damage: Callable[[Path], object],
    named: str,
) -> None:
    save_adapter(adapted, tmp_path)
    damage(tmp_path)
    model = make_toy_model(toy_config)
    before = logits(model)
    assert named in refusal(lambda: load_adapter(model, tmp_path))
    assert torch.equal(logits(model), before)


# ---- PEFT ----


def peft_model(folder: Path, **config: Any) -> Any:
    """The toy checkpoint in transformers with an adapter by PEFT, as if trained."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = peft.get_peft_model(base, peft.LoraConfig(task_type="CAUSAL_LM", **config)).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2, generator=generator)
    return model


def peft_logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.mark.parametrize("targets", [CONFIG.target_modules, EVERY_LAYER], ids=["attention", "all"])
def test_peft_reads_our_adapter_and_computes_our_logits(
    toy_checkpoint: Path, tmp_path: Path, targets: tuple[str, ...]
) -> None:
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    ours = load_model(toy_checkpoint, torch.float32, torch.device("cpu"))
    apply_lora(ours, replace(CONFIG, target_modules=targets))
    fill(ours, "default")
    save_adapter(ours, tmp_path / "adapter")
    base = transformers.AutoModelForCausalLM.from_pretrained(toy_checkpoint, dtype=torch.float32)
    without = peft_logits(base)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert (peft_logits(theirs) - without).abs().max() > 1
    # float32 rounding; logits are of the order of 10
    assert (peft_logits(theirs) - logits(ours)).abs().max() < 1e-4


PEFT_CONFIGS = {
    "attention": {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]},
    "all linear layers": {"r": 3, "lora_alpha": 16, "target_modules": "all-linear"},
    "a regular expression": {"r": 4, "target_modules": r".*\.(self_attn\.k_proj|mlp\.up_proj)"},
    "rank-stabilised": {"r": 9, "use_rslora": True, "target_modules": ["q_proj", "o_proj"]},
    "a rank for each layer": {
        "r": 4,
        "rank_pattern": {r"layers\.1\.self_attn\.q_proj": 2, "v_proj": 7},
        "target_modules": ["q_proj", "v_proj", "o_proj"],
    },
    "an alpha for each layer": {
        "r": 3,
        "lora_alpha": 5,
        "alpha_pattern": {"v_proj": 11, "model.layers.0.self_attn.q_proj": 0.5},
        "target_modules": ["q_proj", "v_proj"],
    },
    "both, rank-stabilised": {
        "r": 4,
        "use_rslora": True,
        "rank_pattern": {"q_proj": 9},
        "alpha_pattern": {"v_proj": 3},
        "target_modules": ["q_proj", "v_proj"],
    },
    "one layer of two": {"r": 4, "target_modules": ["q_proj"], "layers_to_transform": [1]},
    "a pattern that leaves layers out": {"r": 4, "target_modules": r".*\.1\.self_attn\.k_proj"},
    "all but one": {"r": 4, "target_modules": ["q_proj"], "exclude_modules": r".*0\.self_attn.*"},
    "orthogonal start": {"r": 4, "init_lora_weights": "orthogonal", "target_modules": ["q_proj"]},
}


@pytest.mark.parametrize("config", PEFT_CONFIGS.values(), ids=PEFT_CONFIGS.keys())
def test_an_adapter_saved_by_peft_computes_its_logits_here(
    toy_checkpoint: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    theirs = peft_model(toy_checkpoint, **config)
    theirs.save_pretrained(tmp_path / "adapter")
    ours = load_model(toy_checkpoint, torch.float32, torch.device("cpu"))
    without = logits(ours)
    load_adapter(ours, tmp_path / "adapter")
    assert (logits(ours) - without).abs().max() > 1
    assert (logits(ours) - peft_logits(theirs)).abs().max() < 1e-4


def test_an_adapter_with_patterns_is_saved_as_one_that_peft_computes_alike(
    toy_checkpoint: Path, tmp_path: Path
) -> None:
    """Here it gets one rank, with zeros, and one alpha; what it computes is the same."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    theirs = peft_model(toy_checkpoint, **PEFT_CONFIGS["both, rank-stabilised"])
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(toy_checkpoint, torch.float32, torch.device("cpu"))
    load_adapter(ours, tmp_path / "theirs")
    assert lora_of(tmp_path / "theirs").rank == 9
    save_adapter(ours, tmp_path / "ours")
    base = transformers.AutoModelForCausalLM.from_pretrained(toy_checkpoint, dtype=torch.float32)
    again = peft.PeftModel.from_pretrained(base, tmp_path / "ours").eval()
    assert (peft_logits(again) - peft_logits(theirs)).abs().max() < 1e-4


def test_a_file_in_bfloat16_is_read_in_float32(adapted: CausalLM, tmp_path: Path) -> None:
    save_adapter(adapted, tmp_path)
    edit_tensors(tmp_path, lambda s: s.update({k: t.bfloat16() for k, t in s.items()}))
    before = logits(adapted)
    load_adapter(adapted, tmp_path)
    assert all(p.dtype == torch.float32 for p in adapted.parameters())
    assert 0 < (logits(adapted) - before).abs().max() < 1


NUMBERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "an alpha that is not a number": (
        lambda f: edit_json(f / "adapter_config.json", lora_alpha=float("nan")),
        "nan",
    ),
    "an alpha in a pattern": (
        lambda f: edit_json(f / "adapter_config.json", alpha_pattern={"q_proj": float("inf")}),
        "inf",
    ),
    "a word for a rank": (lambda f: edit_json(f / "adapter_config.json", r="four"), "four"),
    "no rank": (lambda f: edit_json(f / "adapter_config.json", r=0), "0"),
    "a rank beyond all memory": (lambda f: edit_json(f / "adapter_config.json", r=2**50), "rank 4"),
    "a pattern that is none": (
        lambda f: edit_json(f / "adapter_config.json", rank_pattern={"(": 2}),
        "rank_pattern",
    ),
    "a list of patterns": (
        lambda f: edit_json(f / "adapter_config.json", alpha_pattern=["q_proj"]),
        "alpha_pattern",
    ),
    "weights that are not finite": (
        lambda f: edit_tensors(f, lambda s: s[KEY].fill_(float("inf"))),
        KEY,
    ),
    "no weights": (lambda f: edit_tensors(f, lambda s: s.clear()), "no tensor"),
}


@pytest.mark.parametrize(("damage", "named"), NUMBERS.values(), ids=NUMBERS.keys())
def test_numbers_that_cannot_be_are_refused_before_anything_is_made(
    adapted: CausalLM, tmp_path: Path, damage: Callable[[Path], object], named: str
) -> None:
    save_adapter(adapted, tmp_path)
    damage(tmp_path)
    before = logits(adapted)
    assert named in refusal(lambda: load_adapter(adapted, tmp_path))
    assert torch.equal(logits(adapted), before)


REFUSED = {
    "DoRA": ({"use_dora": True, "target_modules": ["q_proj"]}, "use_dora"),
    "whole modules": (
        {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
        "modules_to_save",
    ),
    "the head": ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
    "the embedding": ({"target_modules": ["embed_tokens"]}, "embed"),
    "biases": ({"lora_bias": True, "target_modules": ["q_proj"]}, "bias"),
    "an altered base": ({"init_lora_weights": "pissa", "target_modules": ["q_proj"]}, "pissa"),
}


@pytest.mark.parametrize(("config", "named"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_plain_lora_is_refused_by_name(
    toy_checkpoint: Path, tmp_path: Path, config: dict[str, Any], named: str
) -> None:
    peft_model(toy_checkpoint, r=4, **config).save_pretrained(tmp_path / "adapter")
    model = load_model(toy_checkpoint, torch.float32, torch.device("cpu"))
    assert named in refusal(lambda: load_adapter(model, tmp_path / "adapter"))


def test_another_kind_of_adapter_is_refused_by_name(adapted: CausalLM, tmp_path: Path) -> None:
    save_adapter(adapted, tmp_path)
    edit_json(tmp_path / "adapter_config.json", peft_type="IA3")
    assert "'IA3'" in refusal(lambda: load_adapter(adapted, tmp_path))
