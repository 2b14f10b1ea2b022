"""The tokenizer that a GGUF file holds as lists, as a `tokenizers.Tokenizer`; and back into lists.

Two kinds are known by their own names there. `gpt2` is byte-level BPE: a list of merges, and the
pre-tokenizer as a mere word that decides about every token id. `llama` is SentencePiece's BPE and
`t5` its unigram model: a score a token, and bytes for what no token covers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from minialign.errors import InputError
from minialign.weights.gguf_header import Header

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "▁"  # what SentencePiece writes for a space
# Ends of a turn or of a text, in the order in which they are looked for.
END_KEYS = ("eos", "eot", "eom")

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+ENDING|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*ENDING|"
    r"\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut before merging. Without a pattern it is GPT-2's own."""

    pattern: str = ""
    single_digits: bool = False
    whole_words_first: bool = False  # a word that is a token is not built up from merges
    bos: bool = False  # one is put in front where the file does not say
    nfc: bool = False

    def build(self) -> Any:
        from tokenizers import Regex
        from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence, Split

        steps: list[Any] = [Digits(individual_digits=True)] if self.single_digits else []
        if self.pattern:
            steps.append(Split(Regex(self.pattern), "isolated"))
        return Sequence([*steps, ByteLevel(add_prefix_space=False, use_regex=not self.pattern)])


_LLAMA3 = PreTokenizer(_WORDS.replace("DIGITS", "{1,3}"), whole_words_first=True, bos=True)
_GPT4O = _CASED.replace("ENDING", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?").replace("DIGITS", "{1,3}")
# What tokenizer.ggml.pre stands for, after llama.cpp's own table. "default" is not there on
# purpose: a file says so when whoever made it did not know the pre-tokenizer.
PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer(),
    "phi-2": PreTokenizer(),
    "olmo": PreTokenizer(),
    "smollm": PreTokenizer(single_digits=True),
    "starcoder": PreTokenizer(single_digits=True),
    "refact": PreTokenizer(single_digits=True),
    "command-r": PreTokenizer(single_digits=True),
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "falcon3": _LLAMA3,
    "pixtral": _LLAMA3,
    "dbrx": PreTokenizer(_LLAMA3.pattern),
    "smaug-bpe": PreTokenizer(_LLAMA3.pattern),
    "qwen2": PreTokenizer(_WORDS.replace("DIGITS", ""), nfc=True),
    "deepseek-r1-qwen": PreTokenizer(_WORDS.replace("DIGITS", ""), nfc=True),
    "tekken": PreTokenizer(
        _CASED.replace("ENDING", "").replace("DIGITS", ""), whole_words_first=True, bos=True
    ),
    "gpt-4o": PreTokenizer(_GPT4O),
    "llama4": PreTokenizer(_GPT4O),
}
# Cut differently by any two of the table that differ.
PROBE = " I'VE seen 12345 HTTPServers/\n\n  naïve e\u0301 #x=[7];\t日本 don't\r\n"


def read_tokenizer(header: Header) -> tuple[Any, dict[str, Any]]:
    """A `tokenizers.Tokenizer`, and what tokenizer_config.json would hold.

    Raises InputError for another kind of tokenizer or pre-tokenizer, and for lists that do not fit.
    """
    kinds = {"gpt2": _byte_level, "llama": _sentencepiece, "t5": _unigram}
    kind: Any = header.settings.get("tokenizer.ggml.model")
    if not isinstance(kind, str) or kind not in kinds:
        _refuse(header, "tokenizer.ggml.model", kind, kinds)
    _check_ids(header)
    try:
        backend = kinds[kind](header)
    except InputError:
        raise
    except Exception as error:  # the library raises bare Exception
        reason = " ".join(str(error).split())
        raise InputError(f"{header.file}: its tokenizer cannot be built: {reason}") from None
    for added in _added_tokens(header).values():
        (backend.add_special_tokens if added.special else backend.add_tokens)([added])
    return backend, _tokenizer_config(header)


def stop_ids(header: Header) -> list[int]:
    """Where completions stop, the trained end first."""
    _check_ids(header)
    found = [header.settings.get(f"tokenizer.ggml.{key}_token_id") for key in END_KEYS]
    return list(dict.fromkeys(token for token in found if token is not None))


def _refuse(header: Header, key: str, value: Any, known: Any) -> None:
    raise InputError(
        f"{header.file}: {key} is {value!r}, and only {', '.join(known)} can be read;"
        " use the model's Hugging Face checkpoint instead"
    )


def _list(header: Header, key: str, kind: type) -> list[Any]:
    """A list of the tokenizer's, as long as its tokens unless it is of merges."""
    found = header.settings.get(f"tokenizer.ggml.{key}")
    items = found.tolist() if isinstance(found, np.ndarray) else found
    if not isinstance(items, list) or not all(type(item) is kind for item in items):
        raise InputError(
            f"{header.file}: tokenizer.ggml.{key} is missing or not a list of {kind.__name__}s"
        )
    return items


