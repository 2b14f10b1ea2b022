"""GGUF conversion: weights against transformers on the same file, token ids against llama.cpp."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minialign.errors import InputError
from minialign.weights.gguf import convert_gguf

gguf = pytest.importorskip("gguf")

HIDDEN, FEED_FORWARD, LAYERS, HEADS, KEY_VALUE_HEADS = 64, 96, 2, 4, 2
HEAD_DIM = HIDDEN // HEADS
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["1 2", "a b", "Ġ ab"]
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"

DEFAULT_MODEL = Path(__file__).parents[2] / "checkpoints" / "smollm2-135m-instruct"
TOKEN_TABLE = Path(__file__).parents[1] / "data" / "smollm2_token_ids.json"


# --- a toy GGUF file --------------------------------------------------------------------------


def byte_alphabet() -> list[str]:
    """The 256 characters that GPT-2 writes for bytes, in the order of the bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(256 + others.index(b)) if b in others else chr(b) for b in range(256)]


TOKENS = [*SPECIAL, *byte_alphabet(), *[merge.replace(" ", "") for merge in MERGES], "<mark>"]


def hf_weights(*, tied: bool) -> dict[str, np.ndarray]:
    """Random weights under their Hugging Face names."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens": (len(TOKENS), HIDDEN),
        "model.norm": (HIDDEN,),
    }
    if not tied:
        shapes["lm_head"] = (len(TOKENS), HIDDEN)
    for layer in range(LAYERS):
        shapes |= {
            f"model.layers.{layer}.input_layernorm": (HIDDEN,),
            f"model.layers.{layer}.post_attention_layernorm": (HIDDEN,),
            f"model.layers.{layer}.self_attn.q_proj": (HIDDEN, HIDDEN),
            f"model.layers.{layer}.self_attn.k_proj": (KEY_VALUE_HEADS * HEAD_DIM, HIDDEN),
            f"model.layers.{layer}.self_attn.v_proj": (KEY_VALUE_HEADS * HEAD_DIM, HIDDEN),
            f"model.layers.{layer}.self_attn.o_proj": (HIDDEN, HIDDEN),
            f"model.layers.{layer}.mlp.gate_proj": (FEED_FORWARD, HIDDEN),
            f"model.layers.{layer}.mlp.up_proj": (FEED_FORWARD, HIDDEN),
            f"model.layers.{layer}.mlp.down_proj": (HIDDEN, FEED_FORWARD),
        }
    rng = np.random.default_rng(0)
    return {
        f"{name}.weight": rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }


def llama_cpp_permute(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to q_proj and k_proj on the way into GGUF."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def write_weights(writer: Any, weights: dict[str, np.ndarray], *, quantized: bool) -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, weight in weights.items():
        if ".q_proj." in name:
            weight = llama_cpp_permute(weight, HEADS)
        if ".k_proj." in name:
            weight = llama_cpp_permute(weight, KEY_VALUE_HEADS)
        kind = gguf.GGMLQuantizationType.F32
        if quantized and weight.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            weight = gguf.quantize(weight, kind)
        gguf_name = names.get_name(name, try_suffixes=(".weight",))
        writer.add_tensor(gguf_name, weight, raw_dtype=kind)


def write_settings(writer: Any, *, pre: str, tokenizer: str) -> None:
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_VALUE_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model(tokenizer)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    kinds = dict.fromkeys(SPECIAL, gguf.TokenType.CONTROL)
    kinds["<mark>"] = gguf.TokenType.USER_DEFINED
    writer.add_token_types([kinds.get(token, gguf.TokenType.NORMAL) for token in TOKENS])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_gguf(
    path: Path,
    weights: dict[str, np.ndarray],
    *,
    architecture: str = "llama",
    tokenizer: str = "gpt2",
    pre: str = "smollm",
    rope_scaling: bool = False,
    surplus: str | None = None,
    quantized: bool = False,
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    write_settings(writer, pre=pre, tokenizer=tokenizer)
    if rope_scaling:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    if surplus:
        writer.add_tensor(surplus, np.ones(HEAD_DIM, np.float32))
    write_weights(writer, weights, quantized=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted(tmp_path: Path, **kinds: Any) -> Path:
    gguf_file = write_gguf(tmp_path / "toy.gguf", hf_weights(tied=True), **kinds)
    convert_gguf(gguf_file, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def load_tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json"))


# --- weights and settings ---------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_weights_come_back_in_hf_order(tmp_path: Path, tied: bool) -> None:
    from safetensors.numpy import load_file

    weights = hf_weights(tied=tied)
    convert_gguf(write_gguf(tmp_path / "toy.gguf", weights), tmp_path / "checkpoint")
    found = load_file(tmp_path / "checkpoint" / "model.safetensors")
    config = json.loads((tmp_path / "checkpoint" / "config.json").read_text())

    assert found.keys() == weights.keys()
    assert config["tie_word_embeddings"] is tied
    for name, weight in weights.items():
        np.testing.assert_array_equal(found[name], weight, err_msg=name)


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("tied", [True, False])
def test_same_weights_and_logits_as_transformers(
    tmp_path: Path, tied: bool, quantized: bool
) -> None:
    torch = pytest.importorskip("torch")
    auto = pytest.importorskip("transformers").AutoModelForCausalLM

    write_gguf(tmp_path / "toy.gguf", hf_weights(tied=tied), quantized=quantized)
    convert_gguf(tmp_path / "toy.gguf", tmp_path / "checkpoint")
    theirs = auto.from_pretrained(tmp_path, gguf_file="toy.gguf", dtype=torch.float32)
    ours = auto.from_pretrained(tmp_path / "checkpoint", dtype=torch.float32)

    state = ours.state_dict()
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(state[name], weight, rtol=0, atol=1e-6, msg=name)
    ids = torch.tensor([[1, 70, 71, 72, 2]])
    with torch.no_grad():
        torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-5)


def test_config(tmp_path: Path) -> None:
    config = json.loads((converted(tmp_path) / "config.json").read_text())
    assert config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000.0,
        "rope_scaling": None,
        "vocab_size": len(TOKENS),
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "torch_dtype": "float32",
    }


# --- tokenizer --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [("smollm", ["Ġab", "Ġ", "1", "2", "Ċ"]), ("gpt-2", ["Ġab", "Ġ", "12", "Ċ"])],
)
def test_pre_tokenizer_decides_about_digits(tmp_path: Path, pre: str, pieces: list[str]) -> None:
    tokenizer = load_tokenizer(converted(tmp_path, pre=pre))
    assert tokenizer.encode(" ab 12\n").ids == [TOKENS.index(piece) for piece in pieces]


def test_added_tokens_are_one_id_and_only_control_tokens_are_special(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(converted(tmp_path))
    ids = tokenizer.encode("<|im_start|>a<mark><|im_end|>").ids
    assert ids == [1, TOKENS.index("a"), TOKENS.index("<mark>"), 2]
    assert tokenizer.decode(ids) == "a<mark>"


def test_text_survives_the_round_trip(tmp_path: Path) -> None:
    text = "naïve  日本 👍\n\tx = 2024; \x04"
    tokenizer = load_tokenizer(converted(tmp_path))
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_tokenizer_config(tmp_path: Path) -> None:
    config = json.loads((converted(tmp_path) / "tokenizer_config.json").read_text())
    special = {index: token["special"] for index, token in config["added_tokens_decoder"].items()}
    assert (config["bos_token"], config["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert (config["pad_token"], config["unk_token"]) == ("<|im_end|>", "<|endoftext|>")
    assert config["chat_template"] == CHAT_TEMPLATE
    assert config["add_bos_token"] is False
    assert special == {"0": True, "1": True, "2": True, str(TOKENS.index("<mark>")): False}


def test_transformers_reads_the_same_ids(tmp_path: Path) -> None:
    auto = pytest.importorskip("transformers").AutoTokenizer
    folder = converted(tmp_path)
    text = "<|im_start|>ab 1212 ab<mark>\n"
    theirs = auto.from_pretrained(folder)
    assert theirs(text)["input_ids"] == load_tokenizer(folder).encode(text).ids
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (1, 2, 2)


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "named"),
    [
        ({"architecture": "gptneox"}, "gptneox"),
        ({"tokenizer": "bert"}, "tokenizer.ggml.model"),
        ({"pre": "poro-chat"}, "poro-chat"),
        ({"pre": "default"}, "tokenizer.ggml.pre"),
        ({"rope_scaling": True}, "rope.scaling.factor"),
    ],
)
def test_unknown_kinds_are_refused(tmp_path: Path, kinds: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named) as caught:
        converted(tmp_path, **kinds)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize(
    "surplus", ["blk.0.attn_q.bias", "blk.x.attn_q.weight", "blk.0.ffn_gate_exps.weight"]
)
def test_tensors_of_other_models_are_refused(tmp_path: Path, surplus: str) -> None:
    with pytest.raises(InputError, match=surplus):
        converted(tmp_path, surplus=surplus)
    assert not (tmp_path / "checkpoint").exists()


def test_missing_tensor_is_refused(tmp_path: Path) -> None:
    weights = hf_weights(tied=True)
    del weights["model.layers.1.mlp.up_proj.weight"]
    gguf_file = write_gguf(tmp_path / "toy.gguf", weights)
    with pytest.raises(InputError, match=r"layers\.1\.mlp\.up_proj"):
        convert_gguf(gguf_file, tmp_path / "checkpoint")
    assert not (tmp_path / "checkpoint").exists()


@pytest.mark.parametrize("keep", [0, 100, 3000, -500])
def test_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    gguf_file = write_gguf(tmp_path / "toy.gguf", hf_weights(tied=True))
    gguf_file.write_bytes(gguf_file.read_bytes()[:keep])
    with pytest.raises(InputError, match="toy.gguf") as caught:
        convert_gguf(gguf_file, tmp_path / "checkpoint")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "checkpoint").exists()


def test_absent_file_and_absent_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no such file"):
        convert_gguf(tmp_path / "none.gguf", tmp_path / "checkpoint")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r'pip install "minialign\[gguf\]"'):
        convert_gguf(tmp_path / "none.gguf", tmp_path / "checkpoint")


# --- the default model ------------------------------------------------------------------------


@pytest.mark.default_model
@pytest.mark.skipif(not DEFAULT_MODEL.is_dir(), reason="the default model is not converted here")
def test_default_model_has_llama_cpp_token_ids() -> None:
    tokenizer = load_tokenizer(DEFAULT_MODEL)
    rows = json.loads(TOKEN_TABLE.read_text(encoding="utf-8"))["rows"]
    different = [row["text"] for row in rows if tokenizer.encode(row["text"]).ids != row["ids"]]
    assert len(rows) >= 25
    assert different == []


@pytest.mark.default_model
@pytest.mark.skipif(not DEFAULT_MODEL.is_dir(), reason="the default model is not converted here")
def test_default_model_settings() -> None:
    config = json.loads((DEFAULT_MODEL / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (1, 2, 2)
    assert (config["rope_theta"], config["rms_norm_eps"]) == (100000.0, 1e-5)
    assert config["tie_word_embeddings"] is True
