"""Adapters: what is trained and what is not, merging, the file format, and PEFT as the judge."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.refusals import refusal
from safetensors.torch import load_file, save_file
from torch import Tensor

from minialign.data.records import Sequence
from minialign.errors import InputError
from minialign.model.config import ModelConfig
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import (
    active_adapter,
    adapter_parameters,
    apply_lora,
    copy_adapter,
    lora_layers,
    set_adapter,
    trainable_parameters,
)
from minialign.policy.knobs import LoRAConfig
from minialign.policy.lora_linear import AddUpdate, LoRALinear
from minialign.policy.merge import merge_adapter, merged_adapter, unmerge_adapter
from minialign.policy.peft import adapter_hash, base_fingerprint, load_adapter, save_adapter
from minialign.policy.reference import reference_policy
from minialign.policy.score import score
from minialign.weights.load import load_model

CONFIG = LoRAConfig(rank=4, alpha=6.0, dropout=0.0)
EVERY_LAYER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
IDS = torch.arange(3, 40)[None]
SEQUENCES = [Sequence((3, 4, 5), (6, 7, 8)), Sequence((9,), (10, 2))]


def fill(model: CausalLM, name: str, seed: int = 0, std: float = 0.2) -> None:
    """As if trained: both matrices random, so that the adapter changes the model a lot."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_parameters(model, name):
            parameter.normal_(0, std, generator=generator)


def logits(model: CausalLM) -> Tensor:
    with torch.no_grad():
        return model.logits(IDS)


@pytest.fixture
def adapted(toy_model: CausalLM) -> CausalLM:
    """The toy model with the adapter `default`, far from the base."""
    before = logits(toy_model)
    apply_lora(toy_model, CONFIG)
    fill(toy_model, "default")
    assert (logits(toy_model) - before).abs().max() > 1
    return toy_model


# ---- what an adapter is ----


def test_a_fresh_adapter_changes_nothing_to_the_last_bit(toy_model: CausalLM) -> None:
    before = logits(toy_model)
    apply_lora(toy_model, replace(CONFIG, target_modules=EVERY_LAYER))
    assert torch.equal(logits(toy_model), before)
    fill(toy_model, "default")
    assert not torch.equal(logits(toy_model), before)


def test_a_layer_computes_w_x_plus_alpha_over_rank_times_b_a_x(adapted: CausalLM) -> None:
    layer = lora_layers(adapted)["model.layers.1.self_attn.o_proj"]
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    a, b = layer.lora_A["default"], layer.lora_B["default"]
    expected = layer.weight @ x.T + 6.0 / 4 * (b @ (a @ x.T))
    torch.testing.assert_close(layer(x), expected.T, rtol=1e-5, atol=1e-5)


def test_a_score_reaches_every_trainable_number_and_those_are_the_adapters(
    toy_model: CausalLM,
) -> None:
    toy_model.requires_grad_(True)  # whatever was trainable before
    apply_lora(toy_model, replace(CONFIG, target_modules=EVERY_LAYER))
    fill(toy_model, "default")
    score(toy_model, SEQUENCES).sum().backward()
    learned = {name for name, p in toy_model.named_parameters() if p.grad is not None}
    assert learned == {n for n, p in toy_model.named_parameters() if p.requires_grad}
    assert learned == {n for n, _ in toy_model.named_parameters() if "lora_" in n}
    assert len(learned) == 2 * len(EVERY_LAYER) * toy_model.config.num_hidden_layers
    ours = {id(p) for p in adapter_parameters(toy_model, "default")}
    assert ours == {id(p) for p in trainable_parameters(toy_model)}
    assert all(p.grad.abs().sum() > 0 for p in trainable_parameters(toy_model))


def test_dropout_works_in_training_and_never_in_evaluation(toy_model: CausalLM) -> None:
    apply_lora(toy_model, replace(CONFIG, dropout=0.5))
    fill(toy_model, "default")
    assert torch.equal(logits(toy_model), logits(toy_model))
    toy_model.train()
    assert not torch.equal(logits(toy_model), logits(toy_model))


def test_the_same_generator_starts_the_same_adapter(
    toy_config: ModelConfig, make_toy_model: Callable[..., CausalLM]
) -> None:
    hashes = []
    for seed in (1, 1, 2):
        model = make_toy_model(toy_config)
        apply_lora(model, CONFIG, generator=torch.Generator().manual_seed(seed))
        hashes.append(adapter_hash(model, "default"))
    assert hashes[0] == hashes[1] != hashes[2]