def _tokens(header: Header) -> tuple[list[str], list[int]]:
    """The tokens and their types."""
    tokens, types = _list(header, "tokens", str), _list(header, "token_type", int)
    if len(tokens) != len(types) or not tokens:
        raise InputError(f"{header.file}: {len(tokens)} tokens and {len(types)} token types")
    return tokens, types


def _check_ids(header: Header) -> None:
    """Every special token's id must be one of the tokens'."""
    count = len(_tokens(header)[0])
    for key, value in header.settings.items():
        if key.startswith("tokenizer.ggml.") and key.endswith("_token_id"):
            if type(value) is not int or not 0 <= value < count:
                raise InputError(f"{header.file}: {key} is {value!r}, and there are {count} tokens")
    if "tokenizer.ggml.eos_token_id" not in header.settings:
        raise InputError(
            f"{header.file}: tokenizer.ggml.eos_token_id is missing: nothing would end"
        )


def _vocabulary(tokens: list[str]) -> dict[str, int]:
    """The first of a token's ids counts."""
    return {token: index for index, token in reversed(list(enumerate(tokens)))}


def _pre_tokenizer(header: Header) -> PreTokenizer:
    name: Any = header.settings.get("tokenizer.ggml.pre")
    if not isinstance(name, str) or name not in PRE_TOKENIZERS:
        _refuse(header, "tokenizer.ggml.pre", name, PRE_TOKENIZERS)
    return PRE_TOKENIZERS[name]


def _byte_level(header: Header) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers

    pre = _pre_tokenizer(header)
    merges = [tuple(merge.split(" ", 1)) for merge in _list(header, "merges", str)]
    if any(len(merge) != 2 for merge in merges):
        raise InputError(f"{header.file}: tokenizer.ggml.merges are not all of two tokens")
    vocabulary = _vocabulary(_tokens(header)[0])
    backend = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre.whole_words_first)
    )
    backend.pre_tokenizer = pre.build()
    backend.decoder = decoders.ByteLevel()
    if pre.nfc:
        backend.normalizer = normalizers.NFC()
    return backend


def _sentencepiece(header: Header) -> Any:
    """SentencePiece's BPE joins the pair whose union has the best score: merges in that order."""
    from tokenizers import Tokenizer, models

    tokens, types = _tokens(header)
    scores = _scores(header, len(tokens))
    vocabulary = _vocabulary(tokens)
    pieces = {t for t, kind in zip(tokens, types, strict=True) if kind in (NORMAL, USER_DEFINED)}
    merges = []
    for piece in pieces:
        score, index = scores[vocabulary[piece]], vocabulary[piece]
        for cut in range(1, min(len(piece), 64)):
            left, right = piece[:cut], piece[cut:]
            if left in pieces and right in pieces:
                merges.append((-score, index, vocabulary[left], vocabulary[right], left, right))
    unknown = _named(header, "unknown") or tokens[0]
    backend = Tokenizer(
        models.BPE(
            vocab=vocabulary,
            merges=[merge[-2:] for merge in sorted(merges)],
            unk_token=unknown,
            byte_fallback=BYTE in types,
            fuse_unk=True,
        )
    )
    return _with_spaces(header, backend)


def _unigram(header: Header) -> Any:
    from tokenizers import Tokenizer, models, normalizers

    tokens, types = _tokens(header)
    scores = _scores(header, len(tokens))
    unknown = header.settings.get("tokenizer.ggml.unknown_token_id", 0)
    pieces = list(zip(tokens, scores, strict=True))
    backend = _with_spaces(
        header, Tokenizer(models.Unigram(pieces, unk_id=unknown, byte_fallback=BYTE in types))
    )
    charsmap = header.settings.get("tokenizer.ggml.precompiled_charsmap")
    if charsmap is not None:
        first = normalizers.Precompiled(np.asarray(charsmap, np.uint8).tobytes())
        backend.normalizer = normalizers.Sequence([first, backend.normalizer])
    return backend


def _scores(header: Header, count: int) -> list[float]:
    scores = _list(header, "scores", float)
    if len(scores) != count or not np.isfinite(scores).all():
        raise InputError(f"{header.file}: tokenizer.ggml.scores are not {count} finite numbers")
    return scores


def _with_spaces(header: Header, backend: Any) -> Any:
    """Spaces as SentencePiece writes them, one in front of a text unless the file says no."""
    from tokenizers import decoders, normalizers

    prefix = bool(header.settings.get("tokenizer.ggml.add_space_prefix", True))
    replace = normalizers.Replace(" ", SPACE)
    backend.normalizer = (
        normalizers.Sequence([normalizers.Prepend(SPACE), replace]) if prefix else replace
    )
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if prefix else []))
    return backend


