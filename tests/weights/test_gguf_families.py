"""A model of each architecture as GGUF: read back bit for bit, and as transformers reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.gguf_files import GgufBytes, Tensor
from helpers.models import CHAT_TEMPLATE, SPECIAL_TOKENS, VOCAB_SIZE, make_byte_level_backend

from minialign.errors import InputError
from minialign.weights.gguf import gguf_config, gguf_tensors
from minialign.weights.gguf_header import KINDS
from minialign.weights.gguf_settings import plain_rope
from minialign.weights.gguf_tokenizer import tokenizer_settings
from minialign.weights.gguf_write import write_gguf
from minialign.weights.load import load
from minialign.weights.tokenizer import Tokenizer

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
GRANITE = {
    "embedding_multiplier": 12.0,
    "logits_scaling": 8.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.125,
    "head_dim": 8,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": False}),
    "llama 3": ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {"head_dim": 8, "tie_word_embeddings": True}),
    "qwen3": ("qwen3", {"head_dim": 128}),
    "granite": ("granite", GRANITE),
    "smollm3": ("smollm3", {"no_rope_layer_interval": 4, "head_dim": 8}),
    "gemma3": ("gemma3_text", {"sliding_window": 64, "head_dim": 256}),
}
# What transformers has its own reading of GGUF for.
READ_BY_TRANSFORMERS = ("llama", "llama 3", "mistral", "qwen2", "qwen3", "gemma3")
IDS = torch.arange(3, 60)[None]


def toy(family: str) -> Any:
    """A model of random weights, biases and norms too."""
    kind, changes = FAMILIES[family]
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, **changes})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def settings(model: Any) -> dict[str, Any]:
    config = model.config.to_dict()
    rope = config.get("rope_parameters") or {}
    return {**config, **plain_rope({**config, "rope_parameters": rope.get("full_attention", rope)})}


def written(model: Any, file: Path, dtype: str = "float32") -> Path:
    tensors = dict(model.named_parameters())
    tokenizer = Tokenizer(make_byte_level_backend(), "<|im_end|>", "<|im_start|>", CHAT_TEMPLATE)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    write_gguf(file, settings(model), tokenizer, (2,), shapes, iter(tensors.items()), dtype, "toy")
    return file


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_written_comes_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    model = toy(family)
    file = written(model, tmp_path / "toy.gguf")
    found = dict(gguf_tensors(file))
    expected = dict(model.named_parameters())
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # 1 + w, which GGUF keeps for such norms, loses w's last bits.
        near = 1e-6 if family == "gemma3" and name.endswith("norm.weight") else 0
        np.testing.assert_allclose(found[name], tensor.detach().numpy(), rtol=0, atol=near)
    config = gguf_config(file)
    for name, value in settings(model).items():
        if name in config and name not in ("architectures", "dtype", "model_type", "rope_scaling"):
            assert config[name] == value, name
    if FAMILIES[family][0] != "mistral":  # GGUF calls it llama
        again = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
        rebuilt = transformers.AutoModelForCausalLM.from_config(again, dtype=torch.float32).eval()
        state = {name: torch.from_numpy(array) for name, array in found.items()}
        rebuilt.load_state_dict(state, strict=False)
        with torch.no_grad():
            assert (rebuilt(IDS).logits - model(IDS).logits).abs().max() < 1e-4


@pytest.mark.parametrize("family", READ_BY_TRANSFORMERS)
def test_transformers_computes_the_same_from_the_file(family: str, tmp_path: Path) -> None:
    model = toy(family)
    written(model, tmp_path / "toy.gguf")
    auto = transformers.AutoModelForCausalLM
    theirs = auto.from_pretrained(tmp_path, gguf_file="toy.gguf", dtype=torch.float32).eval()
    if family == "llama 3":  # it does not look at the factors, so they are not compared
        return
    with torch.no_grad():
        assert (theirs(IDS).logits - model(IDS).logits).abs().max() < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_file_opens_here_and_computes_the_same(family: str, tmp_path: Path) -> None:
    pytest.importorskip("minialign.model.families")
    model = toy(family)
    ours, _ = load(str(written(model, tmp_path / "toy.gguf")), dtype="float32", device="cpu")
    with torch.no_grad():
        assert (ours.logits(IDS) - model(IDS).logits).abs().max() < 1e-4


PHI3 = {
    "embedding_length": 64,
    "feed_forward_length": 96,
    "block_count": 2,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "context_length": 128,
    "rope.dimension_count": 8,
    "rope.scaling.original_context_length": 64,
    "attention.sliding_window": 0,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 1e4,
}
FACTORS = {"short": [1.0, 1.5, 2.0, 3.0], "long": [1.0, 4.0, 9.0, 20.0]}


def test_phi3_with_its_fused_tensors_and_half_of_the_channels_turned(tmp_path: Path) -> None:
    """As llama.cpp's converter writes one."""
    rope_parameters = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "partial_rotary_factor": 0.5,
        **{f"{name}_factor": factors for name, factors in FACTORS.items()},
    }
    torch.manual_seed(0)
    config = transformers.Phi3Config(
        **SIZES | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2},
        rope_parameters=rope_parameters,
        original_max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    config.max_position_embeddings, config.head_dim = 128, 16
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    file = GgufBytes()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.PHI3, 2)
    own = {f"phi3.{key}": value for key, value in PHI3.items()}
    tokens = tokenizer_settings(make_byte_level_backend(), VOCAB_SIZE)
    named = {f"tokenizer.ggml.{key}": value for key, value in tokens.items()}
    ends = {"tokenizer.ggml.eos_token_id": 2}
    file.settings = {"general.architecture": "phi3", **own, **named, **ends}
    tensors = {
        f"{names.get_name(name.removesuffix('.weight'))}.weight": tensor.detach().numpy()
        for name, tensor in model.named_parameters()
    }
    for name, factors in FACTORS.items():
        tensors[f"rope_factors_{name}.weight"] = np.array(factors, np.float32)
    file.tensors = {name: Tensor(a.shape, 0, a.tobytes()) for name, a in tensors.items()}
    written = file.write(tmp_path / "phi.gguf")
    found = gguf_config(written)
    assert found["partial_rotary_factor"] == 0.5 and found["sliding_window"] is None
    assert found["rope_scaling"]["short_factor"] == FACTORS["short"]
    shapes = {name: array.shape for name, array in gguf_tensors(written)}
    assert shapes["model.layers.1.self_attn.k_proj.weight"] == (32, 64)
    pytest.importorskip("minialign.model.families")
    ours, _ = load(str(written), dtype="float32", device="cpu")
    with torch.no_grad():
        assert (ours.logits(IDS) - model(IDS).logits).abs().max() < 1e-4


