"""Tokenizers out of GGUF's lists and back: the same ids as whoever made them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from helpers.models import CORPUS, SPECIAL_TOKENS, VOCAB_SIZE
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers, trainers

from minialign.errors import InputError
from minialign.weights.gguf_header import Header
from minialign.weights.gguf_tokenizer import PRE_TOKENIZERS, read_tokenizer, tokenizer_settings

TEXTS = (
    "Dear Sam, thank you for 12345 notes.",
    "  two  spaces\n\n\tand a tab, I'VE don't",
    "naïve 日本 👍 e\u0301 #x=[7];",
    "",
)


def read(settings: dict[str, Any]) -> Any:
    named = {f"tokenizer.ggml.{key}": value for key, value in settings.items()}
    return read_tokenizer(Header(Path("toy.gguf"), named, {}))[0]


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
def test_a_byte_level_tokenizer_comes_back(name: str) -> None:
    pre = PRE_TOKENIZERS[name]
    backend = Backend(models.BPE(ignore_merges=pre.whole_words_first))
    backend.pre_tokenizer, backend.decoder = pre.build(), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([CORPUS], trainer)
    settings = tokenizer_settings(backend, VOCAB_SIZE + 8)
    assert PRE_TOKENIZERS[settings["pre"]].pattern == pre.pattern
    assert settings["tokens"][-1] == f"[PAD{VOCAB_SIZE + 7}]" and settings["token_type"][-1] == 5
    again = read({**settings, "pre": name, "eos_token_id": 2})
    for text in (*TEXTS, "<|im_start|>user\nHi<|im_end|>"):
        if not pre.nfc:
            assert again.encode(text).ids == backend.encode(text).ids
            assert again.decode(again.encode(text).ids) == backend.decode(backend.encode(text).ids)


def trained(kind: str) -> Any:
    """A SentencePiece model of the toy corpus, as Llama's is made: nothing normalised, bytes."""
    sentencepiece = pytest.importorskip("sentencepiece")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.split(". ") * 20),
        model_writer=model,
        model_type=kind,
        vocab_size=380 if kind == "bpe" else 330,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def lists(processor: Any, kind: str) -> dict[str, Any]:
    """As llama.cpp's converter writes them."""
    pieces = range(processor.get_piece_size())

    def type_of(index: int) -> int:
        tests = {2: processor.is_unknown, 3: processor.is_control, 6: processor.is_byte}
        return next((code for code, test in tests.items() if test(index)), 1)

    return {
        "model": kind,
        "tokens": [processor.id_to_piece(index) for index in pieces],
        "scores": [float(processor.get_score(index)) for index in pieces],
        "token_type": [type_of(index) for index in pieces],
        "unknown_token_id": processor.unk_id(),
        "bos_token_id": processor.bos_id(),
        "eos_token_id": processor.eos_id(),
    }


@pytest.mark.parametrize(("kind", "name"), [("bpe", "llama"), ("unigram", "t5")])
def test_sentencepiece_has_the_same_ids(kind: str, name: str) -> None:
    processor = trained(kind)
    backend = read(lists(processor, name))
    for text in (*TEXTS, CORPUS):
        if text:
            ids = processor.encode(text)
            assert backend.encode(text).ids == ids, text
            assert backend.decode(ids) == text


def test_sentencepieces_merges_become_scores_in_their_order() -> None:
    processor = trained("bpe")
    first = read(lists(processor, "llama"))
    settings = tokenizer_settings(first, processor.get_piece_size())
    assert settings["model"] == "llama" and settings["add_space_prefix"]
    again = read({**settings, "unknown_token_id": 0, "eos_token_id": 2})
    for text in (*TEXTS, CORPUS):
        assert again.encode(text).ids == first.encode(text).ids


def test_without_the_space_in_front() -> None:
    settings = lists(trained("bpe"), "llama")
    backend = read({**settings, "add_space_prefix": False})
    assert backend.decode(backend.encode("the team").ids) == "the team"
    assert backend.encode("the team").tokens[0] != "▁the"


def test_what_gguf_has_no_word_for_is_refused() -> None:
    words = Backend(models.WordLevel({"a": 0}, "a"))
    with pytest.raises(InputError, match="WordLevel"):
        tokenizer_settings(words, 1)
    backend = Backend(models.BPE({"a": 0}, []))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    with pytest.raises(InputError, match="pre-tokenizer"):
        tokenizer_settings(backend, 1)
    with pytest.raises(InputError, match="rows"):
        tokenizer_settings(backend, 0)