def test_adapters_are_float32_over_a_half_base_and_take_steps_that_the_base_could_not(
    toy_model: CausalLM,
) -> None:
    toy_model.to(torch.bfloat16)
    apply_lora(toy_model, CONFIG)
    assert {p.dtype for p in trainable_parameters(toy_model)} == {torch.float32}
    assert {p.dtype for p in toy_model.parameters() if not p.requires_grad} == {torch.bfloat16}
    score(toy_model, SEQUENCES).sum().backward()
    first = trainable_parameters(toy_model)[0]
    before = first.detach().clone()
    with torch.no_grad():
        first.mul_(1 + 1e-5)  # bfloat16 knows nothing between 1 and 1.0078
    assert (first != before).float().mean() > 0.9
    hidden = torch.ones(2, 32, dtype=torch.bfloat16)
    assert lora_layers(toy_model)["model.layers.0.self_attn.q_proj"](hidden).dtype == hidden.dtype


# ---- the update's own backward pass ----

SHAPES = [(1, 3, 5, 1), (7, 5, 3, 2), (65, 8, 6, 9)]  # tokens, inputs, outputs, rank


def make_layer(
    shape: tuple[int, int, int, int], dtype: torch.dtype, dropout: float = 0.0
) -> LoRALinear:
    """A frozen random layer with an adapter that is not the identity."""
    _, inputs, outputs, rank = shape
    generator = torch.Generator().manual_seed(sum(shape))
    base = torch.nn.Linear(inputs, outputs, bias=False).requires_grad_(False)
    layer = LoRALinear(base)
    layer.weight.data = torch.randn(outputs, inputs, generator=generator).to(dtype)
    layer.add("default", LoRAConfig(rank=rank, alpha=3.0, dropout=dropout), generator)
    layer.active = "default"
    torch.nn.init.normal_(layer.lora_B["default"], generator=generator)
    return layer


def plain_layer(layer: LoRALinear, x: Tensor, dtype: torch.dtype) -> Tensor:
    """The formula, for autograd to differentiate, all of it in `dtype`."""
    config = layer.configs["default"]
    a, b = layer.lora_A["default"].to(dtype), layer.lora_B["default"].to(dtype)
    dropped = torch.nn.functional.dropout(x, config.dropout, layer.training).to(dtype)
    update = dropped @ a.T @ b.T * (config.alpha / config.rank)
    return x.to(dtype) @ layer.weight.to(dtype).T + update


def value_and_gradients(
    function: Callable[[Tensor], Tensor], layer: LoRALinear, x: Tensor, factors: Tensor
) -> list[Tensor]:
    """The value, then the gradients of x, A and B."""
    x = x.clone().requires_grad_()
    leaves = [x, layer.lora_A["default"], layer.lora_B["default"]]
    value = function(x)
    slopes = torch.autograd.grad((value * factors.to(value.dtype)).sum(), leaves)
    return [value.detach(), *slopes]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_update_has_the_gradients_of_the_plain_formula(
    shape: tuple[int, int, int, int], dtype: torch.dtype, dropout: float
) -> None:
    layer = make_layer(shape, dtype, dropout)
    tokens, inputs, outputs, _ = shape
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(tokens, inputs, generator=generator).to(dtype)
    factors = torch.randn(tokens, outputs, generator=generator).to(dtype)
    torch.manual_seed(5)  # the same tokens drop out
    found = value_and_gradients(layer, layer, x, factors)
    torch.manual_seed(5)
    wide = torch.float64
    expected = value_and_gradients(lambda x: plain_layer(layer, x, wide), layer, x, factors)
    # what is of the base's type, the value and the gradient of x, was rounded two or three times
    rounding = 8 * torch.finfo(dtype).eps
    for name, own, truth, close in zip(
        ("value", "x", "A", "B"), found, expected, (rounding, rounding, 2e-6, 2e-6), strict=True
    ):
        error = (own.double() - truth).abs().max()
        assert error <= close * truth.abs().max() + 1e-12, name
    assert [t.dtype for t in found] == [dtype, dtype, torch.float32, torch.float32]


def test_the_update_passes_gradcheck() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = ((3, 4), (3, 5), (2, 5), (4, 2))  # y, x, A, B
    leaves = [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in shapes
    ]
    assert torch.autograd.gradcheck(
        lambda y, x, a, b: AddUpdate.apply(y.clone(), x, a, b, 1.7), leaves
    )