# ---- every type of weights ----


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_is_what_the_gguf_package_makes_of_it(kind: str, tmp_path: Path) -> None:
    code = gguf.GGMLQuantizationType[kind]
    shape = (32, 256)
    _, size = gguf.GGML_QUANT_SIZES[code]
    block = gguf.GGML_QUANT_SIZES[code][0]
    raw = np.random.default_rng(0).integers(0, 256, 32 * 256 // block * size, dtype=np.uint8)
    raw[:] = raw & 0x3F if kind in ("F16", "BF16", "F32") else raw
    file = GgufBytes()
    file.settings["llama.embedding_length"] = 256
    for name, tensor in file.tensors.items():
        wide = {32: 256}.get(tensor.shape[-1], 256) if "ffn_down" not in name else 32
        tall = 256 if "attn" in name or "ffn_down" in name else tensor.shape[0]
        tensor.shape = (wide,) if len(tensor.shape) == 1 else (tall, wide)
    file.tensors["blk.0.ffn_up.weight"] = Tensor(shape, int(code), raw.tobytes())
    found = dict(gguf_tensors(file.write(tmp_path / "toy.gguf")))
    lines = raw.reshape(32, -1)
    if kind == "F32":
        lines = lines.view(np.float32)
    elif kind == "F16":
        lines = lines.view(np.float16)
    expected = gguf.dequantize(lines, code)
    array = found["model.layers.0.mlp.up_proj.weight"]
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("gemma3", {"query_pre_attn_scalar": 100}),
        ("gemma3", {"layer_types": ["full_attention"] * 4}),
        ("smollm3", {"no_rope_layers": [1, 1, 1, 1]}),
        ("llama", {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}),
    ],
)
def test_what_a_file_cannot_say_is_refused(
    family: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = settings(toy(family))
    monkeypatch.setitem(globals(), "settings", lambda _: {**plain, **changes, **rope(changes)})
    with pytest.raises(InputError, match="--to hf"):
        written(toy(family), tmp_path / "toy.gguf")


def rope(changes: dict[str, Any]) -> dict[str, Any]:
    return plain_rope(changes) if "rope_scaling" in changes else {}


def test_the_special_tokens_are_where_they_were(tmp_path: Path) -> None:
    file = written(toy("llama"), tmp_path / "toy.gguf")
    tokenizer = Tokenizer.from_folder(file)
    assert tokenizer.encode_prompt("Hi")[0] == SPECIAL_TOKENS.index("<|im_start|>")
    assert tokenizer.template == CHAT_TEMPLATE and not tokenizer.add_bos
