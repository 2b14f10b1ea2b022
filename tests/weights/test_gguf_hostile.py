"""Broken and hostile GGUF files: one line each, nothing built up in memory, no traceback."""

from __future__ import annotations

import resource
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.gguf_files import GgufBytes, Tensor, string
from helpers.refusals import refusal

from minialign.weights.load import load

pytest.importorskip("gguf")

HUGE = 2**62


def settings(**changes: Any) -> Callable[[GgufBytes], None]:
    """`__` stands for a dot, and `None` for a setting that is missing."""

    def change(file: GgufBytes) -> None:
        for name, value in changes.items():
            key = name.replace("__", ".")
            if value is None:
                del file.settings[key]
            else:
                file.settings[key] = value

    return change


def tensor(name: str, **changes: Any) -> Callable[[GgufBytes], None]:
    def change(file: GgufBytes) -> None:
        for key, value in changes.items():
            setattr(file.tensors[name], key, value)

    return change


def added(name: str, shape: tuple[int, ...]) -> Callable[[GgufBytes], None]:
    return lambda file: file.tensors.update({name: Tensor(shape)})


def whole(**changes: Any) -> Callable[[GgufBytes], None]:
    def change(file: GgufBytes) -> None:
        for key, value in changes.items():
            setattr(file, key, value)

    return change


def array(kind: int, count: int, content: bytes = b"") -> bytes:
    return struct.pack("<IIQ", 9, kind, count) + content


FILES: dict[str, tuple[Callable[[GgufBytes], object], str]] = {
    "another magic": (whole(magic=b"GGML"), "GGUF"),
    "version 1": (whole(version=1), "version 1"),
    "big-endian": (whole(version=0x03000000), "version"),
    "endless settings": (whole(setting_count=HUGE), "byte"),
    "endless tensors": (whole(tensor_count=HUGE), "dimensions"),
    "fewer tensors": (whole(tensor_count=3), "missing"),
    "a setting of no kind": (settings(x__y=struct.pack("<I", 77)), "77"),
    "an array of no kind": (settings(x__y=array(77, 1)), "77"),
    "an array of arrays": (settings(x__y=array(9, 1, array(4, 1))), "9"),
    "an endless array of numbers": (settings(x__y=array(4, HUGE)), "byte"),
    "an endless array of strings": (settings(x__y=array(8, HUGE)), "strings"),
    "an endless string": (settings(x__y=struct.pack("<IQ", 8, HUGE)), "byte"),
    "a string that is not UTF-8": (
        settings(x__y=struct.pack("<I", 8) + string(b"\xff\xfe")),
        "utf-8",
    ),
    "an alignment of 0": (settings(general__alignment=0), "alignment"),
    "an alignment of a word": (settings(general__alignment="wide"), "alignment"),
    "no architecture": (settings(general__architecture=None), "architecture"),
    "another architecture": (settings(general__architecture="rwkv7"), "rwkv7"),
    "a list for an architecture": (settings(general__architecture=["llama"]), "architecture"),
    "no layers": (settings(llama__block_count=0), "block_count"),
    "a million layers": (settings(llama__block_count=10**6), "layers"),
    "two layers": (settings(llama__block_count=2), "layers.1"),
    "no heads": (settings(llama__attention__head_count=0), "head_count"),
    "a word for heads": (settings(llama__attention__head_count="four"), "head_count"),
    "heads that do not divide": (settings(llama__attention__head_count_kv=3), "share"),
    "odd halves of a head": (settings(llama__attention__head_count=32), "head"),
    "a wrong width": (settings(llama__embedding_length=64), "embed_tokens"),
    "an infinite norm": (
        settings(llama__attention__layer_norm_rms_epsilon=float("inf")),
        "rms_epsilon",
    ),
    "no context": (settings(llama__context_length=None), "context_length"),
    "experts": (settings(llama__expert_count=8), "expert_count"),
    "an unknown setting": (settings(llama__attention__clamp=1), "attention.clamp"),
    "dynamic positions": (settings(llama__rope__scaling__type="dynamic"), "dynamic"),
    "one of several files": (settings(split__count=3), "merge"),
    "too many dimensions": (added("x", (1, 1, 1, 1, 1)), "dimensions"),
    "a tensor of nothing": (tensor("blk.0.attn_q.weight", shape=(0, 32)), "attn_q"),
    "a tensor beyond the file": (tensor("blk.0.attn_q.weight", offset=2**50), "outside"),
    "a tensor at no multiple": (tensor("blk.0.attn_q.weight", offset=3), "outside"),
    "two tensors in one place": (tensor("blk.0.attn_q.weight", offset=0), "another's"),
    "a tensor of no kind": (tensor("blk.0.attn_q.weight", code=99), "99"),
    "ternary blocks": (tensor("blk.0.attn_q.weight", code=34), "TQ1_0"),
    "half a block": (tensor("blk.0.attn_q.weight", code=12), "256"),
    "a tensor too many": (added("blk.0.ffn_gate_inp.weight", (8, 32)), "ffn_gate_inp"),
    "a layer with a huge number": (added(f"blk.{HUGE}.attn_q.weight", (8, 32)), "surplus"),
    "no embedding": (lambda file: file.tensors.pop("token_embd.weight"), "token_embd"),
    "no tokens": (settings(tokenizer__ggml__tokens=None), "tokens"),
    "numbers for tokens": (settings(tokenizer__ggml__tokens=[1, 2]), "tokens"),
    "fewer types than tokens": (settings(tokenizer__ggml__token_type=[1, 1]), "types"),
    "an end beyond the tokens": (settings(tokenizer__ggml__eos_token_id=9), "eos_token_id"),
    "no end": (settings(tokenizer__ggml__eos_token_id=None), "eos_token_id"),
    "another tokenizer": (settings(tokenizer__ggml__model="bert"), "bert"),
    "an unknown pre-tokenizer": (settings(tokenizer__ggml__pre="default"), "default"),
    "a merge of unknown tokens": (settings(tokenizer__ggml__merges=["x y"]), "tokenizer"),
    "a merge of one token": (settings(tokenizer__ggml__merges=["ab"]), "merges"),
    "a number for a template": (settings(tokenizer__chat_template=7), "chat_template"),
}


@pytest.fixture(scope="module", autouse=True)
def at_most_another_gigabyte() -> Iterator[None]:
    """Whoever asks for more gets a MemoryError, which no test here expects."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(statm.read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_the_file_that_the_others_are_made_of_opens(tmp_path: Path) -> None:
    model, tokenizer = load(str(GgufBytes().write(tmp_path / "whole.gguf")), dtype="float32")
    assert model.stop_ids == (1,) and tokenizer.encode_completion("ab") == [4, 1]
    assert len(FILES) >= 40


@pytest.mark.parametrize(("damage", "named"), FILES.values(), ids=FILES.keys())
def test_a_broken_file_is_one_line(
    tmp_path: Path, damage: Callable[[GgufBytes], object], named: str
) -> None:
    file = GgufBytes()
    damage(file)
    written = file.write(tmp_path / "broken.gguf")
    message = refusal(lambda: load(str(written), dtype="float32"))
    assert "broken.gguf" in message and named in message, message
    assert len(message) < 500


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.9, 0.99])
def test_half_a_file_is_one_line(tmp_path: Path, share: float) -> None:
    content = GgufBytes().bytes()
    file = tmp_path / "half.gguf"
    file.write_bytes(content[: int(share * len(content))])
    assert "half.gguf" in refusal(lambda: load(str(file), dtype="float32"))