def test_the_update_in_place_touches_the_layer_s_own_output_and_nothing_else() -> None:
    layer = make_layer((7, 5, 3, 2), torch.float32)
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    held = [x, layer.weight, layer.lora_A["default"], layer.lora_B["default"]]
    before = [t.detach().clone() for t in held]
    first = layer(x)
    kept = first.detach().clone()
    second = layer(x)  # of another output: the first one must stay
    (first + 2 * second).sum().backward()
    assert torch.equal(first, kept) and torch.equal(second, kept)
    assert first.data_ptr() != second.data_ptr()
    for tensor, old in zip(held, before, strict=True):
        assert torch.equal(tensor, old)


def test_the_update_keeps_its_input_and_the_low_rank_product_and_no_output() -> None:
    layer = make_layer((65, 8, 6, 2), torch.float32)
    x = torch.randn(65, 8)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(x)
    shapes = sorted(tuple(t.shape) for t in kept if len(t) == 65)
    assert shapes == [(65, 2), (65, 8)]


def test_gradients_of_two_uses_of_one_adapter_add_up() -> None:
    layer = make_layer((7, 5, 5, 2), torch.float32)
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    factors = torch.ones(7, 5)
    found = value_and_gradients(lambda x: layer(layer(x)), layer, x, factors)

    def twice(x: Tensor) -> Tensor:
        return plain_layer(layer, plain_layer(layer, x, torch.float64), torch.float64)

    for own, truth in zip(found, value_and_gradients(twice, layer, x, factors), strict=True):
        torch.testing.assert_close(own.double(), truth.double(), rtol=1e-4, atol=1e-4)


# ---- several adapters, and the reference ----


def test_several_adapters_share_one_base_and_only_the_active_one_counts(
    toy_model: CausalLM,
) -> None:
    base = logits(toy_model)
    apply_lora(toy_model, CONFIG, "one")
    fill(toy_model, "one", seed=1)
    one = logits(toy_model)
    apply_lora(toy_model, replace(CONFIG, rank=2, target_modules=("down_proj",)), "two")
    fill(toy_model, "two", seed=2)
    two = logits(toy_model)
    for name, expected in (("one", one), ("two", two), (None, base), ("one", one)):
        set_adapter(toy_model, name)
        assert active_adapter(toy_model) == name
        assert torch.equal(logits(toy_model), expected)
    assert len({adapter_hash(toy_model, name) for name in ("one", "two", None)}) == 3
    assert "'three'" in refusal(lambda: set_adapter(toy_model, "three"))
    assert active_adapter(toy_model) == "one"


def test_a_copy_starts_where_its_source_stands_and_leaves_it_frozen(adapted: CausalLM) -> None:
    before, source = logits(adapted), adapter_hash(adapted, "default")
    copy_adapter(adapted, "default", "next")
    assert active_adapter(adapted) == "next"
    assert torch.equal(logits(adapted), before)
    copies = {id(p) for p in adapter_parameters(adapted, "next")}
    assert {id(p) for p in trainable_parameters(adapted)} == copies
    fill(adapted, "next", seed=5)
    assert adapter_hash(adapted, "default") == source


@pytest.mark.parametrize("reference", ["sft", None])
def test_the_reference_policy_has_no_gradient_and_no_dropout_and_ends_with_its_block(
    toy_model: CausalLM, reference: str | None
) -> None:
    base = logits(toy_model)
    apply_lora(toy_model, replace(CONFIG, dropout=0.5), "sft")
    fill(toy_model, "sft", seed=1)
    expected = logits(toy_model) if reference else base
    copy_adapter(toy_model, "sft", "policy")
    fill(toy_model, "policy", seed=2)
    toy_model.train().requires_grad_(True)  # also where all of it could be trained
    with reference_policy(toy_model, reference):
        assert not score(toy_model, SEQUENCES).requires_grad
        assert torch.equal(toy_model.logits(IDS), expected)
    assert active_adapter(toy_model) == "policy" and toy_model.training
    assert score(toy_model, SEQUENCES).requires_grad


def test_the_policy_is_back_when_the_reference_block_breaks_off(adapted: CausalLM) -> None:
    before = logits(adapted)
    with pytest.raises(KeyboardInterrupt), reference_policy(adapted, None):
        raise KeyboardInterrupt
    assert active_adapter(adapted) == "default" and not adapted.training
    assert torch.equal(logits(adapted), before)
    assert score(adapted, SEQUENCES).requires_grad


# ---- merging ----


