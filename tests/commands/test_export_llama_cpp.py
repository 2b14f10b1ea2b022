"""llama.cpp as the judge of what is exported, and its own quantiser's files as models here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.adapters import CONFIG, fill
from helpers.commands import call
from helpers.models import TOY_CONFIG, make_model, numbers, write_checkpoint, write_folder

from minialign.commands import export, verify
from minialign.model.transformer import CausalLM
from minialign.policy.adapters import apply_lora
from minialign.policy.peft import save_adapter
from minialign.weights.load import load
from minialign.weights.tokenizer import Tokenizer

llama_cpp = pytest.importorskip("llama_cpp")
pytest.importorskip("gguf")

PROMPTS = [f"Write to number {i} in the café,\n\nplease: 12345 {i * i}!" for i in range(10)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """toy/, an adapter of it, and what is exported of both."""
    folder = tmp_path_factory.mktemp("llama_cpp")
    write_checkpoint(folder / "toy")
    model, _ = load(str(folder / "toy"), dtype="float32", device="cpu")
    apply_lora(model, CONFIG)
    fill(model, "default", std=0.1)
    save_adapter(model, folder / "voice")
    for flags in (
        ("--dtype", "float32", "--out", "f32.gguf"),
        ("--dtype", "float16", "--out", "f16.gguf"),
        ("--adapter-only", "--out", "lora.gguf"),
    ):
        outcome = call(export, "voice", "--to", "gguf", *flags, cwd=folder)
        assert outcome.code == 0, outcome.err
    return folder


def opened(file: Path, **options: Any) -> Any:
    # Keys and values in float32, as ours are.
    settings = {
        "type_k": 0,
        "type_v": 0,
        "n_ctx": 256,
        "n_threads": 1,
        "n_threads_batch": 1,
        "verbose": False,
    }
    return llama_cpp.Llama(str(file), logits_all=True, **settings, **options)


def their_answer(llama: Any, prompt: list[int], count: int, stops: tuple[int, ...]) -> list[int]:
    answer: list[int] = []
    llama.reset()
    for token in llama.generate(prompt, temp=0.0, repeat_penalty=1.0):
        answer.append(token)
        if token in stops or len(answer) == count:
            return answer
    return answer


def their_logits(llama: Any, ids: list[int]) -> torch.Tensor:
    llama.reset()
    llama.eval(ids)
    return torch.from_numpy(np.array(llama.scores[: len(ids)]))


def check_answers(llama: Any, ours: CausalLM, tokenizer: Tokenizer, count: int) -> None:
    prompts = [tokenizer.encode_prompt(prompt) for prompt in PROMPTS]
    for text, prompt in zip(PROMPTS, prompts, strict=True):
        rendered = tokenizer.render([{"role": "user", "content": text}])
        assert llama.tokenize(rendered.encode(), add_bos=False, special=True) == prompt
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "TOKENS", count)
        answers = verify.greedy(ours, prompts)
    for prompt, answer in zip(prompts, answers, strict=True):
        assert their_answer(llama, prompt, count, ours.stop_ids) == list(answer)


def test_llama_cpp_says_what_we_say(made: Path) -> None:
    ours, tokenizer = load(str(made / "f32.gguf"), dtype="float32", device="cpu")
    check_answers(opened(made / "f32.gguf"), ours, tokenizer, 64)


def test_in_float16_llama_cpp_differs_by_its_products_alone(made: Path) -> None:
    """It multiplies in float16 there, so that answers of near ties can differ."""
    ours, _ = load(str(made / "f16.gguf"), dtype="float32", device="cpu")
    ids = list(range(3, 60))
    theirs = their_logits(opened(made / "f16.gguf"), ids)
    with torch.no_grad():
        off = (ours.logits(torch.tensor([ids]))[0] - theirs).std()
    assert off < 0.01 * theirs.std()


def test_the_adapter_beside_the_base_is_the_merged_model(made: Path) -> None:
    plain, _ = load(str(made / "toy"), dtype="float32", device="cpu")
    apply_lora(plain, CONFIG)
    save_adapter(plain, made / "nothing")
    outcome = call(
        export,
        *("nothing", "--to", "gguf", "--dtype", "float32", "--out", "base.gguf", "--overwrite"),
        cwd=made,
    )
    assert outcome.code == 0, outcome.err
    ids = list(range(3, 40))
    with_adapter = their_logits(opened(made / "base.gguf", lora_path=str(made / "lora.gguf")), ids)
    merged = their_logits(opened(made / "f32.gguf"), ids)
    without = their_logits(opened(made / "base.gguf"), ids)
    assert (with_adapter - merged).abs().max() < 1e-3
    assert (without - merged).abs().max() > 0.1


QUANTISED = {"Q8_0": 7, "Q4_0": 2, "Q5_1": 9, "Q4_K_M": 15, "Q6_K": 18}


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose rows hold blocks of 256, as K-quants need them, in float32."""
    folder = tmp_path_factory.mktemp("wide")
    config = replace(TOY_CONFIG, hidden_size=256, intermediate_size=256, head_dim=64)
    model = make_model(config, std=0.08)
    write_folder(
        folder / "toy", model, {"model_type": "llama", "eos_token_id": 2, **numbers(config)}
    )
    apply_lora(model, CONFIG)
    save_adapter(model, folder / "nothing")
    flags = ("--dtype", "float32", "--out", "wide.gguf", "--model", "toy")
    outcome = call(export, "nothing", "--to", "gguf", *flags, cwd=folder)
    assert outcome.code == 0, outcome.err
    return folder


@pytest.mark.parametrize("kind", QUANTISED)
def test_a_file_of_llama_cpps_own_quantiser_opens_here(wide: Path, kind: str) -> None:
    """llama.cpp rounds what goes into a product to 8 bits too, so its logits are only near ours."""
    target = wide / f"{kind}.gguf"
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype, settings.nthread = QUANTISED[kind], 1
    failed = llama_cpp.llama_model_quantize(
        str(wide / "wide.gguf").encode(), str(target).encode(), settings
    )
    assert failed == 0
    ours, _ = load(str(target), dtype="float32", device="cpu")
    ids = list(range(3, 40))
    theirs = their_logits(opened(target), ids)
    with torch.no_grad():
        off = (ours.logits(torch.tensor([ids]))[0] - theirs).std()
    assert off < 0.1 * theirs.std()