def _added_tokens(header: Header) -> dict[int, Any]:
    """The tokens that stand outside the merges, by id; control tokens are the special ones."""
    from tokenizers import AddedToken

    return {
        index: AddedToken(token, special=kind in (CONTROL, UNKNOWN), normalized=False)
        for index, (token, kind) in enumerate(zip(*_tokens(header), strict=True))
        if kind in (CONTROL, UNKNOWN, USER_DEFINED)
    }


def _named(header: Header, kind: str) -> str | None:
    index = header.settings.get(f"tokenizer.ggml.{kind}_token_id")
    return None if index is None else _tokens(header)[0][index]


def _tokenizer_config(header: Header) -> dict[str, Any]:
    settings = header.settings
    pre = PRE_TOKENIZERS.get(settings.get("tokenizer.ggml.pre", ""), PreTokenizer())
    adds_bos = settings.get("tokenizer.ggml.model") != "gpt2" or pre.bos
    template = settings.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise InputError(f"{header.file}: tokenizer.chat_template is not a text")
    plain = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
    return {
        # The generic class: "GPT2Tokenizer" would put its own pre-tokenizer in place of ours.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": _named(header, "bos"),
        "eos_token": _named(header, "eos"),
        "pad_token": _named(header, "padding"),
        "unk_token": _named(header, "unknown"),
        "add_bos_token": bool(settings.get("tokenizer.ggml.add_bos_token", adds_bos)),
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
        "added_tokens_decoder": {
            str(index): {"content": added.content, "special": added.special, **plain}
            for index, added in _added_tokens(header).items()
        },
    }


# ---- back into lists ----


def tokenizer_settings(backend: Any, rows: int) -> dict[str, Any]:
    """GGUF's lists for a tokenizer, `rows` long as the embedding is, under tokenizer.ggml's names.

    Raises InputError for a kind that GGUF has no name for.
    """
    raw = json.loads(backend.to_str())
    model = raw["model"]
    if model["type"] != "BPE":
        raise InputError(f"a {model['type']} tokenizer cannot be written as GGUF: use --to hf")
    tokens, types = _token_lists(backend, rows)
    pairs = [m if isinstance(m, list) else m.split(" ", 1) for m in model["merges"]]
    lists = {"tokens": tokens, "token_type": types}
    if "ByteLevel" in json.dumps(raw["pre_tokenizer"]):
        merges = [" ".join(pair) for pair in pairs]
        return {"model": "gpt2", "pre": _name_of(backend), "merges": merges, **lists}
    if not model.get("byte_fallback"):
        raise InputError("this tokenizer is neither byte-level nor SentencePiece's: use --to hf")
    prefix = "Prepend" in json.dumps(raw["normalizer"]) or "always" in json.dumps(
        raw["pre_tokenizer"]
    )
    scores = _scores_of(tokens, pairs)
    return {
        "model": "llama",
        "pre": "default",
        "scores": scores,
        "add_space_prefix": prefix,
        **lists,
    }


def _token_lists(backend: Any, rows: int) -> tuple[list[str], list[int]]:
    """Every id's token and type; ids without one are padding."""
    tokens = [f"[PAD{index}]" for index in range(rows)]
    types = [UNUSED] * rows
    for token, index in backend.get_vocab(with_added_tokens=True).items():
        if index >= rows:
            raise InputError(f"the token {token!r} has id {index}, the model only {rows} rows")
        is_byte = len(token) == 6 and token.startswith("<0x") and token.endswith(">")
        tokens[index], types[index] = token, BYTE if is_byte else NORMAL
    for index, added in backend.get_added_tokens_decoder().items():
        types[index] = CONTROL if added.special else USER_DEFINED
    return tokens, types


def _scores_of(tokens: list[str], pairs: list[Any]) -> list[float]:
    """Minus the place of the first merge that makes a token: the order is all that scores say."""
    first = {"".join(pair): place for place, pair in reversed(list(enumerate(pairs)))}
    return [-float(first.get(token, len(pairs))) for token in tokens]


def _name_of(backend: Any) -> str:
    """GGUF's word for a pre-tokenizer: the one that cuts a text full of traps as it does."""
    cut = backend.pre_tokenizer.pre_tokenize_str(PROBE)
    merges_last = json.loads(backend.to_str())["model"].get("ignore_merges", False)
    same = [
        name for name, pre in PRE_TOKENIZERS.items() if pre.build().pre_tokenize_str(PROBE) == cut
    ]
    if not same:
        raise InputError("GGUF has no name for this pre-tokenizer: use --to hf")
    fitting = [name for name in same if PRE_TOKENIZERS[name].whole_words_first == merges_last]
    return (fitting or same)[0]