def test_merged_weights_are_w_plus_scaled_b_a_and_unmerging_restores_every_bit(
    adapted: CausalLM,
) -> None:
    before = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    unmerged = logits(adapted)
    share = merge_adapter(adapted)
    assert share > 0.99  # a float32 sum can round to where it was, rarely
    for name, layer in lora_layers(adapted).items():
        a, b = before[f"{name}.lora_A.default"], before[f"{name}.lora_B.default"]
        expected = before[f"{name}.weight"] + 1.5 * b @ a
        torch.testing.assert_close(layer.weight, expected, rtol=1e-6, atol=1e-6)
    # the adapter is not added a second time; float32 sums in another order
    assert (logits(adapted) - unmerged).abs().max() < 1e-4
    merge_adapter(adapted)
    assert (logits(adapted) - unmerged).abs().max() < 1e-4
    unmerge_adapter(adapted)
    unmerge_adapter(adapted)
    assert all(torch.equal(p, before[name]) for name, p in adapted.named_parameters())
    assert torch.equal(logits(adapted), unmerged)


def test_a_merged_block_that_breaks_off_restores_every_bit(toy_model: CausalLM) -> None:
    apply_lora(toy_model, CONFIG)
    fill(toy_model, "default")
    layers = lora_layers(toy_model)
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    with pytest.raises(RuntimeError), merged_adapter(toy_model):
        assert not any(torch.equal(layer.weight, before[name]) for name, layer in layers.items())
        raise RuntimeError
    assert all(torch.equal(layer.weight, before[name]) for name, layer in layers.items())


def test_an_inner_merge_leaves_the_weights_to_the_outer_one(toy_model: CausalLM) -> None:
    apply_lora(toy_model, CONFIG)
    fill(toy_model, "default")
    plain = {name: layer.weight.clone() for name, layer in lora_layers(toy_model).items()}
    with merged_adapter(toy_model):
        with merged_adapter(toy_model):
            pass
        assert all(layer.merged for layer in lora_layers(toy_model).values())
    for name, layer in lora_layers(toy_model).items():
        assert not layer.merged and torch.equal(layer.weight, plain[name])


def test_a_merged_model_refuses_to_switch_adapters(toy_model: CausalLM) -> None:
    """Its weights hold the adapter: a reference computed from them would be another policy's."""
    apply_lora(toy_model, CONFIG)
    fill(toy_model, "default")
    merge_adapter(toy_model)
    merged = logits(toy_model)
    with pytest.raises(InputError, match="unmerge"), reference_policy(toy_model, None):
        pass
    assert torch.equal(logits(toy_model), merged)
    unmerge_adapter(toy_model)
    with reference_policy(toy_model, None):
        pass


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


def test_a_half_base_stays_unmerged_so_that_the_policy_itself_is_sampled(
    toy_model: CausalLM,
) -> None:
    """Rounded into bfloat16, most of a small update would be gone from what is sampled."""
    toy_model.to(torch.bfloat16)
    apply_lora(toy_model, CONFIG)
    fill(toy_model, "default", std=1e-3)
    before = logits(toy_model)
    weights = {name: layer.weight.clone() for name, layer in lora_layers(toy_model).items()}
    with merged_adapter(toy_model):
        assert torch.equal(logits(toy_model), before)
        layers = lora_layers(toy_model).items()
        assert all(torch.equal(layer.weight, weights[name]) for name, layer in layers)


@pytest.mark.parametrize(("std", "low", "high"), [(1e-3, 0.0, 0.1), (0.3, 0.9, 1.0)])
def test_merging_into_bfloat16_reports_how_much_of_the_update_arrived(
    toy_model: CausalLM, std: float, low: float, high: float
) -> None:
    """A weight near 0.3 moves in steps of 0.002; an update of 3e-6 vanishes nearly everywhere."""
    toy_model.to(torch.bfloat16)
    apply_lora(toy_model, CONFIG)
    fill(toy_model, "default", std=std)
    before = {name: layer.weight.clone() for name, layer in lora_layers(toy_model).items()}
    share = merge_adapter(toy_model)
    after = {name: layer.weight for name, layer in lora_layers(toy_model).items()}
    changed = sum(int((after[name] != before[name]).sum()) for name in before)
    assert share == changed / sum(weight.numel() for weight in before.values())
    assert low < share < high


# ---- files ----


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


REFUSED = {
    "DoRA": ({"use_dora": True, "target_modules": ["q_proj"]}, "use_dora"),
    "ranks by layer": (
        {"rank_pattern": {"q_proj": 2}, "target_modules": ["q_proj", "v_proj"]},
        "rank_pattern",
    ),
    "alphas by layer": (
        {"alpha_pattern": {"q_proj": 2}, "target_modules": ["q_proj", "v_proj"]},
        "alpha_pattern",
    ),
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
